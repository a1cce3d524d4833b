"""The trainer: compile, loop, hooks. It knows no family and no device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from genaug import checkpoint, layouts, parallel, processes
from genaug.devices import DeviceMesh, check_batch_size
from genaug.types import GenerativeModel, State, UserError


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long a generator is trained, and what happens on the way. Counts are in updates."""

    num_steps: int = 3000
    start_from: str | None = None  # run folder whose weights training starts from (fine-tuning)
    batch_size: int = 128  # examples an update, over all devices
    accumulate: int = 1  # parts of a batch that gradients are taken of in turn, to save memory
    steps_per_call: int = 50  # updates compiled into one program
    class_balance: float = 0.0  # 0 = draws as the data has them, 1 = every class equally often
    evaluate_every: int = 500  # updates between scores of the validation examples
    sample_every: int = 500  # updates between grids of samples
    checkpoint_every: int = 500
    coverage_samples: int = (
        0  # samples a class at every evaluation, for the mode coverage; 0 = none
    )
    distance_samples: int = 0  # samples at every evaluation, for the Fréchet distance; 0 = none
    distance_features: Literal["efflite0", "pixels"] = "efflite0"  # in which it is taken


class TrainingError(UserError):
    """Training that cannot go on. Exit code 4."""

    exit_code = 4


class Preempted(UserError):
    """A machine is about to be taken away, and what was trained is saved. Exit code 143."""

    exit_code = 143


class Hook(NamedTuple):
    """Something to do with the state after every `every` updates, and after the last one."""

    every: int
    call: Callable[[int, State], None]


def check(config: Train) -> None:
    """Refuse counts that do not divide into whole calls."""
    for name in ("num_steps", "batch_size", "accumulate", "steps_per_call"):
        if getattr(config, name) < 1:
            raise UserError(f"train.{name.replace('_', '-')} must be at least 1.")
    for name in ("num_steps", "evaluate_every", "sample_every", "checkpoint_every"):
        count, call = getattr(config, name), config.steps_per_call
        if count % call or count < 1:
            up = max(math.ceil(count / call), 1) * call
            raise UserError(
                f"train.{name.replace('_', '-')} {count} is not a multiple of "
                f"train.steps-per-call {call}: use {up}, or another --train.steps-per-call."
            )


def fit(
    model: GenerativeModel,
    batches: Callable[[int, int], Iterable[dict[str, np.ndarray]]],
    config: Train,
    *,
    key: jax.Array,
    mesh: DeviceMesh,
    feed: Callable[[dict[str, np.ndarray]], Any] | None = None,
    checkpoints: Path | None = None,
    start: Callable[[State], State] = lambda fresh: fresh,
    hooks: Sequence[Hook] = (),
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    resumed: Callable[[int], None] = lambda step: None,
    about: Callable[[int], dict[str, Any]] = lambda step: {},
) -> State:
    """Train for `config.num_steps` updates, from the newest checkpoint if there is one.

    batches: `(start, stop)` to the host batches of those updates: what update i sees is a function
             of i alone, so a resumed run sees what an unbroken one would.
    feed:    a stack of these onto the devices, if their rows are not the examples themselves
             (`parallel.compile_lookup`).
    start:   what becomes of the initial state where there is no checkpoint yet: fine-tuning.
    log:     called with the metrics of every call, one call late: the loop never waits for them.
    resumed: called once with the first update to be made.
    about:   what is saved beside the state after an update (`checkpoint.about`).

    Raises:
        TrainingError: the loss is no longer finite.
        Preempted:     this machine, or another of the run's, is to be taken away; the state is
                       saved, and the same call goes on from there.
        UserError:     of values, a mesh or a checkpoint that cannot be used.
    """
    check(config)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    init_key, step_key = jax.random.split(key)
    template = layouts.abstract(model.init, mesh)
    found = checkpoints and checkpoint.restore(checkpoints, template, owner=True)
    if found:
        state, first = found
    else:
        fresh = parallel.compile_init(model.init, mesh)(init_key)
        state, first = layouts.place(start(fresh), mesh), 0
    _check_first(first, config.num_steps)
    resumed(first)
    if checkpoints:
        hooks = [*hooks, Hook(config.checkpoint_every, _saver(checkpoints, first, about))]
    run = parallel.compile_steps(model.step, mesh, template, config.accumulate)
    feed = feed or partial(layouts.split_rows, mesh=mesh, axis=1)
    pending: tuple[int, Any] | None = None
    stacks = _stacks(batches(first, config.num_steps), config.steps_per_call)
    calls = range(first, config.num_steps, config.steps_per_call)
    for begin, stack in zip(calls, stacks, strict=True):
        state, metrics = run(state, feed(stack), step_key, begin)
        if pending:
            _report(*pending, log)
        step = begin + config.steps_per_call
        pending = (step, metrics)
        stop = processes.must_stop(step // config.steps_per_call) and step < config.num_steps
        due = [hook for hook in hooks if step % hook.every == 0 or step == config.num_steps]
        if due or stop:  # Both wait for the state; what a checkpoint covers is logged.
            _report(*pending, log)
            pending = None
        for hook in due:
            hook.call(step, state)
        if stop:
            raise _preempted(checkpoints, step, state, about(step))
    if pending:
        _report(*pending, log)
    return state


def _check_first(first: int, num_steps: int) -> None:
    if first > num_steps:
        raise UserError(
            f"The run has already made {first} updates, more than train.num-steps {num_steps}: "
            "use another --run-dir."
        )


def _preempted(
    checkpoints: Path | None, step: int, state: State, about: dict[str, Any]
) -> Preempted:
    if checkpoints:
        checkpoint.save(checkpoints, step, state, about=about)
    return Preempted(
        f"A machine is about to be taken away; update {step} is saved, and the same command goes "
        "on from there."
    )


def _saver(
    directory: Path, start: int, about: Callable[[int], dict[str, Any]]
) -> Callable[[int, State], None]:
    def save(step: int, state: State) -> None:
        if step > start:
            checkpoint.save(directory, step, state, about=about(step))

    return save


def _stacks(
    batches: Iterable[dict[str, np.ndarray]], count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Every `count` batches as one stack [count, batch, ...]."""
    iterator = iter(batches)
    while chunk := list(itertools.islice(iterator, count)):
        yield {name: np.stack([batch[name] for batch in chunk]) for name in chunk[0]}


def _report(
    step: int, metrics: dict[str, jax.Array], log: Callable[[int, dict[str, float]], None]
) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"{bad[0]} is {values[bad[0]]} at update {step}: lower the learning rate or clip the "
            "gradients (the optimizer's clip-norm). The last good checkpoint is kept."
        )
    log(step, values)
