"""The bundle: what it draws, what it refuses, and that a program without genaug can run it."""

import hashlib
import json
import os
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from genaug.export import (
    conditions,
    digest,
    load_sampler,
    named,
    spec_from_json,
    spec_to_json,
    write_bundle,
)
from genaug.models.cvae import CVAE
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP
from genaug.types import DataError, LabelSpec, TokenSpec, UserError

SPEC = {"image": jax.ShapeDtypeStruct((6, 5, 1), np.uint8), "label": LabelSpec(3)}
MODEL = CVAE(latent_dim=3, net=MLP(hidden=(8,))).make(SPEC)
FILES = ["sampler.stablehlo", "weights.safetensors"]


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
    for name in (*FILES, "bundle.json"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    return tmp_path


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
    assert {path.name for path in written.iterdir()} == {*FILES, "bundle.json"}
    assert [path.name for path in written.parent.iterdir()] == ["export"]
    for name in FILES:
        content = (written / name).read_bytes()
        assert description["files"][name] == hashlib.sha256(content).hexdigest()


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
    monkeypatch.setattr("genaug.export.load_safetensors", fail)


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
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": {}}', '{"files": 3}'])
def test_a_damaged_description_is_refused(content, bundle_copy):
    (bundle_copy / "bundle.json").write_text(content)
    with pytest.raises(DataError, match=r"bundle\.json"):
        load_sampler(bundle_copy)


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


BY_HAND = """
import hashlib, json, pathlib, sys
import jax, jax.export, numpy as np
from safetensors.numpy import load_file

directory = pathlib.Path(sys.argv[1])
about = json.loads((directory / "bundle.json").read_text())
for name, sha in about["files"].items():
    assert hashlib.sha256((directory / name).read_bytes()).hexdigest() == sha
program = jax.export.deserialize(bytearray((directory / "sampler.stablehlo").read_bytes()))
weights = load_file(directory / "weights.safetensors")
values = {"index": range(3, 8), "label": [i % 3 for i in range(3, 8)], "temperature": [1.0] * 5}
cond = {
    name: np.asarray(list(values[name]), field["dtype"])
    for name, field in about["conditions"].items()
}
rows = program.call(weights, jax.random.key_data(jax.random.key(0)), cond)
assert not [name for name in sys.modules if name.split(".")[0] in ("genaug", "flax", "optax")]
np.savez(sys.argv[2], **rows)
"""


def test_a_program_without_genaug_can_run_a_bundle(written, weights, tmp_path, key):
    target = tmp_path / "rows.npz"
    subprocess.run(
        [sys.executable, "-c", BY_HAND, str(written), str(target)],
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
    )
    index = jnp.arange(3, 8)
    want = jax.jit(MODEL.sample)(weights, key, {"index": index, "label": index % 3})
    with np.load(target) as rows:
        assert set(rows) == {"image", "label"}
        np.testing.assert_array_equal(rows["image"], want["image"])
