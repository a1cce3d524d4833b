"""genaug's evaluation against the packages one would take otherwise: the same number, and how fast.

    pip install -e ".[bench,features]" && python -m benchmarks.evaluation [--quick] [--only NAME]

Every row first compares the two results, in a call that also compiles and warms up, then times
interleaved pairs; a ratio is peer / ours of one pair (above 1: ours is faster), as median (min to
max). Inputs are ready before the clock runs, in the form each side takes. PyTorch's networks run on
one thread or on all cores, whichever is faster. `--quick` takes small sizes, at which no ratio is
judged. `--write` puts what was measured into EVALUATION.md, beside the rows of other runs
(evaluation.json keeps them): every row tells its command, day, commit and machine.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import evaluation_rows as of
from benchmarks import kept
from benchmarks.pairs import HEAD, NOT_MEASURED, RULE, Row, run, without
from genaug.devices import keep_freed_memory, use_cpu_cores_as_devices

RESULTS = Path(__file__).with_name("EVALUATION.md")
KEPT = RESULTS.with_suffix(".json")
PAIRS, QUICK_PAIRS = 5, 3
MEMORY = "memory"
MEMORY_ROWS, QUICK_MEMORY_ROWS, MEMORY_LIMIT = 50_000, 5_000, 2.0
EXPLANATION = (
    "Difference: of the results, largest; relative, but for prdc's and SDMetrics' scores. Ratio: "
    "of times of interleaved pairs ({pairs} or more, unless the remarks say fewer), median (min to "
    "max); above 1, ours is faster. Compilation and preparing inputs are not in it; seconds are "
    "medians. Wanted: at least. Both run in one process that keeps freed memory, as `genaug` does "
    "and no peer: they gain by it as well, PyTorch's networks most."
)
PACKAGES = (
    *("jax", "numpy", "scipy", "scikit-learn", "pandas", "torch"),
    *("torch-fidelity", "pytorch-fid", "prdc", "sdmetrics"),
)


def rows(quick: bool) -> list[Row]:
    """Every row, in the order of the table."""
    images, d = (8, 256) if quick else (64, 2_048)
    few = "n = 60, d = 256" if quick else "n = 200, d = 1,024"
    balls = "n = 1,000, d = 256" if quick else "n = 5,000, d = 1,280"
    subsets = "10 subsets of 200" if quick else "100 subsets of 1,000"
    moments = f"Fréchet distance, d = {d:,}, from moments"
    sets = f"Fréchet distance, d = {d:,}, from features, n = {2_000 if quick else 10_000:,}"
    fidelity, root = "torch-fidelity (eigenvalues)", "pytorch-fid (sqrtm)"
    sdmetrics = f"closest records, {500 if quick else 4_000:,} of as many, 8 + 4 columns"

    def efficientnet(side: int) -> Row:
        title = f"EfficientNet-Lite0, {images} images, {side} pixels"
        make = functools.partial(of.efficientnet_net, side)
        return Row("efficientnet", title, "PyTorch twin", 1e-5, 1, make)

    def frechet(title: str, peer: str, tolerance: float, wanted: float | None) -> Row:
        against = of.by_eigenvalues if peer == fidelity else of.by_root
        make = functools.partial(against, title == moments)
        return Row("frechet", title, peer, tolerance, wanted, make)

    return [
        Row("inception", f"Inception, {images} images of 32 pixels, resize included",
            "torch-fidelity", 1e-5, 1, of.inception_net),
        efficientnet(96),
        efficientnet(224),
        frechet(moments, fidelity, 1e-8, 10),
        frechet(moments, root, 1e-8, 30),
        frechet(sets, fidelity, 1e-5, None),
        frechet(sets, root, 1e-5, None),
        Row("few-rows", f"Fréchet distance, {few}", "scipy's sqrtm", 1e-8, 30, of.by_singular_root),
        Row("manifold", f"precision, recall, density, coverage, {balls}", "prdc", 0, 7,
            of.manifold),
        Row("kid", f"KID, d = {d:,}, {subsets}", "torch-fidelity", 1e-3, 1, of.kernel),
        Row("records", sdmetrics, "SDMetrics", 1e-6, 100, of.records, most_pairs=2),
    ]  # fmt: skip


def memory(quick: bool) -> str:
    """A sentence on the memory of `manifold_scores`, in a process of its own."""
    count = QUICK_MEMORY_ROWS if quick else MEMORY_ROWS
    command = [sys.executable, "-m", "benchmarks.memory", str(count)]
    root = Path(__file__).parents[1]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if found.returncode:
        said = (found.stderr.splitlines() or [f"exit status {found.returncode}"])[-1]
        return f"Memory of `manifold_scores`: {NOT_MEASURED}: {said}"
    gib, seconds = map(float, found.stdout.split()[-2:])
    held = "" if quick else " (held)" if gib < MEMORY_LIMIT else " (**not held**)"
    return (
        f"Memory of `manifold_scores`, two sets of {count:,} x 2,048: at most {gib:.2f} GiB above "
        f"the features and the loaded program, compilation included, in {seconds:.0f} s; wanted "
        f"below {MEMORY_LIMIT:g} at {MEMORY_ROWS:,} rows{held}."
    )


def machine() -> str:
    """What the numbers depend on."""
    parts = [f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()})"]
    parts.append(f"Python {platform.python_version()}")
    for package in PACKAGES:
        try:
            parts.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"no {package}")
    return ", ".join(parts)


def title_of(row: Row) -> str:
    """What tells a row from the others."""
    return f"{row.title}; {row.peer}"


def document(found: Mapping[str, kept.Line]) -> str:
    """EVALUATION.md: every row in order, and where each is from."""
    of_table, numbered = [], []
    for number, row in enumerate(rows(quick=False), start=1):
        line = found.get(title_of(row))
        text = line.text if line else without(row, f"{NOT_MEASURED} yet")
        of_table.append(f"| {number} {text}")
        numbered += [(number, line)] if line else []
    last = found.get(MEMORY)
    numbered += [(len(of_table) + 1, last)] if last else []
    said = last.text if last else f"Memory of `manifold_scores`: {NOT_MEASURED} yet."
    parts = (
        "# Evaluation against other packages",
        EXPLANATION.format(pairs=PAIRS),
        "\n".join([f"| # {HEAD}", f"|---{RULE}", *of_table]),
        f"{len(of_table) + 1}. {said}",
        "Measured by:",
        "\n".join(kept.origins(numbered)) or "nothing yet.",
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, print, and on request keep and write."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*dict.fromkeys(row.name for row in rows(False)), MEMORY]
    arguments.add_argument("--quick", action="store_true", help="small sizes, fewer pairs")
    arguments.add_argument("--only", choices=names, action="append", help="rows of this name")
    arguments.add_argument("--pairs", type=int, help=f"default {PAIRS}, quick {QUICK_PAIRS}")
    arguments.add_argument("--write", action="store_true",
                           help="put what was measured into EVALUATION.md")  # fmt: skip
    options = arguments.parse_args()
    pairs = options.pairs or (QUICK_PAIRS if options.quick else PAIRS)
    if options.write and (options.quick or pairs < PAIRS):
        arguments.error(f"--write takes full sizes and {PAIRS} pairs or more")
    use_cpu_cores_as_devices()
    keep_freed_memory()  # as `genaug` does
    told = "".join(f" --only {name}" for name in options.only or ())
    about = kept.origin(
        f"python -m benchmarks.evaluation{' --quick' * options.quick}{told} --pairs {pairs}",
        machine(),
    )
    print(f"`{about.command}`, {about.date}, commit {about.commit}. {about.machine}.\n")
    print(f"{HEAD}\n{RULE}", flush=True)
    asked = options.only or names
    measured = {}
    for row in rows(options.quick):
        if row.name in asked:
            measured[title_of(row)] = run(row, pairs, options.quick)
            print(measured[title_of(row)], flush=True)
    if MEMORY in asked:
        measured[MEMORY] = memory(options.quick)
        print(f"\n{measured[MEMORY]}", flush=True)
    if options.write:
        # A peer that is missing today does not wipe out what it was measured at.
        new = {name: kept.Line(text, about) for name, text in measured.items()
               if NOT_MEASURED not in text}  # fmt: skip
        found = kept.read(KEPT) | new
        kept.write(KEPT, found)
        RESULTS.write_text(document(found), encoding="utf-8")


if __name__ == "__main__":
    main()
