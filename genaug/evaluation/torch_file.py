"""A PyTorch state dict read without PyTorch, and without running what the file says.

`torch.save` writes a pickle of names, shapes and strides, and the numbers beside it: as entries of
a zip archive (since PyTorch 1.6) or after one another in one file (before). A pickle can call any
function; this reader knows three kinds of names (an ordered dictionary, a tensor, a storage of
numbers of one type) and refuses a file with any other.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genaug.types import DataError, UserError

_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
# What the format before the zip archive begins with, and its only version.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class StateDict(NamedTuple):
    """The arrays of a file, read-only, by name; and the sha256 of the file, 64 hex digits."""

    arrays: dict[str, np.ndarray]
    sha256: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, in numbers rather than bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_state_dict(
    path: str | Path, *, expected_sha256_prefix: str | None = None, what: str = "PyTorch weights"
) -> StateDict:
    """Read the state dict that `torch.save` wrote to `path`, in either format.

    Args:
        path: the file.
        expected_sha256_prefix: the first hex digits of the sha256 that the file must have; it is
            checked before anything is read. None takes any file.
        what: what the file should be, and where people get it: said in errors.

    Raises:
        UserError: no such file, or not the one expected.
        DataError: damaged, no state dict, or with anything in it but tensors of plain numbers.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): it should be {what}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith((expected_sha256_prefix or "").lower()):
        raise UserError(
            f"{path} is another file: its sha256 begins with {sha256[:8]}, that of {what} with "
            f"{expected_sha256_prefix}. Get it anew"
        )
    try:
        is_zip = content.startswith(b"PK\x03\x04")
        return StateDict((_read_zip if is_zip else _read_legacy)(content), sha256)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # A damaged pickle may raise anything.
        raise DataError(
            f"{path} is damaged or no PyTorch file ({type(error).__name__}: {error}): get {what} "
            "anew"
        ) from error


class _Unpickler(pickle.Unpickler):
    """Finds names for tensors and storages, and nothing else; what it finds lives as long as it."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self._found: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            # A lambda of its own, as a pickle may set attributes of what it has found.
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: (
                _Tensor(storage, offset, shape, strides)
            ),
            # Their names stand for the storage types: text has nothing to call.
            **{("torch", name): name for name in _DTYPES},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._found:
            raise DataError(
                f"refused, as it names {module}.{name}: only tensors of plain numbers are read. "
                "Nothing of it was run. Save a state dict: torch.save(model.state_dict(), path)"
            )
        return self._found[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, name, key, _, length, *view = reference
        if kind != "storage" or any(part is not None for part in view):
            raise DataError(f"refused, as it refers to a {kind} of an unknown kind")
        return _Storage(str(key), _DTYPES[name], length)


def _read_zip(content: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise DataError("its numbers are big-endian: save it on a little-endian machine")
        tensors = _tensors(_Unpickler(io.BytesIO(archive.read(pickled))).load())
        return _arrays(tensors, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    file = io.BytesIO(content)
    magic, protocol, machine = (_Unpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise DataError("no PyTorch file")
    if not machine["little_endian"]:
        raise DataError("its numbers are big-endian: save it on a little-endian machine")
    tensors = _tensors(_Unpickler(file).load())
    sizes = {t.storage.key: np.dtype(t.storage.dtype).itemsize for t in tensors.values()}
    parts = {}
    for key in _Unpickler(file).load():
        count = int.from_bytes(file.read(8), "little")
        parts[key] = file.read(count * sizes[key])
    return _arrays(tensors, lambda storage: parts[storage.key])


def _tensors(tree: Any) -> dict[str, _Tensor]:
    """What was unpickled, if it is a state dict."""
    if not isinstance(tree, dict):
        raise DataError(f"it holds a {type(tree).__name__} and no state dict")
    others = [str(name) for name, tensor in tree.items() if not isinstance(tensor, _Tensor)]
    if others:
        raise DataError(
            f"it holds more than a state dict ({', '.join(others[:3])}): save that part alone"
        )
    return {str(name): tensor for name, tensor in tree.items()}


def _arrays(
    tensors: Mapping[str, _Tensor], read: Callable[[_Storage], bytes]
) -> dict[str, np.ndarray]:
    """The tensors as read-only views of their storages."""
    storages = {
        storage: np.frombuffer(read(storage), storage.dtype)
        for storage in dict.fromkeys(tensor.storage for tensor in tensors.values())
    }
    return {name: _view(name, tensor, storages[tensor.storage]) for name, tensor in tensors.items()}


def _view(name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
    """The numbers of a tensor, once it is known to lie within its storage."""
    _, offset, shape, strides = tensor
    is_empty = 0 in shape
    steps = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    last = offset + (0 if is_empty else sum(steps))
    inside = min(offset, *shape, *strides, 0) >= 0 and (is_empty or last < len(storage))
    if len(storage) != tensor.storage.length or not inside:
        raise DataError(f"damaged: {name} lies outside its {len(storage)} numbers")
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * storage.itemsize for stride in strides], writeable=False
    )
