"""Any number of rows in constant memory: drawn part by part into files, by any number of processes.

A part is what lies between two multiples of its size: a function of the request alone. So parts
that a stopped drawing left are used by the next, and several processes take turns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genaug import processes
from genaug.files import read_json, save_arrays, write_json
from genaug.logs import Bar
from genaug.sampling import Rows, Sampler, check_cond
from genaug.types import Spec, UserError

PART_ROWS = 4096
PART_BYTES = 2**26

Conditions = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Addresses int32 [n] to the conditions of those rows, "index" among them."""


def part_rows(spec: Spec) -> int:
    """How many rows a part has: what fits into PART_BYTES, at most PART_ROWS."""
    row = sum(math.prod(each.shape) * each.dtype.itemsize for each in spec.values())
    return max(1, min(PART_ROWS, PART_BYTES // max(row, 1)))


def draw_parts(
    sampler: Sampler,
    key: jax.Array,
    conditions: Conditions,
    addresses: range,
    size: int,
    folder: Path,
    request: dict[str, Any],
    bar: Bar,
) -> list[Path]:
    """Draw the rows of these addresses into `folder`; return its files (.npz) of `size` rows each.

    `request` is JSON that says what is drawn; a folder that holds parts of something else is
    refused. A part has what the sampler returns and the conditions "index" and "label". Of several
    processes each draws its share; all must ask, and all parts are there when it returns.
    """
    ends = np.asarray([addresses[0], addresses[-1]], np.int32)
    check_cond(conditions(ends), sampler.reads)  # before anything is written
    asked = {**request, "first": addresses[0], "n": len(addresses), "part": size,
             "conditions": _digest(conditions(ends))}  # fmt: skip
    processes.agree("another drawing", asked)
    processes.together(lambda: _claim(folder, asked) if processes.is_first() else None)
    parts = [addresses[start : start + size] for start in range(0, len(addresses), size)]
    files = [folder / f"{part[0]:010d}.npz" for part in parts]
    missing = [i for i, file in enumerate(files) if not file.is_file()]
    done = len(addresses) - sum(len(parts[i]) for i in missing)
    bar.start_at(done)
    for i in missing[jax.process_index() :: jax.process_count()]:
        cond = conditions(np.asarray(parts[i], np.int32))
        kept = {name: column for name, column in cond.items() if name in ("index", "label")}
        save_arrays(files[i], {**kept, **sampler(key, cond)})
        done += len(parts[i]) * jax.process_count()
        bar.advance(min(done, len(addresses)))
    processes.barrier("drawn")
    return files


def _claim(folder: Path, asked: dict[str, Any]) -> None:
    path = folder / "request.json"
    if path.is_file() and read_json(path) != asked:
        raise UserError(
            f"{folder} holds parts of another drawing that was stopped: go on with that one (the "
            "same command), remove the folder, or name another --out."
        )
    try:
        write_json(path, asked)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None


def _digest(cond: Rows) -> str:
    sha = hashlib.sha256()
    for name in sorted(cond):
        sha.update(name.encode() + np.ascontiguousarray(cond[name]).tobytes())
    return sha.hexdigest()
