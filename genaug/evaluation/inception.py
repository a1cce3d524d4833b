"""The Inception v3 network of FID, from PyTorch's file of its weights.

Szegedy et al. 2016 (Rethinking the Inception architecture, section 6) as released in TensorFlow on
2015-12-05 and used by Heusel et al. 2017. It is not torchvision's: 1008 outputs, average pools that
leave the padding out of the divisor, and a maximum pool in the last block. Every batch norm is
folded into its convolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from genaug.evaluation.frozen import Conv, Padding, folded, require_sound
from genaug.evaluation.torch_file import read_state_dict
from genaug.types import DataError

Tap = Literal["64", "192", "768", "2048", "logits_unbiased", "logits"]
SIDE = 299
SHA256_PREFIX = "6726825d"
"""Of the weights whose 2048 features make a Fréchet distance an FID."""

_WHAT = (
    "the weights of the FID Inception network, pt_inception-2015-12-05-6726825d.pth of pytorch-fid "
    "(github.com/mseitzer/pytorch-fid, release fid_weights) or "
    "weights-inception-2015-12-05-6726825d.pth of torch-fidelity (release v0.2.0)"
)
_EPSILON = 1e-3

Kernel = tuple[int, int]
Step = tuple[str, int, Kernel]
"""A convolution by its name in the file, its channels and its kernel."""


class InceptionWeights(NamedTuple):
    """Parameters of `InceptionV3`, and the sha256 of the file they are from."""

    params: Mapping[str, Any]
    sha256: str


def _conv(
    x: Array,
    name: str,
    features: int,
    kernel: Kernel = (1, 1),
    stride: int = 1,
    padding: Padding = "SAME",
) -> Array:
    return nn.relu(Conv(features, kernel, stride, padding, name=name)(x))


def _chain(x: Array, *steps: Step) -> Array:
    for step in steps:
        x = _conv(x, *step)
    return x


def _halved(x: Array, *steps: Step) -> Array:
    """A chain whose last convolution halves the image, without padding."""
    return _conv(_chain(x, *steps[:-1]), *steps[-1], 2, "VALID")


def _forked(x: Array, left: Step, right: Step) -> list[Array]:
    return [_chain(x, left), _chain(x, right)]


def _average(x: Array) -> Array:
    """Over 3 x 3 pixels, of those that there are."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _maximum(x: Array, stride: int, padding: Padding) -> Array:
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


class BlockA(nn.Module):
    """35 x 35 pixels (Szegedy et al. 2016, fig. 5, with one 5 x 5)."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n h w f"]:
        """Four branches side by side."""
        branches = [
            _chain(x, ("branch1x1", 64, (1, 1))),
            _chain(x, ("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
            _chain(
                x,
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
            _chain(_average(x), ("branch_pool", self.pool_features, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=3)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17 pixels (fig. 10)."""

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n oh ow f"]:
        """Two branches and the maximum side by side."""
        branches = [
            _halved(x, ("branch3x3", 384, (3, 3))),
            _halved(
                x,
                ("branch3x3dbl_1", 64, (1, 1)),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
            _maximum(x, 2, "VALID"),
        ]
        return jnp.concatenate(branches, axis=3)


class BlockC(nn.Module):
    """17 x 17 pixels, 7 x 7 convolutions as rows and columns (fig. 6)."""

    inner: int

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n h w 768"]:
        """Four branches side by side."""
        branches = [
            _chain(x, ("branch1x1", 192, (1, 1))),
            _chain(
                x,
                ("branch7x7_1", self.inner, (1, 1)),
                ("branch7x7_2", self.inner, (1, 7)),
                ("branch7x7_3", 192, (7, 1)),
            ),
            _chain(
                x,
                ("branch7x7dbl_1", self.inner, (1, 1)),
                ("branch7x7dbl_2", self.inner, (7, 1)),
                ("branch7x7dbl_3", self.inner, (1, 7)),
                ("branch7x7dbl_4", self.inner, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ),
            _chain(_average(x), ("branch_pool", 192, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=3)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8 pixels."""

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n oh ow f"]:
        """Two branches and the maximum side by side."""
        branches = [
            _halved(x, ("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
            _halved(
                x,
                ("branch7x7x3_1", 192, (1, 1)),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, (3, 3)),
            ),
            _maximum(x, 2, "VALID"),
        ]
        return jnp.concatenate(branches, axis=3)


class BlockE(nn.Module):
    """8 x 8 pixels, branches that fork (fig. 7)."""

    takes_maximum: bool

    @nn.compact
    def __call__(self, x: Float32[Array, "n h w c"]) -> Float32[Array, "n h w 2048"]:
        """Four branches, two of them forked, side by side."""
        single = _chain(x, ("branch3x3_1", 384, (1, 1)))
        double = _chain(x, ("branch3x3dbl_1", 448, (1, 1)), ("branch3x3dbl_2", 384, (3, 3)))
        pooled = _maximum(x, 1, "SAME") if self.takes_maximum else _average(x)
        branches = [
            _chain(x, ("branch1x1", 320, (1, 1))),
            *_forked(single, ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))),
            *_forked(double, ("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))),
            _chain(pooled, ("branch_pool", 192, (1, 1))),
        ]
        return jnp.concatenate(branches, axis=3)


class InceptionV3(nn.Module):
    """The network; modules are named as in the file."""

    @nn.compact
    def __call__(self, x: Float32[Array, "n 299 299 3"]) -> dict[str, Float32[Array, "n d"]]:
        """All taps, by name, averaged over their pixels. Under jit, unused ones cost nothing.

        "64" and "192" follow the two maximum pools, "768" block 6e, "2048" is the last layer
        before the logits, with ("logits") and without their bias ("logits_unbiased").
        """
        taps = {}

        def tap(name: str, x: Array) -> Array:
            taps[name] = jnp.mean(x, axis=(1, 2))
            return x

        x = _conv(x, "Conv2d_1a_3x3", 32, (3, 3), 2, "VALID")
        x = _conv(x, "Conv2d_2a_3x3", 32, (3, 3), 1, "VALID")
        x = _conv(x, "Conv2d_2b_3x3", 64, (3, 3))
        x = tap("64", _maximum(x, 2, "VALID"))
        x = _conv(x, "Conv2d_3b_1x1", 80)
        x = _conv(x, "Conv2d_4a_3x3", 192, (3, 3), 1, "VALID")
        x = tap("192", _maximum(x, 2, "VALID"))
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pool_features, name=name)(x)
        x = BlockB(name="Mixed_6a")(x)
        inner = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
        for name, features in inner.items():
            x = BlockC(features, name=name)(x)
        x = BlockD(name="Mixed_7a")(tap("768", x))
        x = BlockE(takes_maximum=False, name="Mixed_7b")(x)
        x = tap("2048", BlockE(takes_maximum=True, name="Mixed_7c")(x))
        logits = nn.Dense(1008, use_bias=False, precision="highest", name="fc")(taps["2048"])
        bias = self.param("fc_bias", nn.initializers.zeros_init(), (1008,))
        return {**taps, "logits_unbiased": logits, "logits": logits + bias[None]}


def inception_shapes() -> dict[str, Any]:
    """Shapes of the parameters, without computing any."""
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), image)["params"]


def inception_params(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters from the arrays of a PyTorch state dict (`num_batches_tracked` is not read).

    Raises:
        DataError: arrays that are missing, of another network's shape, or not finite.
    """

    def fill(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
        if "kernel" in tree:
            return folded(arrays, f"{path}.conv", f"{path}.bn", _EPSILON)
        return {name: fill(part, f"{path}.{name}".lstrip(".")) for name, part in tree.items()}

    shapes = inception_shapes()
    blocks = {name: part for name, part in shapes.items() if not name.startswith("fc")}
    try:
        params = fill(blocks, "")
        params["fc"] = {"kernel": np.ascontiguousarray(arrays["fc.weight"].T, np.float32)}
        params["fc_bias"] = np.array(arrays["fc.bias"], np.float32)
    except KeyError as error:
        raise DataError(f"no Inception network of FID: the array {error} is missing") from error
    require_sound(params, shapes, "Inception network of FID")
    return params


def read_inception(
    path: str | Path, *, expected_sha256_prefix: str | None = SHA256_PREFIX
) -> InceptionWeights:
    """The network's parameters from PyTorch's file, which people download themselves.

    Raises:
        UserError: no such file, another file than that of the paper, or a damaged one.
    """
    found = read_state_dict(path, expected_sha256_prefix=expected_sha256_prefix, what=_WHAT)
    return InceptionWeights(inception_params(found.arrays), found.sha256)
