"""The main job: everything is there at the end, and a stopped run ends as an unbroken one."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import files, subprocess_environment, tiny

from genaug import arms, checkpoint, export, generator, job, parallel, report, runs
from genaug.bundle import load_sampler
from genaug.data import splits as splitting
from genaug.devices import DeviceMesh
from genaug.evaluation import study as studies

pytest_plugins = ["tiny_run"]


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished / "results.json").read_text())


# --- what a run leaves ---


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "environment.json",
        "data.json",
        "metrics.jsonl",
        "results.json",
        "report.html",
        "synthetic.npz",
        "synthetic/dataset_info.json",
        "samples/step_000020.png",
        "checkpoints/20.json",
        "export/bundle.json",
        "export/sampler.stablehlo",
        "export/weights.safetensors",
    ],
)
def test_a_finished_run_holds_its_files(finished, name):
    assert (finished / name).stat().st_size > 0


def test_a_finished_run_has_tensorboard_events_and_no_leftovers(finished):
    names = files(finished)
    assert any(name.startswith("tensorboard/events") for name in names)
    hidden = {n for n in names if any(part.startswith(".") for part in n.split("/"))}
    assert hidden == {".lock"}


def test_results_hold_every_arm_a_verdict_and_an_audit_beside_its_floors(results):
    names = [arm["name"] for arm in results["arms"]]
    assert names == [
        "none",
        "none, longer",
        "class weights",
        "oversampling",
        "SMOTE",
        "affine",
        "elastic",
        "affine + elastic",
        "generated, weight 0.5",
        "classical + generated, weight 0.5",
    ]
    for arm in results["arms"]:
        assert len(arm["test"]["balanced_accuracy"]) == results["num_seeds"] == 2
        assert set(arm["against_bar"]) >= {"balanced_accuracy", "accuracy"}
    assert results["bar"] in names
    names = {arm["name"]: arm for arm in results["arms"]}
    assert names[results["candidate"]]["generative"]
    for family, chosen in results["chosen"].items():
        members = [arm for arm in results["arms"] if arm["family"] == family]
        assert chosen in {members[0]["base"], *(arm["name"] for arm in members)}
    assert results["verdict"]["sentence"].startswith(("USE IT", "DO NOT USE IT"))
    audit = {entry["name"]: entry for entry in results["audit"]}
    assert {"fd/classifier", "precision", "recall", "closer_to_train", "exact_copies"} <= set(audit)
    assert audit["fd/classifier"]["floor"] is not None
    assert audit["precision"]["floor"] is not None


def test_the_synthetic_set_is_read_by_tfds_with_its_provenance(finished, results):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(finished / "synthetic").as_data_source("train")
    assert len(source) == sum(results["drawn"]["kept"]) > 0
    digest = export.digest(jax.device_get(runs.open_run(finished).weights))
    for i in range(len(source)):
        row = source[i]
        assert bool(row["synthetic"])
        assert row["image"].shape == (8, 8, 1)
        assert row["model_digest"].decode() == digest
        assert row["nearest_train_distance"] >= 0
        assert 0 <= row["label_probability"] <= 1


def test_every_synthetic_image_is_drawn_again_from_its_address(finished):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(finished / "synthetic").as_data_source("train")
    rows = [source[i] for i in range(len(source))]
    sampler = load_sampler(finished / "export")
    cond = {
        "index": np.array([row["index"] for row in rows], np.int32),
        "label": np.array([row["label"] for row in rows], np.int32),
    }
    drawn = sampler(generator.keys(int(rows[0]["seed"]))["sample"], cond)
    stored = np.stack([row["image"] for row in rows]).astype(int)
    assert np.abs(np.asarray(drawn["image"]).astype(int) - stored).max() <= 1


def test_nearest_training_id_of_a_sample_is_in_the_training_split(finished):
    import tensorflow_datasets as tfds

    from genaug.data import load, split

    data = tiny().data
    train = set(split(load(data), data).train.tolist())
    source = tfds.builder_from_directory(finished / "synthetic").as_data_source("train")
    assert {int(source[i]["nearest_train_id"]) for i in range(len(source))} <= train


def test_the_generator_and_the_arms_see_training_images_alone(
    run_cli, experiment_file, tmp_path, monkeypatch
):
    """Spies on every image that is handed to the generator's batches and to the arms' pool."""
    parts, fed, pooled = [], [], []
    real_split, real_pipeline, real_pool = splitting.split, generator.pipeline, studies.make_pool

    def spy_split(dataset, config):
        parts.append((dataset, real_split(dataset, config)))
        return parts[-1][1]

    def spy_pipeline(dataset, indices, **options):
        fed.append(np.asarray(indices))
        seen = dataset.arrays
        stream = real_pipeline(dataset, indices, **options)
        return stream.map(lambda batch: (fed.append(_rows_of(batch, dataset, seen)), batch)[1])

    def _rows_of(batch, dataset, arrays):
        if "position" in batch:  # what comes next, as a checkpoint remembers it
            return batch["position"]
        everything = arrays(np.arange(len(dataset)))["image"].reshape(len(dataset), -1)
        position = {row.tobytes(): i for i, row in enumerate(everything)}
        return np.array([position[image.reshape(-1).tobytes()] for image in batch["image"]])

    monkeypatch.setattr(splitting, "split", spy_split)
    monkeypatch.setattr(generator, "pipeline", spy_pipeline)
    monkeypatch.setattr(studies, "make_pool", lambda *a: (pooled.append(a[0]), real_pool(*a))[1])
    assert run_cli("run", experiment_file, "--run-dir", tmp_path / "run", "--quiet") == 0
    (dataset, splits), *_ = parts
    unseen = np.concatenate([splits.valid, splits.test])
    everything = dataset.arrays(np.arange(len(dataset)))["image"]
    twins = {everything[i].tobytes() for i in unseen}  # equal images are in one split, always
    assert len(fed) > 20  # the indices, and one entry a batch
    for rows in fed:
        assert not np.isin(rows, unseen).any()
        assert not any(everything[i].tobytes() in twins for i in rows)
    np.testing.assert_array_equal(pooled[0], everything[splits.train])
    assert len(splits.train) + len(unseen) < len(dataset)  # rare classes were cut
    assert real_split(dataset, tiny().data).test.tolist() == splits.test.tolist()


# --- resuming ---


class Stop:
    """Raises KeyboardInterrupt at one of a function's calls, before or after it is made."""

    def __init__(self, monkeypatch, owner, name, call=0, after=False):
        self.calls, self.real = 0, getattr(owner, name)

        def spy(*arguments, **options):
            due = self.calls == call
            self.calls += 1
            if due and not after:
                raise KeyboardInterrupt
            value = self.real(*arguments, **options)
            if due and after:
                raise KeyboardInterrupt
            return value

        monkeypatch.setattr(owner, name, spy)


STOPS = [
    # name, owner, function, which of its calls, after it; a file that is there, one that is not
    ("before the first update", generator, "fit", 0, False, "data.json", "metrics.jsonl"),
    ("in a checkpoint, before its mark", checkpoint, "write_json", 0, False,
     "checkpoints/10/commit_success.txt", "checkpoints/10.json"),
    ("in training, past a checkpoint", checkpoint, "save", 0, True,
     "checkpoints/10.json", "checkpoints/20"),
    ("after training", generator, "fit", 0, True, "checkpoints/20.json", "study"),
    ("before the first arm", job.classifier, "train_replicas", 0, False, "data.json", "study"),
    ("an arm trained and not yet kept", job.classifier, "train_replicas", 2, True,
     "study/none__longer.npz", "study/class_weights.npz"),
    ("between arms", job.classifier, "train_replicas", 3, False,
     "study/SMOTE.npz", "study/affine.npz"),
    ("judge kept, its arm not", arms, "save_arrays", 2, True,
     "study/judge.npz", "study/affine___elastic.npz"),
    ("before drawing", job, "draw", 0, False, "study/affine___elastic.npz", "synthetic"),
    ("drawn and not kept", job, "draw", 0, True, "study/judge.npz", "synthetic"),
    ("synthetic/ written, synthetic.npz not", job, "_write_synthetic", 0, True,
     "synthetic/dataset_info.json", "synthetic.npz"),
    ("between generative arms", job.classifier, "train_replicas", 1, False,
     "study/generated__weight_0.5.npz", "study/classical___generated__weight_0.5.npz"),
    ("in the comparison", studies, "compare", 0, True,
     "study/classical___generated__weight_0.5.npz", "study/audit.json"),
    ("before the audit", job, "run_audit", 0, False, "synthetic.npz", "study/audit.json"),
    ("in the audit", job, "audit", 0, True, "synthetic.npz", "study/audit.json"),
    ("before results.json", job, "assemble", 0, True, "study/audit.json", "results.json"),
    ("results.json written, export not", export, "write_bundle", 0, False,
     "results.json", "export"),
    ("before the report", report, "write_report", 0, False, "export/bundle.json", "report.html"),
]  # fmt: skip


def test_a_run_stopped_at_every_stage_ends_as_an_unbroken_one(
    run_cli, experiment_file, tmp_path, finished, capsys
):
    """One run, stopped at each place in turn and started again with the same command."""
    directory = tmp_path / "run"
    command = ("run", experiment_file, "--run-dir", directory, "--quiet")
    for name, owner, function, call, after, there, absent in STOPS:
        with pytest.MonkeyPatch.context() as patch:
            stop = Stop(patch, owner, function, call, after)
            assert run_cli(*command) == 130, name
            assert stop.calls == call + 1, name
        assert "the same command goes on" in capsys.readouterr().err
        assert (directory / there).exists(), name
        assert not (directory / absent).exists(), name
    assert run_cli(*command) == 0
    _assert_same_run(directory, finished)


def test_a_run_stopped_once_ends_as_an_unbroken_one(run_cli, experiment_file, tmp_path, finished):
    directory = tmp_path / "run"
    command = ("run", experiment_file, "--run-dir", directory, "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        Stop(patch, checkpoint, "save", after=True)
        assert run_cli(*command) == 130
    assert run_cli(*command) == 0
    _assert_same_run(directory, finished)


def _assert_same_run(directory, finished):
    for name in ("results.json", "metrics.jsonl", "data.json", "config.json", "study/audit.json"):
        assert (directory / name).read_bytes() == (finished / name).read_bytes(), name
    events = "tensorboard"
    assert {n for n in files(directory) if not n.startswith((events, "checkpoints"))} == {
        n for n in files(finished) if not n.startswith((events, "checkpoints"))
    }
    one, other = runs.open_run(directory), runs.open_run(finished)
    for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(other.weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_finished_run_is_not_made_again(run_cli, experiment_file, finished_copy, monkeypatch):
    before = (finished_copy / "results.json").read_bytes()

    def never(*arguments, **options):
        raise AssertionError("a finished stage ran again")

    monkeypatch.setattr(job.classifier, "train_replicas", never)
    monkeypatch.setattr(job, "draw", never)
    monkeypatch.setattr(job, "audit", never)
    monkeypatch.setattr("genaug.checkpoint.save", never)
    monkeypatch.setattr(
        generator, "batches", lambda ds, start, stop, ahead: _no_updates(start, stop)
    )
    assert run_cli("run", experiment_file, "--run-dir", finished_copy, "--quiet") == 0
    assert (finished_copy / "results.json").read_bytes() == before


def _no_updates(start, stop):
    assert start == stop
    return iter(())


def test_a_run_whose_samples_are_all_refused_ends_with_a_verdict(
    run_cli, experiment_file, tmp_path, capsys
):
    directory = tmp_path / "run"
    refuse = ("--filters.label", "1.0", "--balance.max-draws", "1")
    assert run_cli("run", experiment_file, "--run-dir", directory, *refuse) == 0
    out = capsys.readouterr().out
    assert "no audit" in out
    results = json.loads((directory / "results.json").read_text())
    assert sum(results["drawn"]["kept"]) == 0
    assert results["audit"] == []
    assert results["verdict"]["use"] is False
    assert (directory / "report.html").is_file()


def test_train_trains_alone_and_run_goes_on_from_it(run_cli, experiment_file, tmp_path, finished):
    directory = tmp_path / "run"
    assert run_cli("train", experiment_file, "--run-dir", directory, "--quiet") == 0
    assert not (directory / "study").exists()
    assert run_cli("run", experiment_file, "--run-dir", directory, "--quiet") == 0
    assert (directory / "results.json").read_bytes() == (finished / "results.json").read_bytes()


# --- real kills ---


def _start(experiment_file, directory, environment, log):
    command = [sys.executable, "-m", "genaug.cli", "run", experiment_file, "--run-dir", directory]
    with log.open("ab") as file:
        return subprocess.Popen(
            [*map(str, command)], env=environment, cwd=directory.parent, stdout=file, stderr=file
        )


def _kill_when(path, process, limit_seconds=120.0):
    """SIGKILL as soon as a file is there."""
    deadline = time.monotonic() + limit_seconds
    try:
        while not path.exists():
            assert process.poll() is None, f"it ended before {path} was there"
            assert time.monotonic() < deadline, f"{path} did not come"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait(timeout=30)
    assert process.returncode == -signal.SIGKILL


def test_examples_kept_on_devices_train_alike(
    finished, experiment_file, run_cli, tmp_path, monkeypatch
):
    """As on an accelerator: positions are sent, and examples looked up where they are."""
    looked = []
    real = parallel.compile_lookup

    def spied(examples, mesh):
        feed = real(examples, mesh)
        return lambda stack: looked.append(stack.keys()) or feed(stack)

    monkeypatch.setattr(parallel, "compile_lookup", spied)
    monkeypatch.setattr(DeviceMesh, "platform", "gpu")
    assert run_cli("train", experiment_file, "--run-dir", tmp_path / "run", "--quiet") == 0
    assert looked == [{"position"}] * 4
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        finished / "metrics.jsonl"
    ).read_bytes()


def test_a_run_killed_twice_gives_the_results_of_an_unbroken_one(
    experiment_file, tmp_path, compile_cache
):
    environment = subprocess_environment(compile_cache, jax.device_count())
    log, killed, unbroken = tmp_path / "log", tmp_path / "killed", tmp_path / "unbroken"
    _kill_when(
        killed / "checkpoints" / "10.json", _start(experiment_file, killed, environment, log)
    )
    assert not (killed / "results.json").exists()
    _kill_when(killed / "synthetic", _start(experiment_file, killed, environment, log))
    assert not (killed / "results.json").exists()
    for directory in (killed, unbroken):
        process = _start(experiment_file, directory, environment, log)
        try:
            assert process.wait(timeout=240) == 0, log.read_text()
        finally:
            process.kill()
    assert (killed / "results.json").read_bytes() == (unbroken / "results.json").read_bytes()
    assert (killed / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
