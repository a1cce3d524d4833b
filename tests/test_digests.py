"""Digests of arrays: the same wherever they lie, and another after any change."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import reference_digest

from genaug import digests, layouts
from genaug.devices import Mesh, make_mesh

SHAPE = (8, 16)


def made(dtype=jnp.float32):
    bits = np.random.default_rng(0).integers(0, 2**32, SHAPE, dtype=np.uint32)
    if dtype == jnp.bool_:
        return bits % 2 == 0
    return (
        (bits >> (32 - 8 * np.dtype(dtype).itemsize))
        .astype(f"uint{8 * np.dtype(dtype).itemsize}")
        .view(dtype)
    )


def digest(array):
    (found,) = digests.arrays([array]).values()
    return found


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 8}, {"fsdp": 2}, {"data": 2, "fsdp": 4}])
def test_an_array_has_one_digest_in_every_layout(mesh):
    """NaNs and infinities among the bits included; the reference sums them one by one."""
    array = made()
    mesh = make_mesh(Mesh(min_split=1, **mesh))
    placed = [layouts.place({"params": {"w": array}}, mesh)["params"]["w"]]
    placed += [layouts.spread(array, layouts.split(mesh, axis)) for axis in (0, 1)]
    for one in placed:
        assert digest(one) == f"{reference_digest(array):08x}"


@pytest.mark.parametrize("dtype", [jnp.bool_, jnp.int8, jnp.uint8, jnp.bfloat16, jnp.int32])
def test_every_dtype_has_one(dtype):
    array = made(dtype)
    assert digest(jnp.asarray(array)) == f"{reference_digest(array):08x}"


def test_no_flipped_bit_is_missed():
    array = made()
    whole = digest(array)
    rng = np.random.default_rng(1)
    for _ in range(300):
        changed = array.view(np.uint32).copy()
        changed.flat[rng.integers(array.size)] ^= np.uint32(1 << rng.integers(32))
        assert digest(changed.view(np.float32)) != whole


def test_moved_elements_are_not_missed():
    array = np.arange(128, dtype=np.float32).reshape(SHAPE)
    found = [array, array[::-1], array[:, ::-1], np.roll(array, 1), -array, 0 * array, -0.0 * array]
    assert len({digest(np.ascontiguousarray(one)) for one in found}) == len(found)


def test_not_finite_names_the_arrays():
    tree = {"a": jnp.ones(3), "b": (jnp.array([1.0, jnp.nan]), jnp.array([jnp.inf])), "n": 1}
    tree["n"] = jnp.array(1)
    assert digests.not_finite(tree) == ["b.0", "b.1"]
