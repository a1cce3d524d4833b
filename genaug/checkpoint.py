"""Save, verify and restore a training state over Orbax.

A checkpoint is Orbax's directory `checkpoints/STEP` and, written after it is on disk, `STEP.json`:
the mark that the save was finished, and its manifest.

    format   2 (1 had no digests of arrays, and is read as it is)
    step     the number of updates made
    files    SHA-256 of every file
    arrays   of every array its shape, dtype and digest (`digests`), the same on any devices
    about    what the run wants to find again: its config, its data, the next batch
    digest   SHA-256 of all that

A step without its mark is not used. One with a file or an array that differs is not used either:
restoring names what differs, sets the step aside and takes the newest that is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import tensorstore
from absl import logging
from orbax.checkpoint import v1 as ocp

from genaug import digests
from genaug.files import write_json
from genaug.processes import barrier, gathered, is_first, together
from genaug.types import State, UserError

FORMAT = 2
ASIDE = "damaged"
"""The folder, beside the steps, that damaged ones are moved into."""


class SaveError(UserError):
    """A checkpoint that cannot be written. Exit code 4."""

    exit_code = 4


def save(
    directory: Path,
    step: int,
    state: State,
    *,
    keep: int = 2,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Save a state as `directory/STEP`; of the others only the `keep - 1` before it stay.

    Of several processes each writes what its devices hold, into one directory that all see.

    Raises:
        SaveError: the disk is full or cannot be written to; what was saved before is kept.
    """
    sums = digests.arrays(state)
    arrays = {name: {**one, "digest": sums[name]} for name, one in _described(state).items()}
    try:
        if is_first():
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{step}.json").unlink(missing_ok=True)
        barrier("to be written")
        with _quiet():
            ocp.save((directory / str(step)).absolute(), state, overwrite=True)
        if is_first():
            files = _digests(directory / str(step), sync=True)
            mark = {"format": FORMAT, "step": step, "files": files, "arrays": arrays}
            _keep(directory, {**mark, "about": dict(about or {})}, keep)
        barrier("written")
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        clear(directory)
        last = steps(directory)
        kept = f"update {last[-1]} is still there" if last else "none was saved before"
        raise SaveError(
            f"The checkpoint of update {step} cannot be written to {directory} ({reason}; {kept}): "
            "make room or give write access, and start the same command again."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs the stack of every thread of a save that fails, and then raises the error too."""
    logger = logging.get_absl_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str | None:
    """What a disk refused, if that is what an error is about; Orbax and TensorStore wrap it."""
    words = ("No space left", "Disk quota", "Read-only file system", "Permission denied",
             "File too large", "Input/output error", "Not a directory")  # fmt: skip
    seen: BaseException | None = error
    while seen is not None:
        for word in words:
            if word in str(seen):
                return word
        seen = seen.__cause__ or seen.__context__
    return None


def _digests(directory: Path, *, sync: bool = False) -> dict[str, str]:
    """SHA-256 of every file; with `sync` the files and their folders are on disk then."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(directory))] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
        if sync:
            _sync(path)
    if sync:
        _sync(directory)
        _sync(directory.parent)
    return found


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _keep(directory: Path, mark: Mapping[str, Any], keep: int) -> None:
    step = mark["step"]
    write_json(directory / f"{step}.json", {**mark, "digest": _digest(mark)})
    _sync(directory)
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


def clear(directory: Path) -> None:
    """Remove what saves that were killed left behind."""
    marked = {str(step) for step in steps(directory)}
    for path in directory.glob("[0-9]*"):
        unfinished = path.name.isdigit() or ".orbax-checkpoint-tmp" in path.name
        if path.is_dir() and unfinished and path.name not in marked:
            shutil.rmtree(path, ignore_errors=True)


def read_mark(directory: Path, step: int) -> dict[str, Any] | None:
    """The mark of a step, or None if it is not as it was written."""
    try:
        mark = json.loads((directory / f"{step}.json").read_text(encoding="utf-8"))
        sound = mark["step"] == step and bool(mark["files"]) and isinstance(mark["files"], dict)
        if "format" not in mark:  # format 1 had these alone, and no digest of its own
            mark = {"step": step, "files": mark["files"]}
        else:
            sound = sound and mark.pop("digest") == _digest(mark)
            sound = sound and isinstance(mark["format"], int) and isinstance(mark["about"], dict)
            sound = sound and all(isinstance(a["digest"], str) for a in mark["arrays"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return mark if sound else None


def _digest(mark: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()


def faults(directory: Path, step: int) -> list[str]:
    """What of a step's files is not as it was written, in words; nothing if it is whole."""
    mark = read_mark(directory, step)
    if mark is None:
        return [f"{step}.json is not as it was written"]
    if mark.get("format", 1) > FORMAT:
        return [f"{step}.json is of format {mark['format']}, and this genaug reads {FORMAT}"]
    found, written = _digests(directory / str(step)), mark["files"]
    words = {
        **dict.fromkeys(written.keys() - found.keys(), "is missing"),
        **dict.fromkeys(found.keys() - written.keys(), "does not belong to it"),
        **{
            name: "has changed since it was written"
            for name in written.keys() & found.keys()
            if written[name] != found[name]
        },
    }
    return [f"{name} {words[name]}" for name in sorted(words)]


def array_faults(directory: Path, step: int) -> list[str]:
    """What of a step's arrays is not as it was written. No model is needed; one process asks.

    Each is read by itself, with TensorStore: Orbax reads all or none of a damaged step.
    """
    mark, path = read_mark(directory, step), (directory / str(step)).absolute()
    words = []
    for name, one in (mark or {}).get("arrays", {}).items():
        store = {"driver": "ocdbt", "base": f"file://{path}/state/", "path": f"{name}/"}
        try:
            array = tensorstore.open({"driver": "zarr3", "kvstore": store}).result().read().result()
        except ValueError:
            words.append(f"array {name} cannot be read")
        else:
            words += _wrong({name: array}, {name: one})
    return words


def _wrong(named: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    found = digests.arrays(dict(named))
    return [
        f"array {name} has changed since it was written"
        for name, one in wanted.items()
        if found.get(name) != one["digest"]
    ]


def restore(
    directory: Path,
    template: State,
    *,
    owner: bool = False,
    finite: bool = False,
) -> tuple[State, int] | None:
    """The newest whole checkpoint and its step, or None if there is none.

    template: the state's tree of shapes, dtypes and shardings (`layouts.abstract`).
    owner:    whether the caller is the run that writes here. Damaged steps are then moved to
              `damaged/STEP`, with the reason beside them, and what killed saves left is removed.
    finite:   whether an array with a value that is not finite counts as damage.

    Raises:
        UserError: of a checkpoint with other names, shapes or dtypes: all that differ are named;
            or of one that a newer genaug wrote.
    """
    together(lambda: _refuse_newer(directory) if is_first() else None)
    if owner and is_first():
        clear(directory)
    # One verdict for all: a shared disk may show each process something else.
    saved = json.loads(gathered(json.dumps(steps(directory)) if is_first() else "")[0])
    for step in reversed(saved):
        found = faults(directory, step) if is_first() else []
        reasons = json.loads(gathered(json.dumps(found))[0])
        if reasons:
            if jax.process_count() == 1:
                reasons += array_faults(directory, step)
        else:
            path = directory / str(step)
            _check_structure(path, template)
            state = ocp.load(path.absolute(), template)
            mark = read_mark(directory, step) if is_first() else None
            wanted = json.loads(gathered(json.dumps((mark or {}).get("arrays", {})))[0])
            reasons = _wrong(digests.leaves(state), wanted)
            if finite:
                reasons += [f"array {name} is not finite" for name in digests.not_finite(state)]
            if not reasons:
                return state, step
        _set_aside(directory, step, reasons, owner)
    return None


def _refuse_newer(directory: Path) -> None:
    """What cannot be read is not damaged for that, and must not be set aside."""
    for step in steps(directory):
        form = (read_mark(directory, step) or {}).get("format", 1)
        if form > FORMAT:
            raise UserError(
                f"{directory / str(step)} is of format {form}, and this genaug reads {FORMAT}: "
                "use the newer genaug that wrote it, or another --run-dir."
            )


def about(directory: Path, step: int) -> dict[str, Any]:
    """What was saved beside a step (`save`), the same on all processes."""
    mark = read_mark(directory, step) if is_first() else None
    return json.loads(gathered(json.dumps((mark or {}).get("about", {})))[0])


def _set_aside(directory: Path, step: int, reasons: list[str], owner: bool) -> None:
    shown = "; ".join(reasons[:5]) + (f"; and {len(reasons) - 5} more" if reasons[5:] else "")
    where = ""
    if owner and is_first() and (moved := _moved(directory, step, reasons)):
        where = f", moved to {moved}"
    logging.warning("checkpoint %s is damaged (%s)%s: using an older one.", step, shown, where)
    barrier("set aside")


def _moved(directory: Path, step: int, reasons: list[str]) -> Path | None:
    """Move a step away, its mark first; None where nothing can be moved."""
    aside, count = directory / ASIDE / str(step), 1
    while aside.exists():
        aside, count = aside.with_name(f"{step}-{count}"), count + 1
    try:
        aside.mkdir(parents=True)
        (directory / f"{step}.json").replace(aside / "mark.json")
        if (directory / str(step)).exists():
            (directory / str(step)).rename(aside / "state")
        write_json(aside / "reason.json", {"step": step, "reasons": reasons})
    except OSError:
        return None
    return aside


def _described(tree: Any) -> dict[str, dict[str, Any]]:
    return {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for name, leaf in digests.leaves(tree).items()
    }


def _check_structure(path: Path, template: State) -> None:
    saved, wanted = _described(ocp.metadata(path.absolute()).metadata), _described(template)

    def words(one: Mapping[str, Any] | None) -> str:
        return f"{one['dtype']}{one['shape']}" if one else "nothing"

    differ = [
        f"{name} is {words(saved.get(name))} there and {words(wanted.get(name))} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differ:
        raise UserError(
            f"{path} was written by another model: {'; '.join(differ)}. "
            "Use another --run-dir, or the config that wrote it."
        )
