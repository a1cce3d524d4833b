"""The scorecard: how it counts, and a few faults of every kind that needs no other process."""

import pytest

from benchmarks import reliability, reliability_faults, reliability_table


# Of a save that a disk refuses, Orbax leaves coroutines and threads behind that end in errors.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["damage", "devices", "sick", "disk", "cache"])
def test_a_few_faults_are_all_survived(name):
    (row,) = (row for row in reliability.ROWS if row.name == name)
    found = row.inject(row.short, 1)
    if found is None:
        pytest.skip("needs root and mount")
    assert (found.survived, found.tried) == (row.short, row.short), found.remark


def test_a_fault_that_is_not_survived_is_told():
    text = reliability_table.line("fault", "means", reliability_faults.Counted(9, 10, "why"))
    assert "| **9 of 10** |" in text
    assert "| 10 of 10 |" in reliability_table.line("", "", reliability_faults.Counted(10, 10))
    assert "not run" in reliability_table.line("", "", None)


def test_rows_of_several_runs_make_one_table(tmp_path, monkeypatch):
    """The newest run of each row is shown; a row that did not run again stays."""
    monkeypatch.setattr(reliability_table, "RECORDS", tmp_path / "reliability.json")
    monkeypatch.setattr(reliability, "RESULTS", tmp_path / "RELIABILITY.md")
    rows = [row._replace(inject=lambda n, seed: reliability_faults.Counted(n - seed, n))
            for row in reliability.ROWS]  # fmt: skip
    monkeypatch.setattr(reliability, "ROWS", rows)
    run = ["--only", "damage", "devices", "--write", "--count", "damage=5"]
    assert reliability.main([*run, "devices=7", "--seed", "1"]) == 1
    assert reliability.main(["--only", "damage", "--write", "--count", "damage=3"]) == 0
    page = reliability.RESULTS.read_text()
    assert "| 3 of 3 |" in page
    assert "| **6 of 7** |" in page
    assert "`--only damage --count damage=3 --seed 0`" in page
    assert page.count("| not run |") == len(rows) - 2


def test_the_interval_is_wilsons():
    """Values of R's binom.wilson (binom 1.1)."""
    for good, tried, low, high in [(500, 500, 0.9924, 1.0), (48, 48, 0.9259, 1.0),
                                   (8, 10, 0.4902, 0.9433)]:  # fmt: skip
        found = reliability_table.wilson(good, tried)
        assert found == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("found", [None, ({}, 20)])
def test_damage_that_is_not_gone_back_from_is_counted_as_such(monkeypatch, found):
    monkeypatch.setattr("genaug.checkpoint.restore", lambda *arguments, **options: found)
    assert reliability_faults.damaged(2, 0).survived == 0
