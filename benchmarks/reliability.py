"""Faults, injected and counted: what a run survives, and what that costs.

    python -m benchmarks.reliability [--short] [--only NAME ...] [--count NAME=N ...] [--write]

A fault counts as survived when all that the table says of it holds. The interval is Wilson's, at
95 %. `--short` injects a few of each; `--write` puts the table into RELIABILITY.md.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

jax.config.update("jax_num_cpu_devices", 8)

from benchmarks import reliability_faults as faults  # noqa: E402
from genaug.train import Train  # noqa: E402

RESULTS = Path(__file__).with_name("RELIABILITY.md")
HEAD = "| fault | survived means | survived | 95 % interval | of what |\n|---|---|---|---|---|"
Z95 = 1.959964


class Row(NamedTuple):
    """A line of the table: the name that `--only` takes, how often in full and in short."""

    name: str
    fault: str
    survived: str
    inject: Callable[[int, int], faults.Counted | None]
    full: int
    short: int


SAME = "the same command ends in the bits of the unbroken run"
LEFT = "left within 10 s with the signal's code, and " + SAME
ROWS = (
    Row("damage", "bits flipped, files cut, deleted or swapped, steps half copied or empty",
        "noticed, the file named, the step set aside, the one before restored bit for bit",
        faults.damaged, 500, 16),
    Row("devices", "8 to 4 to 1 to 8 devices", "every array's digest and bits as at the start",
        faults.moved, 30, 3),
    Row("sick", "NaN in one example, a gradient or a weight",
        "noticed in its call; the state that of a run without those batches, bit for bit",
        faults.sick, 40, 6),
    Row("disk", "a full disk, a disk that became read-only",
        "a clear error; the checkpoint before restored bit for bit", faults.refused_by_the_disk,
        20, 2),
    Row("kill-train", "kill -9 of `genaug train` at random moments, once or twice", SAME,
        partial(faults.killed, "train"), 150, 1),
    Row("told-train", "SIGTERM or Ctrl-C to `genaug train` at a random moment", LEFT,
        partial(faults.told, "train"), 30, 0),
    Row("kill-run", "kill -9 of `genaug run` at random moments, once or twice", SAME,
        partial(faults.killed, "run"), 50, 0),
    Row("told-run", "SIGTERM or Ctrl-C to `genaug run` at a random moment", LEFT,
        partial(faults.told, "run"), 10, 0),
)  # fmt: skip


def wilson(good: int, tried: int) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), at 95 %."""
    share, spread = good / tried, Z95**2 / tried
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / tried + spread / (4 * tried)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def line(row: Row, found: faults.Counted | None) -> str:
    """A row of the table."""
    if found is None:
        return f"| {row.fault} | {row.survived} | not run: needs root and mount | | |"
    low, high = (f"{100 * share:.1f}" for share in wilson(found.survived, found.tried))
    count = f"{found.survived} of {found.tried}"
    shown = count if found.survived == found.tried else f"**{count}**"
    return f"| {row.fault} | {row.survived} | {shown} | {low} to {high} % | {found.remark} |"


def spread(values: list[float], scale: float = 1.0) -> str:
    """Median (min to max)."""
    low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def costs(rounds: int) -> list[str]:
    """What saving and looking after the health of updates costs."""
    saving, ratios = faults.cost_of_saving(rounds), faults.cost_of_the_guard(rounds)
    every = Train().checkpoint_every
    shares = [s / (s + every * u) for s, u in zip(saving.save, saving.update, strict=True)]
    return [
        f"MNIST VAE on 2 devices, {rounds} rounds, median (min to max). A save, during which the "
        f"loop waits, takes {spread(saving.save, 1e3)} ms, of which the digests of arrays "
        f"{spread(saving.digests, 1e3)} ms; an update {spread(saving.update, 1e3)} ms. At the "
        f"default of {every} updates between saves that is {spread(shares, 100)} % of the time.",
        "Updates that may be left out take "
        f"{spread(ratios)} times as long as updates that may not (interleaved pairs).",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Inject, count, print; 1 if a fault was not survived."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[*names, "cost"], default=[*names, "cost"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--count", nargs="+", default=[], metavar="NAME=N", help="fewer, or more")
    options = parser.parse_args(arguments)
    counts = dict(one.split("=") for one in options.count)
    warnings.simplefilter("ignore")
    began, lines, failed = time.monotonic(), [HEAD], False
    print(HEAD)
    for row in ROWS:
        count = int(counts.get(row.name, row.short if options.short else row.full))
        if row.name not in options.only or not count:
            continue
        found = row.inject(count, options.seed)
        failed |= found is not None and found.survived < found.tried
        lines.append(line(row, found))
        print(lines[-1], f"({time.monotonic() - began:.0f} s)", flush=True)
    if "cost" in options.only:
        lines += ["", "\n\n".join(costs(3 if options.short else 9))]
        print(lines[-1])
    if options.write:
        words = " ".join(sys.argv[1:] if arguments is None else arguments)
        about = (
            f"`python -m benchmarks.reliability {words}` on {os.cpu_count()} CPU cores "
            f"({platform.machine()}), jax {metadata.version('jax')}, orbax-checkpoint "
            f"{metadata.version('orbax-checkpoint')}, {(time.monotonic() - began) / 60:.0f} "
            "minutes. Without `--count` more are injected. Nothing here is of an accelerator."
        )
        RESULTS.write_text("# What a run survives\n\n" + about + "\n\n" + "\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
