"""Where the time of a training update goes, by kind of operation: `genaug profile`.

Two views of one compiled program. What is counted in it: the bytes that every instruction moves,
loops as often as they run. What is measured: how long the same instructions took in a trace of a
few calls. A fusion is of the kind of the dearest thing in it.
"""

from __future__ import annotations

import argparse
import collections
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genaug import config as configs
from genaug import flops, hlo, layouts, parallel
from genaug.data.spec import spec_of
from genaug.devices import DeviceMesh, check_batch_size, make_mesh
from genaug.files import write_json
from genaug.hlo_text import Computation, Instruction, parse
from genaug.table import aligned
from genaug.train import check as check_train
from genaug.types import GenerativeModel, LabelSpec, Spec, TokenSpec, UserError

STEPS, CALLS = 4, 4
"""Updates in the program that is traced, and calls of it before that; the first is not timed."""

_KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("convolutions", frozenset({"convolution"})),
    ("matrix products", frozenset({"dot"})),
    ("collectives", frozenset({*hlo.COLLECTIVES, *(f"{name}-start" for name in hlo.COLLECTIVES)})),
    ("kernels", frozenset({"custom-call"})),
    ("random numbers", frozenset({"rng-bit-generator", "rng", "xor", "shift-right-logical"})),
    ("sums and norms", frozenset({"reduce", "reduce-window", "select-and-scatter"})),
    ("sorting and indexing", frozenset({"sort", "gather", "scatter", "dynamic-slice",
                                        "dynamic-update-slice"})),
    ("elementwise", frozenset({"add", "multiply", "divide", "subtract", "exponential", "tanh",
                               "logistic", "rsqrt", "sqrt", "power", "maximum", "minimum", "select",
                               "compare", "negate", "log", "log-plus-one",
                               "exponential-minus-one", "convert", "map", "cosine", "sine"})),
)  # fmt: skip
"""Kinds, dearest first, and the instructions that make one."""
MOVES = "copies and transposes"
_AROUND = {"while", "call", "conditional", "tuple"}


def kind_of(instruction: Instruction, program: Mapping[str, Computation]) -> str:
    """The kind of an instruction; of a fusion, of the dearest instruction in it."""
    inside = _opcodes(instruction, program)
    return next((kind for kind, opcodes in _KINDS if inside & opcodes), MOVES)


def _opcodes(instruction: Instruction, program: Mapping[str, Computation]) -> set[str]:
    called = program.get(instruction.called("calls|to_apply") or "")
    if instruction.opcode not in ("fusion", "call") or called is None:
        return {instruction.opcode}
    found: set[str] = set()
    for one in called.instructions.values():
        found |= _opcodes(one, program)
    return found


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An update of a model.

    bytes, seconds: of every kind of operation, an update on one device; no seconds where the trace
                    names no instructions.
    step_s:         an update's time by the clock, not traced.
    flops:          of an update, over all devices.
    updates:        made in all, on made-up data.
    metrics:        means over the last call of them.
    """

    devices: int
    batch: int
    step_s: float
    flops: float
    bytes: dict[str, float]
    seconds: dict[str, float]
    updates: int
    metrics: dict[str, float]


def traced_seconds(folder: Path, kinds: Mapping[str, str]) -> dict[str, float]:
    """Seconds of every kind in a trace, over all devices; instructions that hold others are not
    counted."""
    found: dict[str, float] = collections.defaultdict(float)
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    # What is not of an instruction (Python's calls, the runtime's) names none.
                    if kind := kinds.get(str(dict(event.stats).get("hlo_op"))):
                        found[kind] += event.duration_ns / 1e9
    return dict(found)


def by_kind(
    compiled: Any, call: Callable[[], object], steps: int, devices: int, trips: int = 1
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes and seconds of every kind of operation, on one device, of one of a program's steps.

    call:  runs the program once and waits for it; it has been run before.
    trips: how often loops run whose length is data.
    """
    text = compiled.as_text()
    program, _ = parse(text)
    kinds = {
        one.name: kind_of(one, program)
        for computation in program.values()
        for one in computation.instructions.values()
        if one.opcode not in _AROUND
    }
    moved: dict[str, float] = collections.defaultdict(float)
    for name, size in hlo.by_instruction(text, trips).items():
        moved[kinds.get(name, MOVES)] += size / steps
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        traced = traced_seconds(Path(folder), kinds)
    return dict(moved), {kind: s / steps / devices for kind, s in traced.items()}


def profile(
    model: GenerativeModel, spec: Spec, mesh: DeviceMesh, batch: int, accumulate: int = 1
) -> Profile:
    """Compile the training update of a model, time it and trace it, on made-up data."""
    template = layouts.abstract(model.init, mesh)
    program: Any = parallel.compile_steps(model.step, mesh, template, accumulate)
    stack = layouts.split_rows(made_up(spec, STEPS, batch), mesh, axis=1)
    state = parallel.compile_init(model.init, mesh)(jax.random.key(0))
    key = jax.random.key(1)
    compiled = program.lower(state, stack, key, jnp.int32(0)).compile()
    holder: list[Any] = [state, {}]

    def call(first: int) -> None:
        holder[:] = compiled(holder[0], stack, key, jnp.int32(first))
        jax.block_until_ready(holder[1])

    call(0)
    began = time.perf_counter()
    for i in range(1, CALLS):
        call(i * STEPS)
    step_s = (time.perf_counter() - began) / ((CALLS - 1) * STEPS)
    moved, seconds = by_kind(compiled, lambda: call(CALLS * STEPS), STEPS, mesh.devices.size)
    one = {name: jax.ShapeDtypeStruct((batch, *s.shape), s.dtype) for name, s in spec.items()}
    shapes = jax.eval_shape(lambda: (model.init(jax.random.key(0)), jax.random.key(0)))
    return Profile(
        devices=mesh.devices.size,
        batch=batch,
        step_s=step_s,
        flops=flops.of(
            jax.make_jaxpr(model.step)(shapes[0], one, shapes[1]).jaxpr, platform=mesh.platform
        ).total,
        bytes=moved,
        seconds=seconds,
        updates=(CALLS + 1) * STEPS,
        metrics={
            name: float(np.mean(value))
            for name, value in layouts.to_host(holder[1]).items()
            if name != "good"
        },
    )


def made_up(spec: Spec, steps: int, rows: int) -> dict[str, np.ndarray]:
    """Stacks of batches shaped as a dataset's, with values that it could hold."""
    draw = np.random.default_rng(0)

    def values(name: str, one: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (steps, rows, *one.shape)
        if name in ("segments", "num_bytes"):
            return np.ones(shape, one.dtype)
        highest = 256
        if isinstance(one, LabelSpec):
            highest = one.num_classes
        elif isinstance(one, TokenSpec):
            highest = max(one.num_text, 1)
        return draw.integers(0, highest, shape).astype(one.dtype)

    return {name: values(name, one) for name, one in spec.items()}


def kinds_table(bytes_: Mapping[str, float], seconds_: Mapping[str, float], per: str) -> str:
    """A line a kind of operation, by the time it took."""
    kinds = sorted(
        {**bytes_, **seconds_},
        key=lambda kind: (seconds_.get(kind, 0.0), bytes_.get(kind, 0.0)),
        reverse=True,
    )
    seconds, size = sum(seconds_.values()), sum(bytes_.values())
    rows: list[Sequence[str]] = [["kind of operation", f"ms {per}", "% of time", "MB moved",
                                  "% of bytes"]]  # fmt: skip
    for kind in kinds:
        took, moved = seconds_.get(kind, 0.0), bytes_.get(kind, 0.0)
        rows.append(
            [
                kind,
                f"{1000 * took:.2f}",
                f"{100 * took / seconds:.1f}" if seconds else "-",
                f"{moved / 1e6:.1f}",
                f"{100 * moved / size:.1f}" if size else "-",
            ]
        )
    return aligned(rows)


def profile_command(options: argparse.Namespace, fields: Sequence[str]) -> Iterator[str]:
    """Profile an experiment's training update: a table, and what its figures are of."""
    if options.experiment is None:
        raise UserError("Name an experiment file: genaug profile EXPERIMENT.")
    experiment = configs.override(configs.load(options.experiment), list(fields))
    check_train(experiment.train)
    spec = spec_of(experiment.data, num_classes=options.num_classes, vocab_size=options.vocab_size)
    mesh = make_mesh(experiment.mesh)
    if experiment.mesh.strategy == "pmap":
        raise UserError("genaug profile compiles one program: leave out --mesh.strategy pmap.")
    batch, accumulate = experiment.train.batch_size, experiment.train.accumulate
    check_batch_size(batch, mesh, accumulate)
    found = profile(experiment.model.make(spec), spec, mesh, batch, accumulate)
    yield kinds_table(found.bytes, found.seconds, "an update")
    yield (
        f"An update of {batch} on {found.devices} device(s) takes {1000 * found.step_s:.2f} ms "
        f"({found.flops / found.step_s / 1e9:.1f} GFLOP/s); a device was at work "
        f"{1000 * sum(found.seconds.values()):.2f} ms of it while traced, which takes time itself. "
        "Milliseconds and bytes are a device's; bytes are counted in the program, not measured."
    )
    last = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items())
    yield f"After {found.updates} updates on made-up data: {last} (means of the last {STEPS})."
    if options.json:
        write_json(options.json, asdict(found))
