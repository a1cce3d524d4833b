"""The kernel of long rows against plain attention, interpreted on CPU devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug import flops, parallel
from genaug.devices import Mesh, make_mesh
from genaug.nets import flash, transformer
from genaug.nets.attention import attention

ROWS, COUNT, DIM = 4, flash.LEAST, 64


def some(heads, groups, count=COUNT, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = [(ROWS, count, number, DIM) for number in (heads, groups, groups)]
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def documents(count=COUNT):
    """Rows of several documents: one half context only, one that fills its row, and padding."""
    ends = np.array([[100, 300, 500], [count, count, count], [1, 2, 3], [128, 256, 384]])
    number = 1 + (np.arange(count) >= ends[:, :, None]).sum(1)
    number[3, 384:] = 0
    return jnp.asarray(
        np.where((number == 2) & (np.arange(count) % 2 == 0), -number, number), jnp.int32
    )


def values_and_slopes(attend, operands):
    """What attention gives, and the gradients of a function of it, whole arrays as one program."""
    value = lambda *qkv: jnp.sum(jnp.sin(attend(*qkv)))  # noqa: E731
    both = lambda *qkv: (attend(*qkv), *jax.grad(value, argnums=(0, 1, 2))(*qkv))  # noqa: E731
    return jax.jit(both)(*operands)


def interpreted(mesh):
    return flash.kernels(dataclasses.replace(parallel.kernels(make_mesh(mesh)), interpret=True))


def assert_alike(got, want):
    for one, other in zip(got, want, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "mesh, heads, groups, count",
    [
        (Mesh(data=1), 2, 2, COUNT),
        (Mesh(data=2, fsdp=2, tensor=2), 4, 2, COUNT),
        (Mesh(data=4), 2, 1, COUNT + 640),  # three blocks, so two kernels for gradients
    ],
)
def test_documents_are_attended_to_as_under_their_mask(mesh, heads, groups, count):
    operands, segments = some(heads, groups, count), documents(count)
    mask = transformer.document_mask(segments)
    want = values_and_slopes(lambda *qkv: transformer.attend(*qkv, mask), operands)
    with interpreted(mesh):
        assert flash.applies(operands[0].shape, groups)
        got = values_and_slopes(lambda *qkv: transformer.attend(*qkv, segments), operands)
    assert_alike(got, want)


def test_without_documents_every_position_is_attended_to():
    operands = some(2, 2)
    want = values_and_slopes(attention, operands)
    with interpreted(Mesh(data=2, tensor=2)):
        assert "pallas_call" in str(jax.make_jaxpr(attention)(*operands))
        got = values_and_slopes(attention, operands)
    assert_alike(got, want)


@pytest.mark.parametrize(
    "shape, groups, why",
    [
        ((4, flash.LEAST // 2, 4), 4, "short rows"),
        ((4, flash.LEAST + 64, 4), 4, "no whole blocks"),
        ((3, flash.LEAST, 4), 4, "rows that the devices cannot share"),
        ((4, flash.LEAST, 4), 1, "fewer heads of keys than devices that share heads"),
    ],
)
def test_where_the_kernel_does_not_apply(shape, groups, why):
    with interpreted(Mesh(data=2, tensor=2)):
        assert flash.applies((4, flash.LEAST, 4), 4)
        assert not flash.applies(shape, groups), why
    assert not flash.applies((4, flash.LEAST, 4), 4)


def test_a_kernel_costs_what_its_products_cost():
    """Scores and values forward, whatever is masked; over all devices."""
    q, k, v = some(2, 2)
    with interpreted(Mesh(data=4)):
        found = flops.count(attention, q, k, v)
    assert found.total == 2 * 2 * ROWS * 2 * COUNT**2 * DIM
