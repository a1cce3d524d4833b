"""The README's words, run."""

import re
from pathlib import Path

import numpy as np

from genaug.arguments import parser

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_python_example_trains_and_samples(optimized):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(code, names)
    eights = names["eights"]
    assert (eights.shape, eights.dtype) == ((16, 8, 8, 1), np.uint8)
    data = names["data"]
    real = data.arrays(np.arange(len(data)))
    mean_image = {c: real["image"][real["label"] == c].mean(axis=0) for c in range(10)}
    closest = min(mean_image, key=lambda c: np.abs(mean_image[c] - eights.mean(axis=0)).sum())
    assert closest == 8


def test_commands_exist_and_files_named_are_there():
    known = parser().format_help()
    for command in set(
        re.findall(r"genaug (run|train|sample|evaluate|plan|launch|report|data|doctor)", README)
    ):
        assert command in known
    root = Path(__file__).parents[1]
    for path in set(
        re.findall(r"(?:experiments|genaug|tests)/[\w/-]+\.(?:py|png|sh|yaml)", README)
    ):
        assert (root / path).is_file(), path


def test_the_python_example_is_short():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    statements = code.split("\n\n")[-1].strip().splitlines()
    assert 5 < len(statements) <= 10


def test_the_plan_that_is_shown_is_the_examples():
    block = re.search(r"```\n(# gpt2 on .*?)```", README, flags=re.DOTALL)
    root = Path(__file__).parents[1]
    held = (root / "experiments" / "launch" / "gpt2_gke.yaml").read_text(encoding="utf-8")
    shown = [line for line in block[1].splitlines() if "…" not in line]
    assert len(shown) == 3
    assert all(line in held.splitlines() for line in shown)
