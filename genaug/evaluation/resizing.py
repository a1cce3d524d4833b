"""Images to a feature network's size, by the three conventions in which FID is computed.

Each is separable: one interpolation matrix for the rows and one for the columns. They differ by
more than models do (Parmar et al. 2022), so a result names its convention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Float64, Shaped

from genaug.types import UserError

Convention = Literal["torch-fidelity", "pytorch-fid", "clean"]
"""By the program whose numbers it reproduces; "clean" is clean-fid's."""


def legacy_bilinear(size: int, out: int) -> Float64[np.ndarray, "{out} {size}"]:
    """TensorFlow 1's bilinear interpolation: pixel i is read at i * size / out, not antialiased.

    TensorFlow 1.15, core/kernels/image_resizer_state.h and resize_bilinear_op.cc (legacy scaler).
    """
    # In float32, as there: in long rows the rounding of a position is seen in the pixels.
    return _between(np.arange(out, dtype=np.float32) * np.float32(size / out), size)


def bilinear(size: int, out: int) -> Float64[np.ndarray, "{out} {size}"]:
    """PyTorch's: pixel i is read at (i + 1/2) * size / out - 1/2, not antialiased.

    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`.
    """
    # In float32, as there, but rounded once: scale * x - 1/2 is there one fused instruction.
    scale = np.float64(np.float32(size / out))
    position = (scale * (np.arange(out) + 0.5) - 0.5).astype(np.float32)
    return _between(np.maximum(position, 0), size)


def bicubic(size: int, out: int) -> Float64[np.ndarray, "{out} {size}"]:
    """Pillow's: Keys' cubic (1981; a = -1/2), widened when it shrinks an image.

    Weights outside the image are left out and the others sum to 1.
    """
    scale = max(size / out, 1.0)
    centres = (np.arange(out) + 0.5) * size / out
    # Pillow also cuts the support to whole pixels.
    first = np.maximum(np.floor(centres - 2 * scale + 0.5), 0)[:, None]
    end = np.minimum(np.floor(centres + 2 * scale + 0.5), size)[:, None]
    pixels = np.arange(size)[None, :]
    x = np.abs(pixels + 0.5 - centres[:, None]) / scale
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights = np.where((pixels >= first) & (pixels < end), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _between(position: np.ndarray, size: int) -> Float64[np.ndarray, "out {size}"]:
    """The matrix that reads at float32 positions between two neighbours, the last one repeated."""
    low = np.floor(position).astype(int)
    share = (position - low.astype(np.float32)).astype(np.float64)
    rows, matrix = np.arange(len(position)), np.zeros((len(position), size))
    np.add.at(matrix, (rows, np.minimum(low, size - 1)), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    return matrix


def resize(
    images: Shaped[Array, "n h w c"], out: int, matrix: Callable[[int, int], np.ndarray]
) -> Float32[Array, "n {out} {out} c"]:
    """Every image to out x out, levels kept, by the matrix for its height and that for its width.

    The matrices depend on shapes alone: under jit they are computed once, while it is traced.
    """
    _, height, width, _ = images.shape
    x = images.astype(jnp.float32)
    down, across = (matrix(size, out).astype(np.float32) for size in (height, width))
    x = jnp.einsum("pw,nhwc->nhpc", across, x, precision="highest")
    return jnp.einsum("oh,nhpc->nopc", down, x, precision="highest")


def preprocess(
    images: Shaped[Array, "n h w c"], convention: Convention, out: int = 299
) -> Float32[Array, "n {out} {out} 3"]:
    """Images as the Inception network reads them: resized, in three channels, about -1 to 1.

    Args:
        images: uint8, with 1 channel (repeated) or 3.
        convention: "torch-fidelity": TensorFlow 1's resize and (x - 128) / 128.
            "pytorch-fid": PyTorch's resize and (x - 127.5) / 127.5.
            "clean": Pillow's antialiased bicubic, clipped to 0..255 but not rounded, and
            (x - 128) / 128.
        out: the network's side in pixels.

    Raises:
        UserError: other dtypes or channels, or an unknown convention.
    """
    require_images(images)
    if convention == "torch-fidelity":
        x = (resize(images, out, legacy_bilinear) - 128) / 128
    elif convention == "pytorch-fid":
        x = (resize(images, out, bilinear) - 127.5) / 127.5
    elif convention == "clean":
        x = (clipped_bicubic(images, out) - 128) / 128
    else:
        raise UserError(f"no convention {convention!r}: use torch-fidelity, pytorch-fid or clean")
    return in_colour(x)


def clipped_bicubic(
    images: Shaped[Array, "n h w c"], out: int
) -> Float32[Array, "n {out} {out} c"]:
    """Pillow's antialiased bicubic resize of float images, clipped to 0..255."""
    return jnp.clip(resize(images, out, bicubic), 0, 255)


def in_colour(x: Float32[Array, "n h w c"]) -> Float32[Array, "n h w 3"]:
    """Gray repeated to three channels."""
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


def require_images(images: Shaped[Array | np.ndarray, "*shape"]) -> None:
    """Raise `UserError` unless these are uint8 images [n, h, w, 1 or 3]."""
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:3]:
        raise UserError(
            f"images have the shape {tuple(images.shape)}: give [n, height, width, channels] with "
            "1 or 3 channels"
        )
    if images.dtype != np.uint8:
        # Floats would carry levels that real images, read from files, cannot have.
        raise UserError(
            f"images are {images.dtype}: feature networks read uint8; round and clip to 0..255 "
            "first (np.clip(np.rint(x), 0, 255).astype(np.uint8) of levels from 0 to 255)"
        )
