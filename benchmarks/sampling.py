"""What it costs to draw from a bundle, and from a Grain source, rather than in memory or from disk.

    python -m benchmarks.sampling            the table; --write puts it into SAMPLING.md

Weights are those of an untrained model, of the size that the experiment trains: what is drawn is no
good, and takes as long. Pairs are interleaved; see `pairs`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds

from benchmarks.evaluation import machine
from benchmarks.pairs import HEAD, RULE, Agreement, Comparison, Row, run
from genaug.bundle import load_sampler
from genaug.config import load
from genaug.data import write_examples
from genaug.devices import Mesh, make_mesh, use_cpu_cores_as_devices
from genaug.export import write_bundle
from genaug.sampling import Sampler, make_sampler
from genaug.types import LabelSpec, Spec

HOME = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("SAMPLING.md")
PAIRS = 7
SPEC: Spec = {"image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8), "label": LabelSpec(10)}
COUNTS = {"mnist_rare": 32_768, "mnist_cvae": 4_096, "mnist_dcgan": 2_048, "mnist_ddpm": 32}


def both(name: str, folder: Path) -> tuple[Sampler, Sampler]:
    """The sampler of a bundle and the one in memory, on the same devices; weights are fresh."""
    model = load(str(HOME / "experiments" / f"{name}.py")).model.make(SPEC)
    weights = model.weights(jax.jit(model.init)(jax.random.key(0)))
    mesh = make_mesh(Mesh())
    size = min(256, COUNTS[name])
    write_bundle(folder / name, model, weights, SPEC, {})
    there = load_sampler(folder / name, mesh.devices).blocks(size)
    return there, make_sampler(model, weights, mesh, size)


def equal(ours: Any, theirs: Any) -> Agreement:
    """By the largest difference of a byte: another program may round the other way."""
    gaps = [np.abs(np.subtract(ours[k], theirs[k], dtype=float)).max() for k in ("image", "label")]
    return Agreement(float(max(gaps)))


def of_bundle(name: str, folder: Path, quick: bool) -> Comparison:
    """Rows of a bundle and of the model in memory."""
    there, here = both(name, folder)
    count = COUNTS[name] // (8 if quick else 1)
    index = np.arange(count, dtype=np.int32)
    cond = {"index": index, "label": index % 10}
    key = jax.random.key(1)
    return Comparison(
        lambda: there(key, cond), lambda: here(key, cond), equal, f"{count} images a call"
    )


def batches_of(source: Any, count: int) -> dict[str, np.ndarray]:
    """All examples of a random-access source, through Grain in batches of 128."""
    stream = iter(grain.MapDataset.source(source).batch(128).to_iter_dataset())
    found = [next(stream) for _ in range(count // 128)]
    stream.close()
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def of_source(name: str, folder: Path, quick: bool) -> Comparison:
    """Examples drawn as they are read, and the same ones read from ArrayRecord."""
    count = COUNTS[name] // (8 if quick else 1)
    there, _ = both(name, folder)
    plan = {"label": np.arange(count, dtype=np.int32) % 10}
    drawn = there.source(plan)
    stored = write_examples(
        folder / f"{name}_examples",
        name="drawn",
        features={"image": SPEC["image"], "label": np.int64},
        examples=(drawn[i] for i in range(count)),
    )
    records = tfds.builder_from_directory(stored).as_data_source("train")
    return Comparison(
        lambda: batches_of(there.source(plan), count),  # a new one has drawn nothing yet
        lambda: batches_of(records, count),
        equal,
        f"{count} images a call",
    )


def rows(folder: Path) -> Iterator[Row]:
    """The table before it is measured."""

    def row(kind: str, name: str, peer: str, wanted: float | None, make: Callable) -> Row:
        return Row(kind, f"{kind}, {name}", peer, 1.0, wanted, partial(make, name, folder))

    for name in COUNTS:
        yield row("bundle", name, "in memory", 0.95, of_bundle)
    yield row("source", "mnist_rare", "ArrayRecord", 1.0, of_source)  # a cheap one: an MLP
    yield row("source", "mnist_cvae", "ArrayRecord", None, of_source)
    yield row("source", "mnist_dcgan", "ArrayRecord", None, of_source)


def document(pairs: int, quick: bool) -> Iterator[str]:
    """The lines of SAMPLING.md, as they are measured."""
    yield from (
        "# Sampling from bundles and sources",
        "",
        f"`python -m benchmarks.sampling{' --quick' if quick else ''} --pairs {pairs}`: "
        f"{machine()}.",
        "",
        f"Ratio: of times of {pairs} interleaved pairs, median (min to max); above 1, ours is "
        "faster. Difference: of bytes, largest. Compilation is not in it; seconds are medians.",
        "",
        HEAD.replace("ours", "bundle or source"),
        RULE,
    )
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder)):
            yield run(row, pairs, quick)


def main() -> None:
    """Measure, print, and write on request."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--quick", action="store_true", help="an eighth of the images")
    arguments.add_argument("--pairs", type=int, default=PAIRS, help=f"default {PAIRS}")
    arguments.add_argument("--write", action="store_true", help="write SAMPLING.md")
    options = arguments.parse_args()
    if options.write and (options.quick or options.pairs < PAIRS):
        arguments.error(f"--write takes a full run of {PAIRS} pairs or more")
    use_cpu_cores_as_devices()
    lines = []
    for line in document(options.pairs, options.quick):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
