"""The U-Net against a PyTorch twin with copied weights, its conditions, and what it refuses."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.nets.unet import UNet
from genaug.types import UserError

SMALL = UNet(features=(4, 8), num_blocks=1, attention=(4,), num_heads=2, groups=2)
SHAPE = (8, 4, 2)  # of unequal sides, so that no axis can stand in for another
CLASSES, AUGMENT, PER_VALUE = 3, 2, 2


def inputs(key, shape=SHAPE):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (3, *shape))
    level = jnp.array([-4.0, 0.3, 2.0])
    label = jnp.array([0, 2, CLASSES])
    return x, level, label, jax.random.normal(keys[1], (3, AUGMENT))


def randomised(variables, key):
    """Every parameter drawn, for the zeros of a fresh net would hide what stands before them."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))

    def draw(leaf, key):
        fan_in = math.prod(leaf.shape[:-1])
        return jax.random.normal(key, leaf.shape) / max(fan_in, 4) ** 0.5

    return jax.tree.unflatten(tree, [draw(*pair) for pair in zip(leaves, keys, strict=True)])


def make(key, config=SMALL, shape=SHAPE, num_classes=CLASSES, augment_dim=AUGMENT):
    net = config.net(shape, num_classes, augment_dim, PER_VALUE)
    x, level, label, augment = inputs(key, shape)
    args = (x, level, label if num_classes else None, augment if augment_dim else None)
    return net, randomised(jax.eval_shape(net.init, key, *args), key), args


def flat(tree):
    """Parameters by path."""
    return {
        "/".join(entry.key for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class Twin:
    """The same net of PyTorch's functions in float64, over parameters laid out as Flax's."""

    def __init__(self, torch, params, config):
        self.torch, self.f, self.p, self.config = torch, torch.nn.functional, params, config

    def dense(self, name, x):
        bias = self.p.get(f"{name}/bias")
        return self.f.linear(x, self.p[f"{name}/kernel"].T, bias)

    def conv(self, name, x, stride=1):
        kernel = self.p[f"{name}/kernel"].permute(3, 2, 0, 1)
        if stride == 2:  # "SAME" of an even side pads below and to the right alone
            return self.f.conv2d(self.f.pad(x, (0, 1, 0, 1)), kernel, self.p[f"{name}/bias"], 2)
        return self.f.conv2d(x, kernel, self.p[f"{name}/bias"], padding=kernel.shape[-1] // 2)

    def norm(self, name, x):
        weights = self.p[f"{name}/scale"], self.p[f"{name}/bias"]
        return self.f.group_norm(x, self.config.groups, *weights, eps=1e-6)

    def residual(self, name, x, condition):
        h = self.conv(f"{name}/conv_0", self.f.silu(self.norm(f"{name}/norm_0", x)))
        scale, shift = self.dense(f"{name}/condition", condition)[:, :, None, None].chunk(2, dim=1)
        h = self.f.silu(self.norm(f"{name}/norm_1", h) * (1 + scale) + shift)
        h = self.conv(f"{name}/conv_1", h)
        return h + (self.conv(f"{name}/skip", x) if f"{name}/skip/kernel" in self.p else x)

    def attention(self, name, x):
        n, c, height, width = x.shape
        tokens = self.norm(f"{name}/norm", x).flatten(2).transpose(1, 2)
        qkv = self.dense(f"{name}/attention/qkv", tokens)
        qkv = qkv.view(n, -1, 3, self.config.num_heads, c // self.config.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = self.f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, c)
        h = self.dense(f"{name}/attention/out", h)
        return x + h.transpose(1, 2).reshape(n, c, height, width)

    def condition(self, level, label, augment, dim):
        torch = self.torch
        waves = torch.exp(
            -math.log(10_000) * torch.arange(dim // 2, dtype=level.dtype) / (dim // 2)
        )
        angle = level[:, None] * waves
        h = torch.cat([angle.sin(), angle.cos()], dim=1)
        h = self.dense("condition/level_out", self.f.silu(self.dense("condition/level_in", h)))
        h = h + self.p["condition/label/embedding"][label]
        return self.f.silu(h + self.dense("condition/augment", augment))

    def __call__(self, x, level, label, augment):
        condition = self.condition(level, label, augment, 4)
        h0 = self.conv("in", x)
        h1 = self.residual("down0_0", h0, condition)
        h2 = self.conv("down1", h1, 2)
        h3 = self.residual("down1_0", h2, condition)
        h3 = self.attention("down1_0_attention", h3)
        h = self.residual("middle_0", h3, condition)
        h = self.residual("middle_1", self.attention("middle_0_attention", h), condition)
        for i, skips in [(1, [h3, h2]), (0, [h1, h0])]:
            for j, skip in enumerate(skips):
                h = self.residual(f"up{i}_{j}", self.torch.cat([h, skip], 1), condition)
                if i:
                    h = self.attention(f"up{i}_{j}_attention", h)
            if i:
                h = self.conv("up1", self.f.interpolate(h, scale_factor=2, mode="nearest"))
        return self.conv("out", self.f.silu(self.norm("out_norm", h)))


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


@functools.lru_cache
def apply(net):
    """One program for all tests of a net."""
    return jax.jit(net.apply, static_argnames="train")


def output(made, **changes):
    """The output with some of (x, level, label, augment) changed."""
    net, variables, args = made
    args = dict(zip(("x", "level", "label", "augment"), args, strict=True)) | changes
    return np.asarray(apply(net)(variables, **args))


def observed(net, variables, args):
    """The output, and what every module said."""
    return jax.jit(lambda *given: net.apply(*given, capture_intermediates=True))(variables, *args)


@pytest.fixture(scope="module")
def made():
    return make(jax.random.key(0))


@pytest.mark.parametrize("name", ["x", "level", "label", "augment"])
def test_each_input_moves_its_own_row_and_no_other(made, name):
    values = dict(zip(("x", "level", "label", "augment"), made[2], strict=True))
    changed = values[name].at[1].add(1)
    moved = np.abs(output(made, **{name: changed}) - output(made)).max(axis=(1, 2, 3))
    assert moved[1] > 1e-3
    assert (moved[[0, 2]] < 1e-5).all()


def test_no_label_is_a_row_of_its_own(made):
    """Each row of the table changes the examples that name it, `num_classes` the last."""
    net, variables, args = made
    base = output(made)
    assert variables["params"]["condition"]["label"]["embedding"].shape == (CLASSES + 1, 16)
    for row, moves in [(0, [True, False, False]), (CLASSES, [False, False, True])]:
        table = variables["params"]["condition"]["label"]["embedding"].at[row].add(1.0)
        condition = variables["params"]["condition"] | {"label": {"embedding": table}}
        params = {"params": variables["params"] | {"condition": condition}}
        moved = np.abs(output((net, params, args)) - base).max(axis=(1, 2, 3)) > 1e-3
        np.testing.assert_array_equal(moved, moves)


def test_without_classes_and_augmentation_nothing_stands_in_for_them(key):
    net, variables, args = make(key, num_classes=0, augment_dim=0)
    assert args[2] is None
    assert args[3] is None
    assert set(variables["params"]["condition"]) == {"level_in", "level_out"}
    assert jax.eval_shape(net.apply, variables, *args).shape == (
        3,
        *SHAPE[:2],
        SHAPE[2] * PER_VALUE,
    )


def test_a_fresh_net_says_zero_and_its_blocks_add_nothing(key):
    net = SMALL.net(SHAPE, CLASSES, AUGMENT, PER_VALUE)
    args = inputs(key)
    variables = jax.jit(net.init)(key, *args)
    y, state = observed(net, variables, args)
    np.testing.assert_array_equal(y, np.zeros((3, *SHAPE[:2], 4)))
    blocks = state["intermediates"]
    np.testing.assert_array_equal(  # of equal channels in and out, so of no "skip"
        blocks["down0_0"]["__call__"][0], blocks["in"]["__call__"][0]
    )
    assert np.abs(blocks["in"]["__call__"][0]).max() > 0.1
    np.testing.assert_array_equal(
        blocks["middle_0_attention"]["__call__"][0], blocks["middle_0"]["__call__"][0]
    )


def test_attention_stands_where_the_config_says(key):
    def attended(resolutions):
        config = dataclasses.replace(SMALL, attention=resolutions)
        net = config.net(SHAPE, CLASSES, AUGMENT, PER_VALUE)
        params = jax.eval_shape(net.init, key, *inputs(key))["params"]
        return {name for name in params if name.endswith("attention")}

    assert attended(()) == {"middle_0_attention"}
    assert attended((8,)) == {"middle_0_attention", "down0_0_attention"} | {
        f"up0_{j}_attention" for j in range(2)
    }


def test_dropout_is_random_in_training_alone(key):
    net, variables, args = make(key, dataclasses.replace(SMALL, dropout=0.5))

    def run(train, seed=None):
        keys = {} if seed is None else {"dropout": jax.random.key(seed)}
        index = jnp.arange(len(args[0])) if train else None
        return np.asarray(apply(net)(variables, *args, index=index, rngs=keys))

    np.testing.assert_array_equal(run(False), output(make(key)))
    np.testing.assert_array_equal(run(True, 1), run(True, 1))
    assert np.abs(run(True, 1) - run(True, 2)).max() > 1e-2
    assert np.abs(run(True, 1) - run(False)).max() > 1e-2


def test_follows_the_dtype_of_the_images(made):
    want = output(made)
    net, variables, (x, *rest) = made
    got = apply(net)(variables, x.astype(jnp.bfloat16), *rest)
    assert got.dtype == jnp.bfloat16
    assert_close(got.astype(jnp.float32), want, 0.1)  # bfloat16 has 8 bits, and there are 30 layers


def test_patches_are_squares_of_pixels_as_channels(key):
    patched = dataclasses.replace(SMALL, patch_size=2, attention=(2,))
    net, variables, (x, *rest) = make(key, patched)
    inner = dataclasses.replace(patched, patch_size=1).net((4, 2, 8), CLASSES, AUGMENT, PER_VALUE)
    squares = np.zeros((3, 4, 2, 8), np.float32)
    for i in range(4):
        for j in range(2):
            squares[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(3, -1)
    got = apply(net)(variables, x, *rest)
    want = np.asarray(apply(inner)(variables, squares, *rest))
    for i in range(4):
        for j in range(2):
            of_square = want[:, i, j].reshape(3, 2, 2, -1)
            assert_close(got[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2], of_square)


def test_group_norm_takes_the_most_groups_that_divide(key):
    """6 channels, at most 4 groups: 3."""
    net = UNet(features=(6,), num_blocks=1, attention=(), groups=4).net((4, 4, 1), 0, 0, 1)
    args = (jax.random.normal(key, (2, 4, 4, 1)), jnp.zeros(2))
    _, state = observed(net, jax.jit(net.init)(key, *args), args)
    found = state["intermediates"]
    h, normed = (found[name]["__call__"][0] for name in ("up0_1", "out_norm"))
    grouped = np.asarray(h).reshape(2, 16, 3, 2)
    mean, std = (fn(grouped, axis=(1, 3), keepdims=True) for fn in (np.mean, np.std))
    want = ((grouped - mean) / std).reshape(h.shape)
    np.testing.assert_allclose(normed, want, atol=1e-4)


@pytest.mark.parametrize(
    "changes, shape, words",
    [
        (
            {"features": (8, 8, 8, 8)},
            (28, 28, 1),
            "28 is divisible by 4 but not 8: use at most 3 entries in --model.net.features, or "
            "--data.image-size 32",
        ),
        ({"features": (8, 8)}, (8, 7, 1), "7 is divisible by 1 but not 2: use at most 1 entries"),
        ({"attention": (16, 7)}, (28, 28, 1), "names 16, but the U-Net of 28x28.*28, 14"),
        (
            {"patch_size": 2, "features": (8, 8, 8)},
            (28, 28, 1),
            "28 is no multiple of 8.*image-size 32",
        ),
        ({"patch_size": 0}, (8, 8, 1), "patch-size 0"),
        ({"num_heads": 3}, (8, 8, 1), "num-heads is 3, which does not divide the 8 channels"),
        ({"num_heads": 0}, (8, 8, 1), "num-heads is 0"),
        ({"features": ()}, (8, 8, 1), "at least one resolution"),
        ({"features": (8, 0)}, (8, 8, 1), "1 or more of each"),
        ({"num_blocks": 0}, (8, 8, 1), "num-blocks 0"),
        ({"groups": 0}, (8, 8, 1), "groups 0"),
        ({"dropout": 1.0}, (8, 8, 1), "dropout is 1.0"),
    ],
)
def test_refuses_what_does_not_fit(changes, shape, words):
    config = UNet(**{"features": (4, 8), "attention": (), **changes})
    with pytest.raises(UserError, match=words):
        config.net(shape, 0, 0, 1)
