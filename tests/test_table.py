"""Plain text tables."""

import dataclasses

import numpy as np
import pytest

from genaug.evaluation.results import Result
from genaug.table import aligned, audit_remarks, audit_table, results_table, spread


def arm(name, family="none", accuracy=(0.9, 0.92), gain=(0.01, -0.0004, 0.02)):
    return {
        "name": name,
        "family": family,
        "generative": "weight" in name,
        "test": {"accuracy": list(accuracy), "balanced_accuracy": [0.5, 0.5], "ece": [0.01, 0.02]},
        "against_bar": {"balanced_accuracy": list(gain)},
    }


RESULTS = {
    "metric": "balanced_accuracy",
    "level": 0.95,
    "num_seeds": 2,
    "bar": "affine",
    "candidate": "generated, weight 1",
    "chosen": {"generated": "generated, weight 1", "both": "both, weight 0.5"},
    "arms": [arm("affine"), arm("generated, weight 1"), arm("both, weight 0.5"), arm("none")],
}


def test_the_first_column_is_left_and_the_others_right_aligned():
    rows = [["", "bb"], ["aaa", "b"], ["a", "bbbb"]]
    assert aligned(rows).split("\n") == ["       bb", "aaa     b", "a    bbbb"]


@pytest.mark.parametrize("values", [[0.5, 0.52, 0.57], [0.1, 0.9]])
def test_a_spread_is_the_mean_and_the_sample_deviation(values):
    want = f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
    assert spread(values) == want
    assert spread([0.25]) == "25.0 ± 0.0"


def test_every_arm_has_a_line_and_the_chosen_ones_a_mark():
    head, *lines = results_table(RESULTS).split("\n")
    assert head.startswith("test scores, 2 seeds")
    assert "balanced vs bar (95 %)" in head
    assert "macro F1" not in head
    assert [line.split("  ")[0] for line in lines] == [a["name"] for a in RESULTS["arms"]]
    assert all("91.0 ± 1.4" in line for line in lines)
    for line, mark in zip(lines[:3], ["bar to beat", "candidate", "chosen weight"], strict=True):
        assert line.endswith(mark)
    assert "[" not in lines[0]  # the bar is not compared with itself
    assert "+1.0 [+0.0, +2.0]" in lines[1]


def test_columns_stand_under_their_titles():
    head, *lines = results_table(RESULTS).split("\n")
    for title, cell in [("accuracy", "91.0 ± 1.4"), ("balanced", "50.0 ± 0.0")]:
        end = head.index(title) + len(title)
        assert all(line[:end].endswith(cell) for line in lines)


def test_control_characters_in_names_are_neutralised():
    nasty = arm("\x1b[31mred\x07\x9b2J")
    text = results_table({**RESULTS, "arms": [*RESULTS["arms"], nasty]})
    assert "red" in text
    assert not set(text) & {"\x1b", "\x07", "\x9b"}
    assert len(text.split("\n")) == 6


ROW = Result(name="fd/pixels", value=1.25, low=1.0, high=1.5, floor=0.5, better="lower", n=90,
             share=False, meaning="How far.", remarks=("Few.",))  # fmt: skip


def test_an_audit_row_shows_its_interval_and_floor():
    head, with_floor, without = audit_table(
        [ROW, dataclasses.replace(ROW, name="x", floor=None)]
    ).split("\n")
    assert head.split("  ")[-1].strip() == "n"
    assert with_floor.split() == ["fd/pixels", "1.25", "1", "to", "1.5", "0.5", "lower", "90"]
    assert without.split() == ["x", "1.25", "1", "to", "1.5", "lower", "90"]
    assert len(with_floor) == len(without)


def test_classes_are_lines_of_a_table_of_their_own_and_changes_a_column():
    of_class = dataclasses.replace(ROW, group="\x1b[31mred", value=2.5)
    text = audit_table([ROW, of_class], {("fd/pixels", None): "+0.1 [-1, +1]"})
    head, row, blank, classes, line = text.split("\n")
    assert (head.split()[-1], row[-13:], blank) == ("change", "+0.1 [-1, +1]", "")
    assert classes.split()[-1] == "fd/pixels"
    assert line.endswith("2.5 [1 to 1.5] (0.5)")
    assert "red" in line
    assert "\x1b" not in line


def test_a_remark_is_made_once():
    other = dataclasses.replace(ROW, name="recall", remarks=("Few.", "Copies."))
    assert audit_remarks([ROW, other]) == ["fd/pixels, recall: Few.", "recall: Copies."]
    of_classes = [dataclasses.replace(ROW, group=group) for group in ("cat", "dog")]
    assert audit_remarks(of_classes) == ["fd/pixels of cat, dog: Few."]
    assert audit_remarks([ROW, *of_classes]) == ["fd/pixels: Few."]
