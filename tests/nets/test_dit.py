"""The diffusion transformer against a PyTorch twin with copied weights, and what it refuses."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.nets.dit import DiT, positions
from genaug.types import UserError

SMALL = DiT(patch_size=2, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0)
SHAPE = (8, 4, 2)  # of unequal sides, so that no axis can stand in for another
CLASSES, AUGMENT, PER_VALUE = 3, 2, 2


def make(key, config=SMALL):
    """A net with every parameter drawn, for a fresh one's zeros would hide the rest."""
    net = config.net(SHAPE, CLASSES, AUGMENT, PER_VALUE)
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (3, *SHAPE))
    level, label = jnp.array([-4.0, 0.3, 2.0]), jnp.array([0, 2, CLASSES])
    args = (x, level, label, jax.random.normal(keys[1], (3, AUGMENT)))
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, key, *args))
    keys = jax.random.split(keys[2], len(leaves))
    drawn = [
        jax.random.normal(key, leaf.shape) / max(math.prod(leaf.shape[:-1]), 4) ** 0.5
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return net, jax.tree.unflatten(tree, drawn), args


def flat(tree):
    """Parameters by path."""
    return {
        "/".join(entry.key for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def published_positions(height, width, dim):
    """A table as in the published code: the first half tells the column, the second the row."""
    table = np.zeros((height, width, dim))
    for row in range(height):
        for column in range(width):
            for half, place in enumerate((column, row)):
                for i in range(dim // 4):
                    angle = place / 10_000 ** (i / (dim // 4))
                    table[row, column, half * dim // 2 + i] = np.sin(angle)
                    table[row, column, half * dim // 2 + dim // 4 + i] = np.cos(angle)
    return table.reshape(height * width, dim)


class Twin:
    """The same net of PyTorch's functions in float64, over parameters laid out as Flax's."""

    def __init__(self, torch, params, config):
        self.torch, self.f, self.p, self.config = torch, torch.nn.functional, params, config

    def dense(self, name, x):
        return self.f.linear(x, self.p[f"{name}/kernel"].T, self.p.get(f"{name}/bias"))

    def normed(self, x, shift, scale):
        return self.f.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def modulations(self, name, condition, count):
        return self.dense(f"{name}modulation", condition)[:, None].chunk(count, dim=2)

    def attention(self, name, x):
        heads = self.dense(f"{name}/qkv", x).unflatten(2, (3, self.config.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = self.f.scaled_dot_product_attention(q, k, v)
        return self.dense(f"{name}/out", y.transpose(1, 2).flatten(2))

    def condition(self, level, label, augment):
        torch = self.torch
        waves = torch.exp(-math.log(10_000) * torch.arange(128, dtype=level.dtype) / 128)
        angle = level[:, None] * waves
        h = torch.cat([angle.sin(), angle.cos()], dim=1)
        h = self.dense("condition/level_out", self.f.silu(self.dense("condition/level_in", h)))
        h = h + self.p["condition/label/embedding"][label]
        return self.f.silu(h + self.dense("condition/augment", augment))

    def __call__(self, x, level, label, augment):
        """`x` is [n, c, h, w]; patches are cut by PyTorch's `unfold` and laid by `fold`."""
        size, p = x.shape[2:], self.config.patch_size
        c = self.condition(level, label, augment)
        h = self.f.unfold(x, p, stride=p).unflatten(1, (x.shape[1], p * p))
        h = self.dense("in", h.permute(0, 3, 2, 1).flatten(2))
        h = h + self.torch.tensor(published_positions(size[0] // p, size[1] // p, h.shape[-1]))
        for i in range(self.config.depth):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulations(
                f"block_{i}/", c, 6
            )
            h = h + gate_a * self.attention(
                f"block_{i}/attention", self.normed(h, shift_a, scale_a)
            )
            y = self.dense(f"block_{i}/mlp_in", self.normed(h, shift_m, scale_m))
            h = h + gate_m * self.dense(f"block_{i}/mlp_out", self.f.gelu(y, approximate="tanh"))
        h = self.dense("out", self.normed(h, *self.modulations("", c, 2)))
        h = h.unflatten(2, (p * p, -1)).permute(0, 3, 2, 1).flatten(1, 2)
        return self.f.fold(h, size, p, stride=p)


def assert_close(got, want, tolerance=1e-5):
    """Equal up to `tolerance` of the largest value."""
    got, want = np.asarray(got), np.asarray(want)
    scale = np.abs(want).max()
    assert scale > 1e-3, "all zeros would be equal too"
    np.testing.assert_allclose(got / scale, want / scale, rtol=0, atol=tolerance)


def test_equals_a_pytorch_twin(key):
    torch = pytest.importorskip("torch", reason="the twin is written in PyTorch")
    net, variables, args = make(key)
    weight = np.random.default_rng(0).normal(size=(3, 8, 4, 4)).astype(np.float32)

    def loss(params):
        y = net.apply({"params": params}, *args)
        return jnp.sum(y * weight), y

    grads, y = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    params = {
        name: torch.tensor(np.asarray(leaf, np.float64), requires_grad=True)
        for name, leaf in flat(variables["params"]).items()
    }
    x, level, augment = (torch.tensor(np.asarray(args[i], np.float64)) for i in (0, 1, 3))
    label = torch.tensor(np.asarray(args[2]))
    twin = Twin(torch, params, SMALL)
    twin_y = twin(x.permute(0, 3, 1, 2), level, label, augment).permute(0, 2, 3, 1)
    (twin_y * torch.tensor(weight)).sum().backward()
    assert_close(y, twin_y.detach())
    for name, grad in flat(grads).items():
        assert_close(grad, params[name].grad)


def test_positions_are_the_published_ones():
    np.testing.assert_allclose(positions(3, 5, 8), published_positions(3, 5, 8), atol=1e-6)


@functools.lru_cache
def apply(net):
    """One program for all tests of a net."""
    return jax.jit(net.apply, static_argnames="train")


@pytest.fixture(scope="module")
def made():
    return make(jax.random.key(0))


@pytest.mark.parametrize("which", range(4), ids=["x", "level", "label", "augment"])
def test_each_input_moves_its_own_row_and_no_other(made, which):
    net, variables, args = made
    changed = list(args)
    changed[which] = args[which].at[1].add(1)
    moved = apply(net)(variables, *changed) - apply(net)(variables, *args)
    moved = np.abs(moved).max(axis=(1, 2, 3))
    assert moved[1] > 1e-3
    assert (moved[[0, 2]] < 1e-5).all()


def test_a_fresh_net_says_zero_and_its_blocks_add_nothing(key):
    net, _, args = make(key)
    variables = jax.jit(net.init)(key, *args)
    y, state = jax.jit(lambda *given: net.apply(*given, capture_intermediates=True))(
        variables, *args
    )
    np.testing.assert_array_equal(y, np.zeros((3, *SHAPE[:2], 4)))
    blocks = state["intermediates"]
    first, last = (blocks[f"block_{i}"]["__call__"][0][0] for i in range(2))
    np.testing.assert_array_equal(last, first)
    want = blocks["in"]["__call__"][0] + jnp.expand_dims(positions(4, 2, 16), 0)
    np.testing.assert_allclose(first, want, atol=1e-6)
    assert np.abs(blocks["in"]["__call__"][0]).max() > 0.1


def test_dropout_is_random_in_training_alone(key):
    net, variables, args = make(key, dataclasses.replace(SMALL, dropout=0.5))

    def run(train, seed=None):
        keys = {} if seed is None else {"dropout": jax.random.key(seed)}
        index = jnp.arange(len(args[0])) if train else None
        return np.asarray(apply(net)(variables, *args, index=index, rngs=keys))

    plain, variables, args = make(key)
    np.testing.assert_allclose(run(False), apply(plain)(variables, *args), atol=1e-5)
    np.testing.assert_array_equal(run(True, 1), run(True, 1))
    assert np.abs(run(True, 1) - run(True, 2)).max() > 1e-2
    assert np.abs(run(True, 1) - run(False)).max() > 1e-2


@pytest.mark.parametrize("scan_blocks, remat", [(True, False), (False, True), (True, True)])
def test_scanned_or_recomputed_blocks_are_the_same_net(scan_blocks, remat, made):
    plain, variables, args = made
    config = dataclasses.replace(SMALL, scan_blocks=scan_blocks, remat=remat)
    net = config.net(SHAPE, CLASSES, AUGMENT, PER_VALUE)

    def slopes(net, params):
        value = lambda params: jnp.sum(jnp.sin(net.apply({"params": params}, *args)))  # noqa: E731
        return jax.jit(jax.value_and_grad(value))(params)

    def stacked(params):
        if not scan_blocks:
            return params
        blocks = [params[f"block_{i}"] for i in range(SMALL.depth)]
        rest = {name: leaf for name, leaf in params.items() if not name.startswith("block_")}
        return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}

    value, grads = slopes(plain, variables["params"])
    got_value, got = slopes(net, stacked(variables["params"]))
    np.testing.assert_allclose(got_value, value, rtol=1e-5)
    assert ("remat" in str(jax.make_jaxpr(net.apply)(
        {"params": stacked(variables["params"])}, *args))) == remat  # fmt: skip
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(stacked(grads)), strict=True):
        assert_close(one, other)


def test_follows_the_dtype_of_the_images(made):
    net, variables, (x, *rest) = made
    want = apply(net)(variables, x, *rest)
    got = apply(net)(variables, x.astype(jnp.bfloat16), *rest)
    assert got.dtype == jnp.bfloat16
    assert_close(got.astype(jnp.float32), want, 0.1)  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    "changes, shape, words",
    [
        (
            {"patch_size": 3},
            (28, 28, 1),
            "patch-size is 3, which does not divide an image side of 28: use 2, or "
            "--data.image-size 30",
        ),
        ({"patch_size": 2}, (8, 7, 1), "side of 7"),
        ({"patch_size": 0}, (8, 8, 1), "patch-size 0"),
        ({"embed_dim": 0}, (8, 8, 1), "embed-dim 0"),
        ({"depth": 0}, (8, 8, 1), "depth 0"),
        ({"mlp_ratio": 0.0}, (8, 8, 1), "mlp-ratio 0.0"),
        ({"embed_dim": 18, "num_heads": 1}, (8, 8, 1), "embed-dim is 18; .* multiple of 4"),
        ({"num_heads": 3}, (8, 8, 1), "num-heads is 3, which does not divide the 16 channels"),
        ({"dropout": -0.1}, (8, 8, 1), "dropout is -0.1"),
    ],
)
def test_refuses_what_does_not_fit(changes, shape, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(SMALL, **changes).net(shape, 0, 0, 1)
