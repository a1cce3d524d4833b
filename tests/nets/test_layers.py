"""The layers equal Flax's in value, gradient and gradient of gradient, in and out of loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from genaug.nets import layers

CASES = [
    (layers.Conv, nn.Conv, size, kernel, stride)
    for size in [(7, 6), (8, 8)]
    for kernel, stride in [(1, 1), (3, 1), (3, 2), (4, 2), (5, 3), (1, 2), (2, 3)]
] + [
    (layers.ConvTranspose, nn.ConvTranspose, size, kernel, stride)
    for size in [(4, 3)]
    for kernel, stride in [(4, 2), (3, 2), (5, 2), (3, 1), (2, 3), (5, 3)]
]


@pytest.mark.parametrize("ours, flax_s, size, kernel, stride", CASES)
def test_equals_flax(ours, flax_s, size, kernel, stride, key):
    x = jax.random.normal(key, (3, *size, 2))
    mine = ours(5, (kernel, kernel), (stride, stride))
    theirs = flax_s(5, (kernel, kernel), (stride, stride))
    params = theirs.init(key, x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, mine.init(key, x))

    def penalty(module, params, x):
        """A gradient penalty: its gradient is a gradient of a gradient."""
        value = lambda x: jnp.sum(jnp.sin(module.apply(params, x)))  # noqa: E731
        return value(x) + jnp.sum(jax.grad(value)(x) ** 2)

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
