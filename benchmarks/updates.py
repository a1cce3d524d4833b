"""Training updates raced: genaug's against its twin's in PyTorch and those of plain Flax.

A call makes `steps` updates. Before anything is timed, genaug and a twin with its weights and its
noise make a call's updates, and the mean losses must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plain
from benchmarks.race import Arm, Made, Race, left_out, quickest
from genaug import flops, hlo, layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.profiling import by_kind, kinds_table
from genaug.types import Batch, GenerativeModel

KEY = 7

Noise = Callable[[jax.Array, Batch], tuple[jax.Array, ...]]
"""What a family draws for a batch with this key, as its twin takes it."""


class Twin(NamedTuple):
    """A family in PyTorch. make: `(state, wrap) -> step(batch, *noise) -> loss`."""

    make: Callable[[Any, Callable[[Any], Any]], Callable[..., Any]]
    noise: Noise


class Updates:
    """genaug's compiled updates on a stack of batches: `calls` calls of them are one of the race's.

    start: the state before them, on the host.
    first: the mean loss of the first call, which also warms up.
    """

    def __init__(self, model: GenerativeModel, stack: Any, devices: int, calls: int):
        mesh = make_mesh(Mesh(data=devices))
        template = layouts.abstract(model.init, mesh)
        program = parallel.compile_steps(model.step, mesh, template)
        assert isinstance(program, jax.stages.Wrapped)  # one program, as of jit
        self.stack = layouts.split_rows(stack, mesh, axis=1)
        self.steps = len(next(iter(stack.values())))
        self.key = jax.random.key(KEY)
        # Compiled in half the time, and run once; a last digit more or less is the same race.
        init: Any = parallel.compile_init(model.init, mesh)
        compiled = init.lower(jax.random.key(0)).compile({"xla_backend_optimization_level": "1"})
        self.state = compiled(jax.random.key(0))
        self.start = jax.device_get(self.state)
        began = time.perf_counter()
        self.program = program.lower(self.state, self.stack, self.key, jnp.int32(0)).compile()
        self.compile_s = time.perf_counter() - began
        text = self.program.as_text()
        assert text is not None
        self.bytes = hlo.measure(text).hbm_bytes * devices / self.steps
        self.devices, self.calls, self.done = devices, calls, 0
        self.first = self._once()

    def _once(self) -> Any:
        self.state, metrics = self.program(self.state, self.stack, self.key, jnp.int32(self.done))
        self.done += self.steps
        return metrics["loss"]

    def __call__(self) -> object:
        """Go on training."""
        for _ in range(self.calls):
            loss = self._once()
        return jax.block_until_ready(loss)

    def profile(self) -> str:
        """Where the time of an update goes, by kind of operation."""
        once = lambda: jax.block_until_ready(self._once())  # noqa: E731
        return kinds_table(*by_kind(self.program, once, self.steps, self.devices), "an update")


def race(
    model: GenerativeModel,
    stack: dict[str, np.ndarray],
    twin: Twin,
    *,
    calls: int = 1,
    compiled: bool = True,
    against_flax: bool = False,
    scanned: bool = False,
    single: bool = True,
    libraries: Callable[[Updates], Sequence[Arm]] = lambda ours: (),
) -> Race:
    """genaug's updates against its twin's, eager and compiled, libraries', and plain Flax's.

    compiled:  whether PyTorch's compiler is waited for.
    single:    whether one device is tried as well as one per core (`--mesh.data`), and the faster
               taken, as PyTorch has the faster number of threads.
    libraries: more arms, of genaug's compiled updates.
    """
    counts = sorted({1, jax.device_count()}) if single else [jax.device_count()]
    tried = [Updates(model, stack, n, calls) for n in counts]
    ours = tried[quickest(tried)]
    del tried  # and what the slower one holds
    first = {name: value[0] for name, value in stack.items()}
    state = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.make_jaxpr(model.step)(state, first, jax.random.key(0))
    arms = [
        Arm("PyTorch, eager", partial(torch_arm, stack, twin, ours), torch=True),
        Arm(
            "PyTorch, compiled",
            partial(torch_arm, stack, twin, ours, compiled=True) if compiled else left_out,
            torch=True,
        ),
        *libraries(ours),
    ]
    if against_flax:
        arms.append(Arm("plain Flax, a step a call", partial(_flax, model, stack, ours)))
    if scanned:
        arms.append(Arm("plain Flax in a scan", partial(_flax, model, stack, ours, scan=True)))
    steps = ours.steps * calls
    rows = len(next(iter(first.values())))
    per_row = first["tokens"].shape[1] - 1 if "tokens" in first else 1
    return Race(
        work=float(steps * rows * per_row),
        ours=ours,
        arms=arms,
        profile=ours.profile,
        steps=steps,
        flops=flops.of(traced.jaxpr, platform=jax.default_backend()).total,
        bytes=ours.bytes,
        remark=f"genaug on {ours.devices} device(s), compiled in {ours.compile_s:.1f} s",
    )


def torch_arm(
    stack: Any, twin: Twin, ours: Updates, *, compiled: bool = False, remark: str = ""
) -> Made:
    """The twin's updates, checked against genaug's first call."""
    import torch

    torch._dynamo.reset()
    wrap = torch.compile if compiled else lambda function: function
    step = twin.make(ours.start, wrap)
    batches = [
        {name: torch.from_numpy(np.array(value[i])) for name, value in stack.items()}
        for i in range(ours.steps)
    ]
    noise = jax.jit(twin.noise)
    losses = []
    for i, batch in enumerate(batches):
        rows = {name: value[i] for name, value in stack.items()}
        rows["index"] = np.arange(len(next(iter(rows.values()))), dtype=np.int32)
        drawn = noise(jax.random.fold_in(jax.random.key(KEY), i), rows)
        given = [torch.from_numpy(np.array(one)) for one in drawn]
        losses.append(float(step(batch, *given)))
    want = float(ours.first)

    def call() -> object:
        for _ in range(ours.calls):
            for batch in batches:
                loss = step(batch)
        return float(loss)

    return Made(call, abs(float(np.mean(losses)) - want) / abs(want), remark)


def _flax(model: GenerativeModel, stack: Any, ours: Updates, scan: bool = False) -> Made:
    """The same updates of the same model in plain layers: one by one, or in one scan."""
    state = jax.tree.map(jnp.asarray, ours.start)
    key = jax.random.key(KEY)

    def one(state: Any, number_and_batch: Any) -> tuple[Any, jax.Array]:
        number, batch = number_and_batch
        rows = len(jax.tree.leaves(batch)[0])
        batch = {**batch, "index": jnp.arange(rows)}
        state, metrics = model.step(state, batch, jax.random.fold_in(key, number))
        return state, metrics["loss"]

    def many(state: Any, first: Any, stack: Any) -> tuple[Any, jax.Array]:
        return jax.lax.scan(one, state, (first + jnp.arange(ours.steps), stack))

    batches = [{n: jnp.asarray(v[i]) for n, v in stack.items()} for i in range(ours.steps)]
    number = jnp.int32(0)
    with plain.layers():
        if scan:
            step = jax.jit(many, donate_argnums=0).lower(state, number, stack).compile()
        else:
            made = jax.jit(one, donate_argnums=0).lower(state, (number, batches[0]))
            step = made.compile()
    holder, done = [state], [0]

    def once() -> list[jax.Array]:
        begin = done[0]
        done[0] += ours.steps
        if scan:
            holder[0], losses = step(holder[0], jnp.int32(begin), stack)
            return [losses.mean()]
        losses = []
        for i, batch in enumerate(batches):
            holder[0], loss = step(holder[0], (jnp.int32(begin + i), batch))
            losses.append(loss)
        return losses

    found = float(np.mean(jax.device_get(once())))

    def call() -> object:
        for _ in range(ours.calls):
            losses = once()
        return jax.block_until_ready(losses[-1])

    return Made(call, abs(found - float(ours.first)) / abs(float(ours.first)))
