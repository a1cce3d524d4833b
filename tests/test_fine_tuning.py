"""Going on from another run's weights: what is taken over, and what is refused."""

import json

import chex
import jax
import numpy as np
import pytest

from genaug import runs

pytest_plugins = ["tiny_run"]

TEXT_EXPERIMENT = """
import dataclasses
from genaug.config import Experiment
from genaug.data import TextData
from genaug.models.transformer_lm import TransformerLM
from genaug.devices import Mesh
from genaug.train import Train


def config():
    return Experiment(
        name="text",
        data=TextData(source="texts.txt", holdout="tail", context=12),
        model=TransformerLM(num_layers=1, num_heads=1, embed_dim=8),
        train=Train(num_steps=4, batch_size=8, steps_per_call=2, evaluate_every=4,
                    sample_every=4, checkpoint_every=4),
        mesh=Mesh(data=2),
    )
"""


@pytest.fixture
def text_file(tmp_path, monkeypatch):
    """An experiment on a text of its own, and the folder that it is run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("the cat sat on the mat. " * 40)
    (tmp_path / "other.txt").write_text("a dog ran in the rain. " * 40)
    path = tmp_path / "text.py"
    path.write_text(TEXT_EXPERIMENT)
    return path


@pytest.fixture
def base(run_cli, text_file, tmp_path):
    assert run_cli("train", text_file, "--run-dir", tmp_path / "base", "--quiet") == 0
    return tmp_path / "base"


def test_training_starts_from_the_average_of_the_other_run(run_cli, text_file, base, tmp_path):
    arguments = ["train", text_file, "--data.source", "other.txt", "--quiet"]
    tuned = tmp_path / "tuned"
    done = run_cli(
        *arguments, "--run-dir", tuned, "--train.start-from", base,
        "--model.optimizer.learning-rate", "0.0",
    )  # fmt: skip
    assert done == 0
    before, after = (runs.open_run(folder) for folder in (base, tuned))
    # Nothing was learnt at rate 0 (the EMA's arithmetic rounds), so what is there is what came.
    chex.assert_trees_all_close(
        jax.device_get(after.weights), jax.device_get(before.weights), rtol=1e-6
    )
    about = json.loads((tuned / "data.json").read_text())["started_from"]
    assert about["run"] == str(base)
    assert about["fingerprint"] == before.about_data["fingerprint"]
    assert about["step"] == 4


@pytest.mark.parametrize(
    "options, words",
    [
        (("--model.embed-dim", "16"), ["of another shape", "is (8,) there and (16,) here"]),
        (("--data.valid-fraction", "0.3"), ["another split", "valid-fraction: 0.1 -> 0.3"]),
        (
            ("--data.tokenizer", "bpe:257"),
            ["trained on another vocabulary", "--data.tokenizer", "or bytes"],
        ),
        (("--train.start-from", "nowhere"), ["nowhere is no run folder"]),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    run_cli, text_file, base, tmp_path, capsys, options, words
):
    start = () if "--train.start-from" in options else ("--train.start-from", base)
    new = tmp_path / "new"
    assert run_cli("train", text_file, "--run-dir", new, *start, *options) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not new.exists()


def test_a_run_of_another_family_is_refused(run_cli, text_file, finished, tmp_path, capsys):
    options = ["--run-dir", tmp_path / "new", "--train.start-from", finished]
    assert run_cli("train", text_file, *options) == 2
    assert "a run of CVAE, and this is a TransformerLM" in capsys.readouterr().err


def test_texts_are_drawn_with_provenance_and_go_on_from_a_prompt(run_cli, base, tmp_path, capsys):
    out = tmp_path / "drawn.jsonl"
    assert run_cli("sample", base, "--n", 3, "--prompt", "the", "--out", out) == 0
    assert "3 texts in" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2]
    assert all(line["text"].startswith("the") for line in lines)
    assert {"synthetic", "seed", "model"} <= lines[0].keys()
    again = tmp_path / "again.jsonl"
    assert run_cli("sample", base, "--n", 1, "--first", 2, "--prompt=the", "--out", again) == 0
    assert json.loads(again.read_text()) == lines[2]
    assert run_cli("sample", base, "--out", out) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, words",
    [
        (("--prompt", "x" * 12), ["--prompt has 12 tokens", "room for 11"]),
        (("--temperature", "-1"), ["temperature is -1", "at least 0"]),
        (("--top-p", "1.5"), ["top_p is 1.5", "from 0 to 1"]),
        (("--class", "cat"), ["trained without classes"]),
        (("--guidance", "2"), ["no option --guidance", "--prompt"]),
    ],
)
def test_conditions_that_a_text_model_cannot_take_are_refused(
    run_cli, base, tmp_path, capsys, options, words
):
    assert run_cli("sample", base, "--out", tmp_path / "no.jsonl", *options) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (tmp_path / "no.jsonl").exists()


def test_a_text_of_a_class_is_drawn_by_its_name(run_cli, text_file, tmp_path, capsys):
    """From the run, and from its bundle, which has the tokenizer with it."""
    for name, letter in (("cats", "a"), ("dogs", "b")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for count in (200, 201):
            (tmp_path / "pets" / name / f"{count}.txt").write_text(letter * count)
    trained, out = tmp_path / "pets_run", tmp_path / "drawn.jsonl"
    arguments = ["--data.source", "pets", "--data.conditional", "--data.packing", "whole"]
    arguments += ["--data.holdout", "texts", "--data.too-long", "split", "--data.context", "15"]
    arguments += ["--data.valid-fraction", "0.5", "--model.embed-dim", "16", "--train.num-steps"]
    arguments += ["60", "--train.batch-size", "2", "--model.optimizer.learning-rate", "0.02"]
    arguments += ["--model.optimizer.warmup-steps", "0", "--model.ema-decay", "0.5"]
    arguments += ["--data.tokenizer", "bpe:258"]
    assert run_cli("train", text_file, "--run-dir", trained, "--quiet", *arguments) == 0
    assert run_cli("export", trained, tmp_path / "bundle", "--card") == 0
    assert "It reads `label`" in (tmp_path / "bundle" / "README.md").read_text()
    for name in ("cats", "dogs"):
        assert run_cli("sample", trained, "--class", name, "--n", 4, "--out", out) == 0
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["label"] for line in lines] == [name] * 4
        texts = "".join(line["text"] for line in lines)
        assert texts.count("a" if name == "cats" else "b") > 0.8 * len(texts) > 0, texts
        again = tmp_path / "again.jsonl"
        assert (
            run_cli("sample", tmp_path / "bundle", "--class", name, "--n", 4, "--out", again) == 0
        )
        assert again.read_bytes() == out.read_bytes()
        out.unlink()
        again.unlink()
    assert run_cli("sample", trained, "--class", "cow", "--out", out) == 2
    assert "cow" in capsys.readouterr().err


def test_a_comparison_of_texts_is_refused_and_samples_are_shown_while_training(
    run_cli, text_file, base, tmp_path, capsys
):
    assert run_cli("run", text_file, "--run-dir", tmp_path / "no") == 2
    assert "holds texts" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    assert (base / "samples" / "step_000004.txt").read_text().count("-" * 80) == 9
    lines = [json.loads(line) for line in (base / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(
        [line["valid_bits_per_byte"] for line in lines if "valid_bits_per_byte" in line]
    ).all()
