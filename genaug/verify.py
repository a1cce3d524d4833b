"""Whether what a run left is as it was written: checkpoints, sampler bundles, synthetic sets.

No model is built and no data of the run's own is needed; nothing is changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genaug import bundle, checkpoint, export
from genaug.types import DataError, UserError


class Checked(NamedTuple):
    """One thing that was looked at, and what is wrong with it."""

    what: str
    faults: list[str]


def verify(directory: Path) -> list[Checked]:
    """All that is in a run folder; of a run of splits or cells, in each of theirs too.

    Raises:
        UserError: the folder holds nothing that could be looked at.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no folder: name a run folder.")
    parts = [directory, *sorted(p for p in directory.rglob("*_*") if (p / "config.json").is_file())]
    found = [one for part in parts for one in _of_run(part)]
    if not found:
        raise UserError(
            f"{directory} has no checkpoints, no export/ and no synthetic/: name a run folder."
        )
    return found


def _of_run(directory: Path) -> Iterator[Checked]:
    checkpoints = directory / "checkpoints"
    for step in checkpoint.steps(checkpoints):
        faults = checkpoint.faults(checkpoints, step) + checkpoint.array_faults(checkpoints, step)
        yield Checked(str(checkpoints / str(step)), faults)
    if (directory / "export").is_dir():
        yield Checked(str(directory / "export"), bundle_faults(directory / "export"))
    if (directory / "synthetic").is_dir():
        yield Checked(str(directory / "synthetic"), synthetic_faults(directory / "synthetic"))


def bundle_faults(directory: Path) -> list[str]:
    """What of a sampler bundle is not as it was written; the program in it is not looked into."""
    try:
        files = bundle.read_files(directory)
        about = bundle.describe(directory, files)
        found = export.digest(bundle.read_weights(directory, files))
    except DataError as error:
        return [str(error).removeprefix(f"{directory}/")]
    if found != about.get("weights_digest"):
        return ["the weights are not those that bundle.json names"]
    return []


def synthetic_faults(directory: Path) -> list[str]:
    """What of a synthetic set cannot be read, or is not what its description says.

    Every record is decoded, and the digest that `write_examples` keeps is taken again. (What is
    written in format 1 does not say in which order its features were digested.)
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(directory))
        rows = builder.as_data_source("train")
        about, features = builder.info.metadata, sorted(builder.info.features)
        sha = hashlib.sha256()
        for i in range(len(rows)):
            row = rows[i]
            for name in features:
                sha.update(name.encode() + np.asarray(_written(row[name])).tobytes())
        wanted = about["fingerprint"] if about["genaug_format"] > 1 else sha.hexdigest()
    except Exception as error:  # TFDS raises whatever the parser that meets the damage raises.
        line = " ".join(str(error).split())[:200]
        return [f"cannot be read ({type(error).__name__}: {line})"]
    return [] if sha.hexdigest() == wanted else ["a record has changed since it was written"]


def _written(value: Any) -> Any:
    """A value as `write_examples` took it: scalars were Python's own, and text was no bytes."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value
