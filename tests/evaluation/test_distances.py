import re

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genaug import layouts
from genaug.devices import Mesh, make_mesh
from genaug.evaluation import distances, nearest
from genaug.evaluation.distances import distance_blocks
from genaug.types import UserError


@pytest.mark.parametrize("n,m,d,k", [(37, 50, 3, 1), (100, 700, 20, 5), (9, 4, 2, 4)])
def test_agrees_with_the_full_matrix(n, m, d, k):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(n, d)) + 5, generator.normal(size=(m, d)) + 5
    expected = cdist(x, y)
    found = nearest(x, y, k, block=16)
    np.testing.assert_array_equal(found.index, np.argsort(expected, axis=1)[:, :k])
    np.testing.assert_allclose(found.distance, np.sort(expected, axis=1)[:, :k], rtol=1e-12)
    assert found.distance.dtype == np.float64
    assert found.index.dtype == np.int32


def test_excludes_the_row_itself_but_not_its_copy():
    x = np.array([[0.0], [1.0], [1.0], [5.0]])
    found = nearest(x, x, 2, exclude_self=True)
    np.testing.assert_array_equal(found.distance, [[1, 1], [0, 1], [0, 1], [4, 4]])
    np.testing.assert_array_equal(found.index[:3], [[1, 2], [2, 0], [1, 0]])


def test_tiny_distances_between_long_vectors():
    generator = np.random.default_rng(1)
    reference = generator.normal(size=(500, 64))
    reference *= 100 / np.linalg.norm(reference, axis=1)[:, None]
    offset = generator.normal(size=(500, 64))
    offset *= 1e-3 / np.linalg.norm(offset, axis=1)[:, None]
    found = nearest(reference + offset, reference)
    np.testing.assert_allclose(found.distance[:, 0], 1e-3, rtol=1e-9)
    np.testing.assert_array_equal(found.index[:, 0], np.arange(500))
    # The nearer of two copies that float32 cannot tell apart.
    both = np.concatenate([reference + offset, reference + 0.5 * offset])
    np.testing.assert_array_equal(nearest(reference, both).index[:, 0], np.arange(500, 1000))


def test_copies_are_at_exactly_zero():
    x = (np.random.default_rng(2).normal(size=(300, 40)) * 50 + 1000).astype(np.float32)
    assert (nearest(x[::3], x).distance == 0).all()


def test_many_copies_of_one_row():
    x = np.repeat(np.arange(3.0)[:, None], 40, axis=0)
    found = nearest(x, x, 40, exclude_self=True)
    assert (found.distance[:, :39] == 0).all()
    assert (found.distance[:, 39] == 1).all()


def test_result_does_not_depend_on_the_block():
    x = np.random.default_rng(3).normal(size=(101, 8)).astype(np.float32)
    a, b = nearest(x, x, 3, block=7), nearest(x, x, 3)
    np.testing.assert_array_equal(a.distance, b.distance)
    np.testing.assert_array_equal(a.index, b.index)


@pytest.mark.parametrize("offset", [0, 100])
def test_the_error_bound_holds(offset):
    x = (np.random.default_rng(4).normal(size=(200, 300)) + offset).astype(np.float32)
    x[100:] = x[:100] * np.float32(1.00001)
    expected = np.square(cdist(x.astype(np.float64), x.astype(np.float64)))
    seen = 0
    for start, squared, error in distance_blocks(x, x, block=64):
        assert (np.abs(squared - expected[start : start + len(squared)]) < error / 5).all()
        seen += len(squared)
    assert seen == 200


def test_refusals():
    x = np.zeros((3, 2))
    with pytest.raises(UserError, match="at least 4"):
        nearest(x, x, 3, exclude_self=True)
    with pytest.raises(UserError, match="NaN"):
        nearest(x, np.full((3, 2), np.nan))
    with pytest.raises(UserError, match="k is 0"):
        nearest(x, x, 0)
    with pytest.raises(UserError, match="exclude_self"):
        nearest(x, x[:2], exclude_self=True)


@pytest.mark.parametrize("devices,block", [(1, 1024), (2, 7), (8, 16), (8, 1024)])
def test_neither_block_nor_mesh_changes_a_neighbour(devices, block):
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(101, 12)) + 50, generator.normal(size=(203, 12)) + 50
    y[::9] = y[1::9]  # copies: ties go by the index
    mesh = make_mesh(Mesh(data=devices))
    for query, options in [(x, {}), (y, {"exclude_self": True})]:
        want = nearest(query, y, 4, **options)
        found = nearest(query, y, 4, block=block, mesh=mesh, **options)
        np.testing.assert_array_equal(found.index, want.index)
        np.testing.assert_array_equal(found.distance, want.distance)


@pytest.mark.parametrize("config", [Mesh(data=2), Mesh(data=2, fsdp=4), Mesh(data=4, tensor=2)])
def test_blocks_of_distances_over_a_mesh(config):
    generator = np.random.default_rng(6)
    x, y = generator.normal(size=(37, 5)), generator.normal(size=(20, 5))
    expected, seen = np.square(cdist(x, y)), 0
    for start, squared, error in distance_blocks(x, y, 10, make_mesh(config)):
        assert start == seen
        assert (np.abs(squared - expected[start : start + len(squared)]) < error).all()
        seen += len(squared)
    assert seen == len(x)


def test_devices_tell_each_other_nothing(optimized):
    mesh = make_mesh(Mesh(data=8))
    rows = layouts.shared_out(np.zeros((64, 9), np.float32), mesh)
    columns = layouts.copied(np.zeros((300, 9), np.float32), mesh)
    own = layouts.shared_out(np.full(64, -1, np.int32), mesh)
    program = distances._candidates.lower(rows, columns, own, 13).compile()
    assert program.output_shardings.is_equivalent_to(layouts.split(mesh), 2)
    assert not re.search("all-|collective-|reduce-scatter", program.as_text())
