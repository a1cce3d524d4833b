"""Updates that went wrong: counted from what the devices tell, named, and explained.

The devices leave such an update out by themselves (`guard.Guard`); this is what the loop makes
of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from genaug import parallel
from genaug.devices import DeviceMesh, memory_left
from genaug.types import UserError

FRUITLESS = 2
"""How often in a row training goes back without a good update after it, before it gives up."""


class TrainingError(UserError):
    """Training that cannot go on. Exit code 4."""

    exit_code = 4


class Sick(NamedTuple):
    """A row of updates that were left out, long enough to go back for. Updates count from 0."""

    first: int
    last: int
    resume: int  # the update after the call in which the row became that long
    metrics: tuple[str, ...]  # that were not finite, or too large


def report(
    begin: int,
    metrics: dict[str, jax.Array],
    row: int,
    patience: int,
    log: Callable[[int, dict[str, float]], None],
) -> tuple[int, Sick | None]:
    """Log the metrics of a call that began with update `begin`, and count on the row.

    row: how many updates in a row were left out before. Returned with what is to be gone back for.
    """
    values = jax.device_get(metrics)
    names = sorted(values.keys() - {"good"})
    fine = np.asarray(values.get("good", np.ones((1, 1)))) > 0
    good = np.asarray(fine.all(axis=1))
    left_out = np.flatnonzero(~good)
    step = begin + len(good)
    sick = None
    for i in range(len(good)):
        row = 0 if good[i] else row + 1
        if row == patience:
            why = tuple(name for name, ok in zip(names, fine[i], strict=True) if not ok)
            sick = Sick(begin + i + 1 - row, begin + i, step, why)
    if len(left_out):
        bad = [name for i, name in enumerate(names) if not fine[:, i].all()]
        some = ", ".join(str(begin + i + 1) for i in left_out[:5]) + ", ..." * (len(left_out) > 5)
        logging.warning("update %s left out: %s not finite, or too large.", some, ", ".join(bad))
    found = {name: float(values[name]) for name in names} if len(left_out) < len(good) else {}
    log(step, {**found, **({"left_out": float(len(left_out))} if len(left_out) else {})})
    return row, sick


def words_of(sick: Sick, culprits: list[str]) -> str:
    """What went wrong where; the culprits are names of arrays."""
    some = ", ".join(culprits[:3]) + (f" and {len(culprits) - 3} more" if culprits[3:] else "")
    arrays = f", in {some}" if some else ""
    return (
        f"{', '.join(sick.metrics)} not finite or too large in updates {sick.first + 1} to "
        f"{sick.last + 1}{arrays}"
    )


def given_up(words: str, kept: bool) -> TrainingError:
    """The error of a run that cannot be helped; `kept` says whether it has a checkpoint."""
    return TrainingError(
        f"{words}: lower the learning rate, clip the gradients (the optimizer's clip-norm) or look "
        f"at the data.{' The last good checkpoint is kept.' if kept else ''}"
    )


LESS_MEMORY = (
    "a smaller --train.batch-size, --train.accumulate 2 or more, --mesh.fsdp over more devices, or "
    "the model's remat where it has one, take less"
)


def check_memory(mesh: DeviceMesh, program: Callable[..., Any], *arguments: Any) -> None:
    """Say before the first update that the memory will not do; the program is compiled here."""
    needed, left = parallel.memory_needed(program, *arguments), memory_left(mesh)
    if needed is not None and left is not None and needed > left:
        logging.warning("An update takes %.3g GB more on each device, and %.3g GB are left: %s.",
                        needed / 1e9, left / 1e9, LESS_MEMORY)  # fmt: skip


@contextmanager
def memory_explained() -> Iterator[None]:
    """An error of the memory as one in words, with what takes less."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        line = (str(error).splitlines() or ["MemoryError"])[0][:200]
        raise TrainingError(f"Out of memory ({line}): {LESS_MEMORY}.") from error
