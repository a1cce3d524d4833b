"""`python -m benchmarks`: races on a made-up clock, the noise rule, the table, the options."""

import json
import sys
import xml.etree.ElementTree as ET

import pytest

from benchmarks import __main__ as main
from benchmarks import history, race
from benchmarks import throughput_plot as plots
from benchmarks import throughput_table as tables
from genaug.types import DataError, UserError


class Clock:
    """Calls that take a time each, and in which order they came."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, *seconds):
        def run():
            self.now += seconds[min(self.calls.count(name), len(seconds) - 1)]
            self.calls.append(name)

        return run


def case(make, must=None):
    return race.Case("name", "training", "what", "examples", must or {"peer": 2.0}, make)


def arm(name, call, difference=0.0):
    return race.Arm(name, lambda: race.Made(call, difference))


def raced(rounds=3):
    clock = Clock()

    def broken():
        raise RuntimeError("no | compiler")

    arms = [
        arm("peer, slow", clock.call("slow", 100.0, 12.0)),
        arm("peer, fast", clock.call("fast", 100.0, 6.0)),
        arm("other, wrong", clock.call("wrong", 1.0), difference=2e-4),
        race.Arm("other, broken", broken),
    ]
    ours = clock.call("ours", 100.0, 2.0, 3.0, 4.0)
    make = lambda: race.Race(10.0, ours, arms, broken, 2, 6e9, 4e9, "said")  # noqa: E731
    return race.run(case(make), rounds, clock), clock


def test_rounds_are_interleaved_and_the_first_calls_are_not_timed():
    found, clock = raced()
    assert clock.calls[:3] == ["ours", "slow", "fast"]
    assert clock.calls[3:] == [
        *("ours", "slow", "fast"),
        *("slow", "fast", "ours"),
        *("fast", "ours", "slow"),
    ]
    assert found["arms"]["genaug"]["seconds"] == [2.0, 3.0, 4.0]
    assert race.ratios(found, "peer, slow") == [6.0, 4.0, 3.0]
    assert race.best(found, "peer") == "peer, fast"
    assert race.peers(found) == ["peer", "other"]


def test_an_arm_that_differs_or_breaks_is_not_timed_and_says_so():
    arms = raced()[0]["arms"]
    assert "differs by 2.0e-04" in arms["other, wrong"]["failed"]
    assert arms["other, broken"]["failed"] == "RuntimeError: no / compiler"
    assert race.best(raced()[0], "other") is None


def test_a_profile_is_kept_and_one_that_breaks_says_so():
    assert raced()[0]["profile"] == "RuntimeError: no / compiler"
    clock = Clock()
    made = lambda: race.Race(1.0, clock.call("ours", 1.0), [], lambda: "a table")  # noqa: E731
    assert race.run(case(made), 2, clock)["profile"] == "a table"


@pytest.mark.parametrize(
    "slow, fast, rounds",
    [
        ([3.0], [1.5], 1),  # long, and far apart
        ([1.9, 1.6], [1.7], 2),  # long and close
        ([0.3], [0.1], 4),  # short: a round says little
    ],
)
def test_long_calls_are_told_apart_by_a_round_or_two(slow, fast, rounds):
    clock = Clock()
    calls = [clock.call("slow", *slow), clock.call("fast", *fast)]
    assert race.quickest(calls, clock) == (len(slow) == 1)
    assert clock.calls == ["slow", "fast"] * rounds
    assert race.quickest([calls[0]], clock) == 0
    assert len(clock.calls) == 2 * rounds  # one has no rival


def test_a_peer_with_a_net_of_its_own_is_timed_and_one_that_is_not_here_says_so():
    clock = Clock()

    def missing():
        raise ModuleNotFoundError("No module named 'library'", name="library")

    arms = [
        race.Arm("own", lambda: race.Made(clock.call("own", 100.0, 6.0), None, "larger")),
        race.Arm("library", missing),
    ]
    ours = clock.call("ours", 100.0, 2.0)
    make = lambda: race.Race(1.0, ours, arms, str, remark="of both")  # noqa: E731
    found = race.run(case(make, {"own": 1.0, "library": 1.0}), 3, clock)
    own, library = map(cells, list(tables.races([found]))[2:4])
    assert own[1:4] + own[5:7] == ["own", "3.00 (3.00 to 3.00)", "3.00", "yes", ""]
    assert own[9] == "larger; of both"
    assert library[9] == "not measured: library is not here"
    assert tables.short_of(found, {"flops": 8e9}) == []


def test_a_nan_is_a_difference():
    clock = Clock()
    arms = [arm("peer", clock.call("peer", 1.0), difference=float("nan"))]
    make = lambda: race.Race(1.0, clock.call("ours", 1.0), arms, str)  # noqa: E731
    assert "failed" in race.run(case(make), 2, clock)["arms"]["peer"]


def test_a_case_that_cannot_be_made_is_a_row():
    found = race.run(case(lambda: 1 / 0), 3)
    assert found["failed"].startswith("ZeroDivisionError")
    assert "ZeroDivisionError" in list(tables.races([found]))[2]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_every_arm_and_judges_the_best_of_a_peer():
    found = raced()[0]
    head, rule, *rows, last = tables.races([found])
    assert last == ""
    assert {len(cells(line)) for line in (head, rule, *rows)} == {10}
    slow, fast, wrong, broken = map(cells, rows)
    assert slow[1:6] == ["peer, slow", "4.00 (3.00 to 6.00)", "6.00", "", ""]
    assert fast[1:6] == ["peer, fast", "2.00 (1.50 to 3.00)", "3.00", "2", "yes"]
    assert fast[7:] == ["3.33 examples", "1.67", "said"]
    assert wrong[6] == "2e-04"
    assert wrong[9].startswith("not measured: differs")
    assert broken[9] == "not measured: RuntimeError: no / compiler"
    limits = {"flops": 8e9, "bandwidth": 4e9}
    assert tables.short_of(found, limits) == []
    assert tables.short_of({**found, "must": {"peer": 2.5}}, limits) == ["peer"]
    assert tables.short_of({**found, "of_peak": 0.5}, limits) == []
    assert tables.short_of({**found, "of_peak": 0.51}, limits) == ["the peak"]


def test_the_limits_are_shares_of_what_was_measured():
    record = raced()[0]
    wanted = [record, {**record, "of_peak": 0.5}, {**record, "of_peak": 0.6}]
    lines = list(tables.against_limits(wanted, {"flops": 8e9, "bandwidth": 4e9}))
    # Two updates in 2, 3 and 4 s: 6 GFLOP in 1.5 s at the median.
    row, reached, missed = (cells(line) for line in lines[2:5])
    assert row[1:6] == ["6", "4.0 (3.5 to 5.0)", "50 %", "", ""]
    assert row[6:] == ["2.7", "67 %"]
    assert (reached[4:6], missed[4:6]) == (["50 %", "yes"], ["60 %", "**no**"])


def test_waiting_and_the_warm_start_are_judged():
    names = ("cold_s", "warm_s", "warm_traced_s", "warm_read_s", "cold_process_s", "warm_process_s")
    start = dict.fromkeys(names, 3.0)
    batches = {"title": "a", "batches_s": 1.0, "updates_s": 1.0, "waited": 0.02}
    found = {
        "inputs": [batches, {**batches, "waited": 0.019}],
        "starts": [{"title": "b", **start}, {"title": "c", **start, "warm_s": 3.01}],
    }
    lines = [cells(line) for line in tables._rest(found)]
    rows = {(line[0], line[3]): line for line in lines if len(line) > 1}
    assert rows["a", "2.0 %"][4:] == ["below 2 %", "**no**"]
    assert rows["a", "1.9 %"][5] == "yes"
    assert rows["b", "at most 3"][4] == "yes"
    assert rows["c", "at most 3"][4] == "**no**"


@pytest.mark.parametrize(
    "before, after, change",
    [
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], 0.2),
        ([1.0, 1.0, 1.0], [0.8, 0.8, 0.8], -0.2),
        ([1.0, 1.0, 1.0], [1.09, 1.09, 1.09], None),  # within the threshold
        ([0.5, 1.0, 1.5, 1.6], [1.2, 1.5, 1.9, 1.9], None),  # within the noise
        ([0.9, 1.0, 1.0, 1.1, 9.0], [1.4, 1.5, 1.5, 1.6, 0.1], 0.5),  # one outlier is no noise
    ],
)
def test_a_change_is_more_than_the_threshold_and_the_noise(before, after, change):
    found = history.moved(before, after)
    assert found == (None if change is None else pytest.approx(change))


def kept(**seconds):
    arms = {name: {"seconds": values} for name, values in seconds.items()}
    record = {"name": "a", "title": "what", "arms": arms}
    return {"machine": {"processor": "p", "cores": 2, "devices": []}, "cases": [record]}


def test_compare_names_what_changed_came_and_went():
    before = kept(genaug=[1.0] * 4, peer=[2.0] * 4, still=[3.0] * 4, gone=[1.0] * 4)
    after = kept(genaug=[1.0] * 4, peer=[1.0] * 4, still=[3.1] * 4)
    assert list(history.compare(before, after)) == [
        "what, against peer: 2.00 -> 1.00 (-50 %, genaug is SLOWER)",
        "what, against gone: no longer measured",
        "1 ratios within 10 % or their noise",
    ]
    after["machine"]["cores"] = 4
    after["cases"][0]["name"] = "b"
    said = list(history.compare(before, after))
    assert said[0].startswith("! Of different machines")
    assert said[1:3] == ["what: new", "what: not run"]


def test_a_run_is_kept_and_read_again(tmp_path):
    path = history.write(tmp_path / "history", kept(genaug=[1.0]))
    assert history.read(path) == kept(genaug=[1.0])
    with pytest.raises(DataError, match="not there"):
        history.read(tmp_path / "other.json")
    (tmp_path / "other.json").write_text(json.dumps([1]))
    with pytest.raises(DataError, match="no result"):
        history.read(tmp_path / "other.json")


def drawn(**seconds):
    arms = {name: {"seconds": values} for name, values in seconds.items()}
    return {
        "name": "a",
        "part": "training",
        "title": "a < b",
        "unit": "examples",
        "must": {"lost": 2.0, "held": 2.0, "missing": 2.0},
        "work": 1.0,
        "steps": 1,
        "flops": 0.0,
        "bytes": 0.0,
        "remark": "",
        "arms": {**arms, "missing": {"failed": "not here"}},
    }


def test_the_picture_has_the_fastest_form_of_every_peer_that_was_measured():
    record = drawn(**{"genaug": [1.0] * 3, "lost, slow": [4.0] * 3, "lost, fast": [0.5, 1.0, 1.5],
                      "held": [2.0, 10.0, 10.0], "free": [0.1] * 3})  # fmt: skip
    lost, held, free = plots.bars(record)
    assert lost == ("lost, fast", 1.0, 0.5, 1.5, 2.0)
    assert held == ("held", 10.0, 2.0, 10.0, 2.0)
    assert [one.held for one in (lost, held, free)] == [False, True, True]
    at = plots.axis_of([lost, held, free])
    part, case, *rows = plots.rows({"cases": [record]}, at)
    assert (part, case) == ({"part": "Training"}, {"case": "a < b"})
    at_two = rows[1]["low"]
    assert [row["must"] for row in rows] == [at_two, at_two, None]
    # A step of ten times is as wide everywhere.
    assert rows[1]["middle"] - rows[0]["middle"] == pytest.approx(
        rows[0]["middle"] - rows[2]["middle"], abs=0.02
    )
    assert 0.0 < rows[2]["low"] < rows[1]["high"] < 100.0


def test_a_run_that_was_kept_is_written_and_drawn_again(monkeypatch, tmp_path):
    record = drawn(genaug=[1.0] * 3, lost=[1.0] * 3, held=[4.0] * 3)
    machine = {"versions": {"jax": "1"}, "processor": "p", "cores": 2, "memory_gib": 8,
               "system": "s"}  # fmt: skip
    other = {**drawn(genaug=[1.0] * 3), "title": "b", "must": {}, "profile": "not short"}
    results = {"command": "c", "rounds": 3, "machine": machine,
               "limits": {"flops": 1.0, "bandwidth": 1.0},
               "cases": [{**record, "profile": "kind of operation"}, other]}  # fmt: skip
    path = history.write(tmp_path, results)
    monkeypatch.setattr(main, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--table", str(path), "--write"])
    main.main()
    page = (tmp_path / "RESULTS.md").read_text()
    assert f"({tables.PICTURE})" in page
    assert "### a < b\n\n```\nkind of operation\n```" in page
    assert "not short" not in page
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.parse(tmp_path / tables.PICTURE).getroot()
    texts = [one.text for one in root.iter(f"{svg}text")]
    assert {"Training", "a < b", "lost", "held", "4.00 (4.00 to 4.00)"} <= set(texts)
    kinds = {f"{svg}circle": ("yes",), f"{svg}rect": ("no",)}
    marks = [one.tag for one in root.iter() if one.get("class") in kinds.get(one.tag, ())]
    # The legend's, then the rows'.
    assert marks == [f"{svg}circle", f"{svg}rect", f"{svg}rect", f"{svg}circle"]


def test_only_names_that_exist_are_taken():
    assert main.chosen(["a", "b", "c"], ["c", "a"]) == ["a", "c"]
    assert main.chosen(["a", "b"], None) == ["a", "b"]
    with pytest.raises(UserError, match="there are a, b"):
        main.chosen(["a", "b"], ["d"])


def test_the_command_refuses_a_round_without_spread_and_compares_files(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--rounds", "1"])
    with pytest.raises(SystemExit):
        main.main()
    assert "--rounds" in capsys.readouterr().err
    path = history.write(tmp_path, kept(genaug=[1.0, 1.0], peer=[1.0, 1.0]))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare", str(path), str(path)])
    main.main()
    assert capsys.readouterr().out == "1 ratios within 10 % or their noise\n"
