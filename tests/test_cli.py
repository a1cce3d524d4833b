"""The command line: help without JAX, one clean line for every mistake, exit codes."""

import json
import subprocess
import sys

import pytest
from tiny_run import tiny

from genaug import cli, config

pytest_plugins = ["tiny_run"]

COMMANDS = ["run", "train", "sample", "evaluate", "plan", "launch", "report", "data"]
COMMANDS += ["export", "tokenizer", "doctor", "bench", "profile"]
HEAVY = ("jax", "flax", "numpy", "tyro", "rich", "PIL", "optax", "tensorflow_datasets")

PROBE = """
import sys
from genaug import cli
for arguments in {calls!r}:
    try:
        cli.main(arguments)
    except SystemExit as stop:
        assert stop.code == 0, (arguments, stop.code)
    else:
        raise AssertionError(arguments)
    print("loaded:", [m for m in {heavy!r} if m in sys.modules])
"""


def test_help_answers_without_importing_anything_heavy():
    calls = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    probe = PROBE.format(calls=calls, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded:")]
    assert loaded == ["loaded: []"] * len(calls)
    for name in COMMANDS:
        assert f"usage: genaug {name}" in done.stdout
    assert " ".join(done.stdout.split()).count("Exit codes: 0 done") == len(calls) - 1


SLOW = (
    "scipy.stats",
    "scipy.spatial",
    "sklearn",
    "tensorflow",
    "torch",
    "matplotlib",
    "tensorboard",
)


def test_a_command_starts_without_what_is_slow_to_import_and_seldom_needed():
    code = "import sys, genaug.run_command, genaug.generator, genaug.evaluation\n"
    code += f"print([name for name in {SLOW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_an_experiments_help_lists_nested_fields_with_types_and_defaults(
    run_cli, experiment_file, capsys
):
    for order in ((experiment_file, "--help"), (experiment_file, "-h", "--seed", "1")):
        with pytest.raises(SystemExit) as stop:
            run_cli("run", *order)
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "--model.latent-dim INT (default: 4)" in text
        assert "--data.rare-classes [STR [STR ...]]" in text
        assert "--study.classifier.learning-rate FLOAT" in text
        assert "--balance.per-class {None}|INT" in text


@pytest.mark.parametrize("command", ["evaluate", "report", "data", "doctor"])
def test_an_unknown_option_of_a_small_command_is_refused(command, capsys):
    values = {"evaluate": ["x", "y"], "report": ["x"], "data": ["list"]}
    with pytest.raises(SystemExit) as stop:
        cli.main([command, *values.get(command, []), "--frobnicate"])
    assert stop.value.code == 2
    assert "--frobnicate" in capsys.readouterr().err


def test_from_run_takes_the_config_of_a_run_and_its_fields_can_be_changed(
    run_cli, finished, tmp_path, monkeypatch
):
    prepared = []

    def stop_there(experiment, directory, **options):
        prepared.append(experiment)
        raise KeyboardInterrupt

    monkeypatch.setattr("genaug.runs.prepare", stop_there)
    monkeypatch.chdir(tmp_path)
    assert run_cli("run", "--from-run", finished, "--quiet") == 130
    assert run_cli("run", "--from-run", finished, "--model.latent-dim", "7", "--quiet") == 130
    assert prepared[0] == tiny()
    assert prepared[1].model.latent_dim == 7
    assert not (tmp_path / "runs").exists()  # what held nothing but the lock is taken away


def test_ctrl_c_exits_130_and_says_that_the_command_goes_on(monkeypatch, capsys):
    def interrupted(options, rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_doctor", interrupted)
    assert cli.main(["doctor"]) == 130
    assert "genaug: stopped; the same command goes on from here." in capsys.readouterr().err


def test_quiet_prints_nothing(run_cli, finished, tmp_path, capsys):
    assert run_cli("sample", finished, "--n", "2", "--out", tmp_path / "a.npz", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_run_says_what_it_does(run_cli, finished_copy, experiment_file, capsys):
    assert run_cli("run", experiment_file, "--run-dir", finished_copy) == 0
    out = capsys.readouterr().out
    sentence = json.loads((finished_copy / "results.json").read_text())["verdict"]["sentence"]
    for words in ("jax", "digits, 1,797 images of 10 classes", "kept", sentence, "report.html"):
        assert words in out
    assert "\x1b" not in out  # no colours where there is no terminal


def test_a_message_from_data_cannot_move_the_cursor(run_cli, tmp_path, capsys):
    assert run_cli("run", tmp_path / "a\x1b[31m\nb.py") == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert error.count("\n") == 1


def test_the_flags_are_those_of_the_help(experiment_file, capsys):
    with pytest.raises(SystemExit):
        config.override(tiny(), ["--help"])
    text = capsys.readouterr().out
    missing = [flag for flag in config.flags(tiny()) if flag not in text]
    assert missing == []
