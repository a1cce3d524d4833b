"""Faults, injected and counted: what a run survives, and what that costs.

    python -m benchmarks.reliability [--short] [--only NAME ...] [--count NAME=N ...] [--write]

A fault counts as survived when all that the table says of it holds. The interval is Wilson's, at
95 %. `--short` injects a few of each. `--write` keeps what was found in reliability.json, a record
a row, and writes RELIABILITY.md from the newest record of every row: they may be of several runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

jax.config.update("jax_num_cpu_devices", 8)

from benchmarks import reliability_cost, reliability_inputs  # noqa: E402
from benchmarks import reliability_faults as faults  # noqa: E402
from benchmarks import reliability_processes as processes  # noqa: E402
from benchmarks import reliability_table as table  # noqa: E402
from genaug.train import Train  # noqa: E402

RESULTS = Path(__file__).with_name("RELIABILITY.md")


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
        partial(processes.killed, "train"), 150, 1),
    Row("told-train", "SIGTERM or Ctrl-C to `genaug train` at a random moment", LEFT,
        partial(processes.told, "train"), 30, 0),
    Row("kill-run", "kill -9 of `genaug run` at random moments, once or twice", SAME,
        partial(processes.killed, "run"), 50, 0),
    Row("told-run", "SIGTERM or Ctrl-C to `genaug run` at a random moment", LEFT,
        partial(processes.told, "run"), 10, 0),
    Row("processes", "1 to 2 to 1 processes, in the middle of training",
        "every array's digest and the next batch as they were, no update lost or made twice",
        processes.handed_on, 30, 0),
    Row("lost", "kill -9 or SIGSTOP of one of two processes under `genaug launch`",
        "both started again within 60 s, and in the end the bits of the unbroken launch",
        processes.lost, 20, 0),
    Row("inputs", "bad inputs", "the exit code and one line that names and mends it; no stack of "
        "calls, nothing written", reliability_inputs.answered, 10_000, 0),
    Row("fuzz", "files of every kind that genaug reads, changed at random",
        "read, or refused in words; nothing else, and no hang", reliability_inputs.fuzzed,
        1_000_000, 0),
    Row("cache", "bits flipped in a compiled program that JAX keeps, or it cut off",
        "compiled again, the same result", reliability_inputs.recompiled, 500, 8),
)  # fmt: skip


def spread(values: list[float], scale: float = 1.0) -> str:
    """Median (min to max)."""
    low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def costs(rounds: int) -> list[str]:
    """What saving and looking after the health of updates costs."""
    saving, ratios = (
        reliability_cost.cost_of_saving(rounds),
        reliability_cost.cost_of_the_guard(rounds),
    )
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


def written(records: dict[str, dict[str, Any]]) -> str:
    """The page of the newest record of every row."""
    page = ["# What a run survives", "", table.HEAD]
    known = [(row, records.get(row.name)) for row in ROWS]
    for row, kept in known:
        page.append(table.line(row.fault, row.survived, table.counted(kept) if kept else None))
    if cost := records.get("cost"):
        page += ["", cost["said"]]
    page += [
        "",
        "How, and when. Seconds are those of all injections over their number, on a "
        "machine that did other work too. Nothing here is of an accelerator.",
        "",
        table.HOW,
    ]
    page += [table.how(row.fault, kept) for row, kept in known if kept]
    page += [table.how("the cost", cost)] if cost else []
    return "\n".join(page) + "\n"


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
    if unknown := counts.keys() - {*names}:
        parser.error(f"--count {', '.join(sorted(unknown))}: the rows are {', '.join(names)}")
    warnings.simplefilter("ignore")
    failed, records = False, {}
    print(table.HEAD)
    for row in ROWS:
        count = int(counts.get(row.name, row.short if options.short else row.full))
        if row.name not in options.only or not count:
            continue
        began = time.monotonic()
        found = row.inject(count, options.seed)
        seconds = time.monotonic() - began
        failed |= found is not None and found.survived < found.tried
        print(table.line(row.fault, row.survived, found), f"({seconds:.0f} s)", flush=True)
        if found:
            command = f"--only {row.name} --count {row.name}={count} --seed {options.seed}"
            records[row.name] = table.record(found, seconds, command)
            if options.write:  # at once: what comes later may be stopped
                table.write(records)
    if "cost" in options.only:
        began = time.monotonic()
        said = "\n\n".join(costs(3 if options.short else 9))
        print(said)
        short = " --short" if options.short else ""
        records["cost"] = table.record(said, time.monotonic() - began, f"--only cost{short}")
    if options.write:
        table.write(records)
        RESULTS.write_text(written(table.read()))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
