"""Updates, averages and schedules, against NumPy; buffers that can be given away."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug import hlo, layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.guard import Guard
from genaug.hlo_text import parse
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.state import (
    SGD,
    Adam,
    accumulated,
    apply_gradients,
    create,
    from_loss,
    started_from,
    value_and_grad,
)
from genaug.types import UserError, no_score

W = np.array([0.5, -1.0, 2.0], np.float32)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=8).astype(np.float32)
BATCH = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}


def init(key):
    del key
    return {"params": {"w": jnp.asarray(W), "b": jnp.zeros(())}}


def loss(variables, batch, key):
    del key
    params = variables["params"]
    error = batch["x"] @ params["w"] + params["b"] - batch["y"]
    return jnp.mean(error**2), ({"mean_error": jnp.mean(error)}, {})


def sample(weights, key, cond):
    del weights, key
    return cond


def gradient(w, b):
    """The loss's gradient by hand."""
    error = X.astype(np.float64) @ w + b - Y
    return 2 * X.T @ error / len(X), 2 * error.mean()


def model_of(optimizer, **changes):
    return from_loss(init, loss, sample, optimizer, **changes)


def trained(optimizer, num_steps, **changes):
    """The state and metrics after each step."""
    model = model_of(optimizer, **changes)
    key = jax.random.key(0)
    state, history = model.init(key), []
    step = jax.jit(model.step)
    for _ in range(num_steps):
        state, metrics = step(state, BATCH, key)
        history.append((state, metrics))
    return history


def test_an_sgd_step_is_the_hand_computed_one(key):
    [(state, metrics)] = trained(SGD(learning_rate=0.1), 1)
    grad_w, grad_b = gradient(W, 0.0)
    params = state.variables["params"]
    np.testing.assert_allclose(params["w"], W - 0.1 * grad_w, rtol=1e-5)
    np.testing.assert_allclose(params["b"], -0.1 * grad_b, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean((X @ W - Y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_error"], np.mean(X @ W - Y), rtol=1e-4)
    norm = np.sqrt(np.sum(grad_w**2) + grad_b**2)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)


def test_momentum_accumulates_gradients():
    history = trained(SGD(learning_rate=0.05, momentum=0.9), 3)
    w, b, trace_w, trace_b = W.astype(np.float64), 0.0, 0.0, 0.0
    for state, _ in history:
        grad_w, grad_b = gradient(w, b)
        trace_w, trace_b = grad_w + 0.9 * trace_w, grad_b + 0.9 * trace_b
        w, b = w - 0.05 * trace_w, b - 0.05 * trace_b
        np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_the_papers_with_decoupled_decay(weight_decay):
    rate, b1, b2 = 0.05, 0.8, 0.99
    optimizer = Adam(learning_rate=rate, b1=b1, b2=b2, weight_decay=weight_decay)
    flat, m, v = np.append(W, 0.0).astype(np.float64), np.zeros(4), np.zeros(4)
    for t, (state, _) in enumerate(trained(optimizer, 5), start=1):
        grad = np.append(*gradient(flat[:3], flat[3]))
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
        flat = flat - rate * (step + weight_decay * flat)
        params = state.variables["params"]
        np.testing.assert_allclose(np.append(params["w"], params["b"]), flat, rtol=1e-4)


@pytest.mark.parametrize("norm", [0.1, 1e6])
def test_gradients_are_clipped_to_a_global_norm(norm):
    [(state, metrics)] = trained(SGD(learning_rate=1.0, clip_norm=norm), 1)
    grad = np.append(*gradient(W, 0.0))
    kept = grad * min(1.0, norm / np.linalg.norm(grad))
    params = state.variables["params"]
    moved = np.append(W, 0.0) - np.append(params["w"], params["b"])
    np.testing.assert_allclose(moved, kept, rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(grad), rtol=1e-5)


def rates(optimizer, num_steps):
    """The learning rate of each step: by how much a constant gradient of one moves a parameter."""
    transformation = optimizer.make()
    state = create({"params": jnp.zeros(())}, transformation)
    position = [0.0]
    for _ in range(num_steps):
        state = apply_gradients(state, jnp.ones(()), {}, transformation, 0.9)
        position.append(float(state.variables["params"]))
    return -np.diff(position)


@pytest.mark.parametrize("kind", [SGD, Adam])
def test_schedules_warm_up_from_zero_and_end_at_zero(kind):
    constant = rates(kind(learning_rate=0.1), 4)
    np.testing.assert_allclose(constant, 0.1, rtol=1e-4)
    warm = rates(kind(learning_rate=0.1, warmup_steps=4), 7)
    np.testing.assert_allclose(warm, [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-4, atol=1e-6)
    cosine = rates(kind(learning_rate=0.1, decay_steps=8), 10)
    want = [0.05 * (1 + np.cos(np.pi * min(t, 8) / 8)) for t in range(10)]
    np.testing.assert_allclose(cosine, want, rtol=1e-4, atol=1e-6)
    both = rates(kind(learning_rate=0.1, warmup_steps=2, decay_steps=6), 8)
    want = [0, 0.05, *(0.05 * (1 + np.cos(np.pi * t / 4)) for t in range(5)), 0]
    np.testing.assert_allclose(both, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ema_decay", [0.3, 0.999])
def test_the_average_follows_its_schedule(ema_decay):
    ema = W.astype(np.float64)
    for t, (state, _) in enumerate(trained(SGD(), 8, ema_decay=ema_decay)):
        decay = min(ema_decay, (1 + t) / (10 + t))
        ema = decay * ema + (1 - decay) * np.asarray(state.variables["params"]["w"])
        np.testing.assert_allclose(state.ema["w"], ema, rtol=1e-5)


def test_weights_are_the_average_and_the_statistics():
    def with_statistics(variables, batch, key):
        value, (metrics, _) = loss(variables, batch, key)
        return value, (metrics, {"batch_stats": variables["batch_stats"] + 1.0})

    def with_statistics_init(key):
        return {**init(key), "batch_stats": jnp.zeros(2)}

    model = from_loss(with_statistics_init, with_statistics, sample, SGD())
    state = model.init(jax.random.key(0))
    for _ in range(2):
        state, _ = model.step(state, BATCH, jax.random.key(0))
    weights = model.weights(state)
    assert set(weights) == {"params", "batch_stats"}
    np.testing.assert_array_equal(weights["batch_stats"], 2.0)
    np.testing.assert_array_equal(weights["params"]["w"], state.ema["w"])
    assert (weights["params"]["w"] != state.variables["params"]["w"]).any()


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_gradients_of_parts_are_the_full_batch_s(parts):
    """Every part is seen once, and never more of the batch at a time."""
    seen = []

    def counting(variables, batch, key):
        seen.append(len(batch["y"]))
        return loss(variables, batch, key)

    model = from_loss(init, counting, sample, SGD())
    state = model.init(jax.random.key(0))
    told = dataclasses.replace(state, grad=accumulated(value_and_grad, parts))
    found = jax.jit(model.step)(told, BATCH, jax.random.key(0))
    assert set(seen) == {8 // parts}
    want = jax.jit(model.step)(state, BATCH, jax.random.key(0))
    leaves = (jax.tree.leaves(pair) for pair in (want, found))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_parts_that_do_not_divide_the_batch_are_refused():
    model = model_of(SGD())
    state = model.init(jax.random.key(0))
    told = dataclasses.replace(state, grad=accumulated(value_and_grad, 3))
    with pytest.raises(UserError, match=r"8 examples .* train.accumulate 3"):
        model.step(told, BATCH, jax.random.key(0))


def test_steps_are_counted_and_dtypes_kept():
    model = model_of(Adam())
    before = model.init(jax.random.key(0))
    assert before.step.dtype == np.int32
    assert int(before.step) == 0
    np.testing.assert_array_equal(before.ema["w"], W)
    *_, (after, _) = trained(Adam(), 3)
    assert int(after.step) == 3
    assert [leaf.dtype for leaf in jax.tree.leaves(after)] == [
        leaf.dtype for leaf in jax.tree.leaves(before)
    ]
    assert model.score is no_score
    assert model.score({}, {}, jax.random.key(0)) == {}


def buffers(state):
    return [
        shard.data.unsafe_buffer_pointer()
        for leaf in jax.tree.leaves(state)
        for shard in leaf.addressable_shards
    ]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", [Adam(), SGD(momentum=0.9)])
def test_a_state_can_be_donated_step_after_step(optimizer, compiled, key):
    """A buffer shared by two leaves would be given away twice."""
    model, mesh = model_of(optimizer), make_mesh(Mesh(data=2))
    state = parallel.compile_init(model.init, mesh)(key) if compiled else model.init(key)
    assert len(set(buffers(state))) == len(buffers(state))
    state = layouts.place(state, mesh)
    step = parallel.compile_steps(model.step, mesh, layouts.abstract(model.init, mesh))
    batches = jax.tree.map(lambda a: jnp.stack([a, a]), BATCH)
    for call in range(2):
        given = state
        state, metrics = step(given, batches, key, 2 * call)
        assert given.step.is_deleted()
        assert len(set(buffers(state))) == len(buffers(state))
    assert int(state.step) == 4
    assert np.isfinite(metrics["loss"])


def test_a_start_takes_the_average_and_leaves_the_optimiser_anew():
    optimizer = Adam().make()
    old = create({"params": {"w": jnp.ones(3)}, "batch_stats": {"m": jnp.full(2, 4.0)}}, optimizer)
    grads = {"w": jnp.full(3, 0.5)}
    for _ in range(3):
        old = apply_gradients(old, grads, {}, optimizer, ema_decay=0.9)
    fresh = create({"params": {"w": jnp.zeros(3)}, "batch_stats": {"m": jnp.zeros(2)}}, optimizer)
    got = started_from({"net": fresh, "extra": jnp.zeros(1)}, {"net": old, "extra": jnp.ones(1)})
    np.testing.assert_array_equal(got["net"].variables["params"]["w"], old.ema["w"])
    np.testing.assert_array_equal(got["net"].variables["batch_stats"]["m"], [4.0, 4.0])
    np.testing.assert_array_equal(got["net"].ema["w"], old.ema["w"])
    assert not np.array_equal(old.ema["w"], old.variables["params"]["w"])
    chex.assert_trees_all_equal(got["net"].opt_state, fresh.opt_state)
    assert got["net"].step == 0
    np.testing.assert_array_equal(got["extra"], [1.0])


def test_biases_and_gains_do_not_decay():
    optimizer = Adam(learning_rate=0.1, weight_decay=0.5).make()
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    np.testing.assert_allclose(updates["a"]["kernel"], -0.05)
    np.testing.assert_array_equal(updates["a"]["bias"], 0)
    np.testing.assert_array_equal(updates["norm"]["scale"], 0)


def test_a_decay_that_ends_before_it_begins_is_refused():
    with pytest.raises(UserError, match="decay-steps is 100 and warmup-steps 100"):
        Adam(warmup_steps=100, decay_steps=100).make()


def compiled(model, mesh, guard):
    return parallel.compile_steps(model.step, mesh, layouts.abstract(model.init, mesh), guard=guard)


@pytest.mark.parametrize("mesh", [Mesh(data=1), Mesh(data=2), Mesh(data=2, strategy="pmap")])
@pytest.mark.parametrize(
    "optimizer",
    [
        Adam(weight_decay=0.1, clip_norm=1.0, warmup_steps=2, decay_steps=9),
        SGD(momentum=0.9, warmup_steps=2),
    ],
)
def test_an_update_that_is_left_out_leaves_every_array_as_it_was(mesh, optimizer, key):
    def counting(variables, batch, key):
        value, (metrics, _) = loss(variables, batch, key)
        return value, (metrics, {"seen": variables["seen"] + jnp.mean(batch["x"])})

    model = from_loss(lambda key: {**init(key), "seen": jnp.zeros(())}, counting, sample, optimizer)
    run = compiled(model, make_mesh(mesh), Guard())
    batches = {n: np.stack([rows, 2 * rows, 3 * rows, 4 * rows]) for n, rows in
               (("x", X), ("y", Y))}  # fmt: skip
    sick = {**batches, "y": batches["y"].copy()}
    sick["y"][1, 5], sick["y"][2, 0] = np.nan, np.inf
    without = {name: rows[[0, 3]] for name, rows in batches.items()}
    left_out, never_seen = (
        run(jax.jit(model.init)(key), jax.tree.map(jnp.asarray, stack), key, 0)
        for stack in (sick, without)
    )
    good = np.asarray(left_out[1]["good"])
    assert good.all(axis=1).tolist() == [True, False, False, True]
    chex.assert_trees_all_equal(jax.device_get(left_out[0]), jax.device_get(never_seen[0]))


@pytest.mark.parametrize("optimizer", [Adam(), Adam(clip_norm=1.0, weight_decay=0.1)])
def test_being_able_to_leave_an_update_out_moves_no_more_bytes(optimizer):
    """In the compiled program: every array is read and written as often as without a guard."""
    spec = {"image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8)}
    model = VAE(net=MLP(hidden=(64,)), optimizer=optimizer).make(spec)
    mesh = make_mesh(Mesh(data=1))
    template = layouts.abstract(model.init, mesh)
    images = {"image": jax.ShapeDtypeStruct((4, 32, 28, 28, 1), np.uint8)}

    def moved(guard):
        program = compiled(model, mesh, guard).lower(template, images, jax.random.key(0), 0)
        return hlo.measure(program.compile().as_text()).hbm_bytes

    assert moved(Guard()) < 1.02 * moved(None)


def test_an_update_writes_no_array_that_it_need_not(optimized):
    """Of each of two large kernels: the gradient, both moments, the kernel and its average."""
    spec = {"image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8)}
    model = VAE(net=MLP(hidden=(64,))).make(spec)
    mesh = make_mesh(Mesh(data=1))
    template = layouts.abstract(model.init, mesh)
    images = {"image": jax.ShapeDtypeStruct((4, 32, 28, 28, 1), np.uint8)}
    program = compiled(model, mesh, Guard()).lower(template, images, jax.random.key(0), 0)
    found, _ = parse(program.compile().as_text())
    made = [
        [
            one.name
            for one in computation.instructions.values()
            if one.opcode in ("fusion", "dot", "copy") and one.arrays[0].bytes == 784 * 64 * 4
        ]
        for computation in found.values()
    ]
    body = max(made, key=len)
    assert len(body) == 10, body
