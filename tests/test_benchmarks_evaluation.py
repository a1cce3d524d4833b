"""The table of benchmarks.evaluation from made-up timings, and its exact reference."""

import re
import sys

import numpy as np
import pytest

from benchmarks import evaluation, exact, kept, pairs
from genaug.evaluation import frechet_distance
from genaug.types import DataError


def by_difference(got, want):
    return pairs.Agreement(abs(got - want), "compared")


def row(make=None, **changes):
    return pairs.Row("name", "what", "peer", 1e-3, 2, make)._replace(**changes)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_pairs_are_interleaved_and_the_first_call_is_not_timed():
    now, calls = [0.0], []

    def side(name, seconds):
        def call():
            calls.append(name)
            now[0] += 100 if calls.count(name) == 1 else seconds  # It compiles.
            return 1.0

        return call

    comparison = pairs.Comparison(side("ours", 2), side("peer", 6), by_difference, "remark")
    found = pairs.measure(comparison, 3, clock=lambda: now[0])
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert (found.ours, found.peer, found.remark) == ([2, 2, 2], [6, 6, 6], "remark")
    assert found.ratios == [3, 3, 3]


def test_a_line_says_the_median_and_the_spread_of_the_ratios():
    measured = pairs.Measured(pairs.Agreement(1e-5, "a"), [1, 2, 4], [3, 20, 16], "b")
    assert cells(pairs.line(row(), measured, quick=False)) == [
        *("what", "peer", "1.0e-05 (1e-03)", "4 (3 to 10)", "2", "2", "16", "yes", "b; a")
    ]
    assert len(cells(pairs.HEAD)) == len(cells(pairs.RULE)) == 9
    assert cells(pairs.line(row(most_pairs=3), measured, False))[8] == "b; a; 3 pairs"


@pytest.mark.parametrize(
    "difference,peer,quick,verdict",
    [
        (1e-3, 2.0, False, "yes"),
        (1e-3, 1.9, False, "**no: slower than wanted**"),
        (1e-3, 1.9, True, "yes"),  # At small sizes no ratio is judged.
        (2e-3, 2.0, True, "**no: differs**"),
        (float("nan"), 1.0, False, "**no: differs, slower than wanted**"),
    ],
)
def test_what_is_not_held_is_said(difference, peer, quick, verdict):
    measured = pairs.Measured(pairs.Agreement(difference), [1.0], [peer])
    assert cells(pairs.line(row(), measured, quick))[7] == verdict


def test_a_peer_that_is_not_there_or_fails_is_a_row(capsys):
    def absent(quick):
        raise ModuleNotFoundError("No module named 'peer'", name="peer")

    def failing(quick):
        def peer():
            print("noise")
            raise ValueError("imaginary | part\nof 1")

        return pairs.Comparison(lambda: 1.0, peer, by_difference)

    found = cells(pairs.run(row(absent), 3, quick=False))
    assert found[7:] == ["**no**", "not measured: peer is not installed"]
    found = cells(pairs.run(row(failing), 3, quick=False))
    assert found[7:] == ["**no**", "not measured: ValueError: imaginary / part of 1"]
    assert capsys.readouterr().out == ""


def test_relative_differences():
    assert pairs.relative([1.0, -3.0], [1.0, -4.0]) == 0.25
    assert pairs.relative(0.0, 0.0) == 0
    assert pairs.relative(1e-3, 0.0) == 1e-3


@pytest.mark.parametrize("n,rank", [(1, 1), (9, 9), (10, 4)])
def test_the_exact_nuclear_norm(n, rank):
    generator = np.random.default_rng(n)
    matrix = generator.normal(size=(n, rank)) @ generator.normal(size=(rank, n + 2))
    expected = np.linalg.svd(matrix, compute_uv=False).sum()
    assert exact.nuclear_norm(matrix) == pytest.approx(expected, rel=1e-13)


def test_the_exact_distance_is_ours():
    x, y = np.random.default_rng(0).normal(size=(2, 12, 30))
    expected = exact.exact_frechet(x, y * 1.1 + 0.2)
    assert frechet_distance(x, y * 1.1 + 0.2) == pytest.approx(expected, rel=1e-12)


ABOUT = {"command": "python -m x", "date": "2026-11-28", "commit": "abc", "machine": "2 cores"}


def test_lines_of_separate_runs_are_kept_with_their_origins(tmp_path):
    one, other = kept.Origin(**ABOUT), kept.Origin(**{**ABOUT, "commit": "def, changed"})
    lines = {"a": kept.Line("| a |", one), "b": kept.Line("| b |", other)}
    assert kept.read(tmp_path / "kept.json") == {}
    kept.write(tmp_path / "kept.json", lines)
    assert kept.read(tmp_path / "kept.json") == lines
    said = list(kept.origins([(1, lines["a"]), (2, lines["a"]), (3, lines["b"]), (5, lines["a"])]))
    assert said == [
        "- 1-2, 5: `python -m x`, 2026-11-28, commit abc. 2 cores.",
        "- 3: `python -m x`, 2026-11-28, commit def, changed. 2 cores.",
    ]
    (tmp_path / "kept.json").write_text("[1]")
    with pytest.raises(DataError, match="holds no lines of a table"):
        kept.read(tmp_path / "kept.json")


def test_spans():
    assert kept.spans([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
    assert kept.spans([]) == ""


def test_a_commit_is_told():
    assert re.fullmatch(r"[0-9a-f]{12}(, changed)?|unknown", kept.origin("c", "m").commit)


@pytest.fixture
def run_benchmark(monkeypatch, tmp_path):
    """The program with made-up rows; `measured` is what each says when it is run."""
    made = [row(title=title)._replace(name=name) for name, title in (("a", "A"), ("b", "B"))]
    monkeypatch.setattr(evaluation, "rows", lambda quick: made)
    monkeypatch.setattr(evaluation, "RESULTS", tmp_path / "EVALUATION.md")
    monkeypatch.setattr(evaluation, "KEPT", tmp_path / "evaluation.json")
    monkeypatch.setattr(evaluation, "use_cpu_cores_as_devices", lambda: None)
    monkeypatch.setattr(evaluation, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(evaluation, "memory", lambda quick: "Memory: 1 GiB.")

    def call(measured, *arguments):
        monkeypatch.setattr(evaluation, "run", lambda one, *_: measured[one.title])
        monkeypatch.setattr(sys, "argv", ["evaluation", *arguments])
        evaluation.main()
        path = tmp_path / "EVALUATION.md"
        return path.read_text(encoding="utf-8") if path.is_file() else None

    return call


def test_rows_of_separate_runs_become_one_table(run_benchmark, capsys):
    first = run_benchmark({"A": "| A | 1 |"}, "--only", "a", "--write")
    assert "| 1 | A | 1 |" in first
    assert "| 2 | B | peer | | | 2 | | | **no** | not measured yet |" in first
    assert "Memory of `manifold_scores`: not measured yet." in first
    second = run_benchmark({"B": "| B | 2 |"}, "--only", "b", "--only", "memory", "--write")
    assert "| 1 | A | 1 |\n| 2 | B | 2 |\n" in second
    assert "3. Memory: 1 GiB." in second
    assert "- 1: `python -m benchmarks.evaluation --only a --pairs 5`" in second
    assert "- 2-3: `python -m benchmarks.evaluation --only b --only memory --pairs 5`" in second
    absent = "| A | not measured: prdc is not installed |"
    assert run_benchmark({"A": absent}, "--only", "a", "--write") == second
    assert absent in capsys.readouterr().out
    assert "| 1 | A | 3 |" in run_benchmark({"A": "| A | 3 |"}, "--only", "a", "--write")


@pytest.mark.parametrize("options", [["--quick"], ["--pairs", "2"]])
def test_small_sizes_and_few_pairs_are_printed_and_not_written(run_benchmark, options, capsys):
    assert run_benchmark({"A": "| A | 1 |"}, "--only", "a", *options) is None
    assert "| A | 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_benchmark({"A": "| A | 1 |"}, "--only", "a", "--write", *options)
