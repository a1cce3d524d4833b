"""Sampling from the command line, and the lists and pages that go with it."""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import files

from genaug import bundle, export, runs
from genaug.bundle import load_sampler
from genaug.data import Data, load
from genaug.files import save_arrays
from genaug.outputs import folder_names
from genaug.sampling import Sampler

pytest_plugins = ["tiny_run"]

NAMES = [str(i) for i in range(10)]


@pytest.fixture
def sample(run_cli, finished, tmp_path):
    """`sample(*options)` draws into an .npz and returns its arrays."""

    def call(*options):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        assert run_cli("sample", finished, "--out", out, *options) == 0
        with np.load(out, allow_pickle=False) as file:
            return dict(file)

    return call


@pytest.fixture
def pictures(digits, tmp_path):
    paths = []
    for i in (0, 1):
        paths.append(tmp_path / f"digit{i}.png")
        Image.fromarray(digits["image"][i, :, :, 0]).save(paths[-1])
    return paths


def test_samples_become_pngs_in_class_folders_that_say_where_they_come_from(
    run_cli, finished, tmp_path, capsys
):
    out = tmp_path / "drawn"
    assert run_cli("sample", finished, "--n", 12, "--seed", 5, "--first", 3, "--out", out) == 0
    assert "12 images in" in capsys.readouterr().out
    digest = export.digest(jax.device_get(runs.open_run(finished).weights))
    found = sorted(out.rglob("*/*.png"))
    assert {p.parent.name for p in found} == set(NAMES)
    assert sorted(p.name for p in found) == [f"{i:06d}.png" for i in range(3, 15)]
    for path in found:
        with Image.open(path) as image:
            assert image.size == (8, 8)
            assert image.mode == "L"
            assert image.text == {
                "synthetic": "genaug",
                "seed": "5",
                "index": str(int(path.stem)),
                "model": digest,
            }
        assert path.parent.name == NAMES[int(path.stem) % 10]
    assert (out / "grid.png").is_file()


def test_samples_go_into_the_run_folder_unless_told_and_never_over_others(
    run_cli, finished_copy, capsys
):
    assert run_cli("sample", finished_copy, "--n", 1) == 0
    assert (finished_copy / "drawn" / "0" / "000000.png").is_file()
    assert run_cli("sample", finished_copy, "--n", 1) == 2
    assert "drawn is there already: name another with --out" in capsys.readouterr().err


def test_an_npz_holds_images_labels_addresses_and_names(sample):
    drawn = sample("--n", 23)
    assert drawn["image"].shape == (23, 8, 8, 1)
    assert drawn["image"].dtype == np.uint8
    assert drawn["label"].tolist() == [i % 10 for i in range(23)]
    assert drawn["index"].tolist() == list(range(23))
    assert drawn["class_names"].tolist() == NAMES


def test_a_sample_is_a_function_of_seed_address_and_class_alone(sample):
    some = sample("--n", 20, "--class", "7")
    later = sample("--n", 5, "--class", "7", "--first", 10)
    assert set(some["label"].tolist()) == {7}
    np.testing.assert_array_equal(some["image"][10:15], later["image"])
    other = sample("--n", 5, "--class", "7", "--first", 10, "--seed", 1)
    assert (other["image"] != later["image"]).any()


def test_without_temperature_all_of_a_class_are_alike(sample):
    cold = sample("--n", 4, "--class", "3", "--temperature", 0)["image"]
    warm = sample("--n", 4, "--class", "3", "--temperature", 1)["image"]
    assert (cold == cold[0]).all()
    assert (warm != warm[0]).any()


def test_near_and_toward_draw_variations_and_a_path(sample, pictures):
    near = sample("--n", 6, "--near", pictures[0], "--class", "0")
    assert near["image"].shape == (6, 8, 8, 1)
    path = sample("--n", 6, "--near", pictures[0], "--toward", pictures[1], "--class", "0")
    back = sample("--n", 6, "--near", pictures[1], "--toward", pictures[0], "--class", "0")
    difference = path["image"].astype(int) - back["image"][::-1].astype(int)
    assert np.abs(difference).max() <= 1  # without noise, the way back is the way there
    assert (path["image"][0] != path["image"][-1]).any()


def test_an_image_of_another_size_is_brought_to_the_models(sample, digits, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(digits["image"][0, :, :, 0]).resize((24, 32)).convert("RGB").save(path)
    assert sample("--n", 2, "--near", path)["image"].shape == (2, 8, 8, 1)


def test_a_bundle_draws_what_its_run_draws(run_cli, finished, sample, tmp_path, capsys):
    out = tmp_path / "of_bundle.npz"
    options = ("--n", 23, "--seed", 4, "--temperature", 0.7)
    assert run_cli("sample", finished / "export", "--out", out, *options) == 0
    of_run = sample(*options)
    # It is known for what it is: generated images are no real ones to judge others by.
    assert run_cli("evaluate", out, finished / "export") == 2
    assert "of_bundle.npz is generated" in capsys.readouterr().err
    with np.load(out) as of_bundle:
        assert set(of_bundle) == set(of_run)
        for name, value in of_run.items():
            np.testing.assert_array_equal(of_bundle[name], value)


def test_many_parts_make_the_file_that_one_makes(sample, monkeypatch):
    whole = sample("--n", 23, "--first", 2)
    monkeypatch.setattr("genaug.drawing.PART_ROWS", 5)
    for name, value in sample("--n", 23, "--first", 2).items():
        np.testing.assert_array_equal(value, whole[name])


def test_a_drawing_that_was_stopped_goes_on(run_cli, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("genaug.drawing.PART_ROWS", 5)
    out, whole = tmp_path / "some", tmp_path / "whole"
    command = ("sample", finished, "--n", 23, "--out")
    assert run_cli(*command, whole) == 0
    drawn = []

    def saved(path, arrays):
        if len(drawn) == 2:
            signal.raise_signal(signal.SIGTERM)
        drawn.append(path.name)
        save_arrays(path, arrays)

    with monkeypatch.context() as patch:
        patch.setattr("genaug.drawing.save_arrays", saved)
        with pytest.raises(SystemExit) as left:
            run_cli(*command, out)
    assert left.value.code == 143
    parts = tmp_path / ".some.parts"
    assert sorted(p.name for p in parts.glob("*.npz")) == drawn
    assert not out.exists()
    assert run_cli(*command, out, "--seed", 1) == 2
    assert "parts of another drawing" in capsys.readouterr().err
    draw = drawing_spy(monkeypatch)
    assert run_cli(*command, out) == 0
    assert draw == [[10, 11, 12, 13, 14], [15, 16, 17, 18, 19], [20, 21, 22]]
    assert files(out) == files(whole)
    for name in files(out):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not parts.exists()


def drawing_spy(monkeypatch):
    seen = []

    def call(self, key, cond):
        seen.append(cond["index"].tolist())
        return original(self, key, cond)

    original = Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", call)
    return seen


def test_a_dataset_is_read_by_tfds_and_is_data_again(run_cli, finished, sample, tmp_path, capsys):
    import tensorflow_datasets as tfds

    out = tmp_path / "dataset"
    assert run_cli("sample", finished, "--n", 23, "--format", "arrayrecord", "--out", out) == 0
    builder = tfds.builder_from_directory(out)
    rows = list(builder.as_data_source("train"))
    want = sample("--n", 23)
    np.testing.assert_array_equal(np.stack([row["image"] for row in rows]), want["image"])
    assert [row["label"] for row in rows] == want["label"].tolist()
    assert [row["index"] for row in rows] == list(range(23))
    digest = export.digest(jax.device_get(runs.open_run(finished).weights))
    assert {row["model_digest"].decode() for row in rows} == {digest}
    assert all(row["synthetic"] for row in rows)
    assert builder.info.metadata["filters"] == "none"
    assert load(Data(source=str(out))).class_names == tuple(NAMES)
    assert run_cli("sample", finished, "--format", "arrayrecord", "--out", out) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (("--format", "jsonl"), "--format jsonl: this model draws images; use folder, arrayrecord"),
        (("--n", 0), "--n must be at least 1"),
        (("--first", 2**31), "at most 2^31"),
        (("--first", -1), "--first at least 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_nothing_is_left(
    options, message, run_cli, finished, tmp_path, capsys
):
    assert run_cli("sample", finished, "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_and_a_bundle_are_exported_alike(run_cli, finished, tmp_path, key, capsys):
    first, again = tmp_path / "first", tmp_path / "again"
    assert run_cli("export", finished, first) == 0
    assert run_cli("export", first, again) == 0
    assert files(first) == files(again) == files(finished / "export")
    for name in ("bundle.json", "weights.safetensors"):
        content = (finished / "export" / name).read_bytes()
        assert (first / name).read_bytes() == (again / name).read_bytes() == content
    cond = {"index": np.arange(5), "label": np.arange(5)}
    drawn = load_sampler(finished / "export")(key, cond)["image"]
    np.testing.assert_array_equal(load_sampler(again)(key, cond)["image"], drawn)
    assert run_cli("export", finished, first) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_bundle_of_another_model_s_weights_is_not_exported_again(
    run_cli, finished, tmp_path, capsys
):
    made = Path(shutil.copytree(finished / "export", tmp_path / "made"))
    about = json.loads((made / "bundle.json").read_text())
    about["config"]["model"]["latent_dim"] = 9
    (made / "bundle.json").write_text(json.dumps(about))
    contents = {name: (made / name).read_bytes() for name in bundle.FILES}
    (made / bundle.SUMS).write_bytes(bundle.sums(contents))
    assert run_cli("export", made, tmp_path / "again") == 3
    assert "are not those of its config" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_data_list_names_every_built_in_set_with_its_licence(run_cli, capsys):
    assert run_cli("data", "list") == 0
    out = capsys.readouterr().out
    for words in ("mnist5k  (built-in, found)", "digits  (built-in, found)", "CC BY", "tfds:"):
        assert words in out


def test_data_list_says_how_to_get_what_is_missing(run_cli, capsys, monkeypatch):
    monkeypatch.setattr("genaug.data.listing.package_file", lambda package, name: None)
    assert run_cli("data", "list") == 0
    out = capsys.readouterr().out
    assert "mnist5k  (built-in, not found)" in out
    assert 'pip install "genaug[demo]"' in out


def test_report_writes_the_page_again(run_cli, finished_copy, capsys):
    page = finished_copy / "report.html"
    page.unlink()
    assert run_cli("report", finished_copy) == 0
    assert page.stat().st_size > 10_000
    assert str(page) in capsys.readouterr().out


def test_classes_get_folders_of_their_own():
    assert folder_names(["a", "<a", ">a", "..", "b/c"]) == ["a", "_a_1", "_a_2", "_", "b_c"]
