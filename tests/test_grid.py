"""A study for every amount of real data."""

import dataclasses
import re

import numpy as np
import pytest
from tiny_run import tiny

from genaug import grid, report_grid
from genaug.data import Data
from genaug.evaluation import holm
from genaug.evaluation.learning_curve import effective_samples
from genaug.files import read_json, write_json
from genaug.table import grid_table
from genaug.types import UserError

pytest_plugins = ["tiny_run"]


def with_study(**changes):
    return dataclasses.replace(tiny(), study=dataclasses.replace(tiny().study, **changes))


def test_cells_are_budgets_times_imbalances_the_smallest_first():
    found = grid.cells(with_study(budgets=(10, 40), imbalances=(1.0, 5.0)))
    assert [cell.name for cell in found] == ["cell_10_1", "cell_10_5", "cell_40_1", "cell_40_5"]
    counts = [grid.cell_experiment(with_study(), cell).data for cell in found]
    assert [(data.class_count, data.rare_count) for data in counts] == [
        (10, 10), (10, 2), (40, 40), (40, 8)]  # fmt: skip


def test_without_imbalances_the_rare_are_as_configured_or_as_rare_as_the_rest():
    small, large = grid.cells(with_study(budgets=(8, 40)))
    assert grid.cell_experiment(with_study(), small).data.rare_count == 8
    assert grid.cell_experiment(with_study(), large).data.rare_count == 12
    one = grid.cell_experiment(with_study(budgets=(8, 40)), large)
    assert (one.name, one.study.budgets) == ("tiny/cell_40", ())


@pytest.mark.parametrize(
    "study, message",
    [
        ({"budgets": (10, 10)}, "that ascend"),
        ({"budgets": (0, 10)}, "from 1"),
        ({"budgets": (10,), "imbalances": (0.5,)}, "ratios from 1"),
        ({"budgets": (10,), "imbalances": (5.0, 5.0)}, "each once"),
    ],
)
def test_what_makes_no_cells(study, message):
    with pytest.raises(UserError, match=message):
        grid.cells(with_study(**study))


def test_imbalance_needs_classes_to_be_rare():
    with pytest.raises(UserError, match=r"needs data\.rare-classes"):
        grid.cells(dataclasses.replace(
            with_study(budgets=(10,), imbalances=(2.0,)), data=Data(source="digits")
        ))  # fmt: skip


def results(bar, gain, use=True, num_splits=3):
    def arm(name, score, against):
        return {"name": name, "test": {"accuracy": [score - 0.01, score + 0.01]},
                "against_bar": {"accuracy": against}}  # fmt: skip

    return {
        "metric": "accuracy",
        "level": 0.95,
        "num_splits": num_splits,
        "num_seeds": 2,
        "data": {"name": "made", "class_names": ["a", "b"]},
        "bar": "affine",
        "candidate": "generated",
        "arms": [arm("none", 0.3, [-0.2, -0.3, -0.1]), arm("affine", bar, [0, 0, 0]),
                 arm("generated", bar + gain[0], gain)],
        "verdict": {"use": use, "sentence": "so it is"},
    }  # fmt: skip


CELLS = [grid.Cell(n, None, f"cell_{n}") for n in (10, 100, 1000)]
FOUND = [
    results(0.5, [0.2, 0.15, 0.25]),
    results(0.7, [0.05, 0.001, 0.099]),
    results(0.9, [-0.01, -0.02, 0.0], use=False),
]


def test_the_cells_together():
    pooled = grid.pool("x", CELLS, FOUND)
    rows = pooled["cells"]
    assert [row["bar_score"] for row in rows] == pytest.approx([0.5, 0.7, 0.9])
    np.testing.assert_allclose(
        [row["p_adjusted"] for row in rows], holm([row["p_value"] for row in rows])
    )
    # Its own interval is above zero, but not after the correction for three cells.
    assert rows[1]["gain"][1] > 0
    assert [row["gain_shown"] for row in rows] == [True, False, False]
    assert rows[0]["worth"] == pytest.approx([10, 10**0.75, 10**1.25])
    reached = [0.75, 0.701, 0.799]
    want = effective_samples((10, 100, 1000), (0.5, 0.7, 0.9), 100, grid.Interval(*reached))
    assert rows[1]["worth"] == pytest.approx(list(want))
    assert (
        "USE IT: a gain of accuracy is shown in 1 of 3 cells (10 images a class)"
        in (pooled["verdict"]["sentence"])
    )


def test_no_gain_anywhere():
    pooled = grid.pool("x", CELLS[:1], FOUND[2:])
    assert pooled["verdict"]["sentence"].startswith(
        "DO NOT USE IT: a gain of accuracy is shown in 0"
    )
    assert pooled["cells"][0]["worth"] is None  # one budget is no curve


def test_table_and_page_say_what_a_gain_is_worth(tmp_path):
    pooled = grid.pool("<b>x</b>", CELLS, [*FOUND[:2], results(0.9, [0.05, 0.01, 0.09])])
    text = grid_table(pooled)
    assert "×10.0 (5.6 to 17.8)" in text
    assert text.split("\n")[3].endswith("beyond")
    write_json(tmp_path / "results.json", pooled)
    page = report_grid.write_report(tmp_path).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page
    assert page.count("<polyline") == 3
    # The band of the gain: its lower ends from the left, its upper ends back from the right.
    (ends,) = re.findall(r'<polygon class="band cand" points="([^"]*)"', page)
    x, y = np.array([point.split(",") for point in ends.split()], float).T
    low, high = np.array([0.65, 0.701, 0.91]), np.array([0.99, 0.799, 0.75])
    np.testing.assert_array_equal(x[:3], x[:2:-1])
    slope = (y[1] - y[0]) / (low[1] - low[0])
    np.testing.assert_allclose(y - y[0], slope * (np.concatenate([low, high]) - 0.65), atol=0.02)
    assert slope < 0  # SVG's y points down
    assert not re.search(r"https?://|url\(|@import", page)


def test_a_grid_from_the_command_line(run_cli, experiment_file, tmp_path, capsys):
    directory = tmp_path / "run"
    command = ("run", experiment_file, "--run-dir", directory, "--study.budgets", "12", "18")
    assert run_cli(*command) == 0
    found = read_json(directory / "results.json")
    assert [cell["budget"] for cell in found["cells"]] == [12, 18]
    for cell in found["cells"]:
        own = read_json(directory / cell["directory"] / "results.json")
        train = own["data"]["counts"]["train"]
        assert train == [12 if c in (2, 5, 8) else cell["budget"] for c in range(10)]
        assert (directory / cell["directory"] / "report.html").is_file()
    before = (directory / "results.json").read_bytes()
    capsys.readouterr()
    assert run_cli(*command) == 0  # all is there: nothing is trained again
    printed = capsys.readouterr().out
    assert "[1/5]" not in printed
    assert "cell 2 of 2" in printed
    assert found["verdict"]["sentence"].split(":")[0] in printed
    assert (directory / "results.json").read_bytes() == before

    page = directory / "report.html"
    page.unlink()
    assert run_cli("report", directory) == 0
    assert page.is_file()
    assert run_cli("sample", directory) == 2
    told = capsys.readouterr().err
    assert f"holds a run for every amount of data: name one, as {directory}/cell_12" in told


def test_too_little_data_is_refused_before_anything_is_trained(
    run_cli, experiment_file, tmp_path, capsys
):
    folder = tmp_path / "run"
    assert run_cli("run", experiment_file, "--run-dir", folder, "--study.budgets", "3", "18") == 2
    assert "only 30 training examples" in capsys.readouterr().err
    assert not folder.exists()
