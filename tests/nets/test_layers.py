"""The layers equal Flax's in value, gradient and gradient of gradient, in and out of loops."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from genaug.nets import convolution, layers
from genaug.nets.attention import attention

CASES = [
    (layers.Conv, nn.Conv, size, kernel, stride)
    for size in [(7, 6), (8, 8)]
    for kernel, stride in [(1, 1), (3, 1), (3, 2), (4, 2), (5, 3), (1, 2), (2, 3)]
] + [
    (layers.ConvTranspose, nn.ConvTranspose, size, kernel, stride)
    for size in [(4, 3)]
    for kernel, stride in [(4, 2), (3, 2), (5, 2), (3, 1), (2, 3), (5, 3)]
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_keeps_what_flax_s_would_each_row_by_its_own_key(dtype, key):
    x = jax.random.normal(key, (6, 40, 50), dtype)
    index, rngs = jnp.asarray([3, 0, 1, 2, 5, 3]), {"dropout": key}
    ours, flax_s = layers.Dropout(0.25), nn.Dropout(0.25, deterministic=False)
    assert ours.apply({}, x, None) is x
    y, theirs = ours.apply({}, x, index, rngs=rngs), flax_s.apply({}, x, rngs=rngs)
    both = (y != 0) & (theirs != 0)
    np.testing.assert_array_equal(y[both], theirs[both])
    kept = np.asarray(jnp.mean(y != 0, axis=(1, 2)))
    np.testing.assert_allclose(kept, 0.75, atol=5 * np.sqrt(0.25 * 0.75 / 2000))
    ones = jnp.ones_like(x)
    masks = np.asarray(ours.apply({}, ones, index, rngs=rngs) != 0)
    one, other = masks[:, None], masks[None]
    alike = 1 - 2 * 0.25 * 0.75
    same = np.mean(one == other, axis=(2, 3))
    apart = index[:, None] != index[None]
    np.testing.assert_allclose(same[apart], alike, atol=0.06)
    np.testing.assert_array_equal(same[~apart], 1.0)
    rows = ours.apply({}, ones[2:4], index[2:4], rngs=rngs)
    np.testing.assert_array_equal(rows, ours.apply({}, ones, index, rngs=rngs)[2:4])


@pytest.mark.parametrize("ours, flax_s, size, kernel, stride", CASES)
def test_equals_flax(ours, flax_s, size, kernel, stride, key):
    x = jax.random.normal(key, (3, *size, 2))
    mine = ours(5, (kernel, kernel), (stride, stride))
    theirs = flax_s(5, (kernel, kernel), (stride, stride))
    params = theirs.init(key, x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, mine.init(key, x))

    assert_equal_layers(mine, theirs, params, x)


@pytest.mark.parametrize(
    "ours, flax_s, channels, features",
    [(layers.Conv, nn.Conv, 16, 7), (layers.ConvTranspose, nn.ConvTranspose, 5, 16)],
)
def test_equals_flax_where_a_kernel_s_gradient_is_taken_tap_by_tap(
    ours, flax_s, channels, features, key
):
    x = jax.random.normal(key, (3, 6, 5, channels)) / channels**0.5
    mine, theirs = ours(features, (4, 4), (2, 2)), flax_s(features, (4, 4), (2, 2))
    params = theirs.init(key, x)
    loss = lambda params: jnp.sum(jnp.sin(mine.apply(params, x)))  # noqa: E731
    products = str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")
    assert products >= 16, "no tap by itself"
    assert_equal_layers(mine, theirs, params, x)


@pytest.mark.parametrize(
    "channels, features, wide",
    [(1, 16, (1, 32)), (3, 16, (4, 32)), (5, 40, (8, 40)), (3, 64, (3, 64)), (8, 4, (8, 4))],
)
def test_a_thin_convolution_is_widened_by_zeros(channels, features, wide, key):
    """Equal to XLA's own; what is compiled for a CPU has the channels that are fast there."""
    x = jax.random.normal(key, (2, 6, 5, channels))
    kernel = jax.random.normal(key, (3, 3, channels, features))
    run = jax.jit(lambda x, kernel: layers.conv(x, kernel, (2, 2)))
    numbers = ("NHWC", "HWIO", "NHWC")
    want = lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)
    np.testing.assert_allclose(run(x, kernel), want, atol=1e-5)
    kernels = re.findall(
        r"convolution.*?tensor<3x3x(\d+)x(\d+)xf32>", run.lower(x, kernel).as_text()
    )
    assert tuple(map(int, kernels[0])) == wide


def penalty(module, params, x):
    """A gradient penalty: its gradient is a gradient of a gradient.

    Not around 0: the gradient of a norm sums to 0, and would ask its Hessian only half.
    """
    value = lambda x: jnp.sum(jnp.sin(module.apply(params, x)))  # noqa: E731
    return value(x) + jnp.sum((jax.grad(value)(x) + 0.5) ** 2)


def assert_equal_layers(mine, theirs, params, x):
    """In value, gradient and gradient of gradient."""
    np.testing.assert_allclose(mine.apply(params, x), theirs.apply(params, x), atol=1e-5)
    got = jax.jit(jax.grad(lambda p, x: penalty(mine, p, x), (0, 1)))(params, x)
    want = jax.jit(jax.grad(lambda p, x: penalty(theirs, p, x), (0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, want)


def test_gradient_in_a_loop_is_a_plain_convolution(key, optimized):
    """What the CPU's fast path needs: every convolution of the compiled scan is NHWC times HWIO."""
    x = jax.random.normal(key, (4, 8, 8, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 6))

    def loss(kernel):
        return jnp.sum(layers.conv(x, kernel, (2, 2)) ** 2)

    def descend(kernel):
        return lax.scan(lambda k, _: (k - 0.01 * jax.grad(loss)(k), None), kernel, length=3)[0]

    text = jax.jit(descend).lower(kernel).compile().as_text()
    labels = {line.split("dim_labels=")[1].split(",")[0] for line in text.splitlines()
              if "dim_labels=" in line}  # fmt: skip
    assert labels <= {"b01f_01io->b01f"}, labels


@pytest.mark.parametrize("layer", [layers.Conv, layers.ConvTranspose])
def test_convolutions_are_exported_for_every_platform_and_any_batch(layer, key):
    """The forms that a CPU is given must not tie an exported sampler to one."""
    x = jax.random.normal(key, (3, 4, 6, 2))
    made = layer(5, (4, 4), (2, 2))
    params = made.init(key, x)
    shape = jax.export.symbolic_shape("n, 4, 6, 2")
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    run = jax.jit(lambda x: made.apply(params, x))
    exported = jax.export.export(run, platforms=("cpu", "cuda", "tpu"))(spec)
    np.testing.assert_allclose(exported.call(x), run(x), atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_what_other_platforms_compute_equals_what_a_cpu_computes(transposed, key, monkeypatch):
    """In value, gradient and gradient of gradient: there XLA's own are asked for."""
    function = layers.conv_transpose if transposed else layers.conv
    x = jax.random.normal(key, (3, 5, 6, 2))
    kernel = jax.random.normal(key, (4, 4, 2, 3)) / 6.0
    value = lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel, (2, 2))))  # noqa: E731

    def again(x, kernel):
        return value(x, kernel) + jnp.sum((jax.grad(value)(x, kernel) + 0.5) ** 2)

    here = jax.grad(again, (0, 1))(x, kernel)
    elsewhere = lambda *operands, cpu, default: default(*operands)  # noqa: E731
    monkeypatch.setattr(convolution.lax, "platform_dependent", elsewhere)
    there = jax.grad(again, (0, 1))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), here, there)


def drawn(params, key):
    """Parameters without a one or a zero among them."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 4)])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_dense_equals_flax(shape, use_bias, platform, key, monkeypatch):
    branch = lambda *operands, **branches: branches[platform](*operands)  # noqa: E731
    monkeypatch.setattr(layers.lax, "platform_dependent", branch)
    x = jax.random.normal(key, shape)
    mine, theirs = layers.Dense(5, use_bias=use_bias), nn.Dense(5, use_bias=use_bias)
    params = theirs.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, mine.init(key, x))
    assert_equal_layers(mine, theirs, drawn(params, key), x)


@pytest.mark.parametrize("platform, rows", [("cpu", "6x4"), ("tpu", "2x3x4")])
def test_dense_flattens_on_a_cpu_alone(platform, rows, key):
    layer, x = layers.Dense(5), jnp.ones((2, 3, 4))
    made = jax.jit(layer.apply).trace(layer.init(key, x), x)
    text = made.lower(lowering_platforms=(platform,)).as_text()
    assert f"(tensor<{rows}xf32>, tensor<4x5xf32>)" in text


@pytest.mark.parametrize("layer", [layers.Conv, layers.ConvTranspose, layers.Dense])
def test_kernels_start_as_asked(layer, key):
    params = layer(3, kernel_init=nn.initializers.constant(0.5)).init(key, jnp.ones((1, 4, 4, 2)))
    np.testing.assert_array_equal(np.unique(params["params"]["kernel"]), 0.5)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_flax(groups, key):
    x = 2.0 * jax.random.normal(key, (3, 4, 5, 6)) + 0.5
    mine, theirs = layers.GroupNorm(groups), nn.GroupNorm(groups)
    params = theirs.init(key, x)
    jax.tree.map(np.testing.assert_array_equal, params, mine.init(key, x))
    assert_equal_layers(mine, theirs, drawn(params, key), x)


def test_group_norm_keeps_its_digits_under_a_large_mean(key):
    """Of a mean a thousand deviations off, where E[x^2] - E[x]^2, as Flax has it, is noise."""
    x = jax.random.normal(key, (2, 6, 6, 4)) + 1e3
    layer = layers.GroupNorm(2)
    variables = layer.init(key, x)
    exact = np.asarray(x, np.float64).reshape(2, 36, 2, 2)
    mean, std = (fn(exact, axis=(1, 3), keepdims=True) for fn in (np.mean, np.std))
    want = ((exact - mean) / std).reshape(x.shape)
    tolerance = 4 * np.spacing(np.float32(1e3))  # the rounding of the mean itself
    np.testing.assert_allclose(layer.apply(variables, x), want, atol=tolerance)

    grad = jax.grad(lambda x: jnp.sum(jnp.sin(layer.apply(variables, x))))
    near = x - 1e3  # exact, for numbers this near each other
    np.testing.assert_allclose(grad(x), grad(near), atol=4 * tolerance)


def test_group_norm_counts_in_float32_under_bfloat16(key):
    x = (jax.random.normal(key, (2, 16, 16, 4)) + 3.0).astype(jnp.bfloat16)
    layer = layers.GroupNorm(2)
    variables = layer.init(key, x)
    got, want = layer.apply(variables, x), layer.apply(variables, x.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


@pytest.mark.parametrize("dim", [8, 7, 2])
@pytest.mark.parametrize("max_period", [10_000.0, 100.0])
def test_sinusoids_are_those_of_the_formula(dim, max_period):
    level = np.array([-3.5, 0.0, 1.0, 999.0])
    half = dim // 2
    want = np.zeros((4, dim))
    for i in range(half):
        want[:, i] = np.sin(level / max_period ** (i / half))
        want[:, half + i] = np.cos(level / max_period ** (i / half))
    got = layers.sinusoidal(jnp.asarray(level, jnp.float32), dim, max_period)
    assert got.shape == (4, dim)
    # An angle of 999 has a rounding error of 3e-5, and its frequency adds as much.
    np.testing.assert_allclose(got[:3], want[:3], atol=2e-6)
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_attention_equals_the_formula_and_jax(key):
    q, k, v = (jax.random.normal(x, (2, 5, 3, 4)) for x in jax.random.split(key, 3))
    k, v = k[:, :4], v[:, :4]
    logits = np.einsum("nthd,nshd->nhts", q, k) / 2.0
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = np.einsum("nhts,nshd->nthd", share, v)
    np.testing.assert_allclose(attention(q, k, v), want, atol=1e-6)

    def loss(fn):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(fn(*a))), (0, 1, 2)))(q, k, v)

    for got, want in zip(loss(attention), loss(jax.nn.dot_product_attention), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_attention_to_equal_keys_is_the_mean_of_the_values(key):
    v = jax.random.normal(key, (1, 6, 1, 1))
    got = attention(jnp.ones((1, 6, 1, 1)), jnp.ones((1, 6, 1, 1)), v)
    np.testing.assert_allclose(got, np.full((1, 6, 1, 1), np.mean(v)), atol=1e-6)


def test_attention_is_exported_for_every_platform_and_any_batch(key):
    """Its choice of a form by platform must not tie an exported sampler to one."""
    shape = jax.export.symbolic_shape("n, 4, 1, 2")
    spec = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(jax.jit(attention), platforms=("cpu", "cuda", "tpu"))(*[spec] * 3)
    q, k, v = (jax.random.normal(x, (3, 4, 1, 2)) for x in jax.random.split(key, 3))
    np.testing.assert_allclose(exported.call(q, k, v), attention(q, k, v), atol=1e-6)
