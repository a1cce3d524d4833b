"""What the user says about the data. Imports nothing heavy: --help reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genaug.data.dataset import Dataset
    from genaug.data.splits import Splits


@dataclass(frozen=True, kw_only=True)
class Sound:
    """How .wav files become pictures of sounds (mel spectrograms), and pictures sounds again."""

    sample_rate: int = 8000
    """Samples a second; files of another rate are resampled."""
    window: int = 256
    """Samples of a moment."""
    hop: int = 64
    """Samples from one moment to the next; at most half the window."""
    bands: int = 64
    """Bands of pitch: the picture's height."""
    frames: int = 64
    """Moments: the picture's width. Longer sounds are cut there, shorter ones end in silence."""
    range_db: float = 60.0
    """Loudness below the loudest, in decibels, that is black."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which examples, how they are read, and how they are split."""

    source: str = "mnist5k"
    """mnist5k, digits, tfds:NAME, a folder of images or sounds (.wav), or of class folders of them,
    file.npz, prepared data."""
    image_size: int | None = None
    """Side in pixels: shortest side scaled to it, centre cropped. None: all images must agree."""
    channels: int | None = None
    """1 (gray) or 3 (RGB). None: as found, and all images must agree."""
    background: int = 255
    """Gray level (0 to 255) that transparent pixels are composited on."""
    float_range: tuple[float, float] = (0.0, 1.0)
    """Declared range of float images: its ends become 0 and 255. Values outside are an error."""
    skip_bad: bool = False
    """Leave unreadable images out, each named in the log, rather than stop at the first."""
    test_fraction: float = 0.3
    """Share of each class held out for testing, unless the source has its own test split."""
    valid_fraction: float = 0.1
    """Share of each class held out for validation."""
    split_seed: int = 0
    """Seed of the split. Another seed is another split of the same examples."""
    rare_classes: tuple[str, ...] = ()
    """Names of the classes to cut in the training split."""
    rare_count: int | None = None
    """Training images left in each rare class."""
    class_count: int | None = None
    """Training images left in each other class. None: all."""
    sound: Sound = field(default_factory=Sound)
    directory: str | None = None
    """Where prepared data lives. None: $GENAUG_DATA_DIR, else ~/.cache/genaug/data."""

    def read(self) -> tuple[Dataset, Splits]:
        """The images, and which train, validate and test. Raises UserError or DataError."""
        from genaug.data.dataset import load
        from genaug.data.splits import split

        dataset = load(self)
        return dataset, split(dataset, self)


def data_directory(directory: str | None = None) -> Path:
    """The folder that holds prepared data: as given, else by environment, else the user's cache."""
    chosen = directory or os.environ.get("GENAUG_DATA_DIR") or "~/.cache/genaug/data"
    return Path(chosen).expanduser()
