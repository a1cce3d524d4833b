"""Several splits: pooled as SciPy pools them, chosen on validation data, run and resumed as one."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats
from test_job import Stop
from test_report import visible
from tiny_run import files, tiny

from genaug import devices, generator, job, replication, runs
from genaug.config import from_json
from genaug.evaluation.study import Study
from genaug.files import read_json
from genaug.replication import pool, split_experiment
from genaug.table import results_table
from genaug.types import UserError

pytest_plugins = ["tiny_run"]

NUM_SEEDS = 4
METRICS = ("accuracy", "rare_recall", "recall/0", "recall/1")
BASES = {"generated": "oversampling", "affine + generated": "affine"}


def arm(name, valid, test, seed=0, base=None):
    """An arm of one split as results.json has it: seeds scatter about the given means."""
    family = name.split(",")[0].removesuffix(" x2")
    generator = np.random.default_rng([seed, *name.encode()])

    def scores(mean):
        return {
            metric: (mean + 0.01 * generator.normal(size=NUM_SEEDS)).tolist()
            for metric in ("accuracy", "rare_recall")
        } | {"recall": (mean + 0.02 * generator.normal(size=(NUM_SEEDS, 2))).tolist()}

    return {
        "name": name,
        "family": family,
        "base": base or BASES.get(family, name),
        "generative": "weight" in name,
        "weight": float(name.split()[-1]) if "weight" in name else 0.0,
        "valid": scores(valid),
        "test": scores(test),
        "against_bar": {name: [0, 0, 0] for name in METRICS},
    }


def split(arms, seed=0, kept=(0, 5), audit=(), level=0.9):
    """The results.json of one split. arms: name -> validation mean, test mean, its base."""
    refused = {"label": [0, 2], "duplicate": [0, 1]}
    return {
        "format": 1,
        "name": "x/split",
        "seed": seed,
        "data": {"counts": {"train": [9, 2]}},
        "rare_classes": [1],
        "metric": "rare_recall",
        "level": level,
        "interval": "bootstrap over test images and seeds",
        "num_splits": 1,
        "num_seeds": NUM_SEEDS,
        "training": [{"step": seed}],
        "drawn": {"wanted": [0, 7], "drawn": [0, 8], "kept": list(kept), "refused": refused},
        "arms": [arm(name, *means[:2], seed, *means[2:]) for name, means in arms.items()],
        "bar": "oversampling",
        "chosen": {},
        "candidate": "generated, weight 1",
        "verdict": {"use": False, "sentence": f"said by {seed}"},
        "audit": list(audit),
    }


ARMS = {
    "oversampling": (0.6, 0.6),
    "affine": (0.8, 0.8),
    "generated, weight 0.5": (0.7, 0.7),
    "affine + generated, weight 0.5": (0.82, 0.83),
    "affine + generated, weight 1": (0.81, 0.82),
}


def by_name(results):
    return {arm["name"]: arm for arm in results["arms"]}


def seed_means(found, name, metric):
    base, _, label = metric.partition("/")
    values = [by_name(one)[name]["test"][base] for one in found]
    return np.mean([[v[int(label)] for v in seeds] if label else seeds for seeds in values], axis=1)


# --- pooling ---


@pytest.mark.parametrize("num_splits", [2, 5])
def test_differences_and_their_intervals_are_scipys(num_splits):
    found = [split(ARMS, seed) for seed in range(num_splits)]
    results = pool("x", found)
    assert results["bar"] == "affine"
    for name, pooled in by_name(results).items():
        for metric in METRICS:
            a, b = (seed_means(found, which, metric) for which in (name, "affine"))
            estimate, low, high = pooled["against_bar"][metric]
            np.testing.assert_allclose(estimate, np.mean(a - b), atol=1e-12)
            if name == "affine":
                assert (estimate, low, high) == (0, 0, 0)
                continue
            want = scipy.stats.ttest_rel(a, b).confidence_interval(0.9)
            np.testing.assert_allclose([low, high], want, rtol=1e-9)
        a, b = (seed_means(found, which, "rare_recall") for which in (name, "affine"))
        np.testing.assert_allclose(pooled["by_split"], a - b, atol=1e-12)


def test_scores_are_those_of_every_split_in_turn():
    found = [split(ARMS, seed) for seed in range(3)]
    results = pool("x", found)
    for name, pooled in by_name(results).items():
        for part in ("valid", "test"):
            for metric in ("accuracy", "rare_recall", "recall"):
                want = [seed for one in found for seed in by_name(one)[name][part][metric]]
                assert pooled[part][metric] == want
                assert len(want) == 3 * NUM_SEEDS


def test_what_is_not_a_sum_or_a_score_is_the_first_splits():
    found = [split(ARMS, 7 + seed, kept=(seed, 5)) for seed in range(3)]
    before = copy.deepcopy(found)
    results = pool("mine", found)
    assert found == before
    assert results["name"] == "mine"
    assert (results["num_splits"], results["num_seeds"]) == (3, NUM_SEEDS)
    assert results["interval"] == "t over 3 splits"
    assert results["training"] == [{"step": 7}]
    assert results["data"] == found[0]["data"]
    assert results["drawn"] == {
        "wanted": [0, 21],
        "drawn": [0, 24],
        "kept": [3, 15],
        "refused": {"label": [0, 6], "duplicate": [0, 3]},
    }
    assert results["splits"] == [
        {"name": f"split_{i}", "seed": 7 + i, "verdict": f"said by {7 + i}"} for i in range(3)
    ]


def test_a_clear_gain_in_every_split_is_worth_using():
    results = pool("x", [split(ARMS | {"affine": (0.5, 0.5)}, seed) for seed in range(4)])
    assert results["verdict"]["use"]
    sentence = results["verdict"]["sentence"]
    assert sentence.startswith("USE IT: affine + generated, weight 0.5 gains +2")
    assert re.search(r"\(90 % interval \+2\d\.\d to \+2\d\.\d over 4 splits\) against", sentence)


def test_a_gain_in_one_split_of_three_is_none():
    """The mean gain is large; that it is the same in every split is what would have to be shown."""
    gains = (0.0, 0.0, 0.15)
    found = [
        split(ARMS | {"affine + generated, weight 0.5": (0.82 + gain, 0.8 + gain)}, seed)
        for seed, gain in enumerate(gains)
    ]
    results = pool("x", found)
    estimate, low, _ = by_name(results)[results["candidate"]]["against_bar"]["rare_recall"]
    assert low < 0 < 0.04 < estimate
    assert not results["verdict"]["use"]
    assert "no gain is shown" in results["verdict"]["sentence"]


def test_everything_is_chosen_by_the_mean_validation_score_over_all_splits():
    """Every split by itself would choose otherwise, and so would the test scores."""
    names = [*ARMS, "SMOTE"]
    valid = {
        "oversampling": (0.9, 0.5, 0.5),
        "affine": (0.6, 0.7, 0.9),
        "SMOTE": (0.5, 0.9, 0.6),
        "generated, weight 0.5": (0.7, 0.7, 0.7),
        "affine + generated, weight 0.5": (0.8, 0.6, 0.8),
        "affine + generated, weight 1": (0.5, 0.95, 0.75),
    }
    test = {"affine": 0.1, "affine + generated, weight 0.5": 0.1}
    found = [
        split({name: (valid[name][i], test.get(name, 0.9)) for name in names}, i) for i in range(3)
    ]
    results = pool("x", found)
    assert results["bar"] == "affine"
    assert results["candidate"] in (
        "affine + generated, weight 0.5",
        "affine + generated, weight 1",
    )
    means = {name: np.mean([by_name(o)[name]["valid"]["rare_recall"] for o in found])
             for name in names}  # fmt: skip
    assert results["candidate"] == max((n for n in names if "weight" in n), key=means.get)
    assert results["chosen"] == {
        "generated": "generated, weight 0.5",
        "affine + generated": max(
            ["affine", *(n for n in names if "affine +" in n)], key=means.get
        ),
    }


def test_a_family_that_validation_prefers_without_is_not_used():
    arms = ARMS | {
        "affine + generated, weight 0.5": (0.75, 0.95),
        "affine + generated, weight 1": (0.7, 0.9),
    }
    results = pool("x", [split(arms, seed) for seed in range(3)])
    assert results["chosen"]["affine + generated"] == "affine"
    assert by_name(results)[results["candidate"]]["against_bar"]["rare_recall"][1] > 0
    assert not results["verdict"]["use"]
    assert "validation prefers to do without (weight 0)" in results["verdict"]["sentence"]


def varying(valid_generated):
    """Three splits in each of which validation put the family on another strength of affine."""
    found = []
    for i, base in enumerate(["affine", "affine x2", "affine"]):
        family = {f"affine + generated, weight {w}": (valid_generated, 0.9, base) for w in (0.5, 1)}
        valid = {name: 0.8 if name == base else 0.6 for name in ("affine", "affine x2")}
        arms = {"oversampling": (0.5, 0.5)} | {name: (v, v - 0.1) for name, v in valid.items()}
        found.append(split({**arms, "generated, weight 1": (0.5, 0.5), **family}, i))
    return found


def test_a_base_that_differs_by_split_is_an_arm_of_its_own_and_never_the_bar():
    found = varying(valid_generated=0.9)
    results = pool("x", found)
    arms = by_name(results)
    assert list(arms) == [
        "oversampling",
        "affine",
        "affine x2",
        "affine, chosen by split",
        "generated, weight 1",
        "affine + generated, weight 0.5",
        "affine + generated, weight 1",
    ]
    own = arms["affine, chosen by split"]
    for part in ("valid", "test"):
        want = [
            seed
            for one, base in zip(found, ["affine", "affine x2", "affine"], strict=True)
            for seed in by_name(one)[base][part]["rare_recall"]
        ]
        assert own[part]["rare_recall"] == want
    assert not own["generative"]
    assert np.mean(own["valid"]["rare_recall"]) > np.mean(arms["affine"]["valid"]["rare_recall"])
    assert results["bar"] == "affine"
    assert arms["affine + generated, weight 1"]["base"] == "affine, chosen by split"
    assert arms["generated, weight 1"]["base"] == "oversampling"
    assert results["chosen"]["affine + generated"].startswith("affine + generated, weight")


def test_weight_0_is_the_base_of_every_split():
    """0.77 is more than either strength has over all splits, and less than what they choose."""
    results = pool("x", varying(valid_generated=0.77))
    assert results["chosen"]["affine + generated"] == "affine, chosen by split"
    assert "prefers to do without" in results["verdict"]["sentence"]


def test_without_a_generated_image_in_any_split_there_is_nothing_to_use():
    found = [split(ARMS, seed, kept=(0, 0)) for seed in range(2)]
    assert "no generated image passed" in pool("x", found)["verdict"]["sentence"]
    found[1]["drawn"]["kept"] = [0, 1]
    assert "no generated image passed" not in pool("x", found)["verdict"]["sentence"]


def audit_row(name, value, floor):
    return {"name": name, "value": value, "low": 0.0, "high": 9.0, "floor": floor,
            "better": "lower", "n": 36, "meaning": "How far.", "remarks": ["Few."],
            "share": name == "coverage", "group": None}  # fmt: skip


def test_the_audit_is_the_mean_with_scipys_interval_within_what_can_be():
    distances, shares, floors = [0.5, 3.5, 9.0], [0.5, 0.9, 0.99], [0.1, 0.2, 0.6]
    found = [
        split(ARMS, i, audit=[
            audit_row("fd/classifier", distances[i], None if i else 1.0),
            audit_row("coverage", shares[i], floors[i]),
            audit_row("copying_test", -distances[i], 0.0) | {"low": -10.0},
            *([audit_row("recall", 0.5, 0.5)] if i != 1 else []),
        ])
        for i in range(3)
    ]  # fmt: skip
    distance, coverage, signed = pool("x", found)["audit"]
    low, high = scipy.stats.ttest_1samp(distances, 0).confidence_interval(0.95)
    assert low < 0
    np.testing.assert_allclose([distance["low"], distance["high"]], [0, high], rtol=1e-9)
    np.testing.assert_allclose(distance["value"], np.mean(distances))
    np.testing.assert_allclose([signed["low"], signed["high"]], [-high, -low], rtol=1e-9)
    assert distance["floor"] is None
    assert distance["remarks"][0] == "Few."
    assert distance["remarks"][1].startswith("A mean over 3 splits with Student's t")
    low, high = scipy.stats.ttest_1samp(shares, 0).confidence_interval(0.95)
    assert high > 1
    np.testing.assert_allclose([coverage["low"], coverage["high"]], [low, 1.0], rtol=1e-9)
    np.testing.assert_allclose(coverage["floor"], 0.3)
    assert (coverage["name"], coverage["n"]) == ("coverage", 36)
    assert pool("x", [*found, split(ARMS, 3)])["audit"] == []


def test_the_table_says_what_it_is_over():
    head, *lines = results_table(pool("x", [split(ARMS, seed) for seed in range(3)])).split("\n")
    assert head.startswith(f"test scores, 3 splits x {NUM_SEEDS} seeds")
    assert "rare recall vs bar (90 %, t over 3 splits)" in head
    assert len(lines) == len(ARMS)


# --- running ---


def test_every_split_has_a_split_and_seeds_of_its_own():
    experiment = tiny()
    for i in range(3):
        one = split_experiment(experiment, i)
        assert (one.seed, one.data.split_seed) == (experiment.seed + i, i)
        assert one.name == f"tiny/split_{i}"
        assert one.study == experiment.study
    assert one.train == experiment.train
    assert one.data.rare_count == 12


SEVERAL = """
import dataclasses

from tiny_run import tiny


def config():
    one = tiny()
    study = dataclasses.replace(
        one.study,
        num_splits=2,
        strengths=(1.0, 2.0),
        on_top="all",
        checks=(0.0, 0.5),
        metric="rare_recall",
    )
    return dataclasses.replace(one, study=study)
"""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, compile_cache):
    """A run over two splits that was never stopped, and what it printed."""
    import contextlib
    import io

    from genaug import cli

    folder = tmp_path_factory.mktemp("several")
    (folder / "several.py").write_text(SEVERAL)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(devices, "use_cpu_cores_as_devices", lambda: None)
        patch.setenv("GENAUG_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))
        arguments = ["run", str(folder / "several.py"), "--run-dir", str(folder / "run")]
        assert cli.main(arguments) == 0
    return folder / "run", printed.getvalue()


@pytest.fixture
def command(unbroken, tmp_path):
    """The same command on another folder."""
    directory, _ = unbroken
    return ("run", directory.parent / "several.py", "--run-dir", tmp_path / "run", "--quiet")


def test_a_run_over_splits_leaves_whole_runs_and_their_sum(unbroken):
    directory, printed = unbroken
    results = read_json(directory / "results.json")
    assert files(directory) >= {
        *("config.json", "environment.json", "data.json", "results.json", "report.html"),
        "study/pictures.npz",
        *(f"split_{i}/{name}" for i in range(2) for name in
          ("config.json", "results.json", "report.html", "export/bundle.json")),
    }  # fmt: skip
    assert not (directory / "export").exists()
    assert from_json(read_json(directory / "config.json")).study.num_splits == 2
    found = [read_json(directory / f"split_{i}" / "results.json") for i in range(2)]
    assert json.loads(json.dumps(pool("tiny", found))) == results
    kinds = ["affine", "elastic", "affine + elastic"]
    fixed = ["none", "none, longer", "class weights", "oversampling", "SMOTE"]
    fixed += [name for kind in kinds for name in (kind, f"{kind} x2")]
    made = [
        f"{base}generated{check}, weight 0.5"
        for base in ("", *(f"{kind} + " for kind in kinds))
        for check in ("", " (label 0.5)")
    ]
    for one in found:
        assert [arm["name"] for arm in one["arms"]] == [*fixed, *made]
    pooled = [arm["name"] for arm in results["arms"] if "chosen by split" not in arm["name"]]
    assert pooled == [*fixed, *made]
    assert results["bar"] in fixed
    assert "test scores, 2 splits x 2 seeds" in printed
    assert f"Report   {directory}/report.html" in printed
    assert f"Sampler  {directory}/split_*/export/" in printed
    assert results["verdict"]["sentence"] in printed


def test_a_folder_of_several_runs_has_no_sampler_of_its_own(unbroken, run_cli, capsys):
    directory, _ = unbroken
    assert run_cli("sample", directory) == 2
    assert f"holds a run for every split: name one, as {directory}/split_0" in (
        capsys.readouterr().err
    )


def test_splits_differ_in_data_generator_and_arms(unbroken):
    directory, _ = unbroken
    one, other = (runs.prepare(split_experiment(several(directory), i), directory / f"split_{i}")
                  for i in range(2))  # fmt: skip
    for part in ("train", "valid", "test"):
        assert set(getattr(one.splits, part)) != set(getattr(other.splits, part)), part
    results = [read_json(directory / f"split_{i}" / "results.json") for i in range(2)]
    assert [found["seed"] for found in results] == [0, 1]
    assert results[0]["training"] != results[1]["training"]
    for a, b in zip(*(found["arms"] for found in results), strict=True):
        assert a["test"]["accuracy"] != b["test"]["accuracy"]


def several(directory):
    return from_json(read_json(directory / "config.json"))


def test_the_page_names_its_interval_and_links_every_split(unbroken):
    directory, _ = unbroken
    page = (directory / "report.html").read_text(encoding="utf-8")
    text = visible(page)
    assert read_json(directory / "results.json")["verdict"]["sentence"] in text
    assert "The interval is Student’s t over the 2 splits’ differences" in text
    assert "both are resampled" not in text
    links = re.findall(r'<a href="([^"]*)">', page)
    assert links == ["./split_0/report.html", "./split_1/report.html"]
    for link in links:
        assert "both are resampled" in (directory / link).read_text(encoding="utf-8")


def test_a_run_stopped_after_a_split_goes_on_with_the_next(unbroken, command, run_cli, monkeypatch):
    directory = command[3]
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, job, "run_job", after=True)
        assert run_cli(*command) == 130
    assert (directory / "split_0" / "report.html").is_file()
    assert not (directory / "split_1").exists()
    assert not (directory / "results.json").exists()
    kept = {p: p.stat().st_mtime_ns for p in (directory / "split_0").rglob("*") if p.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, job.classifier, "train_replicas", call=2)
        assert run_cli(*command) == 130
    assert (directory / "split_1" / "study").exists()
    trained = []
    real = generator.fit
    monkeypatch.setattr(
        generator,
        "fit",
        lambda *a, **o: (trained.append(o["checkpoints"].parent.name), real(*a, **o))[1],
    )
    assert run_cli(*command) == 0
    assert trained == ["split_1"]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    for name in ("results.json", "split_0/results.json", "split_1/results.json"):
        assert (directory / name).read_bytes() == (unbroken[0] / name).read_bytes(), name
    assert (directory / "study" / "pictures.npz").read_bytes() == (
        directory / "split_0" / "study" / "pictures.npz"
    ).read_bytes()


@pytest.fixture
def copied(unbroken, command):
    shutil.copytree(unbroken[0], command[3])
    return command[3]


def test_finished_splits_are_pooled_again_and_nothing_is_trained(
    copied, command, run_cli, monkeypatch
):
    before = (copied / "results.json").read_bytes()
    for name in ("results.json", "report.html", "study/pictures.npz"):
        (copied / name).unlink()

    def never(*arguments, **options):
        raise AssertionError("a finished split ran again")

    monkeypatch.setattr(job, "run_job", never)
    assert run_cli(*command) == 0
    assert (copied / "results.json").read_bytes() == before
    assert (copied / "report.html").is_file()


def test_a_split_without_its_report_is_run_to_its_end(copied, command, run_cli, monkeypatch):
    """results.json is there before the sampler is exported."""
    (copied / "split_1" / "report.html").unlink()
    shutil.rmtree(copied / "split_1" / "export")
    before = (copied / "results.json").read_bytes()
    monkeypatch.setattr(job.classifier, "train_replicas", None)
    assert run_cli(*command) == 0
    assert (copied / "split_1" / "export" / "bundle.json").is_file()
    assert (copied / "results.json").read_bytes() == before


def test_a_split_of_another_config_is_not_pooled(copied, command, run_cli, capsys):
    path = copied / "split_1" / "config.json"
    path.write_text(json.dumps({**read_json(path), "seed": 5}))
    assert run_cli(*command) == 2
    error = capsys.readouterr().err
    assert "split_1 belongs to a run of another config (seed: 5 -> 1)" in error


def test_train_trains_one_generator_and_no_split(command, run_cli, tmp_path):
    _, *rest = command
    assert run_cli("train", *rest) == 0
    assert (tmp_path / "run" / "checkpoints" / "20.json").is_file()
    assert not (tmp_path / "run" / "split_0").exists()


# --- bad values ---


@pytest.mark.parametrize(
    "fields, words",
    [
        (("--study.num-splits", "0"), "study.num-splits is 0; it must be at least 1"),
        (("--study.strengths", "0.5", "2"), "study.strengths must contain 1"),
        (("--study.strengths",), "study.strengths must contain 1"),
        (("--study.strengths", "1", "0"), "study.strengths is 0.0; it must be above 0"),
        (("--study.strengths", "1", "-2"), "study.strengths is -2.0; it must be above 0"),
        (("--study.strengths", "1", "nan"), "study.strengths is nan"),
        (("--study.strengths", "1", "inf"), "study.strengths is inf"),
        (("--study.strengths", "1", "2", "2"), "study.strengths names"),
        (("--study.weights", "0.5", "0.5"), "study.weights names"),
        (("--study.checks", "0.5", "1.5"), "study.checks is 1.5"),
        (("--study.on-top", "some"), "Invalid choice 'some'"),
        (("--study.num-splits", "2", "--data.test-fraction", "0"), "no images to compare arms on"),
    ],
)
def test_a_study_that_cannot_be_is_refused_and_leaves_nothing(
    run_cli, experiment_file, tmp_path, capsys, fields, words
):
    assert run_cli("run", experiment_file, "--run-dir", tmp_path / "run", *fields) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_pooling_one_split_is_refused():
    with pytest.raises(UserError, match="at least 2 differences"):
        pool("x", [split(ARMS)])


def test_one_split_is_the_default():
    assert Study().num_splits == 1
    assert replication.AUDIT_LEVEL == 0.95
