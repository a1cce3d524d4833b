"""The supervisor: what it starts again, what it lets end, what it stops, where the time went."""

import signal
import sys
import threading

import pytest

from genaug import cli, supervise
from genaug.arguments import without_supervision
from genaug.files import read_json
from genaug.supervise import Launch, Ledger, Patience

QUICK = Patience(stall_s=60.0, max_restarts=2, first_pause_s=0.05, look_every_s=0.02)

# A command that counts its launches; `n` is which one this is, `run` its folder.
HEAD = """
import os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1]); run.mkdir(exist_ok=True)
(run / "config.json").write_text("{}")
count = run.parent / "count"
n = int(count.read_text()) if count.exists() else 0
count.write_text(str(n + 1))
def work(seconds=0.1):
    time.sleep(seconds); (run / f"part_{n}").write_text("")
"""


@pytest.fixture
def work(tmp_path):
    def run(body, patience=QUICK):
        command = [sys.executable, "-c", HEAD + body, str(tmp_path / "run")]
        code = supervise.supervise(command, tmp_path / "run", patience)
        return code, int((tmp_path / "count").read_text())

    return run


@pytest.mark.parametrize("code", supervise.FINAL)
def test_an_end_is_an_end(work, code):
    assert work(f"work(); sys.exit({code})") == (code, 1)


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), 9)", "sys.exit(1)", "sys.exit(143)"])
def test_what_dies_is_started_again(work, tmp_path, death):
    assert work(f"work()\nif n < 4: {death}") == (0, 5)
    found = read_json(tmp_path / "run" / "goodput.json")
    assert len(found["launches"]) == 5
    assert [one["exit_code"] == 0 for one in found["launches"]] == [False] * 4 + [True]


def test_what_dies_without_anything_new_is_given_up(work, capsys):
    """What training repeats is nothing new."""
    assert work("(run / 'metrics.jsonl').write_text(str(n)); sys.exit(1)") == (1, 3)
    assert "died 3 times without anything new" in capsys.readouterr().err


def test_what_stalls_is_stopped_and_started_again(work, tmp_path):
    patience = Patience(stall_s=0.5, max_restarts=2, first_pause_s=0.05, look_every_s=0.02)
    assert work("work()\nif n == 0: time.sleep(60)", patience) == (0, 2)
    first, second = read_json(tmp_path / "run" / "goodput.json")["launches"]
    assert (first["stalled"], second["stalled"]) == (True, False)
    assert first["lost_s"] > 0.4


CACHE = """
cache = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
used = os.environ.get("JAX_ENABLE_COMPILATION_CACHE") != "false"
if used and (cache / "jit_f-1-cache").exists(): os.kill(os.getpid(), 11)
work()
"""


def test_a_crash_before_anything_is_written_empties_the_compile_cache(work, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for name in ("jit_f-1-cache", "jit_f-1-atime", "notes.txt"):
        (tmp_path / "cache" / name).write_text("damaged")
    assert work(CACHE) == (0, 2)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["notes.txt"]


def test_a_compile_cache_that_cannot_be_emptied_is_left_out(work, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache" / "jit_f-1-cache").mkdir(parents=True)  # not a file, so not removed
    assert work(CACHE) == (0, 2)


def test_a_signal_goes_on_to_the_command_and_ends_both(work):
    body = "signal.signal(15, lambda *a: sys.exit(143)); work(); time.sleep(60)"
    threading.Timer(1.5, signal.raise_signal, [signal.SIGTERM]).start()
    assert work(body) == (143, 1)


def test_the_ledger_adds_up(tmp_path):
    ledger = Ledger(tmp_path / "goodput.json")
    ledger.launches = [
        Launch(exit_code=-9, seconds=10.0, starting_s=2.0, lost_s=3.0),
        Launch(exit_code=0, seconds=6.0, starting_s=2.0, waited_s=4.0),
    ]
    found = ledger.summary()
    assert (found["wall_s"], found["progress_s"], found["goodput"]) == (20, 9, 0.45)
    ledger.write()
    assert not ledger.path.exists()  # of a folder that is no run's yet
    (tmp_path / "config.json").write_text("{}")
    ledger.write()
    assert read_json(ledger.path) == found


def test_the_command_is_the_same_but_for_the_supervision():
    given = ["train", "x.py", "--supervise", "--run-dir", "a", "--stall-after", "5", "--seed", "1"]
    assert without_supervision(given) == ["train", "x.py", "--run-dir", "a", "--seed", "1"]
    assert without_supervision(["run", "--stall-after=5", "y.py"]) == ["run", "y.py"]


@pytest.mark.parametrize(
    "options, words",
    [(["--supervise"], "name its folder"),
     (["--supervise", "--run-dir", "r", "--stall-after", "0"], "stall-after is 0.0; it must")],
)  # fmt: skip
def test_what_cannot_be_supervised_is_refused(options, words, capsys):
    assert cli.main(["train", "x.py", *options]) == 2
    assert words in capsys.readouterr().err
