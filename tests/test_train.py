"""The trainer: what a resumed run computes, what one compiles, where it waits, what it refuses."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from genaug import checkpoint, parallel
from genaug import train as training
from genaug.data import Data, batches, load, pipeline
from genaug.data import split as split_data
from genaug.devices import Mesh, make_mesh
from genaug.logs import MetricLog, read_metrics
from genaug.state import SGD, Adam, from_loss
from genaug.train import Hook, Train, TrainingError, fit
from genaug.types import GenerativeModel, UserError

pytest_plugins = ["tiny_run"]

CONFIG = Train(
    num_steps=12,
    batch_size=32,
    steps_per_call=2,
    evaluate_every=4,
    sample_every=12,
    checkpoint_every=4,
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    data = Data(source="digits", directory=str(tmp_path_factory.getbasetemp() / "data"))
    dataset = load(data)
    return dataset, split_data(dataset, data)


def linear(optimizer):
    """A denoising linear autoencoder: a family of one matrix, compiled in no time."""

    def init(key):
        return {"params": {"w": 0.1 * jax.random.normal(key, (64, 3))}}

    def loss(variables, batch, key):
        x = batch["image"].reshape(-1, 64) / 255.0
        w = variables["params"]["w"]
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        return jnp.mean((noisy @ w @ w.T - x) ** 2), ({}, {})

    return from_loss(init, loss, lambda weights, key, cond: {}, optimizer)


@pytest.fixture(scope="module")
def model(compile_cache):
    return linear(Adam())


@pytest.fixture(scope="module")
def stream(digits):
    dataset, splits = digits
    ds = pipeline(dataset, splits.train, batch_size=32, seed=0)
    return lambda start, stop: batches(ds, start, stop)


def run(model, stream, config=CONFIG, num_devices=2, **options):
    mesh = make_mesh(Mesh(data=num_devices))
    return fit(model, stream, config, key=jax.random.key(0), mesh=mesh, **options)


def assert_equal(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def logged_run(model, stream, directory, hooks=()):
    """As the job does it: metrics.jsonl from the first update to be made."""
    log = []

    def record(step, values):
        log[0].write(step, values)

    try:
        return run(
            model,
            stream,
            checkpoints=directory / "checkpoints",
            hooks=[*hooks, Hook(4, lambda step, state: record(step, {"valid": float(step)}))],
            log=record,
            resumed=lambda step: log.append(MetricLog(directory, step)),
        )
    finally:
        log[0].close()


@pytest.fixture(scope="module")
def unbroken(model, stream, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unbroken")
    return jax.device_get(logged_run(model, stream, directory)), read_metrics(directory)


@pytest.mark.parametrize("stop", [2, 4, 6, 8, 10, 12])
def test_a_run_stopped_at_any_call_and_resumed_is_the_unbroken_one(
    model, stream, unbroken, tmp_path, stop
):
    """4, 8, 12 are checkpoints (stopped before the save), the others lie between them."""

    def interrupt(step, state):
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logged_run(model, stream, tmp_path, [Hook(2, interrupt)])
    saved = checkpoint.steps(tmp_path / "checkpoints")
    assert saved == [s for s in (4, 8) if s < stop]
    state = logged_run(model, stream, tmp_path)
    assert_equal(state, unbroken[0])
    assert read_metrics(tmp_path) == unbroken[1]


def test_a_run_stopped_after_every_checkpoint_is_the_unbroken_one(
    model, stream, unbroken, tmp_path, monkeypatch
):
    save = checkpoint.save

    def save_and_stop(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_stop)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                logged_run(model, stream, tmp_path)
    assert_equal(logged_run(model, stream, tmp_path), unbroken[0])
    assert read_metrics(tmp_path) == unbroken[1]


def test_a_finished_run_makes_no_update(model, stream, unbroken, tmp_path):
    logged_run(model, stream, tmp_path)
    asked = []
    again = run(
        model,
        lambda start, stop: asked.append((start, stop)) or iter(()),
        checkpoints=tmp_path / "checkpoints",
    )
    assert asked == [(12, 12)]
    assert_equal(again, unbroken[0])


def test_steps_per_call_changes_nothing_but_the_rounding(model, stream, unbroken):
    """Another program is another order of sums: equal to 1e-5 after 12 updates of Adam."""
    seen = {}

    def spy(calls):
        def spied(start, stop):
            for step, batch in zip(range(start, stop), stream(start, stop), strict=True):
                seen.setdefault(calls, []).append((step, batch["image"].tobytes()))
                yield batch

        return spied

    states = {k: run(model, spy(k), dataclasses.replace(CONFIG, steps_per_call=k)) for k in (1, 4)}
    assert seen[1] == seen[4]
    assert [step for step, _ in seen[1]] == list(range(12))
    for one, other in zip(*(jax.tree.leaves(s) for s in states.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_whole_run_is_one_program(model, stream, monkeypatch):
    compiled = []
    compile_steps = parallel.compile_steps
    monkeypatch.setattr(
        parallel, "compile_steps", lambda *a: compiled.append(compile_steps(*a)) or compiled[-1]
    )
    run(model, stream)
    assert [program._cache_size() for program in compiled] == [1]


class Watched:
    """A value on a device that tells when it is waited for."""

    def __init__(self, value, name, events):
        self.value, self.name, self.events = value, name, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"read {self.name}")
        return np.asarray(self.value, dtype)

    def __float__(self):
        return float(self.__array__())


def test_the_loop_waits_for_a_call_only_once_the_next_is_on_its_way(model, stream, monkeypatch):
    events = []
    compile_steps = parallel.compile_steps

    def spied(*arguments):
        program = compile_steps(*arguments)

        def call(state, batches, key, first):
            events.append(f"call {first}")
            state, metrics = program(state, batches, key, first)
            return state, {"loss": Watched(metrics["loss"], first, events)}

        return call

    monkeypatch.setattr(parallel, "compile_steps", spied)
    unchecked = inspect.unwrap(training._report)  # the type checker wants arrays alone
    monkeypatch.setattr(training, "_report", unchecked)
    run(model, stream, dataclasses.replace(CONFIG, num_steps=6))
    assert events == ["call 0", "call 2", "read 0", "call 4", "read 2", "read 4"]


def test_hooks_come_due_by_their_counts_and_at_the_end(model, stream):
    calls = []
    config = dataclasses.replace(CONFIG, num_steps=10)
    hooks = [
        Hook(4, lambda step, state: calls.append(("a", step))),
        Hook(6, lambda step, state: calls.append(("b", step))),
    ]
    run(model, stream, config, hooks=hooks)
    assert calls == [("a", 4), ("b", 6), ("a", 8), ("a", 10), ("b", 10)]


def toy(step):
    """A model of one number, to see the trainer alone."""
    return GenerativeModel(
        init=lambda key: {"x": jnp.zeros(()), "n": jnp.zeros((), jnp.int32)},
        step=step,
        weights=lambda state: state,
        sample=lambda weights, key, cond: cond,
        score=lambda weights, batch, key: {},
    )


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_last_checkpoint(
    stream, tmp_path, value
):
    def step(state, batch, key):
        n = state["n"] + 1
        loss = jnp.where(n == 7, value, 1.0)
        return {"x": state["x"] + loss, "n": n}, {"loss": loss}

    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at update 8: lower the lea") as e:
        run(toy(step), stream, checkpoints=tmp_path)
    assert e.value.exit_code == 4
    assert checkpoint.steps(tmp_path) == [4]  # the one due at update 8 is not written
    assert checkpoint.faults(tmp_path, 4) == []


def test_the_last_call_is_checked_too(stream):
    def step(state, batch, key):
        return state, {"loss": jnp.float32(jnp.nan)}

    with pytest.raises(TrainingError, match="at update 2"):
        run(toy(step), stream, dataclasses.replace(CONFIG, num_steps=2))


def test_the_state_is_donated(model, stream):
    """Training holds one state in memory, not two."""
    states = []
    run(model, stream, hooks=[Hook(2, lambda step, state: states.append(state))])
    assert len(states) == 6
    assert all(leaf.is_deleted() for state in states[:-1] for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(states[-1]))


def test_one_device_and_eight_compute_the_same(stream):
    """Under SGD an update is linear in the gradient, so rounding stays rounding: 1e-6."""
    model = linear(SGD(learning_rate=1e-1))
    one, eight = (run(model, stream, num_devices=n) for n in (1, 8))
    moved = 0.0
    start = model.init(jax.random.split(jax.random.key(0))[0])
    for a, b, c in zip(*map(jax.tree.leaves, (one, eight, start)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
        moved = max(moved, float(np.abs(np.asarray(a, float) - np.asarray(c, float)).max()))
    assert moved > 1e-3


def test_every_update_has_its_own_randomness(stream):
    def step(state, batch, key):
        return {**state, "x": state["x"] + jax.random.normal(key)}, {"loss": jax.random.normal(key)}

    values = []
    run(
        toy(step),
        stream,
        dataclasses.replace(CONFIG, steps_per_call=1),
        log=lambda s, v: values.append(v["loss"]),
    )
    assert len(set(values)) == 12


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"num_steps": 13}, "train.num-steps 13 is not a multiple .* 2: use 14"),
        ({"num_steps": 0}, "train.num-steps must be at least 1"),
        ({"num_steps": -4}, "train.num-steps must be at least 1"),
        ({"steps_per_call": 0}, "train.steps-per-call must be at least 1"),
        ({"batch_size": 0}, "train.batch-size must be at least 1"),
        ({"evaluate_every": 3}, "train.evaluate-every 3 is not .*: use 4"),
        ({"sample_every": 0}, "train.sample-every 0 is not .*: use 2"),
        ({"checkpoint_every": -2}, "train.checkpoint-every -2 is not .*: use 2"),
        ({"batch_size": 33}, "train.batch-size 33 is not divisible by the 2 devices"),
    ],
)
def test_counts_that_do_not_fit_are_refused_with_one_that_does(model, stream, changes, words):
    with pytest.raises(UserError, match=words):
        run(model, stream, dataclasses.replace(CONFIG, **changes))


def test_a_run_that_is_longer_than_asked_for_is_refused(model, stream, tmp_path):
    run(model, stream, checkpoints=tmp_path)
    with pytest.raises(UserError, match=r"already made 12 updates, more than train.num-steps 4"):
        run(model, stream, dataclasses.replace(CONFIG, num_steps=4), checkpoints=tmp_path)


def test_the_trainer_trains(model, stream):
    losses = []
    config = dataclasses.replace(CONFIG, num_steps=100)
    run(model, stream, config, log=lambda step, values: losses.append(values["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_the_default_counts_divide():
    training.check(Train())
    training.check(tiny().train)
