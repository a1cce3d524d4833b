"""The table of benchmarks.evaluation from made-up timings, and its exact reference."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from genaug.evaluation import frechet_distance


def of_the_benchmarks(name):
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"  # no part of the package
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pairs, exact = of_the_benchmarks("pairs"), of_the_benchmarks("exact")


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
