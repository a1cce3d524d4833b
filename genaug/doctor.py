"""What a run would find here: versions, devices, extras, data; do processes work together?"""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genaug import checkpoint, layouts, parallel, runs
from genaug.data import catalogue
from genaug.devices import Mesh, make_mesh
from genaug.processes import agree, barrier, check_shared, gathered, is_first, token
from genaug.types import UserError

EXTRAS = {
    "demo": ("mlxtend", "imblearn"),
    "text": ("tokenizers",),
    "test": ("pytest", "beartype", "ruff"),
}


def doctor(directory: Path | None = None) -> str:
    """The findings, line by line.

    directory: a run folder to be; each process writes its part of an array there and reads it back.

    Raises:
        UserError: of processes that do not compute, or do not see, the same.
    """
    lines = [f"{name:18}{value}" for name, value in _flat(runs.environment())]
    for extra, modules in EXTRAS.items():
        missing = [m for m in modules if importlib.util.find_spec(m) is None]
        state = f'missing {", ".join(missing)}: pip install "genaug[{extra}]"' if missing else "ok"
        lines.append(f"{f'[{extra}]':18}{state}")
    for entry in catalogue():
        if entry.kind == "built-in":
            lines.append(f"{entry.name:18}{'found' if entry.found else f'not found: {entry.how}'}")
    if jax.process_count() > 1:
        lines += _processes()
    if directory is not None:
        lines.append(f"{'run folder':18}{_written(directory)}")
    return "\n".join(lines)


def _flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for name, value in environment.items()
    ]


def _processes() -> list[str]:
    """Which process has which devices, and that all have the same software and arithmetic."""
    local = jax.local_devices()
    mine = f"{platform.node()}: {len(local)} x {local[0].device_kind}, ids " + ", ".join(
        str(device.id) for device in local
    )
    lines = [f"{f'process {i}':18}{text}" for i, text in enumerate(gathered(mine))]
    agree("other versions", runs.versions())
    draws = jax.random.normal(jax.random.key(17), (4,))
    agree("other random numbers", [float(draw).hex() for draw in draws])
    return [*lines, f"{'versions, draws':18}alike", f"{'all-reduce':18}{_all_reduced()}"]


def _all_reduced() -> str:
    """The sum over all devices of one number from each."""
    mesh = make_mesh(Mesh())
    rows = {"x": np.arange(1.0, mesh.size + 1, dtype=np.float32)}
    add = parallel.compile_rows(lambda _, key, rows: {"x": 0 * rows["x"] + rows["x"].sum()}, mesh)
    found = jax.device_get(add({}, jax.random.key(0), rows))["x"]
    if not np.all(found == rows["x"].sum()):
        raise UserError(
            f"The sum of 1 to {mesh.size} over {mesh.size} devices came out as {found}: the "
            "devices do not talk to each other rightly."
        )
    return f"right over {mesh.size} devices"


def _written(directory: Path) -> str:
    """Write an array of which each device holds a part, and read it back."""
    check_shared(directory)
    mesh = make_mesh(Mesh())
    want = np.arange(mesh.size, dtype=np.float32)
    array = layouts.split_rows({"x": want[layouts.local_rows(mesh.size, mesh)]}, mesh)
    place = jax.ShapeDtypeStruct(want.shape, want.dtype, sharding=array["x"].sharding)
    probe = directory / f".doctor-{token()}"
    checkpoint.save(probe, 0, array)
    found = checkpoint.restore(probe, {"x": place})
    right = found is not None and np.array_equal(layouts.to_host(found[0])["x"], want)
    barrier("read")
    if is_first():
        shutil.rmtree(probe, ignore_errors=True)
    if not right:
        raise UserError(f"{directory} does not give back what was written to it.")
    return f"{directory}: written and read by {jax.process_count()} process(es)"
