"""Feature nets: any number of images on any mesh, names that claim no more than they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import efficientnet, features, frechet_distance, resizing
from genaug.evaluation import inception as inception_v3
from genaug.types import DataError, UserError

FID = "6726825d" + 56 * "0"


class Small(nn.Module):
    """Has the taps of both networks, and tells of every pixel it is given."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Conv(4, (3, 3), (2, 2), precision="highest")(x))
        y = jnp.mean(y, axis=(1, 2))
        return {"2048": y, "1280": y, "768": 2 * y, "40": 2 * y}


@pytest.mark.parametrize(
    "side, platform, count",
    [(32, "cpu", 64), (96, "cpu", 8), (224, "cpu", 2), (299, "cpu", 1), (2_000, "cpu", 1),
     (299, "tpu", 64)],
)  # fmt: skip
def test_a_cpu_takes_few_large_images_at_a_time(side, platform, count):
    assert features._at_a_time(side, platform) == count


@pytest.fixture
def small(monkeypatch):
    """`features` with a small network in the place of both; gives its parameters."""
    params = Small().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    weights = inception_v3.InceptionWeights(params, FID)
    monkeypatch.setattr(inception_v3, "read_inception", lambda *_, **__: weights)
    monkeypatch.setattr(inception_v3, "InceptionV3", Small)
    monkeypatch.setattr(inception_v3, "SIDE", 32)
    monkeypatch.setattr(efficientnet, "read_efficientnet", lambda *_: weights)
    monkeypatch.setattr(efficientnet, "EfficientNetLite0", Small)
    return params


def mesh(devices=1):
    return make_mesh(Mesh(data=devices))


def images(count, channels=3):
    return recipe.noise("images", (count, 12, 10, channels))


@pytest.mark.parametrize("convention", ["torch-fidelity", "pytorch-fid", "clean"])
def test_inception_is_the_network_of_preprocessed_images(small, convention):
    net = features.inception("a file", convention, mesh=mesh(), block=4)
    x = resizing.preprocess(jnp.asarray(images(6)), convention, 32)
    want = Small().apply({"params": small}, x)["2048"]
    np.testing.assert_allclose(net.apply(images(6)), want, rtol=1e-5)
    assert net.provenance == {
        "weights_sha256": FID,
        "resize": convention,
        "side": "32",
        "dtype": "float32",
    }


def test_efflite0_is_the_network_of_preprocessed_images(small):
    net = features.efflite0(48, mesh=mesh(), block=4)
    want = Small().apply({"params": small}, efficientnet.preprocess(jnp.asarray(images(6)), 48))
    np.testing.assert_allclose(net.apply(images(6)), want["1280"], rtol=1e-5)
    assert net.provenance["side"] == "48"
    other = features.efflite0(48, "40", mesh=mesh(), block=4)
    np.testing.assert_allclose(other.apply(images(6)), 2 * want["1280"], rtol=1e-5)
    assert (net.distance_name, other.distance_name) == ("fd/efflite0", "fd/efflite0-40")


def test_only_fids_features_of_fids_weights_are_called_fid(small):
    fid = features.inception("a file", "clean", mesh=mesh())
    assert (fid.name, fid.is_fid, fid.distance_name) == ("inception-2048", True, "fid")
    early = features.inception("a file", tap="768", mesh=mesh())
    assert (early.is_fid, early.distance_name) == (False, "fd/inception-768")
    assert not features.is_fid("0" + FID, "2048")
    assert features.pixels().distance_name == "fd/pixels"
    assert features.of(lambda x: x, "classifier").distance_name == "fd/classifier"


@pytest.mark.parametrize("count", [1, 5, 16, 21])
def test_neither_block_nor_mesh_changes_a_feature(small, count):
    want = features.efflite0(32, mesh=mesh(), block=64).apply(images(count))
    assert want.shape == (count, 4)
    assert want.dtype == np.float32
    for devices, block in [(1, 1), (1, 8), (2, 3), (8, 8), (8, None)]:
        net = features.efflite0(32, mesh=mesh(devices), block=block)
        np.testing.assert_allclose(net.apply(images(count)), want, rtol=2e-6)


def test_one_program_whatever_the_number_of_images(small, caplog):
    net = features.efflite0(32, mesh=mesh(2), block=8)
    net.apply(images(3))
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        for count in (1, 8, 20):
            net.apply(images(count))
        assert not [r for r in caplog.records if "Compiling" in r.getMessage()]
        net.apply(images(3, channels=1))
        assert [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_gray_is_the_same_as_three_equal_channels(small):
    net = features.efflite0(32, mesh=mesh(), block=4)
    gray = images(4, channels=1)
    np.testing.assert_allclose(net.apply(gray), net.apply(gray.repeat(3, axis=3)), rtol=1e-6)


def test_pixels():
    found = features.pixels().apply(images(5))
    assert found.shape == (5, 360)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, images(5).reshape(5, -1) / 255, rtol=1e-6)
    np.testing.assert_array_equal(features.pixels().apply(np.full((2, 3), 300.0)), 300)
    assert frechet_distance(found, found) == 0


def test_any_function_is_a_feature_net():
    net = features.of(lambda x: x.mean(axis=(1, 2)), "means", {"from": "nowhere"})
    np.testing.assert_allclose(net.apply(images(5)), images(5).mean(axis=(1, 2)))
    assert (net.name, dict(net.provenance)) == ("means", {"from": "nowhere"})
    with pytest.raises(UserError, match="no name"):
        features.of(lambda x: x, "")
    with pytest.raises(UserError, match=r"shape \(5, 12, 10, 3\).*one row"):
        features.of(lambda x: x, "same").apply(images(5))
    with pytest.raises(UserError, match="one row"):
        features.of(lambda x: x[:3, 0, 0], "short").apply(images(5))
    with pytest.raises(UserError, match="no examples"):
        net.apply(images(5)[:0])


def test_nan_is_an_error():
    def function(x):
        return np.log(x[:, :1, 0, 0].astype(float) - 1)

    examples = images(4)
    examples[:, 0, 0, 0] = [9, 9, 0, 1]
    with np.errstate(all="ignore"), pytest.raises(DataError, match=r"of 2 examples.*example 2"):
        features.of(function, "logarithms").apply(examples)


def test_refusals(small):
    net = features.inception("a file", mesh=mesh(), block=4)
    with pytest.raises(UserError, match=r"float64.*round and clip"):
        net.apply(images(2) / 255)
    with pytest.raises(UserError, match="1 or 3 channels"):
        net.apply(images(2).repeat(2, axis=3))
    with pytest.raises(UserError, match="no examples"):
        net.apply(images(2)[:0])
    with pytest.raises(UserError, match="at least 1 image"):
        features.efflite0(32, block=0)
    with pytest.raises(UserError, match="at least 32"):
        features.efflite0(16)
    # The types refuse these first, where types are checked.
    with pytest.raises(UserError, match=r"no tap '99'.*64, 192"):
        features._require_one_of("tap", "99", ("64", "192"))
