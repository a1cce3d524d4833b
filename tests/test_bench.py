"""`genaug bench`: what is timed, what is counted, and what is refused."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from genaug import bench
from genaug.devices import keep_freed_memory
from genaug.types import CondField, LabelSpec, TokenSpec, UserError

pytest_plugins = ["tiny_run"]


def subject(draw, unit="samples"):
    return bench.Subject(name="x", unit=unit, load_s=0.5, draws=lambda size: (draw, 1))


def test_the_first_call_of_a_size_is_told_by_itself_and_every_call_draws_new_rows():
    now, firsts = [0.0], []

    def draw(first):
        firsts.append(first)
        now[0] += 10.0 if len(firsts) in (1, 5) else len(firsts)
        return {"image": np.zeros(1)}

    found = list(bench.timings(subject(draw), (2, 3), 3, clock=lambda: now[0]))
    assert firsts == [0, 2, 4, 6, 8, 11, 14, 17]
    assert [(one.batch, one.first_s, one.seconds) for one in found] == [
        (2, 10.0, (2.0, 3.0, 4.0)),
        (3, 10.0, (6.0, 7.0, 8.0)),
    ]
    assert [one.rate for one in found] == [2 / 3, 3 / 7]
    assert found[0].peak_bytes > 10 * 2**20


def test_the_peak_is_of_the_size_at_hand():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("only Linux forgets a peak")
    keep_freed_memory()  # as the command does
    held = []

    def draw(first):
        held.append(np.ones(2**25))  # 256 MiB
        held.clear()
        return {"image": np.zeros(1)}

    (large,) = bench.timings(subject(draw), (1,), 1)
    (small,) = bench.timings(subject(lambda first: {"image": np.zeros(1)}), (1,), 1)
    assert large.peak_bytes - small.peak_bytes > 200 * 2**20


def test_text_counts_the_tokens_that_were_written():
    segments = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    (found,) = bench.timings(subject(lambda first: {"segments": segments}, "tokens"), (2,), 2)
    assert found.units == 3.0  # five, of which two start the rows


def test_conditions_are_classes_in_turn_by_address():
    whole = jax.ShapeDtypeStruct((), np.int32)
    reads = {
        "index": CondField(whole),
        "label": CondField(LabelSpec(3)),
        "steps": CondField(whole, default=4.0),
        "near": CondField(whole, optional=True),
    }
    cond = bench.cond_of(reads, 4, 3)
    assert {name: value.tolist() for name, value in cond.items()} == {
        "index": [4, 5, 6],
        "label": [1, 2, 0],
    }
    with pytest.raises(UserError, match="'prompt'"):
        bench.cond_of({"prompt": CondField(TokenSpec(4, 5))}, 0, 1)


@pytest.mark.parametrize("what", ["run", "bundle"])
def test_a_run_and_its_bundle_are_timed(what, finished, run_cli, tmp_path, capsys):
    folder = finished if what == "run" else finished / "export"
    path = tmp_path / "bench.json"
    options = ("--batch-size", "4", "--batch-size", "1", "--rounds", "2", "--json", path)
    assert run_cli("bench", folder, *options) == 0
    head, one, four, last = capsys.readouterr().out.splitlines()
    assert "samples/s" in head
    assert "Time to the first samples" in last
    assert [one.split()[0], four.split()[0]] == ["1", "4"]
    found = json.loads(path.read_text())
    assert found["environment"]["jax"] == jax.__version__
    for size, timing in zip((1, 4), found["timings"], strict=True):
        assert (timing["batch"], timing["units"], len(timing["seconds"])) == (size, size, 2)
        assert timing["rate"] == pytest.approx(size / np.median(timing["seconds"]))


@pytest.mark.parametrize(
    "arguments, said",
    [(["--batch-size", "0"], "--batch-size is 0"), (["--rounds", "0"], "--rounds is 0")],
)
def test_counts_below_one_are_refused(arguments, said, run_cli, tmp_path, capsys):
    assert run_cli("bench", tmp_path, *arguments) == 2
    assert said in capsys.readouterr().err


def test_what_is_neither_a_run_nor_a_bundle_is_refused(run_cli, tmp_path, capsys):
    assert run_cli("bench", tmp_path) == 2
    assert "neither a run folder" in capsys.readouterr().err
