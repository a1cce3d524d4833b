"""Examples as a source gives them, before they are stored, and the rules that shape images.

Rules, the same for every source:
- alpha is composited on a gray background, never dropped;
- resizing scales the shortest side to the wanted size (Lanczos), then crops the centre;
- gray becomes RGB by repetition, RGB becomes gray by ITU-R 601 luma (Pillow's "L").
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, Int64, UInt8

from genaug.data.config import Data, Sound
from genaug.types import DataError

IN_MEMORY_BYTES = 512 * 2**20
"""Decoded images up to this size are kept in memory; beyond it they stay on disk."""

ONE_CLASS = "image"
"""The class of images that come without classes."""


@dataclass(frozen=True, kw_only=True)
class Raw:
    """All examples of a source, in its own order.

    `ids` are positions in the source; `preset_test` marks the source's own test split; `sound` says
    how the images were made of sounds.
    """

    name: str
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]
    ids: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]
    preset_test: Bool[np.ndarray, " n"] | None = None
    licence: str
    origin: str
    sound: Sound | None = None


def composite(image: UInt8[np.ndarray, "*b h w ca"], background: int) -> np.ndarray:
    """Colour over a gray level by the alpha in the last channel: uint8 [..., c+1] to [..., c]."""
    colour, alpha = image[..., :-1].astype(np.uint32), image[..., -1:].astype(np.uint32)
    return ((colour * alpha + background * (255 - alpha) + 127) // 255).astype(np.uint8)


def shape_image(image: UInt8[np.ndarray, "h w c"], config: Data) -> UInt8[np.ndarray, "h2 w2 c2"]:
    """Apply `config.channels` and `config.image_size` to one image of 1 or 3 channels."""
    from PIL import Image

    channels, size = config.channels or image.shape[-1], config.image_size
    already = size is None or image.shape[:2] == (size, size)
    if already and channels == image.shape[-1]:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None:
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)


def buffer(shape: tuple[int, ...]) -> np.ndarray:
    """An uint8 array to fill: in memory, or in a nameless temporary file if it is large."""
    if int(np.prod(shape, dtype=np.int64)) <= IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the handle
        return np.memmap(file, np.uint8, mode="w+", shape=shape)


def stack(
    names: Sequence[str], read: Callable[[int], np.ndarray], config: Data
) -> tuple[UInt8[np.ndarray, "n h w c"], Int64[np.ndarray, " n"]]:
    """Read and shape all images; return them with the positions that were kept.

    `read(i)` gives uint8 [h, w, 1 or 3] or raises DataError (left out under `config.skip_bad`).
    Raises DataError, with the shapes that occur, if the images do not agree.
    """
    images: np.ndarray | None = None
    kept: list[int] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    first: dict[tuple[int, ...], str] = {}
    for index, name in enumerate(names):
        try:
            image = shape_image(read(index), config)
        except DataError as error:
            if not config.skip_bad:
                raise
            logging.warning("left out: %s", error)
            continue
        shapes[image.shape] += 1
        first.setdefault(image.shape, name)
        if images is None:
            images = buffer((len(names), *image.shape))
        if len(shapes) == 1:
            images[len(kept)] = image
            kept.append(index)
    if images is None:
        raise DataError("no readable image: the source is empty or every image was left out")
    if len(shapes) > 1:
        raise _disagreement(shapes, first)
    return images[: len(kept)], np.asarray(kept, np.int64)


def _disagreement(shapes: Counter[tuple[int, ...]], first: dict[tuple[int, ...], str]) -> DataError:
    """Say what differs, how often, with one file for each, and which option settles it."""
    if len({shape[-1] for shape in shapes}) > 1:
        kinds: Counter[int] = Counter()
        example: dict[int, str] = {}
        for shape, count in shapes.items():
            kinds[shape[-1]] += count
            example.setdefault(shape[-1], first[shape])
        found = ", ".join(f"{n} with {c} (e.g. {example[c]})" for c, n in kinds.most_common())
        return DataError(
            f"images differ in channels: {found}; "
            "choose with --data.channels 1 or --data.channels 3"
        )
    most = shapes.most_common(3)
    found = ", ".join(f"{n} of {h}x{w} (e.g. {first[h, w, c]})" for (h, w, c), n in most)
    more = f" and {len(shapes) - 3} more sizes" if len(shapes) > 3 else ""
    return DataError(
        f"images differ in size (height x width): {found}{more}; "
        f"give one side for all, e.g. --data.image-size {min(most[0][0][:2])}"
    )
