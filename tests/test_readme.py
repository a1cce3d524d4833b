"""The README's words, run."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from genaug.arguments import parser

pytest_plugins = ["tiny_run"]

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


TRAIN, IMPORT = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_python_example_trains_and_samples(optimized):
    names: dict[str, np.ndarray] = {}
    exec(TRAIN, names)
    eights = names["eights"]
    assert (eights.shape, eights.dtype) == ((16, 8, 8, 1), np.uint8)
    data = names["data"]
    real = data.arrays(np.arange(len(data)))
    mean_image = {c: real["image"][real["label"] == c].mean(axis=0) for c in range(10)}
    closest = min(mean_image, key=lambda c: np.abs(mean_image[c] - eights.mean(axis=0)).sum())
    assert closest == 8


def test_the_import_example_draws_and_mixes(finished, digits, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mnist_rare").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    pairs = zip(digits["image"], digits["label"], strict=True)
    names: dict[str, Any] = {"real": [{"image": i, "label": c} for i, c in pairs]}
    exec(IMPORT, names)
    assert names["rows"]["image"].shape == (64, 8, 8, 1)
    batch = names["mixed"][0]
    assert batch["image"].shape == (64, 8, 8, 1)
    assert batch["synthetic"].sum() == 16


def test_commands_exist_and_files_named_are_there():
    known = parser().format_help()
    names = "run|train|sample|export|evaluate|plan|launch|report|data|doctor"
    for command in set(re.findall(f"genaug ({names})", README)):
        assert command in known
    root = Path(__file__).parents[1]
    for path in set(
        re.findall(r"(?:experiments|genaug|tests)/[\w/-]+\.(?:py|png|sh|yaml)", README)
    ):
        assert (root / path).is_file(), path


def test_the_python_example_is_short():
    statements = TRAIN.split("\n\n")[-1].strip().splitlines()
    assert 5 < len(statements) <= 10


def test_the_plan_that_is_shown_is_the_examples():
    block = re.search(r"```\n(# gpt2 on .*?)```", README, flags=re.DOTALL)
    root = Path(__file__).parents[1]
    held = (root / "experiments" / "launch" / "gpt2_gke.yaml").read_text(encoding="utf-8")
    shown = [line for line in block[1].splitlines() if "…" not in line]
    assert len(shown) == 3
    assert all(line in held.splitlines() for line in shown)


def test_the_ratios_that_are_shown_are_those_that_were_measured():
    root = Path(__file__).parents[1]
    held = (root / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    shown = re.search(r"\| what \| peer \| peer / genaug.*?\n\n", README, flags=re.DOTALL)
    rows = shown[0].strip().splitlines()[2:]
    assert len(rows) == 7
    for row in rows:
        assert row.removesuffix("|") in held, row
    counted = re.search(r"a few of (\d+) ratios, of which (\d+) fall short", README)
    judged = re.findall(r"\| [\d.]+ \| (yes|\*\*no\*\*) \|", held)
    assert (len(judged), judged.count("**no**")) == tuple(int(n) for n in counted.groups())
