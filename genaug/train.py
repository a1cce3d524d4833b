"""The trainer: compile, loop, hooks. It knows no family and no device."""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from absl import logging

from genaug import checkpoint, digests, layouts, parallel, processes, signals
from genaug.devices import DeviceMesh, check_batch_size
from genaug.guard import Guard, Watched, bare, usual_from, usual_to_json
from genaug.health import (
    FRUITLESS,
    Sick,
    check_memory,
    given_up,
    memory_explained,
    report,
    words_of,
)
from genaug.signals import Signals
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
    largest_norm: float | None = None  # updates with a larger norm of a gradient are left out
    spike_factor: float | None = None  # or than so many times the norm that was usual lately
    patience: int = 10  # updates left out in a row after which training goes back to a checkpoint


class Stopped(UserError):
    """Told to stop, and what was trained is saved. Exit code 128 and the signal's number."""

    def __init__(self, words: str, number: int):
        super().__init__(words)
        self.exit_code = 128 + number


class Hook(NamedTuple):
    """Something to do with the state after every `every` updates, and after the last one."""

    every: int
    call: Callable[[int, State], None]


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """What stays the same while training goes on."""

    config: Train
    program: Callable[[State, Any, jax.Array, int], tuple[State, dict[str, jax.Array]]]
    batches: Callable[[int, int], Iterable[dict[str, np.ndarray]]]
    feed: Callable[[dict[str, np.ndarray]], Any]
    key: jax.Array
    hooks: Sequence[Hook]
    save: Callable[..., None]
    log: Callable[[int, dict[str, float]], None]
    told: Signals
    mesh: DeviceMesh


def check(config: Train) -> None:
    """Refuse counts that do not divide into whole calls."""
    if config.largest_norm is not None and not config.largest_norm > 0:
        raise UserError(f"train.largest-norm is {config.largest_norm}; it must be above 0.")
    if config.spike_factor is not None and not config.spike_factor > 1:
        raise UserError(f"train.spike-factor is {config.spike_factor}; it must be above 1.")
    for name in ("num_steps", "batch_size", "accumulate", "steps_per_call", "patience"):
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
    resumed: Callable[[int, bool], None] = lambda step, due: None,
    about: Callable[[int], dict[str, Any]] = lambda step: {},
) -> State:
    """Train for `config.num_steps` updates, from the newest checkpoint if there is one.

    batches: `(start, stop)` to the host batches of those updates: what update i sees is a function
             of i alone, so a resumed run sees what an unbroken one would.
    feed:    a stack of these onto the devices, if their rows are not the examples themselves
             (`parallel.compile_lookup`).
    start:   what becomes of the initial state where there is no checkpoint yet: fine-tuning.
    log:     called with the metrics of every call, one call late: the loop never waits for them.
    resumed: called once with the number of updates made, and whether what was due after them is
             done again: a run was stopped in the middle of that.
    about:   what is saved beside the state after an update (`checkpoint.about`).

    An update whose loss or gradient is not finite, or whose gradient is larger than
    `config.largest_norm` or `config.spike_factor` allow, is left out, on the devices: the state
    stays as it was. What is usual is saved beside it. After `config.patience` of them in a row the
    last good checkpoint is taken instead and training goes on behind the call they end in, as if
    the batches in between were not there.

    Raises:
        TrainingError: going back did not help, or there is nothing to go back to.
        Stopped:       by SIGTERM (as of a machine, this or another of the run's, that is about to
                       be taken away) or Ctrl-C; the state is saved, and the same call goes on from
                       there.
        UserError:     of values, a mesh or a checkpoint that cannot be used.
    """
    check(config)
    check_batch_size(config.batch_size, mesh, config.accumulate)
    init_key, step_key = jax.random.split(key)
    template = layouts.abstract(model.init, mesh)
    compiled = partial(parallel.compile_steps, model.step, mesh, template, config.accumulate)

    def save(step: int, state: State, due: bool = False) -> None:
        if checkpoints:
            with told.kept():
                beside = {**about(step), **({"due": True} if due else {})}
                if isinstance(state, Watched):
                    beside["usual"] = usual_to_json(state.usual)
                checkpoint.save(checkpoints, step, bare(state), about=beside)

    def watched(state: State, beside: dict[str, Any]) -> State:
        """The state as the program takes it, with what was saved beside it."""
        if config.spike_factor is None:
            return state
        return Watched(state, usual_from(beside.get("usual")))

    with signals.heeded() as told, _nothing_to_save(told), memory_explained():
        loop = _Loop(
            config=config,
            program=compiled(Guard(config.largest_norm, config.spike_factor)),
            batches=batches,
            feed=feed or partial(layouts.split_rows, mesh=mesh, axis=1),
            key=step_key,
            hooks=[*hooks, Hook(config.checkpoint_every, save)] if checkpoints else hooks,
            save=save,
            log=log,
            told=told,
            mesh=mesh,
        )
        with told.interruptible():
            found = checkpoints and checkpoint.restore(checkpoints, template, owner=True)
            if found:
                state, first = found
            else:
                fresh = parallel.compile_init(model.init, mesh)(init_key)
                state, first = layouts.place(start(fresh), mesh), 0
        _check_first(first, config.num_steps)
        beside = checkpoint.about(checkpoints, first) if checkpoints and found else {}
        resumed(first, due := bool(beside.get("due")))
        state, sick = _train(loop, watched(state, beside), first, due)
        fruitless = 0
        while sick:
            words = words_of(sick, _culprits(loop, compiled(None), bare(state), sick.last))
            fruitless = fruitless + 1 if sick.first == first else 0
            if fruitless > FRUITLESS:
                raise given_up(f"{words}, and going back {FRUITLESS} times did not help", True)
            found = checkpoints and checkpoint.restore(
                checkpoints, template, owner=True, finite=True
            )
            if not found:
                raise given_up(f"{words}, and there is no checkpoint to go back to", False)
            (state, back), first = found, sick.resume
            logging.warning("%s: training goes back to update %s, and on with update %s.",
                            words, back, first + 1)  # fmt: skip
            beside = checkpoint.about(checkpoints, back) if checkpoints else {}
            state, sick = _train(loop, watched(state, beside), first, due=True)
    return bare(state)


def _train(loop: _Loop, state: State, first: int, due: bool = False) -> tuple[State, Sick | None]:
    """From update `first` to the last, or until too many in a row were left out.

    due: whether what is due after `first` updates is still to be done.
    """
    config, told, row = loop.config, loop.told, 0
    if due:
        _call_hooks(loop, first, state)
    pending: tuple[int, Any] | None = None
    stacks = _stacks(loop.batches(first, config.num_steps), config.steps_per_call)
    calls = range(first, config.num_steps, config.steps_per_call)
    for begin, stack in zip(calls, stacks, strict=True):
        # The first call compiles: what takes minutes, and loses nothing, may be interrupted.
        with told.interruptible() if begin == first else nullcontext():
            fed = loop.feed(stack)
            if begin == first:
                check_memory(loop.mesh, loop.program, state, fed, loop.key, begin)
            state, metrics = loop.program(state, fed, loop.key, begin)
        step = begin + config.steps_per_call
        now = bool(told.received) or processes.must_stop(step // config.steps_per_call)
        waits = now or bool(_due(loop, step))  # Both wait: what a checkpoint covers is logged.
        for at, told_of in [*([pending] if pending else []), *([(begin, metrics)] * waits)]:
            row, sick = report(at, told_of, row, config.patience, loop.log)
            if sick:
                return state, sick
        pending = None if waits else (begin, metrics)
        # A checkpoint is of a state that the last update was good for: going back helps then.
        save = not row or step == config.num_steps
        if now:
            raise _stopped(loop, step, state, save)
        _call_hooks(loop, step, state, save)
    if pending:
        row, sick = report(*pending, row, config.patience, loop.log)
        if sick:
            return state, sick
    if row == config.num_steps:
        raise given_up(f"In none of {row} updates loss and gradient were finite", kept=False)
    return state, None


def _due(loop: _Loop, step: int) -> list[Hook]:
    end = loop.config.num_steps
    return [hook for hook in loop.hooks if step % hook.every == 0 or step == end]


def _call_hooks(loop: _Loop, step: int, state: State, save: bool = True) -> None:
    for hook in _due(loop, step):
        if hook.call is loop.save:
            if save:
                hook.call(step, state)
            continue
        try:
            with loop.told.interruptible():
                hook.call(step, bare(state))
        except KeyboardInterrupt:
            if not loop.told.received:
                raise
            raise _stopped(loop, step, state, save) from None
    if loop.told.received and step < loop.config.num_steps:
        raise _stopped(loop, step, state, save)


@contextmanager
def _nothing_to_save(told: Signals) -> Iterator[None]:
    """What a signal ends before the first update is made here."""
    try:
        yield
    except KeyboardInterrupt:
        if not told.received:
            raise
        words = "Stopped before an update was made; the same command goes on from here."
        raise Stopped(words, told.received) from None


def _stopped(loop: _Loop, step: int, state: State, save: bool) -> Stopped:
    """Save, with what was due after this update to be done again."""
    number = loop.told.received or signal.SIGTERM
    if save:
        loop.save(step, state, due=bool(_due(loop, step)))
    why = "Stopped" if number == signal.SIGINT else "A machine is about to be taken away"
    kept = f"update {step} is saved" if save else "what was saved before is kept"
    return Stopped(f"{why}; {kept}, and the same command goes on from there.", number)


def _check_first(first: int, num_steps: int) -> None:
    if first > num_steps:
        raise UserError(
            f"The run has already made {first} updates, more than train.num-steps {num_steps}: "
            "use another --run-dir."
        )


def _stacks(
    batches: Iterable[dict[str, np.ndarray]], count: int
) -> Iterator[dict[str, np.ndarray]]:
    """Every `count` batches as one stack [count, batch, ...]."""
    iterator = iter(batches)
    while chunk := list(itertools.islice(iterator, count)):
        yield {name: np.stack([batch[name] for batch in chunk]) for name in chunk[0]}


def _culprits(loop: _Loop, program: Any, state: State, update: int) -> list[str]:
    """The arrays that are not finite, or are not after that update. The state is donated."""
    if found := digests.not_finite(state):
        return found
    stack = next(_stacks(loop.batches(update, update + 1), 1))
    return digests.not_finite(program(state, loop.feed(stack), loop.key, update)[0])
