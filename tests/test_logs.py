"""What a run says: metrics that survive a stop, a quiet bar, safe text, one writer at a time."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from genaug import logs
from genaug.logs import Bar, MetricLog, lock, make_console, plain, read_metrics
from genaug.types import UserError


def write(directory, steps, start=0):
    log = MetricLog(directory, start)
    for step in steps:
        log.write(step, {"loss": step / 2})
    log.close()


def steps_in(directory):
    return [line["step"] for line in read_metrics(directory)]


def test_metrics_are_read_as_written(tmp_path):
    assert read_metrics(tmp_path) == []
    write(tmp_path, [1, 2])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("start, kept", [(0, []), (4, [2, 4]), (5, [2, 4]), (8, [2, 4, 6, 8])])
def test_lines_after_the_update_that_is_resumed_from_are_dropped(tmp_path, start, kept):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [], start)
    assert steps_in(tmp_path) == kept
    write(tmp_path, [10], start)
    assert steps_in(tmp_path) == [*kept, 10]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_last_line_that_was_cut_off_is_left_out_and_mended(tmp_path, cut):
    write(tmp_path, [2, 4, 6])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-1][:-cut])
    assert steps_in(tmp_path) == [2, 4]
    write(tmp_path, [6], start=4)
    assert steps_in(tmp_path) == [2, 4, 6]
    assert path.read_text().count("\n") == 3


def test_infinities_are_written_and_read(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, {"loss": float("inf")})
    log.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": float("inf")}]


@pytest.mark.parametrize(
    "text, safe",
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[31mred", "�[31mred"),
        ("a\rb\x00c\x07", "a�b�c�"),
        ("\x9b2J", "�2J"),
        ("del\x7f", "del�"),
        ("tab\tnew\nline", "tab�new�line"),
    ],
)
def test_control_characters_are_replaced(text, safe):
    assert plain(text) == safe


def test_markup_in_data_is_printed_as_it_is(capsys):
    make_console().print("[red]class[/red] :smile:")
    assert capsys.readouterr().out == "[red]class[/red] :smile:\n"
    make_console(quiet=True).print("nothing")
    assert capsys.readouterr().out == ""


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(logs, "time", clock)
    return clock


def test_without_a_terminal_a_bar_prints_at_most_one_line_an_interval(clock):
    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=False, width=200), "train", 1000, "steps")
    for count in range(1, 1001):  # 0.1 s each: 100 s in all
        clock.now += 0.1
        bar.advance(count, "loss 1.0")
    bar.stop()
    lines = out.getvalue().splitlines()
    assert len(lines) == 9  # one each time more than 10 s have passed
    assert lines[0].startswith("train ")
    for words in ("/1000", "10 steps/s", "ETA 90 s", "loss 1.0"):
        assert words in lines[0]


def test_a_bar_that_ends_soon_prints_nothing_without_a_terminal(clock):
    out = io.StringIO()
    with logs.bar(Console(file=out, force_terminal=False), "train", 3, "steps") as bar:
        bar.advance(1)
        clock.now += 9.9
        bar.advance(3)
    assert out.getvalue() == ""


def test_a_resumed_bar_counts_its_rate_from_where_it_began(clock):
    out = io.StringIO()
    bar = Bar(Console(file=out, force_terminal=False, width=200), "train", 1000, "steps")
    clock.now += 5
    bar.start_at(900)
    clock.now += 20
    bar.advance(920)
    assert "920/1000 1 steps/s ETA 80 s" in out.getvalue()


def test_a_bar_on_a_terminal_leaves_nothing_behind():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)

    def fail():
        with logs.bar(console, "train", 3, "steps") as bar:
            bar.start_at(1)
            bar.advance(2, "words")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor back, the line away


HOLDER = """
import sys, pathlib
from genaug.logs import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    directory = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(
                UserError, match=rf"run \(process {holder.pid} on .*{directory}: wait for"
            ),
            lock(directory),
        ):
            pass
    finally:
        holder.kill()  # also one that was killed holds it no longer
        holder.communicate(timeout=30)
    with lock(directory):
        assert (directory / ".lock").is_file()
    with lock(directory):
        pass


def test_a_lock_is_released_when_the_run_fails(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("directory", ["file/run", "file"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, directory):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to"), lock(tmp_path / directory):
        pass
