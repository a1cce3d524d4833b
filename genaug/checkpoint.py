"""Save, verify and restore a training state over Orbax.

A checkpoint is Orbax's directory `checkpoints/STEP` and, written after it, `STEP.json`: the mark
that the save was finished, with the SHA-256 of every file. A step without its mark, or with a file
that differs, is not used: restoring falls back to the newest one that is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from genaug.files import write_atomically
from genaug.processes import barrier, gathered, is_first
from genaug.types import State, UserError


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def save(directory: Path, step: int, state: State, *, keep: int = 2) -> None:
    """Save a state as `directory/STEP`; of the others only the `keep - 1` before it stay.

    Of several processes each writes what its devices hold, into one directory that all see.
    """
    if is_first():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{step}.json").unlink(missing_ok=True)
    barrier("to be written")
    ocp.save((directory / str(step)).absolute(), state, overwrite=True)
    if is_first():
        _keep(directory, step, keep)
    barrier("written")


def _keep(directory: Path, step: int, keep: int) -> None:
    path, mark = directory / str(step), directory / f"{step}.json"
    write_atomically(mark, json.dumps({"step": step, "files": _digests(path)}, indent=1))
    # Later steps are damaged ones that training fell back from: they must not count as kept.
    saved = steps(directory)
    earlier = [known for known in saved if known <= step]
    for old in {*saved} - {*earlier[-keep:]}:
        (directory / f"{old}.json").unlink(missing_ok=True)
        shutil.rmtree(directory / str(old), ignore_errors=True)


def steps(directory: Path) -> list[int]:
    """The steps that were saved to the end, ascending."""
    marks = (path.stem for path in directory.glob("*.json"))
    return sorted(int(stem) for stem in marks if stem.isdigit())


def damage(directory: Path, step: int) -> str | None:
    """The first file of a checkpoint that is not what was written, in words; None if whole."""
    try:
        written = json.loads((directory / f"{step}.json").read_text(encoding="utf-8"))["files"]
        written = dict(written)
    except (OSError, ValueError, TypeError, KeyError):
        return f"{step}.json cannot be read"
    found = _digests(directory / str(step))
    for name in sorted(written.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in written:
            return f"{name} does not belong to it"
        if written[name] != found[name]:
            return f"{name} has changed since it was written"
    return None


def restore(directory: Path, abstract: State) -> tuple[State, int] | None:
    """The newest whole checkpoint and its step, or None if there is none.

    `abstract` is the state's tree of shapes, dtypes and shardings (`layouts.abstract`); a
    checkpoint with other shapes or dtypes is a UserError that names the first leaf.
    """
    found = gathered(str(_newest(directory)) if is_first() else "")[0]  # one verdict for all
    if not found.isdigit():
        return None
    path = directory / found
    _check_structure(path, abstract)
    return ocp.load(path.absolute(), abstract), int(found)


def _newest(directory: Path) -> int | None:
    for step in reversed(steps(directory)):
        reason = damage(directory, step)
        if not reason:
            return step
        logging.warning("checkpoint %s is damaged (%s): using an older one.", step, reason)
    return None


def _leaves(tree: Any) -> dict[str, str]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = (tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
             for path, _ in flat)  # fmt: skip
    return {
        ".".join(name): f"{leaf.dtype}{list(leaf.shape)}"
        for name, (_, leaf) in zip(names, flat, strict=True)
    }


def _check_structure(path: Path, abstract: State) -> None:
    saved = _leaves(ocp.metadata(path.absolute()).metadata)
    wanted = _leaves(abstract)
    for name in sorted(saved.keys() | wanted.keys()):
        have, want = saved.get(name, "nothing"), wanted.get(name, "nothing")
        if have != want:
            raise UserError(
                f"{path} was written by another model: {name} is {have} there and {want} here. "
                "Use another --run-dir, or the config that wrote it."
            )
