"""The command that compares two sets, whoever made them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import classifier
from genaug.evaluation.classifier import Classifier
from genaug.files import read_json

pytest_plugins = ["tiny_run"]

NAMES = [str(i) for i in range(10)]


@pytest.fixture
def two_sets(digits, tmp_path, monkeypatch):
    """The two sets, and a classifier that is trained in a moment."""
    small = Classifier(features=(4,), hidden=16, num_steps=10)
    monkeypatch.setattr(classifier, "Classifier", lambda: small)
    one_device = make_mesh(Mesh(data=1))
    monkeypatch.setattr("genaug.evaluate_command.make_mesh", lambda config: one_device)
    paths = []
    for name, rows in (("real", slice(0, 150)), ("synthetic", slice(200, 250))):
        paths.append(tmp_path / f"{name}.npz")
        np.savez(paths[-1], **{k: v[rows] for k, v in digits.items()}, class_names=np.array(NAMES))
    return paths


def test_evaluate_prints_and_writes_the_audit_of_two_sets(run_cli, two_sets, tmp_path, capsys):
    out = tmp_path / "audit.json"
    assert run_cli("evaluate", *two_sets, "--all", "--json", out) == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert {"fd/classifier", "precision", "recall", "exact_copies"} <= set(rows)
    assert {"fd_infinity/classifier", "mmd/classifier", "clipped_density"} <= set(rows)
    assert rows["classifier_score"]["provenance"]["weights"]
    for row in rows.values():
        assert row["low"] <= row["value"] <= row["high"]
        assert row["floor"] is not None
        assert row["meaning"]
    assert rows["exact_copies"]["value"] == 0
    for words in ("precision", "recall"):
        assert words in printed.lower()


def test_evaluate_sees_copies_of_the_real_set(run_cli, two_sets, digits, tmp_path):
    paths = [tmp_path / name for name in ("train.npz", "copies.npz", "held.npz")]
    for path, rows in zip(paths, (slice(0, 75), slice(0, 50), slice(75, 150)), strict=True):
        np.savez(path, **{k: v[rows] for k, v in digits.items()}, class_names=np.array(NAMES))
    train, copies, held = paths
    out = tmp_path / "audit.json"
    assert run_cli("evaluate", train, copies, "--holdout", held, "--json", out) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())}
    assert rows["exact_copies"]["value"] == 1


def test_evaluate_reads_the_synthetic_set_of_a_run(run_cli, finished, two_sets, tmp_path):
    out = tmp_path / "audit.json"
    assert run_cli("evaluate", two_sets[0], finished / "synthetic", "--json", out) == 0
    assert json.loads(out.read_text())


def write_folder(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i}.png")
    return folder


def test_folders_of_images_without_classes_are_compared_by_pixels(
    run_cli, two_sets, digits, tmp_path, capsys
):
    real = write_folder(tmp_path / "some", digits["image"][:80])
    made = write_folder(tmp_path / "others", digits["image"][200:240])
    out = tmp_path / "audit.json"
    assert run_cli("evaluate", real, made, "--features", "pixels", "--json", out) == 0
    rows = read_json(out)
    assert rows[0]["name"] == "fd/pixels"
    assert {row["group"] for row in rows} == {None}
    printed = capsys.readouterr().out
    assert "precision, recall, density, coverage: The class mix of the sets was not" in printed
    assert "40 examples are no more than the 64 features of pixels" in printed
    assert run_cli("evaluate", real, made, "--features", "classifier") == 2
    assert "needs the classes of both sets" in capsys.readouterr().err


def test_a_run_is_what_it_drew_and_a_bundle_is_drawn_from(
    run_cli, finished, two_sets, tmp_path, capsys
):
    of_run, of_bundle = tmp_path / "run.json", tmp_path / "bundle.json"
    pixels = ("--features", "pixels")
    assert run_cli("evaluate", two_sets[0], finished, *pixels, "--json", of_run) == 0
    assert run_cli("evaluate", two_sets[0], finished / "export", *pixels, "--json", of_bundle) == 0
    drawn = len(np.load(finished / "synthetic.npz")["labels"])
    copies = {path: next(row for row in read_json(path) if row["name"] == "exact_copies")
              for path in (of_run, of_bundle)}  # fmt: skip
    assert copies[of_run]["n"] == drawn
    assert copies[of_bundle]["n"] == 75  # as many as are held out of the real 150
    capsys.readouterr()
    assert run_cli("evaluate", finished / "export", two_sets[0]) == 2
    assert "is generated, and real data stands first" in capsys.readouterr().err
    assert run_cli("evaluate", finished / "synthetic", two_sets[0]) == 2
    assert "is generated" in capsys.readouterr().err


def test_a_run_that_drew_nothing_says_how_to_draw(run_cli, finished_copy, two_sets, capsys):
    shutil.rmtree(finished_copy / "synthetic")
    assert run_cli("evaluate", two_sets[0], finished_copy) == 2
    assert f"genaug sample {finished_copy}" in capsys.readouterr().err


def test_how_the_numbers_moved(run_cli, two_sets, digits, tmp_path, capsys):
    real, made = two_sets
    worse = tmp_path / "worse.npz"
    noise = np.random.default_rng(0).integers(256, size=(50, 8, 8, 1)).astype(np.uint8)
    np.savez(worse, image=noise, label=digits["label"][200:250], class_names=np.array(NAMES))
    before = tmp_path / "before.json"
    pixels = ("--features", "pixels")
    assert run_cli("evaluate", real, made, *pixels, "--json", before) == 0
    capsys.readouterr()
    assert run_cli("evaluate", real, worse, *pixels, "--against", before) == 0
    head, distance = capsys.readouterr().out.split("\n")[:2]
    assert head.endswith("change")
    assert " +" in distance
    assert run_cli("evaluate", real, worse, *pixels, "--seed", 1, "--against", before) == 2
    assert "cannot be compared (" in capsys.readouterr().err
    before.write_text("[3]")
    assert run_cli("evaluate", real, worse, *pixels, "--against", before) == 2
    assert "no results of an audit" in capsys.readouterr().err


def test_inception_needs_its_file(run_cli, two_sets, tmp_path, capsys):
    assert run_cli("evaluate", *two_sets, "--features", "inception") == 2
    assert "--weights pt_inception-2015-12-05-6726825d.pth" in capsys.readouterr().err
    other = tmp_path / "other.pth"
    other.write_bytes(b"no")
    assert run_cli("evaluate", *two_sets, "--features", "inception", "--weights", other) in (2, 3)
    assert "6726825d" in capsys.readouterr().err


def test_no_model_is_imported(two_sets, finished, tmp_path):
    code = (
        "import sys\n"
        "from genaug.cli import main\n"
        f"assert main(['evaluate', {str(two_sets[0])!r}, {str(finished / 'export')!r},"
        " '--features', 'pixels']) == 0\n"
        "found = [n for n in sys.modules if n.startswith(('genaug.models', 'genaug.train'))]\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
