"""The three resizes against the programs that they are named after, and their scaling."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from PIL import Image

from genaug.evaluation import resizing
from genaug.types import UserError

SIZES = [(24, 40), (299, 299), (640, 7), (1, 1000)]
# Two roundings of float32 at 255.
LEVELS = 5e-5


def resized(images, matrix, out=299):
    return np.asarray(jax.jit(lambda x: resizing.resize(x, out, matrix))(images))


def images(height, width, channels=3):
    return recipe.noise(f"{height} x {width}", (2, height, width, channels))


@pytest.mark.parametrize("size", SIZES)
def test_legacy_bilinear_is_a_lerp_between_two_pixels_counted_from_the_corner(size):
    x = images(*size).astype(np.float32)
    want = x
    for axis in (1, 2):
        length = x.shape[axis]
        position = np.arange(299, dtype=np.float32) * np.float32(length / 299)
        low = position.astype(int)
        a, b = want.take(low, axis), want.take(np.minimum(low + 1, length - 1), axis)
        share = (position - low.astype(np.float32)).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        want = a + (b - a) * share
    np.testing.assert_allclose(resized(x, resizing.legacy_bilinear), want, rtol=0, atol=LEVELS)


@pytest.mark.parametrize("side", [24, 1000])
def test_legacy_bilinear_is_torch_fidelitys(side):
    fixture = np.load(Path(__file__).with_name("inception.npz"))
    x = recipe.noise("resized", (1, side, 40, 3))
    got = resized(x, resizing.legacy_bilinear)[0, ::23, ::29]
    np.testing.assert_allclose(got, fixture[f"resized_{side}"], rtol=0, atol=LEVELS)


@pytest.mark.parametrize("size", SIZES)
def test_bilinear_is_pytorchs(size):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
    x = images(*size)
    y = torch.tensor(x).permute(0, 3, 1, 2).float().contiguous()
    want = torch.nn.functional.interpolate(y, (299, 299), mode="bilinear", align_corners=False)
    got = resized(x, resizing.bilinear).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=LEVELS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out", [299, 32])
def test_bicubic_is_pillows(size, out):
    x = images(*size, channels=1)
    floats = (Image.fromarray(image[:, :, 0].astype(np.float32)) for image in x)
    want = [np.asarray(image.resize((out, out), Image.Resampling.BICUBIC)) for image in floats]
    got = resized(x, resizing.bicubic, out)[..., 0]
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * LEVELS)


@pytest.mark.parametrize("matrix", [resizing.legacy_bilinear, resizing.bilinear, resizing.bicubic])
@pytest.mark.parametrize("length", [1, 2, 28, 299, 500])
def test_every_row_of_a_matrix_is_a_mean(matrix, length):
    np.testing.assert_allclose(matrix(length, 299).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(matrix(299, 299), np.eye(299))


@pytest.mark.parametrize(
    "convention, black, white",
    [
        ("torch-fidelity", -1, 127 / 128),
        ("clean", -1, 127 / 128),
        ("pytorch-fid", -1, 1),
    ],
)
def test_the_conventions_scale_and_clip(convention, black, white):
    x = np.zeros((2, 8, 8, 1), np.uint8)
    x[:, :, 4:] = 255
    got = np.asarray(jax.jit(lambda x: resizing.preprocess(x, convention))(x))
    assert got.shape == (2, 299, 299, 3)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[..., :1], got[..., 1:2])
    # Bicubic would overshoot beside the edge.
    np.testing.assert_allclose([got.min(), got.max()], [black, white], rtol=1e-6)


def test_each_convention_has_its_own_resize():
    x = images(24, 40)
    matrices = {
        "torch-fidelity": resizing.legacy_bilinear,
        "pytorch-fid": resizing.bilinear,
        "clean": resizing.bicubic,
    }
    for convention, matrix in matrices.items():
        offset, scale = (127.5, 127.5) if convention == "pytorch-fid" else (128, 128)
        want = (np.clip(resized(x, matrix), 0, 255) - offset) / scale
        got = jax.jit(lambda x, c=convention: resizing.preprocess(x, c))(x)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


def test_refusals():
    with pytest.raises(UserError, match="round and clip"):
        resizing.preprocess(jnp.zeros((1, 8, 8, 3)), "clean")
    for shape in [(8, 8, 3), (1, 8, 8, 4), (1, 0, 8, 3)]:
        with pytest.raises(UserError, match="1 or 3 channels"):
            resizing.require_images(np.zeros(shape, np.uint8))
