"""Sound files: read as samples, shown to models as pictures, written with where they are from."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jaxtyping import Float32, Int16, Int64, UInt8

from genaug.data.config import Data, Sound
from genaug.data.raw import stack
from genaug.transforms import sounds
from genaug.types import DataError, UserError


def read_sound(path: Path, sample_rate: int) -> Float32[np.ndarray, " t"]:
    """A .wav file (PCM of 8 to 32 bits, or floats) as one channel at this rate, full scale 1.

    Channels are averaged; other rates are resampled (scipy's polyphase filter). Raises DataError
    naming the file and the fix.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks beside the sound
            rate, data = wavfile.read(path)
    # A damaged header speaks through struct, NumPy or SciPy, each with its own class.
    except Exception as error:
        raise DataError(_cannot(path, str(error).strip() or type(error).__name__)) from error
    if not data.size:
        raise DataError(_cannot(path, "it holds no samples"))
    sound = _unit(data)
    sound = sound.mean(axis=1) if sound.ndim == 2 else sound
    if not np.isfinite(sound).all():
        raise DataError(_cannot(path, "it holds samples that are no numbers"))
    if rate != sample_rate:
        common = math.gcd(rate, sample_rate)
        sound = resample_poly(sound, sample_rate // common, rate // common)
    return sound.astype(np.float32)


def picture(path: Path, config: Sound) -> tuple[UInt8[np.ndarray, "bands frames 1"], bool]:
    """The picture of a sound file, and whether it was cut. Raises DataError naming the file."""
    sound, length = read_sound(path, config.sample_rate), sounds.samples(config)
    filled = np.zeros((1, length), np.float32)
    kept = sound[:length]
    filled[0, : len(kept)] = kept
    if not np.abs(filled).max():
        raise DataError(_cannot(path, f"its first {sounds.seconds(config):.2f} s are silent"))
    return np.asarray(sounds.to_image(filled, config))[0], len(sound) > length


def read_sounds(
    names: Sequence[str], files: Sequence[Path], config: Data
) -> tuple[UInt8[np.ndarray, "n bands frames 1"], Int64[np.ndarray, " n"]]:
    """Pictures of sound files, as `raw.stack` has images; how many were cut is logged.

    Raises:
        UserError: a config that no sound satisfies.
        DataError: a file that holds no sound.
    """
    sounds.check(config.sound)
    if config.image_size is not None or config.channels not in (None, 1):
        raise UserError(
            "a picture of a sound is gray and of data.sound.bands by data.sound.frames: set those "
            "and leave --data.image-size and --data.channels out"
        )
    cut: list[Path] = []

    def read(i: int) -> np.ndarray:
        image, was_cut = picture(files[i], config.sound)
        if was_cut:
            cut.append(files[i])
        return image

    found = stack(names, read, config)
    if cut:
        logging.warning(
            "%d of %d sounds are longer than %.2f s, e.g. %s: the rest of them is left out; "
            "--data.sound.frames says how much is kept",
            len(cut), len(files), sounds.seconds(config.sound), cut[0],
        )  # fmt: skip
    return found


def wav(sound: Int16[np.ndarray, " t"], sample_rate: int, about: Mapping[str, Any]) -> bytes:
    """A .wav file of 16 bits, with what is known of it as its comment (a LIST INFO chunk)."""
    data = np.ascontiguousarray(sound, "<i2").tobytes()
    comment = json.dumps(dict(about)).encode() + b"\0"
    comment += b"\0" * (len(comment) % 2)
    info = b"INFO" + b"ICMT" + struct.pack("<I", len(comment)) + comment
    chunks = [
        (b"fmt ", struct.pack("<HHIIHH", 1, 1, sample_rate, 2 * sample_rate, 2, 16)),
        (b"LIST", info),
        (b"data", data),
    ]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _unit(data: np.ndarray) -> np.ndarray:
    """Samples of any format with full scale 1; those of 24 bits come as the high ones of 32."""
    if data.dtype.kind == "f":
        return data.astype(np.float64)
    if data.dtype == np.uint8:
        return (data.astype(np.float64) - 128.0) / 128.0
    return data.astype(np.float64) / -float(np.iinfo(data.dtype).min)


def _cannot(path: Path, why: str) -> str:
    return (
        f"cannot read sound {path}: {why}; repair or remove it, or leave such files out with "
        "--data.skip-bad"
    )
