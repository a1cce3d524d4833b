"""What many devices add to an update, read from the compiled program; what a call of many saves.

    python -m benchmarks.scaling [--write] [--no-times]

Data parallel, on 8 devices: the bytes that collectives give, over the bytes of the parameters; 1.00
and one kind means that the gradients are summed once and nothing else is sent. Fully sharded: the
bytes of the state that a device keeps, times the number of devices, over the whole state's. Tensor
parallel: what a layer of a transformer adds to what devices that share it send each other. All are
properties of the program, not times. Last, the time of updates that are called one by one over
that of updates in a scan, in interleaved rounds, in a process that has one device (`--only-times`);
`--no-times` leaves it out, on a busy machine. `--write` puts the tables into SCALING.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from genaug import config, hlo, layouts, parallel
from genaug.config import Experiment
from genaug.data import Data
from genaug.data.spec import spec_of as data_spec
from genaug.devices import DeviceMesh, Mesh, keep_freed_memory, make_mesh
from genaug.models.transformer_lm import TransformerLM
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.state import NetworkState
from genaug.types import GenerativeModel, Spec

RESULTS = Path(__file__).with_name("SCALING.md")
EXPERIMENTS = Path(__file__).parents[1] / "experiments"
COUNTS = (1, 2, 8, 32, 128, 256)
ROUNDS = 7
ROUND_S = 0.3  # a side's calls in a round take at least so long
SCANNED = 10  # updates in a call


def experiment(name: str) -> Experiment:
    """The full preset of a file in experiments/."""
    return config.load(str(EXPERIMENTS / f"{name}.py"))


def spec_of(name: str) -> Spec:
    """The shapes of its data, which need not be here."""
    data = experiment(name).data
    if isinstance(data, Data) and name.startswith("cifar10"):
        data = dataclasses.replace(data, image_size=32, channels=3)
        return data_spec(data, num_classes=10)
    if name == "folder_dit":
        return data_spec(data, num_classes=1000)
    return data_spec(data, vocab_size=50_256 if name == "gpt2" else None)


def stack_of(spec: Spec, count: int, rows: int) -> dict[str, np.ndarray]:
    """Made-up batches: `count` of `rows` examples."""
    draw = np.random.default_rng(0)
    highest = {"image": 256, "label": 10, "tokens": 1000, "segments": 1, "num_bytes": 1}
    return {
        name: 1 * draw.integers(0, highest[name], (count, rows, *one.shape)).astype(one.dtype)
        + (name in ("segments", "num_bytes"))
        for name, one in spec.items()
    }


def bytes_of(tree: Any) -> int:
    """Of all arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def parameters(state: Any) -> Any:
    """Those of every network in a state."""
    is_network = lambda node: isinstance(node, NetworkState)  # noqa: E731
    return [n.variables["params"] for n in jax.tree.leaves(state, is_leaf=is_network)]


def collectives(
    model: GenerativeModel, spec: Spec, rows: int, mesh: DeviceMesh
) -> Sequence[hlo.Collective]:
    """What the devices send each other in an update of a batch of `rows`."""
    template = layouts.abstract(model.init, mesh)
    run = parallel.compile_steps(model.step, mesh, template)
    stack: Any = stack_of(spec, 1, rows)
    if mesh.config.strategy == "pmap":  # its function shares the batch out itself
        run = jax.jit(run)
        template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), template)
    else:
        stack = layouts.split_rows(stack, mesh, axis=1)
    assert isinstance(run, jax.stages.Wrapped)
    text = run.lower(template, stack, jax.random.key(0), 0).compile().as_text()
    assert text is not None
    return hlo.measure(text).collectives


def data_parallel(name: str) -> str:
    """A row: what an update sends on 8 devices, by either strategy."""
    preset, spec = experiment(name), spec_of(name)
    model = preset.model.make(spec)
    size = bytes_of(parameters(jax.eval_shape(model.init, jax.random.key(0))))
    cells = []
    strategies: tuple[Literal["jit", "pmap"], ...] = ("jit", "pmap")
    for strategy in strategies:
        mesh = make_mesh(Mesh(data=8, strategy=strategy))
        found = collectives(model, spec, preset.train.batch_size, mesh)
        whole = sum(one.bytes / (2 * (one.group - 1) / one.group) for one in found)
        kinds = ", ".join(sorted({one.kind for one in found}))
        cells += [f"{whole / size:.3f}", f"{sum(one.times for one in found):.0f} {kinds}"]
    return f"| {name} | {size / 1e6:.2f} | {' | '.join(cells)} |"


def fully_sharded(name: str, min_split: int) -> str:
    """A row: a device's share of the state, times the number of devices, over the whole."""
    model = experiment(name).model.make(spec_of(name))
    cells = []
    for count in COUNTS:
        mesh = make_mesh(Mesh(data=1, fsdp=count, min_split=min_split))
        template = layouts.abstract(model.init, mesh)
        kept = layouts.share_bytes(template)
        cells.append(f"{kept * count / bytes_of(template):.3f}")
    return f"| {name} | {bytes_of(template) / 1e6:.1f} | {' | '.join(cells)} |"


def sent_in_a_group(layers: int) -> dict[str, tuple[float, float]]:
    """How often, and bytes, of every kind of collective over the two devices that share a layer."""
    preset, spec = experiment("pydoc_lm"), spec_of("pydoc_lm")
    assert isinstance(preset.model, TransformerLM)
    model = dataclasses.replace(preset.model, num_layers=layers).make(spec)
    mesh = make_mesh(Mesh(data=4, tensor=2))
    found = collectives(model, spec, preset.train.batch_size, mesh)
    return {one.kind: (one.times, one.bytes) for one in found if one.group == 2}


def tensor_parallel() -> Iterator[str]:
    """Rows: what a layer sends, from nets of one and of two layers."""
    one, two = sent_in_a_group(1), sent_in_a_group(2)
    for kind, (times, size) in sorted(two.items()):
        before, less = one.get(kind, (0.0, 0.0))
        yield f"| {kind} | {times - before:.0f} | {(size - less) / 1e6:.2f} |"


def updates(model: GenerativeModel, spec: Spec, rows: int, per_call: int) -> Callable[[], object]:
    """Ten updates, `per_call` in a program; the state goes on from call to call."""
    mesh = make_mesh(Mesh(data=1))
    template = layouts.abstract(model.init, mesh)
    run = parallel.compile_steps(model.step, mesh, template)
    stack = layouts.split_rows(stack_of(spec, per_call, rows), mesh, axis=1)
    holder = [parallel.compile_init(model.init, mesh)(jax.random.key(0))]

    def call() -> object:
        for first in range(0, SCANNED, per_call):
            holder[0], metrics = run(holder[0], stack, jax.random.key(1), first)
        return metrics

    return call


def small_vae() -> tuple[str, GenerativeModel, Spec, int]:
    """A perceptron with 64 hidden units in batches of 32: what is called is little."""
    spec = spec_of("mnist_vae")
    return "VAE of 64 hidden units, batch 32", VAE(net=MLP(hidden=(64,))).make(spec), spec, 32


def dispatched() -> Iterator[str]:
    """Rows: time of ten calls of one update over that of one call of ten."""
    cases = [small_vae()]
    for name in ("mnist_cvae", "mnist_dcgan", "mnist_ddpm", "pydoc_lm"):
        preset, spec = experiment(name), spec_of(name)
        family = preset.model
        if isinstance(family, TransformerLM):
            family = dataclasses.replace(family, num_layers=2)
        rows = min(preset.train.batch_size, 32)
        cases.append((f"{name}, batch {rows}", family.make(spec), spec, rows))
    for title, model, spec, rows in cases:
        ours, other = (updates(model, spec, rows, per_call) for per_call in (SCANNED, 1))
        jax.block_until_ready((ours(), other()))
        began = time.perf_counter()
        jax.block_until_ready(ours())
        repeats = math.ceil(ROUND_S / (time.perf_counter() - began))
        ratios, own = [], []
        for _ in range(ROUNDS):
            seconds = []
            for call in (ours, other):
                began = time.perf_counter()
                for _ in range(repeats):
                    made = call()
                jax.block_until_ready(made)
                seconds.append(time.perf_counter() - began)
            ratios.append(seconds[1] / seconds[0])
            own.append(1000 * seconds[0] / repeats / SCANNED)
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        yield f"| {title} | {spread} | {statistics.median(own):.3g} |"


FAMILIES = ("mnist_vae", "mnist_cvae", "mnist_dcgan", "mnist_ddpm", "pydoc_lm")
SHARDED = (*FAMILIES, "cifar10_dcgan", "cifar10_ddpm", "gpt2", "folder_dit")


def programs() -> Iterator[str]:
    """The tables of programs: the same on every machine."""
    yield from (
        "## Data parallel on 8 devices, an update",
        "",
        "| experiment | parameters, MB | jit: bytes of collectives / parameters | collectives | "
        "pmap: bytes / parameters | collectives |",
        "|---|---|---|---|---|---|",
        *map(data_parallel, FAMILIES),
        "",
        "Gradients are summed once, when they are whole. Above 1 are, of DCGAN, the moments of a "
        "batch: under jit those of all its rows, forward and backward; under pmap each device's "
        "own, whose running ones are averaged.",
        "",
        "## Fully sharded: devices x a device's share / the whole state",
        "",
        f"| experiment | state, MB | {' | '.join(map(str, COUNTS))} devices |",
        f"|---|---|{'---|' * len(COUNTS)}",
        *(fully_sharded(name, Mesh().min_split) for name in SHARDED),
        "",
        f"Arrays of fewer than {Mesh().min_split:,} elements are kept whole (`--mesh.min-split`), "
        "and show in a small net's share on many devices. With `--mesh.min-split 1`:",
        "",
        f"| experiment | state, MB | {' | '.join(map(str, COUNTS))} devices |",
        f"|---|---|{'---|' * len(COUNTS)}",
        *(fully_sharded(name, 1) for name in SHARDED),
        "",
        "What is left are statistics of batches, and arrays whose lengths lack some of the factors "
        "of the number of devices.",
        "",
        "## Tensor parallel on 4 x 2 devices: what a layer of pydoc_lm sends, an update",
        "",
        "| kind | times | MB a device |",
        "|---|---|---|",
        *tensor_parallel(),
        "",
        "Two all-reduces forward and two back are the method's own (Shoeybi et al. 2019).",
    )


def times() -> Iterator[str]:
    """The table of times, taken in a process of its own: there the one device has all cores."""
    rows = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--only-times"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    yield from (
        "",
        f"## {SCANNED} updates called one by one / in one scan, on one device",
        "",
        "| what | ratio of times | ms an update in the scan |",
        "|---|---|---|",
        *rows.splitlines(),
        "",
        "Of a large net, most of the difference is memory that a call maps anew "
        "(`genaug.devices.keep_freed_memory`); of the small VAE, what a call costs by itself.",
    )


def main() -> None:
    """Compile, time, print, and write on request."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--write", action="store_true", help="write SCALING.md")
    arguments.add_argument("--no-times", action="store_true", help="the tables of programs alone")
    arguments.add_argument("--only-times", action="store_true", help="the rows of times alone")
    options = arguments.parse_args()
    if options.only_times:
        keep_freed_memory()  # as `genaug` does
        for row in dispatched():
            print(row, flush=True)
        return
    jax.config.update("jax_num_cpu_devices", max(COUNTS))
    lines = [
        "# What many devices add",
        "",
        f"`python -m benchmarks.scaling --write{' --no-times' if options.no_times else ''}`: "
        f"{os.cpu_count()} cores ({platform.machine()}), jax {jax.__version__}. Devices are "
        "virtual: the tables are of programs that XLA:CPU compiled"
        f"{'.' if options.no_times else ', but for the last, of times.'}",
        "",
        *programs(),
        *(() if options.no_times else times()),
    ]
    print("\n".join(lines))
    if options.write:
        RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
