"""Files written whole or not at all, also when the process dies."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from genaug.types import UserError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file in the place of `path`, once it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file."""
    with replacing(path) as file:
        file.write(text.encode())


def read_json(path: Path, needs: Iterable[str] = ()) -> Any:
    """A JSON file's content; one that is damaged, or lacks what it `needs`, is a UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): use another --run-dir."
        ) from None
    if lost := [name for name in needs if not isinstance(value, dict) or name not in value]:
        raise UserError(
            f"{path} is not as it was written (it has no {lost[0]}): use another --run-dir."
        )
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON."""
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz."""
    with replacing(path) as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an .npz that `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The fields in which two JSON configs differ, each as `field: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            line
            for key in keys
            for line in differences(
                old.get(key), new.get(key), f"{where}.{key}".lstrip(".").replace("_", "-")
            )
        ]
    return [] if old == new else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]


_FOLDERS = re.compile(r"(?<!\S)(?:~|/|[A-Za-z]:[\\/]).*[\\/](?=[^\\/])")


def without_folders(value: Any) -> Any:
    """JSON for others to read: of files and folders of this machine the last name alone.

    Where data lies tells of people and projects; who reads a report or a bundle cannot use it.
    """
    if isinstance(value, str):
        return _FOLDERS.sub("", value)
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    return value
