"""Arrays in an .npz file: images and labels checked and brought to uint8 [n, h, w, c], int32 [n].

How pixels become uint8: uint8 is kept; bool becomes 0 and 255; other integers must lie in 0..255;
floats go through the declared range, `round((x - low) / (high - low) * 255)`.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from genaug.data.config import Data
from genaug.data.raw import ONE_CLASS, Raw, composite, stack
from genaug.types import DataError

_TRAIN_KEYS = (
    ("image", "label"),
    ("images", "labels"),
    ("x", "y"),
    ("x_train", "y_train"),
    ("arr_0", "arr_1"),
)
_TEST_KEYS = (("test_image", "test_label"), ("test_images", "test_labels"), ("x_test", "y_test"))


def read_npz(path: Path, config: Data) -> Raw:
    """An .npz with image and label arrays, and optionally a test split and class names.

    Keys: image/label, images/labels, x/y, x_train/y_train or arr_0/arr_1; for the test split
    test_image/test_label, test_images/test_labels or x_test/y_test; class_names. Images without
    labels, alone in the file, are of one class.
    Raises DataError naming the array, the index and the value that is wrong.
    """
    arrays = _load(path)
    if len(arrays) == 1 and (key := next(iter(arrays))) in dict(_TRAIN_KEYS):
        arrays[dict(_TRAIN_KEYS)[key]] = np.zeros(arrays[key].shape[:1], np.int32)
        arrays["class_names"] = np.array([ONE_CLASS])
    train = _pair(arrays, _TRAIN_KEYS)
    if train is None:
        raise DataError(
            f"{path} has the arrays {', '.join(arrays) or 'none'}; expected one of "
            + ", ".join("/".join(pair) for pair in _TRAIN_KEYS)
        )
    pairs = [train] if (test := _pair(arrays, _TEST_KEYS)) is None else [train, test]
    images = [_one_part(path, arrays, pair, config) for pair in pairs]
    names = arrays.get("class_names")
    labels, class_names = check_labels(
        _join([_label_vector(path, key, arrays[key]) for _, key in pairs], f"{path}: labels"),
        None if names is None else tuple(str(name) for name in names.tolist()),
        where=str(path),
    )
    pixels = _join(images, f"{path}: images")
    shaped, ids = stack([f"{path}[{i}]" for i in range(len(pixels))], pixels.__getitem__, config)
    return Raw(
        name=path.stem,
        images=shaped,
        labels=labels[ids],
        ids=ids,
        class_names=class_names,
        preset_test=None if test is None else np.arange(len(pixels)) >= len(images[0]),
        licence="not stated",
        origin=f"array file {path}",
    )


def check_images(array: np.ndarray, config: Data, *, where: str) -> UInt8[np.ndarray, "n h w c"]:
    """Any image array [n, h, w] or [n, h, w, 1|3|4] as uint8 with 1 or 3 channels."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or not array.size:
        raise DataError(f"{where}: shape {array.shape}; expected [n, h, w] or [n, h, w, channels]")
    if array.shape[-1] not in (1, 3, 4):
        hint = "expected 1, 3 or 4 channels last"
        if array.shape[1] in (1, 3, 4):
            hint = "looks channel-first: write np.moveaxis(images, 1, -1) instead"
        raise DataError(f"{where}: shape {array.shape}; {hint}")
    pixels = _to_uint8(array, config.float_range, where)
    return composite(pixels, config.background) if pixels.shape[-1] == 4 else pixels


def check_labels(
    labels: np.ndarray, class_names: tuple[str, ...] | None, *, where: str
) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Labels as int32 from 0, with a name for each class. Strings are numbered in sorted order."""
    if labels.dtype.kind in "US":
        if labels.dtype.kind == "S":
            labels = np.char.decode(labels, "utf-8")
        found, codes = np.unique(labels, return_inverse=True)
        names = class_names or tuple(found.tolist())
        if unknown := [name for name in found.tolist() if name not in names]:
            raise DataError(f"{where}: label {unknown[0]!r} is not in class_names {list(names)}")
        order = np.asarray([names.index(name) for name in found.tolist()], np.int32)
        return order[codes], names
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels are {labels.dtype}; expected integers from 0, or strings")
    count = len(class_names) if class_names else max(int(labels.max()) + 1, 1)
    based = " (they look 1-based: subtract 1)" if labels.min() == 1 else ""
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        raise DataError(
            f"{where}: label[{wrong[0]}] is {labels[wrong[0]]}; allowed are 0 to {count - 1}"
            f"{based} ({len(wrong)} labels are outside)"
        )
    if based and class_names is None:
        raise DataError(f"{where}: labels run from 1 to {count - 1} and none is 0{based}")
    return labels.astype(np.int32), class_names or tuple(str(i) for i in range(count))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        # Opened here, for NumPy leaves the file open when it is damaged.
        with path.open("rb") as handle:
            file = np.load(handle, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it is a single array")
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                f"{path} holds pickled Python objects, which could run code and are never read: "
                "save plain numeric arrays (images of one size, labels as integers or dtype 'U')"
            ) from error
        raise DataError(f"cannot read {path}: {error}; is it an .npz file?") from error


def _pair(
    arrays: dict[str, np.ndarray], keys: tuple[tuple[str, str], ...]
) -> tuple[str, str] | None:
    return next((pair for pair in keys if pair[0] in arrays and pair[1] in arrays), None)


def _one_part(
    path: Path, arrays: dict[str, np.ndarray], pair: tuple[str, str], config: Data
) -> np.ndarray:
    images = check_images(arrays[pair[0]], config, where=f"{path}: {pair[0]}")
    labels = _label_vector(path, pair[1], arrays[pair[1]])
    if len(images) != len(labels):
        raise DataError(f"{path}: {len(images)} {pair[0]} but {len(labels)} {pair[1]}")
    return images


def _label_vector(path: Path, key: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras writes CIFAR
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{path}: {key} has shape {labels.shape}; expected [n] (not one-hot)")
    return labels


def _join(parts: list[np.ndarray], what: str) -> np.ndarray:
    if len({part.shape[1:] for part in parts}) > 1 or len({part.dtype.kind for part in parts}) > 1:
        found = " and ".join(f"{part.dtype} {list(part.shape)}" for part in parts)
        raise DataError(f"{what} of the training and the test split do not fit together: {found}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _to_uint8(array: np.ndarray, float_range: tuple[float, float], where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        return _float_to_uint8(array, float_range, where)
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: dtype {array.dtype}; expected uint8, integers or floats")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 255:
        raise DataError(f"{where}: {array.dtype} values from {low} to {high}; expected 0 to 255")
    return array.astype(np.uint8)


def _float_to_uint8(array: np.ndarray, float_range: tuple[float, float], where: str) -> np.ndarray:
    finite = np.isfinite(array).reshape(len(array), -1)
    if not finite.all():
        first = int(np.flatnonzero(~finite.all(axis=1))[0])
        raise DataError(
            f"{where}: {int((~finite).sum())} values are NaN or infinite, "
            f"the first in image {first}"
        )
    low, high = float_range
    found = float(array.min()), float(array.max())
    if found[0] < low or found[1] > high:
        raise DataError(
            f"{where}: {array.dtype} values from {found[0]:g} to {found[1]:g}, outside the "
            f"declared range {low:g} to {high:g}; declare theirs, e.g. --data.float-range 0 255, "
            "or save bytes"
        )
    return np.rint((array - low) / (high - low) * 255).astype(np.uint8)
