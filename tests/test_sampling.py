"""Blocks: the same rows however many are asked for, and on however many devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.devices import Mesh, make_mesh
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.sampling import Sampler, check_cond, make_sampler, make_scorer, map_blocks
from genaug.types import CondField, LabelSpec, TokenSpec, UserError

SPEC = {"image": jax.ShapeDtypeStruct((6, 5, 1), np.uint8)}
CONFIG = VAE(latent_dim=3, net=MLP(hidden=(8,)), score_samples=2)
MODEL = CONFIG.make(SPEC)
READS = {"temperature": CondField(jax.ShapeDtypeStruct((), np.float32), default=1.0)}


@pytest.fixture(scope="module")
def weights():
    return MODEL.weights(jax.jit(MODEL.init)(jax.random.key(3)))


def cond(index):
    index = np.asarray(index, np.int32)
    return {"index": index, "temperature": np.linspace(0.5, 2, len(index), dtype=np.float32)}


def recorder():
    """A program that returns what it was given, and the sizes of the blocks it saw."""
    sizes = []

    def program(weights, key, rows):
        sizes.append({len(value) for value in rows.values()})
        return {"twice": 2 * jnp.asarray(rows["index"]), "same": rows["temperature"]}

    return Sampler(program, None, 4, READS), sizes


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
def test_blocks_have_one_size_and_the_rows_come_back_in_order(count, key):
    sampler, sizes = recorder()
    rows = cond(range(7, 7 + count))
    out = sampler(key, rows)
    np.testing.assert_array_equal(out["twice"], 2 * rows["index"])
    np.testing.assert_array_equal(out["same"], rows["temperature"])
    assert sizes == [{4}] * -(-count // 4)


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "lacks 'label'"),
        ({"label": [1, 2], "guidance": [1.0, 1.0]}, "takes no 'guidance': it reads label, prompt"),
        ({"label": [1, 3]}, "label is 3; it must be from 0 to 2"),
        ({"label": [-1, 0]}, "label is -1; it must be from 0"),
        ({"label": [[1], [2]]}, r"shape \(1,\), not \(\)"),
        ({"label": [0.0, np.nan]}, "label is nan; it must be finite"),
        ({"label": [0, 1], "steps": [1, 0]}, "steps is 0; it must be at least 1"),
        ({"label": [0, 1], "strength": [0.5, 1.5]}, "strength is 1.5; it must be from 0 to 1"),
        ({"label": [0, 1], "prompt": [[1, 2], [10, 11]]}, "prompt is 11; it must be from 0 to 10"),
    ],
)
def test_conditions_that_a_family_does_not_read_or_out_of_bounds_are_refused(given, message):
    reads = {
        "label": CondField(LabelSpec(3)),
        "prompt": CondField(TokenSpec(2, 10), default=0.0),
        "near": CondField(SPEC["image"], optional=True),
        "steps": CondField(jax.ShapeDtypeStruct((), np.int32), default=5.0, low=1.0),
        "strength": CondField(
            jax.ShapeDtypeStruct((), np.float32), optional=True, low=0.0, high=1.0
        ),
    }
    check_cond({"index": np.arange(2), "label": np.array([0, 2])}, reads)
    values = {name: np.asarray(value) for name, value in given.items()}
    with pytest.raises(UserError, match=message):
        check_cond({"index": np.arange(2), **values}, reads)


def test_no_rows_are_refused(key):
    sampler, _ = recorder()
    with pytest.raises(UserError, match="0 rows"):
        sampler(key, cond([]))
    with pytest.raises(UserError, match="0 rows"):
        map_blocks(lambda block: block, {"image": np.zeros((0, 2))}, 4)


def test_a_condition_of_another_length_is_refused(key):
    sampler, sizes = recorder()
    with pytest.raises(UserError, match=r"'temperature'\] has 2 rows .* 3"):
        sampler(key, {**cond(range(3)), "temperature": np.ones(2, np.float32)})
    assert not sizes


@pytest.mark.parametrize("devices", [1, 8])
def test_a_sampler_gives_the_models_rows_on_any_mesh(devices, weights, key):
    """To one level: another batch size may round a matrix product the other way."""
    rows = cond(range(21))
    whole = np.asarray(jax.jit(MODEL.sample)(weights, key, rows)["image"], np.int32)
    assert np.ptp(whole, axis=0).max() > 3
    sampler = make_sampler(MODEL, weights, make_mesh(Mesh(data=devices)), block_size=9)
    assert sampler.block_size == (9 if devices == 1 else 16)
    drawn = sampler(key, rows)["image"]
    assert isinstance(drawn, np.ndarray)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (21, 6, 5, 1)
    assert np.abs(drawn - whole).max() <= 1
    some = np.array([17, 2])
    again = sampler(key, {name: value[some] for name, value in rows.items()})["image"]
    np.testing.assert_array_equal(again, drawn[some])


def test_one_program_serves_every_number_of_rows(weights, key):
    sampler = make_sampler(CONFIG.make(SPEC), weights, make_mesh(Mesh(data=1)), block_size=8)
    for count in (1, 5, 8, 19):
        sampler(key, cond(range(count)))
    assert sampler.program._cache_size() == 1


def test_a_scorer_gives_one_score_an_example(weights, key):
    images = np.random.default_rng(0).integers(0, 256, (11, 6, 5, 1)).astype(np.uint8)
    score = make_scorer(MODEL, make_mesh(Mesh(data=2)), block_size=3)
    found = score(weights, key, {"image": images})
    assert set(found) == {"elbo", "iwae"}
    assert all(value.shape == (11,) for value in found.values())
    want = jax.jit(MODEL.score)(weights, {"image": images[:4]}, key)
    np.testing.assert_allclose(found["elbo"][:4], want["elbo"], rtol=1e-5)
