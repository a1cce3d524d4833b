"""The run folder: what it records, whom it belongs to, and how it is opened again."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_run import files as names_of
from tiny_run import tiny

import genaug
from genaug import checkpoint, checks, files, runs
from genaug.config import from_json
from genaug.data import Data
from genaug.logs import read_metrics
from genaug.models.dcgan import DCGAN
from genaug.nets.adversarial import WassersteinGP
from genaug.types import UserError

pytest_plugins = ["tiny_run"]


def test_the_config_of_a_run_is_the_experiment(finished):
    assert from_json(files.read_json(finished / "config.json")) == tiny()


def test_the_environment_names_versions_and_devices(finished):
    about = files.read_json(finished / "environment.json")
    assert about["genaug"] == genaug.__version__
    assert about["jax"] == jax.__version__
    assert len(about["devices"]) == jax.device_count()
    assert set(runs.LIBRARIES) <= set(about)


def test_the_description_of_the_data_counts_every_split(finished):
    about = files.read_json(finished / "data.json")
    assert about["name"] == "digits"
    assert "CC BY 4.0" in about["licence"]
    assert len(about["fingerprint"]) == 64
    assert [about["counts"]["train"][c] for c in (2, 5, 8)] == [12, 12, 12]
    assert min(about["counts"]["test"]) > 40  # the test split is not cut
    assert min(about["counts"]["valid"]) > 10


def test_a_run_is_opened_without_its_data(finished, monkeypatch):
    def never(*arguments):
        raise AssertionError("the data was read")

    monkeypatch.setattr(Data, "read", never)
    run = runs.open_run(finished)
    assert run.step == 20
    assert run.spec["image"].shape == (8, 8, 1)
    assert run.spec["label"].num_classes == 10
    assert run.experiment == tiny()


def test_a_run_made_on_more_devices_is_opened_on_those_there_are(finished_copy):
    path = finished_copy / "config.json"
    config = files.read_json(path)
    config["mesh"]["data"] = 4096
    files.write_json(path, config)
    assert runs.open_run(finished_copy).mesh.size == jax.device_count()


def test_a_batch_that_the_family_cannot_take_is_refused_before_anything_is_written(tmp_path):
    model = DCGAN(
        generator_features=(8,),
        discriminator_features=(8,),
        norm="layer",
        loss=WassersteinGP(critic_steps=5),
    )
    with pytest.raises(UserError, match=r"train.batch-size \d+ does not divide .*critic-steps 5"):
        runs.prepare(dataclasses.replace(tiny(), model=model), tmp_path / "run", compare=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("samples", [1, 5])
def test_a_coverage_of_fewer_samples_than_neighbours_is_refused(samples):
    train = dataclasses.replace(tiny().train, coverage_samples=samples)
    with pytest.raises(UserError, match=f"coverage-samples is {samples}; .* use 6 or more, or 0"):
        checks.check(dataclasses.replace(tiny(), train=train))


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"train": {"accumulate": 3, "batch_size": 50}},
            "50 is not divisible by the 2 devices .* train.accumulate 3",
        ),
        ({"mesh": {"data": 1, "tensor": 2}}, "rule .* matches no array of this model"),
    ],
)
def test_what_the_mesh_cannot_take_is_refused_before_anything_is_written(tmp_path, changes, words):
    experiment = tiny()
    for part, fields in changes.items():
        changed = dataclasses.replace(getattr(experiment, part), **fields)
        experiment = dataclasses.replace(experiment, **{part: changed})
    with pytest.raises(UserError, match=words):
        runs.prepare(experiment, tmp_path / "run", compare=False)
    assert not (tmp_path / "run").exists()


def test_coverage_of_classes_that_are_all_too_small_is_refused(tmp_path):
    experiment = dataclasses.replace(
        tiny(),
        data=Data(source="digits", rare_classes=tuple("0123456789"), rare_count=5),
        train=dataclasses.replace(tiny().train, batch_size=32, coverage_samples=12),
    )
    with pytest.raises(UserError, match="5 neighbours, and no class has more than 5"):
        runs.prepare(experiment, tmp_path / "run", compare=False)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(finished_copy):
    (finished_copy / "checkpoints" / "20" / "state" / "_METADATA").write_text("x")
    assert runs.open_run(finished_copy).step == 10


def test_preparing_twice_is_the_same_and_the_rare_classes_are_positions(tmp_path):
    one, other = (runs.prepare(tiny(), tmp_path / "run") for _ in range(2))
    assert one.rare == other.rare == (2, 5, 8)
    for a, b in zip(one.splits, other.splits, strict=True):
        np.testing.assert_array_equal(a, b)
    assert names_of(tmp_path / "run") == {"config.json", "data.json", "environment.json"}


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json cannot be read as JSON"):
        files.read_json(path)


def test_json_is_written_whole_and_leaves_no_partial_file(tmp_path):
    files.write_json(tmp_path / "deep" / "x.json", {"a": [1, None]})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": [1, None]}
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "deep" / "x.json", {"a": object()})
    assert names_of(tmp_path) == {"deep/x.json"}
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": [1, None]}


def test_a_folder_is_claimed_by_one_config(tmp_path):
    checks.check_claim(tmp_path / "absent", tiny())
    checks.check_claim(tmp_path, tiny())
    (tmp_path / ".lock").write_text("")
    checks.check_claim(tmp_path, tiny())
    (tmp_path / "other").write_text("")
    with pytest.raises(UserError, match="holds no run"):
        checks.check_claim(tmp_path, tiny())


def test_the_cut_in_words():
    assert runs.fraction_text(tiny().data) == " (2, 5, 8 cut to 12)"
    assert runs.fraction_text(type(tiny().data)()) == ""


@pytest.mark.parametrize("name", ["data", "next_batch", "config"])
def test_a_checkpoint_of_other_data_order_or_config_is_refused(
    finished_copy, experiment_file, run_cli, capsys, name
):
    """As where checkpoints were copied from another run, or an update draws batches otherwise."""
    directory = finished_copy / "checkpoints"
    mark = checkpoint.read_mark(directory, 20)
    other = {"config": {**mark["about"]["config"], "seed": 5}}.get(name, "other")
    mark["about"][name] = other
    files.write_json(directory / "20.json", {**mark, "digest": checkpoint._digest(mark)})
    assert run_cli("train", experiment_file, "--run-dir", finished_copy) == 2
    said = capsys.readouterr().err
    assert {"data": "data: ", "next_batch": "next-batch: ", "config": "config.seed: 5 -> 0"}[
        name
    ] in said
    assert checkpoint.steps(directory) == [10, 20]


def trained(run_cli, experiment_file, run, *options):
    return run_cli("train", experiment_file, "--run-dir", run, "--quiet", *options)


def test_a_changed_field_is_refused_unless_it_is_named(run_cli, experiment_file, tmp_path, capsys):
    """Twice longer, with another rate: resumed, resumed again, and finished once more."""
    run = tmp_path / "run"
    assert trained(run_cli, experiment_file, run) == 0
    change = ("--train.num-steps", 30, "--model.optimizer.learning-rate", 1e-4)
    assert trained(run_cli, experiment_file, run, *change) == 2
    said = capsys.readouterr().err
    assert "train.num-steps: 20 -> 30" in said
    assert "model.optimizer.learning-rate: 0.001 -> 0.0001" in said
    allow = ("--allow-change", "train.num-steps")
    assert trained(run_cli, experiment_file, run, *change, *allow) == 2
    assert "(model.optimizer.learning-rate: 0.001 -> 0.0001)" in capsys.readouterr().err
    assert checkpoint.steps(run / "checkpoints") == [10, 20]
    allow = (*allow, "--allow-change", "model.optimizer.learning-rate")
    assert trained(run_cli, experiment_file, run, *change, *allow) == 0
    assert checkpoint.steps(run / "checkpoints") == [20, 30]
    assert files.read_json(run / "config.json")["train"]["num_steps"] == 30
    before = (run / "metrics.jsonl").read_bytes()
    assert trained(run_cli, experiment_file, run, *change) == 0  # it is the run's config now
    assert (run / "metrics.jsonl").read_bytes() == before
    longer = ("--train.num-steps", 40, *change[2:], "--allow-change", "train.num-steps")
    assert trained(run_cli, experiment_file, run, *longer) == 0
    assert checkpoint.steps(run / "checkpoints") == [30, 40]
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [*range(5, 41, 5)]


def test_a_field_that_is_not_there_cannot_change(run_cli, experiment_file, tmp_path, capsys):
    allow = ("--allow-change", "train.num_steps")
    assert trained(run_cli, experiment_file, tmp_path / "run", *allow) == 2
    assert "there is no such field. Did you mean train.num-steps?" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_change_after_the_comparison_is_refused(finished_copy, run_cli, experiment_file, capsys):
    change = ("--train.num-steps", 30, "--allow-change", "train.num-steps")
    assert run_cli("run", experiment_file, "--run-dir", finished_copy, *change) == 2
    assert "holds synthetic.npz, which was made with another config" in capsys.readouterr().err


def test_a_config_from_before_a_field_was_added_is_its_own(finished_copy):
    path = finished_copy / "config.json"
    config = files.read_json(path)
    del config["train"]["patience"]
    files.write_json(path, config)
    checks.check_claim(finished_copy, tiny())
