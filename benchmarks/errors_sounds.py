"""Bad inputs: sounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import wavfile

from benchmarks.errors import Case, Place
from benchmarks.errors_data import source

RATE = 8000


def sounds(
    wrong: str, change: Callable[[Path], object], words: tuple[str, ...], code: int = 3,
    more: str = "",
) -> Case:  # fmt: skip
    """A folder of class folders of tones in which something was changed."""

    def make(place: Place) -> Sequence[Any]:
        root = place.folder / "set"
        for i, name in enumerate(("owl", "wren")):
            (root / name).mkdir(parents=True)
            for j in range(20):
                tone = np.sin(np.arange(400) * (0.2 + i + 0.01 * j))
                wavfile.write(root / name / f"{j}.wav", RATE, np.int16(20000 * tone))
        change(root)
        return source(place, root, *more.split())

    return Case("sounds", wrong, make, code, words)


def _put(sound: np.ndarray) -> Callable[[Path], object]:
    return lambda root: wavfile.write(root / "owl" / "3.wav", RATE, sound)


def _cut(root: Path) -> None:
    path = root / "owl" / "3.wav"
    path.write_bytes(path.read_bytes()[:20])


def _none(root: Path) -> None:
    """As they are."""


CASES = [
    sounds("a sound file that was cut off", _cut, ("owl/3.wav", "--data.skip-bad")),
    sounds("a sound without samples", _put(np.zeros(0, np.int16)), ("3.wav", "no samples")),
    sounds("silence", _put(np.zeros(400, np.int16)), ("3.wav", "silent", "--data.skip-bad")),
    sounds("NaN samples", _put(np.full(400, np.nan, np.float32)), ("3.wav", "no numbers")),
    sounds("sounds and images", lambda root: Image.new("L", (8, 8)).save(root / "owl" / "x.png"),
           ("x.png", "move one kind out")),
    sounds("more bands than frequencies", _none, ("data.sound.bands is 500", "take fewer bands"),
           2, "--data.sound.bands 500"),
    sounds("moments that do not overlap", _none, ("overlap by half", "smaller hop"),
           2, "--data.sound.hop 200"),
    sounds("another size for sounds", _none, ("--data.image-size", "data.sound.bands"),
           2, "--data.image-size 32"),
]  # fmt: skip
