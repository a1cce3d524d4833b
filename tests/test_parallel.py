"""Devices: meshes, shares of a batch, compiled steps and replicas, and who may name them."""

import ast
import collections
import ctypes
import itertools
import math
import re
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import genaug
from genaug import devices, layouts, parallel
from genaug.devices import Mesh, check_batch_size, make_mesh, use_cpu_cores_as_devices
from genaug.nets import layers
from genaug.nets.looped import looped
from genaug.state import SGD, from_loss
from genaug.types import UserError

PACKAGE = Path(genaug.__file__).parent


@pytest.mark.parametrize("asked, made", [(-1, 8), (1, 1), (2, 2), (3, 3), (8, 8)])
def test_a_mesh_has_the_devices_asked_for(asked, made):
    mesh = make_mesh(Mesh(data=asked))
    assert mesh.size == made
    assert mesh.shape == {"data": made, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    "asked, made, rows",
    [
        (Mesh(fsdp=8), (1, 8, 1), 8),
        (Mesh(fsdp=2, tensor=2), (2, 2, 2), 4),
        (Mesh(data=3, tensor=2), (3, 1, 2), 3),
    ],
)
def test_rows_are_split_over_data_and_fsdp(asked, made, rows):
    mesh = make_mesh(asked)
    assert tuple(mesh.shape.values()) == made
    assert mesh.size == rows


@pytest.mark.parametrize("asked", [0, -2, 9, 1000])
def test_a_mesh_that_the_machine_has_not_is_refused(asked):
    with pytest.raises(UserError, match=f"mesh.data is {asked}, .* 8 device.* number from 1 to 8"):
        make_mesh(Mesh(data=asked))


@pytest.mark.parametrize(
    "asked, message",
    [
        (Mesh(fsdp=0), "mesh.fsdp is 0; it must be at least 1"),
        (Mesh(tensor=-1), "mesh.tensor is -1; it must be at least 1"),
        (Mesh(fsdp=3, tensor=3), "3 x mesh.tensor 3 is 9, .* 8 device.* from 1 to 8"),
        (Mesh(fsdp=3), "is 3, which does not divide the 8 devices .* --mesh.data 2 .* 2 idle"),
        (Mesh(fsdp=2, strategy="pmap"), "pmap copies the state .* mesh.fsdp is 2"),
        (Mesh(data=5, fsdp=2), "mesh.data is 5, .* fsdp x tensor is 2: .* number from 1 to 4"),
    ],
)
def test_a_mesh_that_does_not_divide_the_devices_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        make_mesh(asked)


@pytest.mark.parametrize("batch_size", [-3, 0, 1, 5, 7, 9, 63, 65])
@pytest.mark.parametrize("num_devices", [2, 8])
def test_both_suggested_batch_sizes_are_valid(batch_size, num_devices):
    mesh = make_mesh(Mesh(data=num_devices))
    if batch_size > 0 and batch_size % num_devices == 0:
        check_batch_size(batch_size, mesh)
        return
    with pytest.raises(UserError, match=f"train.batch-size {batch_size} is not divis") as error:
        check_batch_size(batch_size, mesh)
    words = str(error.value).replace(",", "").split()
    at = words.index("use")
    suggested = [int(words[at + 1]), int(words[at + 3])]
    assert suggested[0] < suggested[1]
    for size in suggested:
        check_batch_size(size, mesh)


def test_every_part_of_a_batch_is_shared_equally():
    mesh = make_mesh(Mesh())
    check_batch_size(32, mesh, 4)
    with pytest.raises(UserError, match=r"8 devices .* times train.accumulate 4: use 32 or 64"):
        check_batch_size(40, mesh, 4)


@pytest.mark.parametrize("batch_size", [8, 16, 64])
def test_a_batch_that_divides_passes(batch_size):
    check_batch_size(batch_size, make_mesh(Mesh()))


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_compiled_steps_are_the_loop_and_its_mean_metrics(num_devices):
    mesh = make_mesh(Mesh(data=num_devices))
    key = jax.random.key(3)
    stack = {"x": np.arange(3 * 16, dtype=np.float32).reshape(3, 16)}

    def step(state, batch, key):
        value = jnp.mean(batch["x"]) + jax.random.normal(key)
        return state + value, {"value": value, "state": state}

    state = layouts.place(jnp.float32(1.0), mesh)
    program = parallel.compile_steps(step, mesh, state)
    state, metrics = program(state, layouts.split_rows(stack, mesh, axis=1), key, 40)
    expected, values, states = jnp.float32(1.0), [], []
    for i in range(3):
        states.append(expected)
        expected, one = step(expected, {"x": stack["x"][i]}, jax.random.fold_in(key, 40 + i))
        values.append(one["value"])
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["value"], np.mean(values), rtol=1e-6)
    np.testing.assert_allclose(metrics["state"], np.mean(states), rtol=1e-6)
    assert len(metrics["value"].sharding.device_set) == num_devices


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_replicas_are_a_python_loop(num_devices):
    mesh = make_mesh(Mesh(data=num_devices))
    keys = jax.random.split(jax.random.key(0), 8)
    shared = jnp.arange(4.0)

    def one(shared, key):
        return {"a": shared * jax.random.normal(key), "b": jax.random.uniform(key, (2,))}

    found = parallel.compile_replicas(one, mesh)(shared, keys)
    for i in range(8):
        expected = one(shared, keys[i])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-6)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_function_of_rows_gives_its_rows_in_order(num_devices):
    mesh = make_mesh(Mesh(data=num_devices))
    program = parallel.compile_rows(lambda w, key, rows: {"y": w * rows["x"]}, mesh)
    x = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(program(2.0, jax.random.key(0), {"x": x})["y"], 2 * x)


def test_large_arrays_are_split_along_their_largest_axis_that_divides():
    mesh = make_mesh(Mesh(data=2, fsdp=4, min_split=64))

    def init(key):
        shapes = {"wide": (4, 64), "tall": (3, 64, 6), "odd": (31, 3), "small": (8, 4), "n": ()}
        return {"params": {name: jnp.zeros(shape) for name, shape in shapes.items()}}

    state = parallel.compile_init(init, mesh)(jax.random.key(0))["params"]
    held = {name: value.addressable_shards[0].data.shape for name, value in state.items()}
    assert held == {"wide": (4, 16), "tall": (3, 16, 6), "odd": (31, 3), "small": (8, 4), "n": ()}
    assert all(len(value.sharding.device_set) == 8 for value in state.values())


def test_where_no_axis_divides_several_share_the_factors():
    mesh = make_mesh(Mesh(fsdp=8, min_split=64))
    shapes = {"three": (6, 10, 14), "two": (12, 22), "most": (4, 33), "one": (31, 34)}

    def init(key):
        drawn = {name: jax.random.normal(key, shape) for name, shape in shapes.items()}
        return {"params": drawn}

    state = parallel.compile_init(init, mesh)(jax.random.key(0))["params"]
    held = {name: value.addressable_shards[0].data.shape for name, value in state.items()}
    assert held == {"three": (3, 5, 7), "two": (3, 11), "most": (1, 33), "one": (31, 17)}
    for name, value in init(jax.random.key(0))["params"].items():
        np.testing.assert_array_equal(state[name], value)


@pytest.mark.parametrize("fsdp, factor", [(1, 1), (2, 2), (8, 8)])
def test_a_device_s_share_of_the_state_falls_with_fsdp(fsdp, factor):
    mesh = make_mesh(Mesh(fsdp=fsdp))
    template = layouts.abstract(lambda key: {"ema": {"w": jnp.zeros((256, 384))}}, mesh)
    (leaf,) = jax.tree.leaves(template)
    assert leaf.sharding.shard_shape(leaf.shape) == (256, 384 // factor)


def test_of_a_stack_every_layer_is_split():
    mesh = make_mesh(Mesh(fsdp=8, min_split=64))

    def init(key):
        stack = {"kernel": jnp.zeros((32, 16, 8)), "bias": jnp.zeros((32, 6))}
        return {"params": {"layers": stack}, "ema": {"net": {"blocks": stack}, "else": stack}}

    found = jax.tree.map(lambda leaf: leaf.sharding.spec, layouts.abstract(init, mesh))
    of_layers = {"kernel": P(None, ("fsdp", "fsdp_1", "fsdp_2"), None), "bias": P(None, "fsdp")}
    assert found["params"]["layers"] == found["ema"]["net"]["blocks"] == of_layers
    assert found["ema"]["else"]["kernel"] == P(("fsdp", "fsdp_1", "fsdp_2"), None, None)


def test_rules_split_matrices_for_work_and_fsdp_what_is_left_of_them():
    mesh = make_mesh(Mesh(fsdp=2, tensor=2, min_split=64))

    def init(key):
        names = ("qkv", "out", "mlp_in", "mlp_out")
        layers = {"layer_0": {name: {"kernel": jnp.zeros((16, 32))} for name in names}}
        return {"params": layers, "ema": {"tokens": jnp.zeros((64, 16))}, "n": jnp.zeros(64)}

    found = jax.tree_util.tree_leaves_with_path(layouts.abstract(init, mesh))
    specs = {
        jax.tree_util.keystr(path[-2:], simple=True): leaf.sharding.spec for path, leaf in found
    }
    by_output, by_input = P("fsdp", "tensor"), P("tensor", "fsdp")
    assert specs == {
        "qkvkernel": by_output, "mlp_inkernel": by_output,
        "outkernel": by_input, "mlp_outkernel": by_input,
        "ematokens": P("fsdp", None), "n": P(None),
    }  # fmt: skip


@pytest.mark.parametrize(
    "rule, words",
    [
        (("nothing/here$", 0), "'nothing/here.' matches no array .*/a/kernel"),
        (("kernel$", -1), "mesh.tensor 2 does not divide axis -1 of .*/a/kernel"),
        (("kernel$", 2), "mesh.tensor 2 does not divide axis 2 of .* shape .4, 3."),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rule, words):
    mesh = make_mesh(Mesh(tensor=2, rules=(rule,)))
    with pytest.raises(UserError, match=words):
        layouts.abstract(lambda key: {"params": {"a": {"kernel": jnp.zeros((4, 3))}}}, mesh)


def test_a_template_has_the_shapes_of_the_state_and_computes_nothing():
    def init(key):
        return {"w": jax.random.normal(key, (3, 2)), "n": jnp.zeros((), jnp.int32)}

    mesh = make_mesh(Mesh(data=2))
    template = layouts.abstract(init, mesh)
    state = parallel.compile_init(init, mesh)(jax.random.key(0))
    for a, b in zip(jax.tree.leaves(template), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
        assert isinstance(a, jax.ShapeDtypeStruct)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " "])
def test_a_number_of_devices_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv("GENAUG_CPU_DEVICES", value)
    with pytest.raises(UserError, match=r"GENAUG_CPU_DEVICES is .* whole number from 1 up"):
        use_cpu_cores_as_devices()


@pytest.mark.parametrize("value, expected", [("3", 3), ("", 5), (None, 5)])
def test_the_cores_or_the_number_asked_for_become_devices(monkeypatch, value, expected):
    asked = {}
    monkeypatch.setattr(devices.jax.config, "update", asked.__setitem__)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    if value is None:
        monkeypatch.delenv("GENAUG_CPU_DEVICES", raising=False)
    else:
        monkeypatch.setenv("GENAUG_CPU_DEVICES", value)
    use_cpu_cores_as_devices()
    assert asked == {"jax_num_cpu_devices": expected}


def _imports_sharding(tree):
    """Imports of jax.sharding's makers; `jax.sharding.Mesh` as an annotation makes nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("jax.sharding"))
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            yield from (n for n in names if n.startswith("jax.sharding"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            if called.startswith("jax.sharding.") or called in ("jax.shard_map", "jax.pmap"):
                yield called


def test_five_files_name_shardings_and_no_other():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in _imports_sharding(ast.parse(path.read_text()))
    }
    names = ("devices", "foreign", "layouts", "parallel", "shares")
    assert {path for path, _ in found} == {f"{name}.py" for name in names}


def test_the_check_of_imports_sees_what_it_looks_for():
    texts = ["import jax.sharding", "from jax import sharding", "from jax.sharding import Mesh",
             "jax.sharding.Mesh(x, y)", "jax.shard_map(f)"]  # fmt: skip
    assert list(itertools.chain(*(_imports_sharding(ast.parse(t)) for t in texts))) == [
        "jax.sharding",
        "jax.sharding",
        "jax.sharding.Mesh",
        "jax.sharding.Mesh",
        "jax.shard_map",
    ]


SIZES = {"w0": (32, 64), "w1": (64, 64), "w2": (64, 8)}


def perceptron():
    """A loss of three matrices, each large enough to be split."""

    def init(key):
        keys = dict(zip(SIZES, jax.random.split(key, 3), strict=True))
        return {"params": {k: jax.random.normal(keys[k], SIZES[k]) / 8 for k in SIZES}}

    def loss(variables, batch, key):
        h = batch["x"]
        for name in SIZES:
            h = jnp.tanh(h @ variables["params"][name])
        return jnp.mean(h**2), ({}, {})

    return from_loss(init, loss, lambda weights, key, cond: {}, SGD())


def steps_of(model, mesh, width):
    """The compiled steps of a model of rows of so many features, as text."""
    template = layouts.abstract(model.init, mesh)
    run = parallel.compile_steps(model.step, mesh, template)
    stack = layouts.split_rows({"x": np.ones((2, 16, width), np.float32)}, mesh, axis=1)
    return run.lower(template, stack, jax.random.key(0), 0).compile().as_text()


def communicated(text):
    """Elements that each kind of collective of a program gives, by kind; of a loop's, once."""
    found = collections.Counter()
    for shapes, kind in re.findall(
        r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\(", text
    ):
        for dims in re.findall(r"f32\[([\d,]*)\]", shapes):
            found[kind] += math.prod(int(n) for n in dims.split(",") if n)
    return found


NUM_PARAMS = sum(math.prod(shape) for shape in SIZES.values())


def test_data_parallel_steps_reduce_the_gradients_once_and_send_nothing_else():
    found = communicated(steps_of(perceptron(), make_mesh(Mesh()), 32))
    assert set(found) == {"all-reduce"}
    assert NUM_PARAMS <= found["all-reduce"] <= NUM_PARAMS + 4  # and the loss


def test_split_states_are_gathered_once_and_never_activations():
    found = communicated(steps_of(perceptron(), make_mesh(Mesh(fsdp=8, min_split=1)), 32))
    assert set(found) == {"all-reduce", "reduce-scatter", "all-gather"}
    assert found["all-gather"] == NUM_PARAMS
    assert found["reduce-scatter"] == NUM_PARAMS // 8
    assert found["all-reduce"] <= 4, "the loss, and norms of shares"


LAYERS, WIDTH = 5, 16
LAYER_SIZE = 2 * 4 * WIDTH * WIDTH + 5 * WIDTH


class Layer(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x):
        wide = jnp.tanh(layers.Dense(self.hidden * WIDTH, name="wide")(x))
        return x + jnp.tanh(layers.Dense(WIDTH, name="narrow")(wide)), None


class LoopedNet(nn.Module):
    remat: bool = False
    hidden: int = 4

    @nn.compact
    def __call__(self, x):
        return looped(Layer, "layers", LAYERS, self.remat)(self.hidden)(x)[0]


def looped_net(remat, dtype=jnp.float32):
    net = LoopedNet(remat)

    def loss(variables, batch, key):
        y = net.apply(variables, batch["x"].astype(dtype))
        return jnp.mean(jnp.square(y.astype(jnp.float32))), ({}, {})

    def init(key):
        return net.init(key, jnp.ones((1, WIDTH)))

    return from_loss(init, loss, lambda weights, key, cond: {}, SGD(learning_rate=0.1))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_split_layers_are_gathered_and_summed_one_by_one(remat, dtype):
    """No device ever holds the whole of a matrix of all layers, nor keeps what it gathered."""
    mesh, model = make_mesh(Mesh(fsdp=8, min_split=1)), looped_net(remat, dtype)
    text = steps_of(model, mesh, WIDTH)
    assert f"[{LAYERS},{WIDTH},{4 * WIDTH // 8}]" in text, "a share of a matrix of all layers"
    for stack in (f"{LAYERS},{WIDTH},{4 * WIDTH}", f"{LAYERS},{4 * WIDTH},{WIDTH}"):
        assert f"[{stack}]" not in text
    found = communicated(text)
    assert set(found) == {"all-reduce", "reduce-scatter", "all-gather"}
    assert LAYER_SIZE < found["all-gather"] <= 2 * LAYER_SIZE, "once forward, once backward"
    assert found["reduce-scatter"] == LAYER_SIZE // 8
    assert found["all-reduce"] <= 8, "the loss, and norms of shares"


def judged_by(judge, model):
    """Training of a looped net by what another one, which is whole and stays, makes of its rows."""
    net = LoopedNet()

    def loss(variables, batch, key):
        made = net.apply({"params": variables["params"]}, batch["x"])
        seen = judge.apply({"params": variables["judge"]}, made)
        return jnp.mean(jnp.square(seen)), ({"made": jnp.mean(made)}, {})

    def init(key):
        seen = judge.init(jax.random.key(9), jnp.ones((1, WIDTH)))["params"]
        return {**model.init(key).variables, "judge": seen}

    return from_loss(init, loss, lambda weights, key, cond: {}, SGD(learning_rate=0.1))


@pytest.mark.parametrize(
    "model",
    [looped_net(False), looped_net(True), judged_by(LoopedNet(), looped_net(False)),
     judged_by(LoopedNet(hidden=3), looped_net(False))],
    ids=["kept", "remat", "judge", "other judge"],
)  # fmt: skip
def test_split_layers_train_as_whole_ones(model):
    trained = []
    for mesh in (make_mesh(Mesh(data=1)), make_mesh(Mesh(data=2, fsdp=4, min_split=1))):
        state = parallel.compile_init(model.init, mesh)(jax.random.key(0))
        run = parallel.compile_steps(
            model.step, mesh, layouts.abstract(model.init, mesh), accumulate=2
        )
        x = np.random.default_rng(0).normal(size=(4, 32, WIDTH)).astype(np.float32)
        batches = layouts.split_rows({"x": x}, mesh, axis=1)
        trained.append(jax.device_get(run(state, batches, jax.random.key(0), 0)[0].variables))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), *trained)


class Dropping(nn.Module):
    """Two dropouts, one in a layer."""

    @nn.compact
    def __call__(self, x, index):
        x = nn.Dense(16)(layers.Dropout(0.25)(x, index))
        return layers.Dropout(0.5)(x, index)


@pytest.mark.parametrize(
    "mesh, parts",
    [
        (Mesh(data=1), 2), (Mesh(data=2), 2), (Mesh(data=4), 1), (Mesh(data=8), 2),
        (Mesh(data=4, strategy="pmap"), 1), (Mesh(fsdp=4, min_split=1), 1),
    ],
    ids=str,
)  # fmt: skip
def test_dropout_is_the_same_on_any_devices_in_any_parts(mesh, parts):
    net = Dropping()

    def loss(variables, batch, key):
        y = net.apply(variables, batch["x"], batch["index"], rngs={"dropout": key})
        return jnp.mean(y**2), ({"value": jnp.mean(y)}, {})

    def init(key):
        return net.init(key, jnp.ones((1, 4)), None)

    model = from_loss(init, loss, lambda weights, key, cond: {}, SGD(learning_rate=0.1))
    stack = {"x": np.ones((2, 8, 4), np.float32), "index": np.arange(16).reshape(2, 8)}

    def trained(mesh, parts):
        mesh = make_mesh(mesh)
        template = layouts.abstract(model.init, mesh)
        run = parallel.compile_steps(model.step, mesh, template, parts)
        state = parallel.compile_init(model.init, mesh)(jax.random.key(0))
        state, metrics = run(state, layouts.split_rows(stack, mesh, axis=1), jax.random.key(1), 0)
        return jax.device_get((state.variables, metrics))

    got, want = trained(mesh, parts), trained(Mesh(data=1), 1)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), got, want)


@pytest.mark.parametrize("kept", [False, True])
def test_freed_memory_is_given_out_again_without_new_pages(kept):
    """Pages that the system must fill when 64 MB are taken, given back and taken again."""
    program = f"""
import ctypes, resource
from genaug.devices import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
if {kept}:
    keep_freed_memory()
def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    at = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(2**26)))
    ctypes.memset(at, 1, 2**26)
    libc.free(at)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
use()
print(use())
"""
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        pytest.skip("another allocator than glibc's")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    faults, pages = int(run.stdout), 2**26 // resource.getpagesize()
    assert faults < pages / 100 if kept else faults > pages / 2, faults
