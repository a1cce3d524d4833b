"""What every family must do, over every `experiments/*.py::tiny()`. No family is named here."""

import dataclasses
import functools
import importlib.util
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug import checkpoint, export, hlo, layouts, parallel
from genaug.bundle import load_sampler
from genaug.data import batches, pipeline
from genaug.devices import DeviceMesh, Mesh, make_mesh
from genaug.nets.looped import STACKS
from genaug.sampling import make_sampler, make_scorer
from genaug.state import SGD, Adam
from genaug.types import LabelSpec

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))
BATCH = 32


class Case(NamedTuple):
    experiment: Any
    dataset: Any
    model: Any
    stream: Any

    def stack(self, start: int, count: int) -> dict[str, np.ndarray]:
        """The batches of `count` updates from `start` on, as the trainer stacks them."""
        found = list(batches(self.stream, start, start + count))
        return {name: np.stack([batch[name] for batch in found]) for name in found[0]}


def tiny(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny()


def distinct(paths: list[Path]) -> list[Path]:
    """One experiment for every model: those that differ in the study alone are alike here."""
    return list({repr(tiny(path).model): path for path in reversed(paths)}.values())[::-1]


def make_case(experiment: Any) -> Case:
    dataset, splits = experiment.data.read()
    stream = pipeline(dataset, splits.train, batch_size=BATCH, seed=0)
    return Case(experiment, dataset, experiment.model.make(dataset.spec), stream)


def alone(path: Path) -> Any:
    """A parameter whose tests run in one process: they share compiled programs."""
    return pytest.param(path, id=path.stem, marks=pytest.mark.xdist_group(path.stem))


@pytest.fixture(scope="module", params=map(alone, distinct(EXPERIMENTS)))
def case(request) -> Case:
    return make_case(tiny(request.param))


@pytest.fixture(scope="module")
def sgd_case(case) -> Case:
    experiment = dataclasses.replace(case.experiment, model=with_sgd(case.experiment.model))
    return make_case(experiment)


def with_sgd(config: Any) -> Any:
    """The config with plain SGD for every optimiser in it: an update linear in the gradient.

    Adam turns the rounding noise of a zero gradient into a whole step, so only under SGD do two
    device counts have to agree.
    """
    if isinstance(config, Adam | SGD):
        return SGD(learning_rate=1e-3)
    if not dataclasses.is_dataclass(config):
        return config
    fields = {f.name: with_sgd(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return type(config)(**fields)


def mesh_of(count: int, **split: Any) -> DeviceMesh:
    return make_mesh(Mesh(data=count, min_split=64, **split))


@functools.lru_cache
def compiled(step: Any, init: Any, mesh: DeviceMesh, accumulate: int = 1) -> Any:
    """One program for all tests of a family on a mesh."""
    return parallel.compile_steps(step, mesh, layouts.abstract(init, mesh), accumulate)


def train(
    case: Case, count: int, mesh: DeviceMesh, state=None, start: int = 0, accumulate=1, call=5
):
    """`count` updates, `call` of them in every call."""
    key = jax.random.key(7)
    if state is None:
        state = parallel.compile_init(case.model.init, mesh)(key)
    run = compiled(case.model.step, case.model.init, mesh, accumulate)
    history = []
    for first in range(start, start + count, call):
        stack = layouts.split_rows(case.stack(first, call), mesh, axis=1)
        state, metrics = run(state, stack, key, first)
        history.append(jax.device_get(metrics))
    return state, history, run


def cond_of(case: Case, count: int) -> dict[str, np.ndarray]:
    """The conditions without a default: a label, where the family reads one."""
    cond = {"index": np.arange(count, dtype=np.int32)}
    for name, field in case.model.cond.items():
        if field.default is None and not field.optional:
            assert isinstance(field.spec, LabelSpec), "what else would a family insist on?"
            cond[name] = cond["index"] % field.spec.num_classes
    return cond


@pytest.fixture(scope="module")
def trained(case):
    """A state, its metrics, and how many programs it took: counted before caches are cleared."""
    state, history, run = train(case, 20, mesh_of(8))
    return state, history, run._cache_size()


def test_init_needs_no_data(case):
    state = jax.eval_shape(case.model.init, jax.random.key(0))
    assert jax.tree.leaves(state)
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(state))


def test_step_is_finite_and_keeps_structure_shapes_and_dtypes(case, trained):
    state, history, _ = trained
    template = jax.eval_shape(case.model.init, jax.random.key(0))
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(state) == describe(template)
    assert all(np.isfinite(v).all() for metrics in history for v in metrics.values())
    assert all(metrics["good"].all() for metrics in history)
    assert "loss" in history[0]


def test_steps_are_compiled_once(trained):
    assert trained[2] == 1


def test_what_should_fall_falls_on_fixed_examples(case):
    fixed = jax.tree.map(lambda x: np.repeat(x[:1], 5, axis=0), case.stack(0, 5))
    mesh = mesh_of(1)
    state = parallel.compile_init(case.model.init, mesh)(jax.random.key(0))
    run = compiled(case.model.step, case.model.init, mesh)
    values = []
    for first in range(0, 150, 5):
        state, metrics = run(state, fixed, jax.random.key(1), first)
        values.append(float(metrics[case.model.falls]))
    assert np.mean(values[-4:]) < np.mean(values[:2]) - 0.1 * abs(values[0])


def test_samples_have_the_data_s_keys_shapes_and_dtypes(case, trained):
    sampler = make_sampler(case.model, case.model.weights(trained[0]), mesh_of(8))
    rows = sampler(jax.random.key(0), cond_of(case, 11))
    assert rows
    for name, value in rows.items():
        spec = case.dataset.spec[name]
        assert (value.shape, value.dtype) == ((11, *spec.shape), spec.dtype)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, up to one level where a byte was rounded from sums taken in another order."""
    return bool(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))) <= 1.0)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_sample_is_the_same_in_any_batch_on_any_mesh(case, trained, devices):
    weights = jax.device_get(case.model.weights(trained[0]))
    cond, key = cond_of(case, 24), jax.random.key(3)
    whole = make_sampler(case.model, weights, mesh_of(8))(key, cond)
    rows = np.array([17, 2, 5])
    part = make_sampler(case.model, weights, mesh_of(devices), block_size=8)(
        key, {name: value[rows] for name, value in cond.items()}
    )
    for name in whole:
        assert close(whole[name][rows], part[name])
    whole.pop("label", None)
    drawn = np.concatenate([rows.reshape(24, -1) for rows in whole.values()], axis=1)
    assert len(np.unique(drawn, axis=0)) == 24, "different addresses give different samples"


def test_any_mesh_trains_alike_under_sgd(sgd_case):
    """As on one device, update by update: eight under pmap, in one call of 8 updates; two copies of
    the state over four each, in calls of 4 and in parts.

    Batch norm takes the moments of what it is given: there it is jit, and batches as a whole. The
    matrices of a transformer are split for work as well.
    """
    start = jax.device_get(jax.jit(sgd_case.model.init)(jax.random.key(7)))
    one, _, _ = train(sgd_case, 8, mesh_of(1), call=1)
    by_batch = any("batch_stats" in name for name in paths(start))
    strategy, parts = ("jit", 1) if by_batch else ("pmap", 4)
    eight, _, _ = train(sgd_case, 8, mesh_of(8, strategy=strategy), call=8)
    shape = {"fsdp": 2, "tensor": 2} if follows_the_rules(start) else {"fsdp": 4}
    split, _, _ = train(sgd_case, 8, mesh_of(2, **shape), accumulate=parts, call=4)
    kept = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(split))
    assert kept < 0.5 * sum(leaf.size for leaf in jax.tree.leaves(split))
    for other in (eight, split):
        assert_moved_alike(start, jax.device_get(one), jax.device_get(other))


def test_split_states_are_gathered_and_activations_never(case):
    """What is gathered has the shape of an array of the state, or of a looped layer's share of one,
    up to the order of its axes."""
    mesh = mesh_of(2, fsdp=4)
    template = layouts.abstract(case.model.init, mesh)
    run = parallel.compile_steps(case.model.step, mesh, template)
    stack = layouts.split_rows(case.stack(0, 1), mesh, axis=1)
    text = run.lower(template, stack, jax.random.key(0), 0).compile().as_text()
    state = {
        axes(leaf.shape[1:] if set(name.split("/")) & set(STACKS) else leaf.shape)
        for name, leaf in zip(paths(template), jax.tree.leaves(template), strict=True)
    }
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    assert gathered
    assert {axes(int(n) for n in shape.split(",")) for shape in gathered} <= state
    assert not re.search(r" (all-to-all|collective-permute)\(", text)


def test_copies_send_their_gradients_once_and_nothing_else(case):
    """But moments of the whole batch, where a net normalises by them, and metrics."""
    mesh = mesh_of(8)
    template = layouts.abstract(case.model.init, mesh)
    run = parallel.compile_steps(case.model.step, mesh, template)
    stack = layouts.split_rows(case.stack(0, 1), mesh, axis=1)
    text = run.lower(template, stack, jax.random.key(0), 0).compile().as_text()
    found = hlo.measure(text).collectives
    assert {one.kind for one in found} == {"all-reduce"}
    size = 4 * sum(
        math.prod(leaf.shape)
        for name, leaf in zip(paths(template), jax.tree.leaves(template), strict=True)
        if re.search(r"(^|/)variables/params/", name)
    )
    sent = sum(one.bytes for one in found) / (2 * 7 / 8)  # a ring's, of which each sends so much
    assert 0.99 * size <= sent, "XLA leaves out what has no gradient"
    if not any("batch_stats" in name for name in paths(template)):
        assert sum(one.times for one in found) == 1
        assert sent <= size + 64


def test_draws_ask_other_devices_for_nothing(case):
    """Not even whether their rows are done; of weights in shares for what they lack, once."""
    key, cond = jax.random.key(0), cond_of(case, 16)
    weights = jax.eval_shape(lambda key: case.model.weights(case.model.init(key)), key)
    for mesh, kinds in ((mesh_of(8), set()), (mesh_of(2, fsdp=4), {"all-gather"})):
        lowered = parallel.compile_draws(case.model.sample, mesh).lower(weights, key, cond)
        found = hlo.measure(lowered.compile().as_text()).collectives
        assert {one.kind for one in found} == kinds
        assert sum(one.times for one in found) <= len(jax.tree.leaves(weights))


def axes(shape: Any) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n > 1))


def paths(tree: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


def follows_the_rules(state: Any) -> bool:
    rules = (pattern for pattern, _ in Mesh().rules)
    return all(any(re.search(pattern, name) for name in paths(state)) for pattern in rules)


def assert_moved_alike(start: Any, one: Any, other: Any) -> None:
    """Every array moved, and in both to the same place: up to a ten-thousandth of its move."""
    leaves = (jax.tree.leaves(tree) for tree in (one, other, start))
    for name, a, b, was in zip(paths(one), *leaves, strict=True):
        a, b, was = (np.asarray(x, np.float64) for x in (a, b, was))
        move = np.abs(a - was).max()
        rounding = np.finfo(np.float32).eps * np.abs(a).max()
        gap = np.abs(a - b).max()
        assert gap <= 1e-4 * move + 4 * rounding, f"{name} moved by {move} and is {gap} apart"


def test_saved_restored_and_continued_equals_unbroken(case, trained, tmp_path):
    mesh = mesh_of(8)
    half, _, _ = train(case, 10, mesh)
    checkpoint.save(tmp_path, 10, half)
    restored, step = checkpoint.restore(tmp_path, layouts.abstract(case.model.init, mesh))
    assert step == 10
    chex.assert_trees_all_equal(jax.device_get(restored), jax.device_get(half))
    continued, _, _ = train(case, 10, mesh, restored, start=10)
    chex.assert_trees_all_equal(jax.device_get(continued), jax.device_get(trained[0]))


def test_exported_and_loaded_equals_the_sampler(case, trained, tmp_path):
    weights = jax.device_get(case.model.weights(trained[0]))
    export.write_bundle(tmp_path / "export", case.model, weights, case.dataset.spec, {})
    sampler = load_sampler(tmp_path / "export")
    key, cond = jax.random.key(5), cond_of(case, 6)
    want = make_sampler(case.model, weights, mesh_of(1), block_size=6)(key, cond)
    got = sampler(key, cond)
    assert got.keys() == want.keys()
    for name, value in got.items():
        np.testing.assert_array_equal(np.asarray(value), want[name])


def test_score_gives_one_finite_value_per_example_whatever_is_split(case, trained):
    weights, examples = case.model.weights(trained[0]), case.dataset.arrays(np.arange(11))
    values, others = (
        make_scorer(case.model, mesh, block_size=8)(weights, jax.random.key(0), examples)
        for mesh in (mesh_of(8), mesh_of(2, fsdp=4))
    )
    for name, value in values.items():
        assert value.shape == (11,)
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, others[name], rtol=1e-4, atol=1e-4)
