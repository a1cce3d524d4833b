"""How fast a trained model or a sampler bundle draws: `genaug bench`.

A call draws a batch and waits for it. The first call of a size compiles and is told by itself; the
median of the others is what counts, with the fastest and the slowest.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genaug import layouts, parallel, runs
from genaug.bundle import load_sampler
from genaug.devices import Mesh, give_back_freed_memory, make_mesh
from genaug.files import write_json
from genaug.table import aligned
from genaug.types import CondField, LabelSpec, Spec, UserError

SIZES = (1, 16, 64, 256)
ROUNDS = 5

Draw = Callable[[int], Mapping[str, jax.Array]]
"""`draw(first)` to rows, the first of which has that address."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Draws of one batch size."""

    batch: int
    devices: int
    first_s: float  # the first call, compilation in it
    seconds: tuple[float, ...]  # of the calls after it
    units: float  # rows, or tokens of text, of a call: the mean
    peak_bytes: int  # the most memory that was held meanwhile (`reset_peak`)

    @property
    def rate(self) -> float:
        """Units a second, of the median call."""
        return self.units / statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is timed. draws: `(batch size) -> (draw, on how many devices)`."""

    name: str
    unit: str  # "samples" or "tokens"
    load_s: float
    draws: Callable[[int], tuple[Draw, int]]


def timings(
    subject: Subject,
    sizes: Sequence[int],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Timing]:
    """Every size in turn; every call draws rows that no other has drawn."""
    first = 0
    for size in sizes:
        reset_peak()
        draw, devices = subject.draws(size)
        seconds, units = [], []
        for _ in range(rounds + 1):
            began = clock()
            rows = jax.block_until_ready(draw(first))
            seconds.append(clock() - began)
            units.append(_units(rows, size))
            first += size
        yield Timing(
            batch=size,
            devices=devices,
            first_s=seconds[0],
            seconds=tuple(seconds[1:]),
            units=statistics.fmean(units[1:]),
            peak_bytes=peak_bytes(),
        )


def _units(rows: Mapping[str, Any], size: int) -> float:
    """Rows; of text the tokens that were written, which the start of a row is not."""
    if "segments" not in rows:
        return float(size)
    return float(np.sum(np.asarray(rows["segments"]) > 0) - size)


def reset_peak() -> None:
    """Forget the most memory that this process has held. Linux can; elsewhere it is that so far."""
    give_back_freed_memory()  # of a size before
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Memory that was held at most: an accelerator's own (so far), else the process's."""
    stats = jax.devices()[0].memory_stats()
    if stats:
        return int(stats["peak_bytes_in_use"])
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def cond_of(reads: Mapping[str, CondField], first: int, count: int) -> dict[str, np.ndarray]:
    """Conditions of rows by their address: classes in turn; the rest as the sampler has it.

    Raises UserError for a condition that neither has a default nor is a class.
    """
    index = np.arange(first, first + count, dtype=np.int32)
    cond = {"index": index}
    for name, field in reads.items():
        if name == "index" or field.default is not None or field.optional:
            continue
        if not isinstance(field.spec, LabelSpec):
            raise UserError(f"The sampler needs {name!r} for every row, which is not made up here.")
        cond[name] = index % field.spec.num_classes
    return cond


def of_run(directory: Path) -> Subject:
    """A run's newest checkpoint, over as many devices as share a batch evenly."""
    began = time.perf_counter()
    run = runs.open_run(directory)
    return of_model(str(directory), run.model, run.weights, run.spec, began)


def of_model(name: str, model: Any, weights: Any, spec: Spec, began: float) -> Subject:
    """A model and its weights; `began` is when loading them did."""

    def draws(size: int) -> tuple[Draw, int]:
        count = max(n for n in range(1, jax.device_count() + 1) if size % n == 0)
        mesh = make_mesh(Mesh(data=count))
        program = parallel.compile_draws(model.sample, mesh)
        placed, key = layouts.place(weights, mesh), jax.random.key(0)
        return lambda first: program(placed, key, cond_of(model.cond, first, size)), count

    unit = "tokens" if "tokens" in spec else "samples"
    return Subject(name=name, unit=unit, load_s=time.perf_counter() - began, draws=draws)


def of_bundle(directory: Path) -> Subject:
    """A sampler bundle, called as any program that has only JAX would."""
    began = time.perf_counter()
    sampler = load_sampler(directory)
    reads, key = sampler.reads, jax.random.key(0)

    def draws(size: int) -> tuple[Draw, int]:
        return lambda first: sampler(key, cond_of(reads, first, size)), 1

    unit = "tokens" if "prompt" in reads else "samples"
    return Subject(name=str(directory), unit=unit, load_s=time.perf_counter() - began, draws=draws)


def bench_table(subject: Subject, found: Sequence[Timing]) -> str:
    """A line a batch size."""
    head = ["batch", "devices", f"{subject.unit}/s", "ms a call (min to max)", "first, s",
            "peak, MiB"]  # fmt: skip
    rows = [head]
    for one in found:
        ms = [1000 * s for s in (statistics.median(one.seconds), min(one.seconds),
                                 max(one.seconds))]  # fmt: skip
        rows.append(
            [
                str(one.batch),
                str(one.devices),
                f"{one.rate:,.0f}" if one.rate >= 10 else f"{one.rate:.2g}",
                f"{ms[0]:.3g} ({ms[1]:.3g} to {ms[2]:.3g})",
                f"{one.first_s:.2f}",
                f"{one.peak_bytes / 2**20:,.0f}",
            ]
        )
    return aligned(rows)


def to_json(subject: Subject, found: Sequence[Timing]) -> dict[str, Any]:
    """All figures, and of what and where."""
    return {
        "of": subject.name,
        "unit": subject.unit,
        "load_s": subject.load_s,
        "environment": runs.environment(),
        "timings": [{**asdict(one), "rate": one.rate} for one in found],
    }


def bench(options: argparse.Namespace) -> Iterator[str]:
    """Time a run folder or a sampler bundle; a table, and what it leaves unsaid."""
    sizes = sorted(set(options.batch_size or SIZES))
    for flag, value in (("--batch-size", sizes[0]), ("--rounds", options.rounds)):
        if value < 1:
            raise UserError(f"{flag} is {value}; it must be at least 1.")
    is_bundle = (options.sampler / "bundle.json").is_file()
    if not is_bundle and not (options.sampler / "config.json").is_file():
        raise UserError(
            f"{options.sampler} is neither a run folder (no config.json) nor a sampler bundle (no "
            "bundle.json)."
        )
    subject = (of_bundle if is_bundle else of_run)(options.sampler)
    found = list(timings(subject, sizes, options.rounds))
    yield bench_table(subject, found)
    first_s = subject.load_s + found[0].first_s
    yield (
        f"Time to the first {subject.unit}, after JAX has started: {first_s:.2f} s, of which "
        f"loading {subject.load_s:.2f} s."
    )
    if options.json:
        write_json(options.json, to_json(subject, found))
