"""A folder of class folders, or of files of one class, with an optional train/ and test/ level.

The files are images, or sounds (`genaug.data.sound_files`). How images become uint8: EXIF rotation
is applied; palette, CMYK, YCbCr become RGB; bilevel becomes gray; 16-bit gray v becomes
round(v / 257); 16-bit colour keeps its high byte (as Pillow reads it); transparency of any kind is
composited on the background; of an animation the first frame counts.
"""

from __future__ import annotations

import os
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import UInt8

from genaug.data.config import Data
from genaug.data.raw import ONE_CLASS, Raw, composite, stack
from genaug.data.sound_files import read_sounds
from genaug.types import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SOUNDS = (".wav",)
_CLUTTER = {"thumbs.db", "desktop.ini"}


def read_folder(root: Path, config: Data) -> Raw:
    """All examples below `root`, by class in sorted order. Raises DataError naming the file."""
    parts = _parts(root)
    class_names = tuple(_classes(parts["train"]))
    refuse_lookalikes(class_names, parts["train"])
    files: list[Path] = []
    labels: list[int] = []
    tests: list[bool] = []
    for part, folder in parts.items():
        for name, path in _classes(folder).items():
            if name not in class_names:
                raise DataError(
                    f"class {name!r} is in {folder} but has no folder in {parts['train']}: "
                    "a class must have training images"
                )
            found = list(_files(path, root))
            if not found:
                raise DataError(
                    f"class {name!r} has no images and no sounds: {path} holds no "
                    f"{' '.join(IMAGES + SOUNDS)} file; add some or remove the folder"
                )
            files += found
            labels += [class_names.index(name)] * len(found)
            tests += [part == "test"] * len(found)
    names = [str(path.relative_to(root)) for path in files]
    sound = config.sound if _are_sounds(files) else None
    if sound:
        images, ids = read_sounds(names, files, config)
    else:
        images, ids = stack(names, lambda i: decode(files[i], config.background), config)
    return Raw(
        name=root.resolve().name,
        images=images,
        labels=np.asarray(labels, np.int32)[ids],
        ids=ids,
        class_names=class_names,
        preset_test=np.asarray(tests)[ids] if "test" in parts else None,
        licence="not stated",
        origin=f"{'sound' if sound else 'image'} folder {root}",
        sound=sound,
    )


def _are_sounds(files: Sequence[Path]) -> bool:
    """Whether the files are sounds rather than images. Raises DataError if they are both."""
    of_sound = [path.suffix.lower() in SOUNDS for path in files]
    if any(of_sound) and not all(of_sound):
        one, other = files[of_sound.index(True)], files[of_sound.index(False)]
        raise DataError(
            f"there are sounds ({one}) and images ({other}) in one folder: move one kind out of it"
        )
    return all(of_sound)


def decode(path: Path, background: int) -> UInt8[np.ndarray, "h w c"]:
    """One image file as uint8 with 1 or 3 channels. Raises DataError naming the file and fix."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # Pillow only warns between its pixel limit and twice that; here the limit is the limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                return _pixels(ImageOps.exif_transpose(file), background)
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise DataError(
            f"cannot read image {path}: {str(error).strip() or type(error).__name__}; "
            "repair or remove it, or leave such files out with --data.skip-bad"
        ) from error


def _pixels(image, background: int) -> np.ndarray:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if np.min(values) < 0 or np.max(values) > 65535:
            raise ValueError(f"gray values {np.min(values)} to {np.max(values)} exceed 16 bits")
        return ((values + 128) // 257).astype(np.uint8)[..., None]
    alpha = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        pixels = np.asarray(image.convert("LA" if alpha else "L"))
    else:
        pixels = np.asarray(image.convert("RGBA" if alpha else "RGB"))
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return composite(pixels, background) if alpha else pixels


def _parts(root: Path) -> dict[str, Path]:
    """The folders that hold class folders: `root` itself, or its train/ and test/."""
    names = {path.name for path in subfolders_of(root, root)}
    if names == {"train"}:
        return {"train": root / "train"}
    if not {"train", "test"} <= names:
        return {"train": root}
    if extra := sorted(names - {"train", "test"}):
        raise DataError(
            f"{root} holds train/ and test/ and also {', '.join(extra)}: move these into train/ "
            "(validation images are split off it) or out of the folder"
        )
    return {"train": root / "train", "test": root / "test"}


def _classes(part: Path) -> dict[str, Path]:
    """The class folders by name; `part` itself where it holds none, but images."""
    if folders := subfolders_of(part, part):
        return {path.name: path for path in folders}
    if any(path.suffix.lower() in IMAGES + SOUNDS for path in part.iterdir()):
        return {ONE_CLASS: part}
    raise DataError(
        f"{part} holds no class folders, no images and no sounds: put the files into one subfolder "
        "a class"
    )


def subfolders_of(parent: Path, root: Path) -> list[Path]:
    """Sorted by name, not by the file system's order, which differs between machines."""
    found = sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    for path in found:
        refuse_escape(path, root)
    return found


def _files(folder: Path, root: Path) -> Iterator[Path]:
    """Files of examples at any depth, sorted. Clutter is passed over, other files logged."""
    others = 0
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in [*subfolders, *sorted(names)]:
            path = Path(parent, name)
            refuse_escape(path, root)
            if name in subfolders or name.startswith(".") or name.lower() in _CLUTTER:
                continue
            if path.suffix.lower() in IMAGES + SOUNDS:
                yield path
            else:
                others += 1
    if others:
        logging.warning(
            "%s: %d files that are neither images nor sounds were passed over", folder, others
        )


def refuse_escape(path: Path, root: Path) -> None:
    """Nothing outside the folder that was named is read."""
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{path} is a symbolic link that leaves {root}: copy the file into the folder instead"
        )


def refuse_lookalikes(names: tuple[str, ...], folder: Path) -> None:
    """Two spellings of one class are two classes here and one on another file system."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise DataError(f"classes {other!r} and {name!r} in {folder} differ only in spelling")
