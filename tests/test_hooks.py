"""Mode coverage by class, and weighted validation scores."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tiny_run import tiny

from genaug import hooks, runs
from genaug.augmentation import flat
from genaug.evaluation.frechet import frechet_distance
from genaug.evaluation.manifold import manifold_scores

pytest_plugins = ["tiny_run"]
KEY = jax.random.key(0)


class Fake(NamedTuple):
    """Stands for a sampler: gives the images that it was told to, by label."""

    draw: Any

    def __call__(self, key, cond):
        return {"image": self.draw(cond["label"])}


@pytest.fixture
def run(tmp_path):
    config = dataclasses.replace(tiny().train, coverage_samples=60)
    return runs.prepare(dataclasses.replace(tiny(), train=config), tmp_path / "run", compare=False)


def coverage(run, draw):
    found = {}
    call = hooks.mode_coverage(
        run, lambda state: Fake(draw), KEY, lambda step, values: found.update(values)
    )
    call(10, None)
    return found


def test_a_class_that_collapses_is_seen_in_its_own_figure(run):
    train = run.dataset.arrays(run.splits.train)
    generator = np.random.default_rng(0)

    def collapsed_three(labels):
        rows = [generator.choice(np.flatnonzero(train["label"] == c)) for c in labels]
        images = train["image"][np.array(rows)]
        images[labels == 3] = train["image"][train["label"] == 3][0]
        return images

    found = coverage(run, collapsed_three)
    assert found["coverage_3"] < 0.35 < 0.6 < min(v for k, v in found.items() if k[-1] in "0145679")
    by_class = [value for name, value in found.items() if name != "coverage"]
    assert len(by_class) == 10
    np.testing.assert_allclose(found["coverage"], np.mean(by_class))


def test_coverage_is_logged_class_by_class_while_training(tmp_path, run_cli, experiment_file):
    options = ["--train.coverage-samples", "12", "--run-dir", tmp_path / "run", "--quiet"]
    assert run_cli("train", experiment_file, *options) == 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line for line in lines if "coverage" in line}
    assert list(seen) == [10, 20]
    for line in seen.values():
        by_class = [line[f"coverage_{c}"] for c in range(10)]
        assert all(0 <= value <= 1 for value in by_class)
        np.testing.assert_allclose(line["coverage"], np.mean(by_class))


def test_the_figure_is_the_coverage_of_that_many_training_images(run):
    groups = dict(hooks._groups(run))
    assert {len(rows) for rows in groups.values()} == {12, 60}, "rare classes have 12"
    train = run.dataset.arrays(run.splits.train)
    noise = np.random.default_rng(1).integers(0, 30, (500, 8, 8, 1)).astype(np.uint8)

    def draw(labels):
        first = [np.flatnonzero(train["label"] == c)[0] for c in labels]
        return (train["image"][first] // 2 + noise[: len(labels)]).astype(np.uint8)

    labels = np.concatenate([np.full(len(rows), c) for c, rows in groups.items()])
    made = flat(draw(labels))
    found = coverage(run, draw)
    for c, real in groups.items():
        want = manifold_scores(real, made[labels == c], 5).coverage
        assert found[f"coverage_{c}"] == want


def test_what_a_byte_takes_is_over_all_bytes_and_ends(run, monkeypatch):
    valid = {"num_bytes": np.array([1, 3, 0])}
    dataset = type("Fake", (), {"arrays": lambda self, rows: valid})()
    values = {"bits_per_byte": np.array([4.0, 2.0, 9.0]), "nll": np.array([3.0, 5.0, 7.0])}
    score = lambda weights, key, rows: values  # noqa: E731
    monkeypatch.setattr(hooks, "make_scorer", lambda model, mesh: score)
    splits = run.splits._replace(valid=np.arange(3))
    fake = type("Run", (), {"dataset": dataset, "splits": splits, "model": run.model, "mesh": None})
    found = {}
    state = run.model.init(KEY)
    call = _unchecked(hooks.scores)(fake(), KEY, lambda step, values: found.update(values))
    call(1, state)
    # 4 bits for 1 byte, 6 for 3, 9 for an end by itself.
    assert found["valid_bits_per_byte"] == (4 + 6 + 9) / 4
    # Of a ratio, linearised: the root of the sum of (bits - mean * bytes)^2, over all bytes.
    residuals = np.array([4 - 4.75, 6 - 3 * 4.75, 9])
    np.testing.assert_allclose(found["valid_bits_per_byte_se"], np.linalg.norm(residuals) / 4)
    assert found["valid_nll"] == 5.0


def _unchecked(function):
    """The function without the tests' type checks, for stand-ins."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_hooks_are_those_that_the_config_asks_for(run):
    assert len(hooks.hooks(run, {"grid": KEY, "score": KEY, "coverage": KEY}, print)) == 3


def test_the_distance_is_that_of_the_samples_to_the_training_images(run):
    train, valid = (run.dataset.arrays(rows) for rows in (run.splits.train, run.splits.valid))
    asked = {}

    def draw(labels):
        asked["labels"] = labels
        return valid["image"][: len(labels)]

    config = dataclasses.replace(run.experiment.train, distance_samples=100,
                                 distance_features="pixels")  # fmt: skip
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, train=config))
    found = {}
    call = hooks.distance(
        run, lambda state: Fake(draw), KEY, lambda step, values: found.update(values)
    )
    call(10, None)
    want = frechet_distance(flat(train["image"]), flat(valid["image"][:100]))
    np.testing.assert_allclose(found["fd_pixels"], want, rtol=1e-6)
    assert found["fd_pixels_floor"] == found["fd_pixels"]
    # Rare classes are as rare among the samples.
    share = np.mean(np.isin(asked["labels"], [2, 5, 8]))
    assert share == pytest.approx(36 / len(train["label"]), abs=0.06)


def test_the_distance_is_logged_while_training(tmp_path, run_cli, experiment_file, capsys):
    options = ["--train.distance-features", "pixels", "--run-dir", tmp_path / "run", "--quiet"]
    command = ["train", experiment_file, *options, "--train.distance-samples"]
    assert run_cli(*command, "1") == 2
    assert "one sample has no spread" in capsys.readouterr().err
    assert run_cli(*command, "50") == 0
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if "fd_pixels" in line]
    assert [line["step"] for line in seen] == [10, 20]
    assert all(line["fd_pixels"] > line["fd_pixels_floor"] > 0 for line in seen)
