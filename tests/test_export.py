"""The bundle: what it draws, what it refuses, and that a program without genaug can run it."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from safetensors.numpy import load_file

from genaug.bundle import load_sampler, spec_from_json, spec_to_json, sums
from genaug.export import conditions, digest, named, write_bundle
from genaug.models.cvae import CVAE
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.types import DataError, LabelSpec, TokenSpec, UserError

SPEC = {"image": jax.ShapeDtypeStruct((6, 5, 1), np.uint8), "label": LabelSpec(3)}
MODEL = CVAE(latent_dim=3, net=MLP(hidden=(8,))).make(SPEC)
FILES = ["bundle.json", "sampler.stablehlo", "weights.safetensors"]


@pytest.fixture(scope="module")
def weights():
    return MODEL.weights(jax.jit(MODEL.init)(jax.random.key(3)))


@pytest.fixture(scope="module")
def written(weights, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundle") / "export"
    write_bundle(directory, MODEL, weights, SPEC, {"licence": "CC0", "config": {"name": "x"}})
    return directory


@pytest.fixture
def bundle_copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copy"))


def cond(count):
    index = jnp.arange(3, 3 + count)
    return {"index": index, "label": index % 3, "temperature": jnp.linspace(0.5, 2, count)}


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_bundle_draws_what_the_model_draws(count, written, weights, key):
    got = load_sampler(written)(key, cond(count))
    want = jax.jit(MODEL.sample)(weights, key, cond(count))
    assert set(got) == {"image", "label"}
    for name in got:
        np.testing.assert_array_equal(got[name], want[name])
        assert got[name].dtype == SPEC[name].dtype
    assert np.ptp(got["image"]) > 10


def test_a_bundle_works_inside_someone_elses_program(written, key):
    bundle = load_sampler(written)

    @jax.jit
    def theirs(key, index):
        rows = bundle(key, {"index": index, "label": index % 3})
        return 255 - rows["image"]

    index = jnp.arange(4)
    plain = bundle(key, {"index": index, "label": index % 3})["image"]
    np.testing.assert_array_equal(theirs(key, index), 255 - plain)


def test_the_temperature_may_be_left_out_and_nothing_else(written, key):
    bundle = load_sampler(written)
    index = jnp.arange(4)
    labelled = {"index": index, "label": index % 3}
    np.testing.assert_array_equal(
        bundle(key, labelled)["image"],
        bundle(key, {**labelled, "temperature": jnp.ones(4)})["image"],
    )
    for wrong in ({"index": index}, {"index": index, "lable": index}, {**labelled, "x": index}):
        with pytest.raises(UserError, match=r"takes no '(lable|x)'|lacks 'label'"):
            bundle(key, wrong)


def test_a_family_without_labels_exports_from_a_labelled_dataset(tmp_path, key):
    model = VAE(latent_dim=2, net=MLP(hidden=(4,))).make(SPEC)
    weights = model.weights(model.init(key))
    write_bundle(tmp_path / "export", model, weights, SPEC, {})
    unlabelled = {name: value for name, value in cond(3).items() if name != "label"}
    rows = load_sampler(tmp_path / "export")(key, unlabelled)
    want = jax.jit(model.sample)(weights, key, unlabelled)
    assert set(rows) == {"image"}
    np.testing.assert_array_equal(rows["image"], want["image"])


def test_a_bundle_describes_itself(written, weights):
    description = json.loads((written / "bundle.json").read_text())
    assert description["format"] == 1
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert description["conditions"] == {
        "index": {"shape": [], "dtype": "int32"},
        "label": {"shape": [], "dtype": "int32", "num_classes": 3},
        "temperature": {"shape": [], "dtype": "float32", "default": 1.0, "low": 0.0},
    }
    assert (description["licence"], description["config"]) == ("CC0", {"name": "x"})
    assert description["weights_digest"] == digest(weights)
    assert spec_from_json(description["spec"]) == SPEC
    assert {path.name for path in written.iterdir()} == {*FILES, "SHA256SUMS"}
    assert [path.name for path in written.parent.iterdir()] == ["export"]


def test_the_digests_are_those_of_sha256sum(written):
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not on this machine")
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=written, capture_output=True).returncode == 0
    lines = (written / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == FILES


def test_weights_are_stored_by_their_path(written, weights):
    stored = load_file(written / "weights.safetensors")
    assert set(stored) == set(named(weights))
    np.testing.assert_array_equal(
        stored["params.decoder.Dense_0.kernel"], weights["params"]["decoder"]["Dense_0"]["kernel"]
    )


def test_a_bundle_is_replaced_whole(bundle_copy, weights, key):
    (bundle_copy / "left over").touch()
    write_bundle(bundle_copy, MODEL, jax.tree.map(jnp.zeros_like, weights), SPEC, {})
    assert not (bundle_copy / "left over").exists()
    assert np.ptp(load_sampler(bundle_copy)(key, cond(4))["image"]) == 0


@pytest.fixture
def no_deserialisation(monkeypatch):
    """Bytes that were not checked must never reach a parser."""

    def fail(*args, **kwargs):
        pytest.fail("a file was deserialised before its digest was checked")

    monkeypatch.setattr(jax.export, "deserialize", fail)
    monkeypatch.setattr("genaug.bundle.load_safetensors", fail)
    monkeypatch.setattr("genaug.bundle.describe", fail)


@pytest.mark.usefixtures("no_deserialisation")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_bit_is_found_before_anything_is_deserialised(name, place, bundle_copy):
    file = bundle_copy / name
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{name} has been altered"):
        load_sampler(bundle_copy)


@pytest.mark.usefixtures("no_deserialisation")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name, bundle_copy):
    (bundle_copy / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        load_sampler(bundle_copy)


@pytest.mark.usefixtures("no_deserialisation")
def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no sampler bundle"):
            load_sampler(directory)


@pytest.mark.usefixtures("no_deserialisation")
def test_a_thousand_flipped_bits_and_cuts_are_refused_before_anything_is_parsed(written, tmp_path):
    draw = np.random.default_rng(0)
    names = [*FILES, "SHA256SUMS"]
    contents = {name: (written / name).read_bytes() for name in names}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for trial in range(1000):
        name = names[draw.integers(len(names))]
        changed = bytearray(contents[name])
        place = int(draw.integers(len(changed)))
        if trial % 4 == 0:
            del changed[place:]
        else:
            changed[place] ^= 1 << int(draw.integers(8))
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(DataError, match="has been altered"):
            load_sampler(tmp_path)
        (tmp_path / name).write_bytes(contents[name])


def rewritten(directory, **changes):
    """A bundle that says something else, with digests that agree."""
    path = directory / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    files = {name: (directory / name).read_bytes() for name in FILES}
    (directory / "SHA256SUMS").write_bytes(sums(files))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": 2}, "format 2 and this genaug reads 1"),
        ({"calling_convention": 1}, "calling convention 1, and jax .* again with `genaug export"),
        ({"calling_convention": 99}, "calling convention 99, and jax .* again with"),
        ({"platforms": ["tpu"]}, "for tpu, and JAX runs on cpu here: write it again"),
    ],
)
def test_a_bundle_that_cannot_run_here_says_how_to_make_one_that_can(changes, message, bundle_copy):
    rewritten(bundle_copy, **changes)
    with pytest.raises(DataError, match=message):
        load_sampler(bundle_copy)


def test_a_program_that_xla_cannot_read_is_an_error_in_words(bundle_copy):
    (bundle_copy / "sampler.stablehlo").write_bytes(b"of another time")
    rewritten(bundle_copy)
    with pytest.raises(DataError, match=r"cannot read it .* again with `genaug export"):
        load_sampler(bundle_copy)


def test_a_seed_is_its_key_and_other_keys_are_refused(written, key):
    sampler = load_sampler(written)
    drawn = sampler(key, cond(3))["image"]
    for same in (0, np.int64(0), jax.random.PRNGKey(0)):
        np.testing.assert_array_equal(sampler(same, cond(3))["image"], drawn)
    for wrong in (jax.random.key(0, impl="rbg"), jax.random.split(key)):
        with pytest.raises(UserError, match="takes a seed or one key"):
            sampler(wrong, cond(3))


def test_rows_and_keys_may_be_vmapped(written, key):
    sampler = load_sampler(written)
    many = jax.tree.map(lambda x: x.reshape(2, 3), cond(6))
    by_rows = jax.vmap(lambda rows: sampler(key, rows)["image"])(many)
    np.testing.assert_array_equal(by_rows.reshape(6, 6, 5, 1), sampler(key, cond(6))["image"])
    keys = jax.random.split(key, 2)
    by_key = jax.jit(jax.vmap(lambda key: sampler(key, cond(4))["image"]))(keys)
    by_both = jax.vmap(lambda key, rows: sampler(key, rows)["image"])(keys, many)
    for i in range(2):
        np.testing.assert_array_equal(by_key[i], sampler(keys[i], cond(4))["image"])
        row = jax.tree.map(lambda x, i=i: x[i], many)
        np.testing.assert_array_equal(by_both[i], sampler(keys[i], row)["image"])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("count", [3, 16])
def test_rows_are_drawn_on_anyone_s_mesh(kind, count, written, key):
    mesh = jax.make_mesh((4, 2), ("their", "axes"), axis_types=(kind,) * 2)
    there, here = load_sampler(written, mesh), load_sampler(written)
    want = here(key, cond(count))
    for draw in (there, jax.jit(there)):
        got = draw(key, cond(count))
        for name, value in want.items():
            np.testing.assert_array_equal(got[name], value)
    if count == 16:
        assert len(jax.jit(there)(key, cond(16))["image"].sharding.device_set) == 8
        text = jax.jit(there).lower(key, cond(16)).compile().as_text()
        assert "all-" not in text, "no device needs another's rows"


def test_a_sampler_is_a_pytree_whose_weights_may_be_arguments(written, key):
    sampler = load_sampler(written)
    draw = jax.jit(lambda sampler, key: sampler(key, cond(2))["image"])
    np.testing.assert_array_equal(draw(sampler, key), sampler(key, cond(2))["image"])
    empty = jax.tree.map(jnp.zeros_like, sampler)
    assert np.ptp(draw(empty, key)) == 0
    assert draw._cache_size() == 1


def test_blocks_draw_any_number_of_rows(written, key):
    sampler = load_sampler(written)
    drawn = sampler.blocks(4)(key, {k: np.asarray(v) for k, v in cond(11).items()})
    np.testing.assert_array_equal(drawn["image"], sampler(key, cond(11))["image"])


def test_a_spec_survives_json():
    spec = {**SPEC, "sound": jax.ShapeDtypeStruct((7,), np.float32)}
    spec["tokens"] = TokenSpec(9, 256, 4)
    again = spec_from_json(json.loads(json.dumps(spec_to_json(spec))))
    assert again == spec
    assert isinstance(again["label"], LabelSpec)
    assert again["label"].num_classes == 3
    assert (again["tokens"].vocab_size, again["tokens"].end) == (261, 256)
    assert not isinstance(again["image"], LabelSpec)


def test_conditions_are_what_the_family_reads_but_for_the_optional():
    assert set(conditions(MODEL)) == {"index", "label", "temperature"}
    plain = VAE(latent_dim=2, net=MLP(hidden=(4,))).make(SPEC)
    assert set(conditions(plain)) == {"index", "temperature"}


def test_a_digest_depends_on_names_shapes_types_and_bytes():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    others = [
        {"a": base["b"], "b": base["a"]},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "a": base["a"].astype(np.int32)},
        {**base, "b": np.array([1, 2], np.float32)},
    ]
    assert digest(dict(reversed(base.items()))) == digest(base)
    assert len({digest(other) for other in (base, *others)}) == 5


READER = Path(__file__).parents[1] / "experiments" / "import" / "bundle_reader.py"
ALONE = f"""
import runpy, sys
runpy.run_path({str(READER)!r}, run_name="__main__")
assert not [name for name in sys.modules if name.split(".")[0] in ("genaug", "flax", "optax")]
"""


def test_a_program_without_genaug_can_run_a_bundle(written, weights, tmp_path, key):
    target = tmp_path / "rows.npz"
    subprocess.run(
        [sys.executable, "-c", ALONE, str(written), str(target), "5"],
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
    )
    index = jnp.arange(5)
    want = jax.jit(MODEL.sample)(weights, key, {"index": index, "label": index % 3})
    with np.load(target) as rows:
        assert set(rows) == {"image", "label"}
        np.testing.assert_array_equal(rows["image"], want["image"])
    assert len(READER.read_text().splitlines()) <= 60


def test_the_reader_refuses_what_was_altered(bundle_copy):
    load = runpy.run_path(str(READER))["load_sampler"]
    (bundle_copy / "weights.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"weights\.safetensors has been altered"):
        load(bundle_copy)
