"""The trainer: what a resumed run computes, what one compiles, where it waits, what it refuses."""

import dataclasses
import inspect
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from genaug import checkpoint, health, layouts, parallel
from genaug import train as training
from genaug.data import Data, batches, load, pipeline
from genaug.data import split as split_data
from genaug.devices import Mesh, make_mesh
from genaug.guard import usual_from, usual_to_json
from genaug.health import TrainingError
from genaug.logs import MetricLog, read_metrics
from genaug.state import SGD, Adam, from_loss
from genaug.train import Hook, Train, fit
from genaug.types import GenerativeModel, UserError, row_keys, row_normal

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
        noisy = x + 0.1 * row_normal(row_keys(key, batch), (64,))
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
            resumed=lambda step, due: log.append(MetricLog(directory, step, due)),
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
            return state, {**metrics, "loss": Watched(metrics["loss"], first, events)}

        return call

    monkeypatch.setattr(parallel, "compile_steps", spied)
    unchecked = inspect.unwrap(training.report)  # the type checker wants arrays alone
    monkeypatch.setattr(training, "report", unchecked)
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


def counting(fails, largest=jnp.nan):
    """A model whose state names the updates that it made; those of `fails(n, x)` are sick."""

    def step(state, batch, key):
        number = jnp.max(batch["number"])
        bad = fails(number, state["n"])
        x = jnp.where(bad, largest, 1.0) + state["x"]
        made = state["made"].at[number].add(1)
        key_sum = state["keys"] + jax.random.normal(key)
        new = {"x": x, "n": state["n"] + 1, "made": made, "keys": key_sum}
        return new, {"loss": x, "grad_norm": jnp.where(bad, largest, 1.0)}

    return toy(step)._replace(
        init=lambda key: {
            "x": jnp.zeros(()),
            "n": jnp.zeros((), jnp.int32),
            "made": jnp.zeros(24, jnp.int32),
            "keys": jnp.zeros(()),
        }
    )


def numbers(start, stop):
    """Batches that hold their own number."""
    return ({"number": np.full(32, i, np.int32)} for i in range(start, stop))


SICK = dataclasses.replace(
    CONFIG, num_steps=24, steps_per_call=2, patience=3, checkpoint_every=4, evaluate_every=24
)


@pytest.mark.parametrize("strategy, count", [("jit", 1), ("jit", 2), ("pmap", 2)])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 1e9])
def test_a_sick_update_is_left_out_as_if_its_batch_were_not_there(strategy, count, value, caplog):
    config = dataclasses.replace(SICK, largest_norm=1e3, num_steps=12)
    mesh = make_mesh(Mesh(data=count, strategy=strategy))
    lines = []

    def trained(fails, log=lambda step, values: None):
        model = counting(fails, largest=value)
        return fit(model, numbers, config, key=jax.random.key(0), mesh=mesh, log=log)

    state = trained(lambda number, n: number == 5, lambda step, values: lines.append(values))
    assert state["made"].tolist()[:12] == [1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert int(state["n"]) == 11
    assert [line.get("left_out", 0) for line in lines] == [0, 0, 1, 0, 0, 0]
    assert lines[2]["loss"] == 5.0  # the mean over the good one
    assert "update 6 left out: grad_norm" in caplog.text

    model = counting(lambda number, n: number < 0)
    step = model.step

    def skipping(state, batch, key):
        new, metrics = step(state, batch, key)
        never = jnp.max(batch["number"]) == 5
        return jax.tree.map(lambda a, b: jnp.where(never, a, b), state, new), metrics

    other = fit(model._replace(step=skipping), numbers, config, key=jax.random.key(0), mesh=mesh)
    assert_equal(state, other)


def test_a_row_of_sick_updates_goes_back_and_equals_a_run_without_those_batches(
    tmp_path, monkeypatch, caplog
):
    """Sick from update 10 on until a state without them comes along: a run that has diverged."""

    def diverged(number, n):
        return (number >= 9) & (number < 15) & (n >= 4)

    called = []
    hook = Hook(12, lambda step, state: called.append((step, int(state["n"]))))
    state = run(counting(diverged), numbers, SICK, checkpoints=tmp_path, hooks=[hook])
    # The row is updates 10 to 12, and 8 the last checkpoint: its state is at 12 then. Sick again in
    # 13 to 15, whose call ends at 16.
    assert state["made"].tolist() == [1] * 8 + [0] * 8 + [1] * 8
    assert "grad_norm, loss not finite or too large in updates 10 to 12, in x" in caplog.text
    assert "training goes back to update 8, and on with update 13" in caplog.text
    assert "training goes back to update 12, and on with update 17" in caplog.text
    assert called == [(12, 8), (24, 16)]
    assert checkpoint.steps(tmp_path) == [20, 24]

    model = counting(lambda number, n: number < 0)
    mesh = make_mesh(Mesh(data=2))
    key = jax.random.split(jax.random.key(0))[1]
    program = parallel.compile_steps(model.step, mesh, layouts.abstract(model.init, mesh))
    other = parallel.compile_init(model.init, mesh)(jax.random.key(0))
    for begin in [*range(0, 8, 2), *range(16, 24, 2)]:
        stack = next(training._stacks(numbers(begin, begin + 2), 2))
        other, _ = program(other, layouts.split_rows(stack, mesh, axis=1), key, begin)
    assert_equal(state, other)


def test_a_run_that_went_back_and_was_stopped_is_the_unbroken_one(tmp_path):
    model = counting(lambda number, n: (number >= 9) & (number < 12) & (n >= 8))

    whole = run(model, numbers, SICK, checkpoints=tmp_path / "whole")
    for stop in (8, 10, 12, 16):

        def interrupt(step, state, stop=stop):
            if step == stop:
                raise KeyboardInterrupt

        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(model, numbers, SICK, checkpoints=folder, hooks=[Hook(2, interrupt)])
        assert_equal(run(model, numbers, SICK, checkpoints=folder), whole)


def test_a_checkpoint_that_is_poisoned_itself_is_passed_over(tmp_path, caplog):
    """NaN in the state that no metric shows until later."""
    model = counting(lambda number, n: number < 0)
    step = model.step

    def poisoned(state, batch, key):
        sick = ~jnp.isfinite(state["keys"])
        new, metrics = step(state, batch, key)
        hidden = jnp.where(jnp.max(batch["number"]) == 7, jnp.nan, new["keys"])
        loss = jnp.where(sick & (jnp.max(batch["number"]) > 8), jnp.nan, metrics["loss"])
        return {**new, "keys": hidden}, {**metrics, "loss": loss}

    state = run(model._replace(step=poisoned), numbers, SICK, checkpoints=tmp_path)
    assert state["made"].tolist() == [1] * 4 + [0] * 8 + [1] * 12
    assert "loss not finite or too large in updates 10 to 12, in keys: training" in caplog.text
    assert "checkpoint 8 is damaged (array keys is not finite)" in caplog.text
    assert (tmp_path / "damaged" / "8" / "reason.json").is_file()


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_that_stays_sick_is_given_up_with_its_checkpoint_kept(tmp_path, saved):
    words = "going back 2 times did not help: lower" if saved else "there is no checkpoint"
    config = dataclasses.replace(SICK, checkpoint_every=4 if saved else 24)
    with pytest.raises(TrainingError, match=words) as e:
        run(counting(lambda number, n: number >= 9), numbers, config, checkpoints=tmp_path)
    assert e.value.exit_code == 4
    assert checkpoint.steps(tmp_path) == ([16, 20] if saved else [])
    assert not saved or checkpoint.faults(tmp_path, 20) == []


def test_a_run_of_sick_updates_alone_is_no_trained_one():
    config = dataclasses.replace(SICK, num_steps=2)
    with pytest.raises(TrainingError, match="In none of 2 updates"):
        run(counting(lambda number, n: number >= 0), numbers, config)


def test_memory_that_will_not_do_is_told_before_and_explained_after(tmp_path, caplog):
    """Eight terabytes, more than any machine of these tests has."""

    def step(state, batch, key):
        noise = jax.random.normal(key, (2**20, 2**21))
        return state, {"loss": jnp.max(noise @ noise.T) + state["x"]}

    config = dataclasses.replace(CONFIG, steps_per_call=1, num_steps=4)
    with pytest.raises(
        TrainingError, match=r"Out of memory \(RESOURCE_EXHAUSTED.* smaller --train"
    ):
        run(toy(step), numbers, config, num_devices=1)
    assert re.search(
        r"takes [\d.e+]+ GB more on each device, and [\d.e+]+ GB are left", caplog.text
    )


def test_memory_that_will_do_is_not_spoken_of(model, stream, monkeypatch, caplog):
    run(model, stream, dataclasses.replace(CONFIG, num_steps=4))
    assert "GB" not in caplog.text
    monkeypatch.setattr(health, "memory_left", lambda mesh: 1000)
    run(model, stream, dataclasses.replace(CONFIG, num_steps=4))
    assert "1e-06 GB are left: a smaller --train.batch-size" in caplog.text


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
        ({"patience": 0}, "train.patience must be at least 1"),
        ({"spike_factor": 1.0}, "train.spike-factor is 1.0; it must be above 1"),
        ({"largest_norm": 0.0}, "train.largest-norm is 0.0; it must be above 0"),
        ({"evaluate_every": 3}, "train.evaluate-every 3 is not .*: use 4"),
        ({"sample_every": 0}, "train.sample-every 0 is not .*: use 2"),
        ({"checkpoint_every": -2}, "train.checkpoint-every -2 is not .*: use 2"),
        ({"batch_size": 33}, "train.batch-size 33 is not divisible by the 2 devices"),
    ],
)
def test_counts_that_do_not_fit_are_refused_with_one_that_does(model, stream, changes, words):
    with pytest.raises(UserError, match=words):
        run(model, stream, dataclasses.replace(CONFIG, **changes))


SPIKES = dataclasses.replace(SICK, spike_factor=10.0, num_steps=12)


@pytest.mark.parametrize("strategy, count", [("jit", 2), ("pmap", 2)])
def test_a_spike_is_left_out_also_after_a_stop(strategy, count, tmp_path, monkeypatch, caplog):
    """What is usual is known after 4 updates here, and saved: a run that stopped knows it too."""
    monkeypatch.setattr("genaug.guard.WARM_UP", 4)
    mesh = make_mesh(Mesh(data=count, strategy=strategy))

    def trained(config, checkpoints=None):
        model = counting(lambda number, n: (number == 2) | (number == 9), largest=50.0)
        return fit(model, numbers, config, key=jax.random.key(0), mesh=mesh,
                   checkpoints=checkpoints)  # fmt: skip

    state = trained(SPIKES)
    assert state["made"].tolist()[:12] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1]  # not yet at 2
    assert "update 10 left out: grad_norm" in caplog.text
    trained(dataclasses.replace(SPIKES, num_steps=8), tmp_path)
    usual = checkpoint.about(tmp_path, 8)["usual"]
    assert usual["updates"] == 8
    # By hand: mean of 1, 1, 50, 1, then a quarter of the way to each 1.
    assert usual["norm"] == pytest.approx(1 + (53 / 4 - 1) * 0.75**4)
    assert_equal(trained(SPIKES, tmp_path), state)
    assert int(trained(dataclasses.replace(SPIKES, spike_factor=None))["n"]) == 12


def test_what_stays_high_becomes_usual():
    usual = usual_from(None)
    for norm, largest in [(1.0, np.inf)] * 100 + [(1000.0, 10 * 1.0)] * 5 + [(np.nan, 10.0)]:
        usual = usual.after(jnp.float32(norm), jnp.float32(largest))
    assert usual.norm == pytest.approx(10 - 9 * 0.99**5)  # each counts as 10, and the NaN not
    assert usual.updates == 105
    assert usual_from(json.loads(json.dumps(usual_to_json(usual)))) == usual


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
