import re

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from genaug import layouts
from genaug.devices import Mesh, make_mesh
from genaug.evaluation import distances, nearest
from genaug.evaluation.distances import ROUNDING, Balls, inside_blocks
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
    _, near = distances._columns(x, None)
    found = np.asarray(distances._squared_distances(near, near), np.float64)
    scale = near.lengths[:, None] + near.lengths[None, :]
    assert (np.abs(found - expected) < ROUNDING / 5 * scale).all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_balls_hold_what_they_hold_in_float64(offset, monkeypatch):
    """Also rows at the very radius, which float32 puts on either side, and radii of 0, of all."""
    x = np.random.default_rng(7).normal(size=(60, 9)) + offset
    y = np.concatenate([x[:20], np.random.default_rng(8).normal(size=(30, 9)) + offset])
    between = cdist(x, y)
    of_x, of_y = between[:, 3].copy(), between[4].copy()
    of_x[:3], of_y[-2:] = 0, np.inf
    measured = distances.pair_distances
    monkeypatch.setattr(distances, "pair_distances",
                        lambda q, r, rows, columns: between[rows, columns])  # fmt: skip
    balls = [
        Balls(of_x, "query", closed=True),
        Balls(of_y, "reference", closed=False),
        Balls(of_y, "reference", closed=True),
    ]
    want = [between <= of_x[:, None], between < of_y, between <= of_y]
    blocks = [inside for _, inside in inside_blocks(x, y, balls, block=17)]
    for i, expected in enumerate(want):
        np.testing.assert_array_equal(np.concatenate([inside[i] for inside in blocks]), expected)
    rows, columns = (g.ravel() for g in np.mgrid[:60, :50])
    np.testing.assert_allclose(measured(x, y, rows, columns), between.ravel(), rtol=1e-12)


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
    with pytest.raises(UserError, match="scale them down"):
        nearest(x, np.array([[0.0, 1e25], [1.0, 2.0]]))


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
    radius, seen = np.full(len(x), 2.5), 0
    balls = [Balls(radius, "query", closed=True)]
    for start, (inside,) in inside_blocks(x, y, balls, 10, make_mesh(config)):
        assert start == seen
        np.testing.assert_array_equal(inside, cdist(x[start : start + len(inside)], y) <= 2.5)
        seen += len(inside)
    assert seen == len(x)


def test_devices_tell_each_other_nothing(optimized):
    mesh = make_mesh(Mesh(data=8))
    near = np.zeros((64, 9), np.float32)
    rows = distances._with_lengths(near, layouts.shared_out, mesh)
    _, columns = distances._columns(np.zeros((300, 9), np.float32), mesh, 4)
    program = distances._candidates.lower(
        rows, columns, wanted=5, keep=13, depth=4, mesh=mesh
    ).compile()
    for sharding in program.output_shardings:
        assert sharding.is_equivalent_to(layouts.split(mesh), 2)
    assert not re.search("all-|collective-|reduce-scatter", program.as_text())
