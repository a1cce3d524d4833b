"""SIGTERM and Ctrl-C in every phase: saved, left with the right code, and gone on from exactly."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import subprocess_environment

from genaug import checkpoint, signals
from genaug.files import read_json
from genaug.logs import read_metrics

pytest_plugins = ["tiny_run"]

WORKER = Path(__file__).with_name("signal_worker.py")


@pytest.fixture
def work(compile_cache, tmp_path):
    def run(phase, number=signal.SIGTERM, times=1, folder="run"):
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, WORKER, phase, tmp_path / folder, str(int(number)), str(times)],
            env=subprocess_environment(compile_cache, 2),
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


# What was saved, and how many updates that is.
PHASES = {"compile": [], "step": [8, 12], "evaluate": [8, 16], "sample": [16, 24], "save": [8, 16]}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_it_had_not(phase, work, tmp_path):
    """Also what was due when it was told is done once, and not twice."""
    number = signal.SIGINT if phase in ("evaluate", "save") else signal.SIGTERM
    told = work(phase, number)
    assert told.returncode == 128 + number, told.stderr
    saved = checkpoint.steps(tmp_path / "run" / "checkpoints")
    if phase == "step":  # the call that is under way when it is noticed ends first
        assert len(saved) == 2
        assert saved[0] == 8
        assert saved[1] in (10, 12, 14)
        assert f"update {saved[1]} is saved" in told.stdout
    else:
        assert saved == PHASES[phase]
    rest = work("none")
    whole = work("none", folder="whole")
    assert rest.returncode == whole.returncode == 0, rest.stderr
    assert rest.stdout == whole.stdout
    done = [
        [line for line in (tmp_path / f / "hooks").read_text().splitlines() if "begun" not in line]
        for f in ("run", "whole")
    ]
    assert list(dict.fromkeys(done[0])) == done[1]


def test_told_twice_it_leaves_at_once(work, tmp_path):
    told = work("stuck", times=2)
    assert told.returncode == 128 + signal.SIGTERM
    assert "told twice; what was saved before is kept" in told.stderr


def test_what_does_not_come_to_an_end_is_ended(work, tmp_path):
    """A program that never returns: no handler of Python's runs while it is waited for."""
    told = work("stuck")
    assert told.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: not done within 0 s; what was saved before is kept" in told.stderr
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [8]


def test_handlers_are_as_they_were_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with signals.heeded() as told:
        signal.raise_signal(signal.SIGTERM)
        assert told.received == signal.SIGTERM
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_came_before_interrupts_what_may_be_interrupted():
    with signals.heeded() as told:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), told.interruptible():
            raise AssertionError("it began")
    with pytest.raises(KeyboardInterrupt), signals.heeded(interruptible=True):
        signal.raise_signal(signal.SIGTERM)


def test_the_state_that_was_due_is_marked(work, tmp_path):
    work("evaluate")
    mark = read_json(tmp_path / "run" / "checkpoints" / "16.json")
    assert mark["about"] == {"due": True}


def test_the_command_line_ends_with_the_signals_code(experiment_file, compile_cache, tmp_path):
    """While training, and before it: nothing but a saved state is left in doubt."""
    command = [sys.executable, "-m", "genaug.cli", "train", experiment_file]
    command += ["--run-dir", tmp_path / "run", "--train.num-steps", "200000"]
    environment = subprocess_environment(compile_cache, 2)
    told = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(read_metrics(tmp_path / "run")) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    told.send_signal(signal.SIGTERM)
    words = told.communicate(timeout=30)[1]
    assert told.returncode == 143, words
    (*_, step) = checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert f"update {step} is saved" in words
    assert read_metrics(tmp_path / "run")[-1]["step"] <= step


ENDING = """
import atexit, os, sys
from genaug import cli
number, *sys.argv[1:] = sys.argv[1:]
atexit.register(lambda: os.kill(os.getpid(), int(number)))
sys.exit(cli.program())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("command", "code"), [(["data", "list"], 0), (["verify", "nowhere"], 2)])
def test_what_comes_while_python_ends_changes_no_exit_code(number, command, code, tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", ENDING, str(int(number)), *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == code, told.stderr
    assert "Traceback" not in told.stderr


def test_a_stage_without_a_state_is_just_left(monkeypatch, run_cli, experiment_file, tmp_path):
    monkeypatch.setattr("genaug.checks.check", lambda e: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as left:
        run_cli("run", experiment_file, "--run-dir", tmp_path / "run")
    assert left.value.code == 143
    assert not (tmp_path / "run").exists()
