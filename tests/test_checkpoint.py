"""Checkpoints: what comes back is what was saved, or an older one, and never a wrong weight."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug import checkpoint, digests, files, layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.models.cvae import CVAE
from genaug.nets.autoencoder import MLP
from genaug.types import LabelSpec, UserError

SPEC = {"image": jax.ShapeDtypeStruct((8, 8, 1), np.uint8), "label": LabelSpec(10)}


def make_model(hidden=16):
    return CVAE(latent_dim=2, net=MLP(hidden=(hidden,))).make(SPEC)


def mesh_of(num_devices):
    return make_mesh(Mesh(data=num_devices))


def abstract(model, num_devices=2):
    return layouts.abstract(model.init, mesh_of(num_devices))


def made(model, seed, num_devices=2):
    return parallel.compile_init(model.init, mesh_of(num_devices))(jax.random.key(seed))


def assert_equal(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


RECORDED = Path(__file__).with_name("recorded") / "checkpoint_format_1"


def recorded():
    """What the recorded checkpoint holds: of every kind of array a small one."""
    return {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
        "b": {"c": np.arange(4, dtype=np.int32), "d": np.array(True)},
    }


def recorded_template():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layouts.whole(mesh_of(2))),
        recorded(),
    )


def reference_digest(array):
    """The sum of `digests`, an element at a time, with Python's integers."""

    def mixed(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    words = array.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.itemsize])
    return sum(mixed(int(w) ^ mixed(i + 1)) for i, w in enumerate(words)) % 2**32


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def states(model):
    return {step: made(model, seed=step) for step in (10, 20, 30)}


@pytest.fixture(scope="module")
def saved(states, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    for step in (10, 20):
        checkpoint.save(directory, step, states[step])
    return directory


@pytest.fixture
def directory(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_the_newest_state_comes_back_bit_for_bit_on_any_number_of_devices(
    model, states, saved, num_devices
):
    state, step = checkpoint.restore(saved, abstract(model, num_devices))
    assert step == 20
    assert_equal(state, states[20])
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == num_devices


def test_there_is_nothing_to_restore_in_an_empty_or_absent_folder(model, tmp_path):
    assert checkpoint.restore(tmp_path, abstract(model)) is None
    assert checkpoint.restore(tmp_path / "absent", abstract(model)) is None


def _files(saved):
    return sorted(str(p.relative_to(saved)) for p in (saved / "20").rglob("*") if p.is_file())


def _flip(path):
    content = bytearray(path.read_bytes()) or bytearray(1)  # an empty file gets a byte
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "bit flip": _flip,
    "truncation": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deletion": lambda path: path.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_to_any_file_falls_back_to_the_older_step(
    model, states, saved, tmp_path, kind, caplog
):
    names = [*_files(saved), "20.json"]
    assert len(names) > 5
    for i, name in enumerate(names):
        directory = shutil.copytree(saved, tmp_path / str(i))
        before = (directory / name).read_bytes()
        DAMAGES[kind](directory / name)
        if kind in ("truncation", "emptied") and not before:
            continue
        state, step = checkpoint.restore(directory, abstract(model))
        if name == "20.json" and step == 20:  # a flip in a place that says nothing
            assert_equal(state, states[20])
            continue
        assert step == 10, name
        assert_equal(state, states[10])
        if not (name == "20.json" and kind == "deletion"):
            assert "checkpoint 20 is damaged" in caplog.text, name
        caplog.clear()


def _extra_file(directory):
    (directory / "20" / "more").write_text("")


def _half_copied(directory):
    shutil.rmtree(directory / "20" / "state" / "d")


def _mark_without_directory(directory):
    shutil.rmtree(directory / "20")


def _directory_without_mark(directory):  # what a process killed in the middle of a save leaves
    (directory / "20.json").unlink()


def _half_copied_without_mark(directory):
    _half_copied(directory)
    _directory_without_mark(directory)


def _empty_directory(directory):
    shutil.rmtree(directory / "20")
    (directory / "20").mkdir()


def _swapped(directory):
    shutil.rmtree(directory / "20")
    shutil.copytree(directory / "10", directory / "20")


def _mark_is_a_list(directory):
    (directory / "20.json").write_text("[]")


def _mark_names_nothing(directory):
    (directory / "20.json").write_text('{"step": 20}')


@pytest.mark.parametrize(
    "damage",
    [
        _extra_file,
        _half_copied,
        _mark_without_directory,
        _directory_without_mark,
        _half_copied_without_mark,
        _empty_directory,
        _swapped,
        _mark_is_a_list,
        _mark_names_nothing,
    ],
    ids=lambda f: f.__name__.strip("_"),
)
def test_a_step_that_is_not_whole_falls_back_and_can_be_saved_again(
    model, states, directory, damage
):
    damage(directory)
    state, step = checkpoint.restore(directory, abstract(model))
    assert step == 10
    assert_equal(state, states[10])
    checkpoint.save(directory, 20, states[20])
    state, step = checkpoint.restore(directory, abstract(model))
    assert step == 20
    assert_equal(state, states[20])


def test_a_save_killed_before_its_mark_leaves_the_older_step(model, states, directory, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(directory, 30, states[30])
    assert (directory / "30").is_dir()
    assert checkpoint.restore(directory, abstract(model))[1] == 20
    checkpoint.save(directory, 30, states[30])
    assert_equal(checkpoint.restore(directory, abstract(model))[0], states[30])


def test_when_all_are_damaged_there_is_nothing_to_restore(model, directory):
    for step in (10, 20):
        _flip(directory / str(step) / "state" / "_METADATA")
    assert checkpoint.restore(directory, abstract(model)) is None


def test_the_newest_two_are_kept(model, states, directory):
    checkpoint.save(directory, 30, states[30])
    assert checkpoint.steps(directory) == [20, 30]
    assert sorted(p.name for p in directory.iterdir()) == ["20", "20.json", "30", "30.json"]


def test_a_save_outlives_later_steps_that_were_damaged(model, states, directory):
    """Training fell back behind both: what it saves next must not be what is cleared away."""
    _extra_file(directory)
    (directory / "10" / "more").write_text("")
    checkpoint.save(directory, 5, states[30])
    assert checkpoint.steps(directory) == [5]
    assert_equal(checkpoint.restore(directory, abstract(model))[0], states[30])


def test_another_models_checkpoint_names_every_leaf_that_differs_and_reads_none(
    directory, monkeypatch
):
    def never(*arguments):
        raise AssertionError("an array was read")

    monkeypatch.setattr(checkpoint.ocp, "load", never)
    other = abstract(make_model(hidden=17))
    with pytest.raises(UserError, match=r"20 was written by another model: ") as error:
        checkpoint.restore(directory, other)
    assert "ema.decoder.Dense_0.bias is float32[16] there and float32[17] here" in str(error.value)
    shapes = {name: leaf.shape for name, leaf in digests.leaves(abstract(make_model())).items()}
    for name, leaf in digests.leaves(other).items():
        assert (f"{name} is " in str(error.value)) == (leaf.shape != shapes[name]), name


def _array_files(directory):
    return sorted((directory / "20" / "state" / "ocdbt.process_0" / "d").iterdir())


def _flip_at(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_a_changed_array_is_named_and_the_step_set_aside(states, model, directory, caplog):
    (path,) = _array_files(directory)
    _flip_at(path, len(path.read_bytes()) // 2)
    state, step = checkpoint.restore(directory, abstract(model), owner=True)
    assert step == 10
    assert_equal(state, states[10])
    named = re.findall(r"array (\S+) has changed", caplog.text)
    assert len(named) == 1
    assert named[0] in digests.leaves(states[20])
    aside = directory / "damaged" / "20"
    assert f"moved to {aside}" in caplog.text
    reasons = files.read_json(aside / "reason.json")["reasons"]
    assert f"array {named[0]} has changed since it was written" in reasons
    assert checkpoint.steps(directory) == [10]
    assert sorted(p.name for p in aside.iterdir()) == ["mark.json", "reason.json", "state"]
    for _ in range(2):  # and again: the first is not overwritten
        checkpoint.save(directory, 20, states[20])
        (directory / "20" / "more").write_text("")
        assert checkpoint.restore(directory, abstract(model), owner=True)[1] == 10
    assert sorted(p.name for p in aside.parent.iterdir()) == ["20", "20-1", "20-2"]


def test_who_only_reads_moves_nothing(model, directory):
    (directory / "20" / "more").write_text("")
    assert checkpoint.restore(directory, abstract(model))[1] == 10
    assert checkpoint.steps(directory) == [10, 20]


def test_the_owner_removes_what_killed_saves_left(model, directory):
    (directory / "30").mkdir()
    (directory / "40.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.restore(directory, abstract(model))[1] == 20
    assert (directory / "30").exists()
    assert checkpoint.restore(directory, abstract(model), owner=True)[1] == 20
    assert sorted(p.name for p in directory.iterdir()) == ["10", "10.json", "20", "20.json"]


def test_an_array_that_differs_in_files_that_do_not_is_noticed(model, states, directory):
    """Damage before the files were written: of the memory, or by the writer."""
    mark = checkpoint.read_mark(directory, 20)
    name = "variables.params.decoder.Dense_0.kernel"
    mark["arrays"][name]["digest"] = "00000000"
    digest = checkpoint._digest(mark)
    files.write_json(directory / "20.json", {**mark, "digest": digest})
    assert checkpoint.faults(directory, 20) == []
    assert checkpoint.restore(directory, abstract(model))[1] == 10
    assert checkpoint.array_faults(directory, 20) == [
        f"array {name} has changed since it was written"
    ]


def test_a_state_that_is_not_finite_counts_as_damaged_where_asked(model, states, directory, caplog):
    sick = jax.tree.map(jnp.copy, states[20])
    sick.ema["decoder"]["Dense_0"]["bias"] = (
        sick.ema["decoder"]["Dense_0"]["bias"].at[3].set(jnp.nan)
    )
    checkpoint.save(directory, 30, sick)
    assert checkpoint.restore(directory, abstract(model))[1] == 30
    assert checkpoint.restore(directory, abstract(model), finite=True)[1] == 20
    assert "array ema.decoder.Dense_0.bias is not finite" in caplog.text


def test_what_is_saved_beside_a_step_comes_back(states, tmp_path):
    checkpoint.save(tmp_path, 10, states[10], about={"data": "x", "config": {"a": [1, None]}})
    assert checkpoint.about(tmp_path, 10) == {"data": "x", "config": {"a": [1, None]}}


def test_a_disk_that_is_full_keeps_what_was_saved(model, states, directory, monkeypatch):
    def full(*arguments, **options):
        (directory / "30.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: write failed") from OSError(
            28, "No space left on device"
        )

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp, "save", full)
        with pytest.raises(checkpoint.SaveError, match=r"30 cannot .* \(No space left; update 20"):
            checkpoint.save(directory, 30, states[30])
    assert checkpoint.SaveError.exit_code == 4
    assert sorted(p.name for p in directory.iterdir()) == ["10", "10.json", "20", "20.json"]
    assert_equal(checkpoint.restore(directory, abstract(model))[0], states[20])


def test_a_checkpoint_of_format_1_is_read():
    """Recorded with the first format, and to be read for ever."""
    state, step = checkpoint.restore(RECORDED, recorded_template())
    assert step == 7
    assert_equal(state, recorded())


@pytest.mark.parametrize("owner", [False, True])
def test_a_newer_format_is_refused_and_not_set_aside_as_damaged(directory, model, owner):
    mark = {**checkpoint.read_mark(directory, 20), "format": 3}
    files.write_json(directory / "20.json", {**mark, "digest": checkpoint._digest(mark)})
    with pytest.raises(UserError, match="is of format 3, and this genaug reads 2: use the newer"):
        checkpoint.restore(directory, abstract(model), owner=owner)
    assert checkpoint.steps(directory) == [10, 20]


def test_names_and_dtypes_are_compared_too(tmp_path):
    def like(**leaves):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.tree.leaves(state)[0].sharding
            ),
            leaves,
        )

    state = layouts.place({"a": jnp.zeros(3), "b": jnp.ones(2)}, mesh_of(2))
    checkpoint.save(tmp_path, 1, state)
    for other, words in [
        ({"a": jnp.zeros(3), "c": jnp.ones(2)}, r"b is float32\[2\] there and nothing here"),
        ({"a": jnp.zeros(3)}, r"b is float32\[2\] there and nothing here"),
        ({**state, "d": jnp.ones(1)}, r"d is nothing there and float32\[1\] here"),
        ({**state, "a": jnp.zeros(4)}, r"a is float32\[3\] there and float32\[4\] here"),
        ({**state, "b": jnp.ones(2, jnp.int32)}, r"b is float32\[2\] there and int32\[2\] here"),
    ]:
        with pytest.raises(UserError, match=words):
            checkpoint.restore(tmp_path, like(**other))


def test_the_mark_holds_the_digest_of_every_file_and_array(saved, states):
    mark = json.loads((saved / "20.json").read_text())
    assert (mark["step"], mark["format"]) == (20, 2)
    assert mark["arrays"] == {
        name: {
            "shape": list(leaf.shape),
            "dtype": str(leaf.dtype),
            "digest": f"{reference_digest(np.asarray(leaf)):08x}",
        }
        for name, leaf in digests.leaves(states[20]).items()
    }
    assert sorted(f"20/{name}" for name in mark["files"]) == _files(saved)


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def full(fd):
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
