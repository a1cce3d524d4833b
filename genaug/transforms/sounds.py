"""Sounds as pictures of them, which every family of images can learn, and back again.

The picture is a mel spectrogram: a row a band of pitch, the highest first, a column a moment; 255
is the loudest band of the loudest moment, 0 what is `range_db` or more below it. Loudness as a
whole is not kept, nor are phases: those that fit are searched for on the way back.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int16, UInt8

from genaug.data.config import Sound
from genaug.types import UserError

_PADDING = 2  # of a moment, with zeros: bins twice as close, so that low bands have some
_SILENCE = 1e-12  # of a magnitude: below it no phase is to be had
_UNMIXING = 50  # updates of a least-squares problem that is nearly solved after a few
_PEAK = 0.9  # of full scale, the loudest sample on the way back


def samples(config: Sound) -> int:
    """Length of a sound that fills a picture, in samples."""
    return config.hop * (config.frames - 1)


def seconds(config: Sound) -> float:
    """Length of a sound that fills a picture."""
    return samples(config) / config.sample_rate


def check(config: Sound) -> None:
    """Raises UserError for a config that no sound can satisfy."""
    for name in ("sample_rate", "hop", "bands", "frames"):
        if (value := getattr(config, name)) < 1:
            raise UserError(f"data.sound.{name.replace('_', '-')} is {value}; expected 1 or more.")
    if config.window < 2 * config.hop:
        raise UserError(
            f"data.sound.window is {config.window} and data.sound.hop {config.hop}: moments must "
            "overlap by half at least, or no sound can be made of them; take a smaller hop."
        )
    if config.frames < 2 or config.range_db <= 0:
        raise UserError("data.sound.frames must be 2 or more, data.sound.range-db above 0.")
    if empty := int((mel_filters(config).sum(axis=1) == 0).sum()):
        raise UserError(
            f"data.sound.bands is {config.bands}: {empty} of them lie between two frequencies of a "
            f"window of {config.window} samples; take fewer bands or a longer window."
        )


def mel_filters(config: Sound) -> Float[np.ndarray, "bands bins"]:
    """What each band hears of each frequency: triangles of height 1, equally wide in mel.

    mel(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987), from 0 Hz to half the sample rate.
    """
    top = 2595.0 * np.log10(1.0 + config.sample_rate / 2 / 700.0)
    corners = 700.0 * (10.0 ** (np.linspace(0.0, top, config.bands + 2) / 2595.0) - 1.0)
    bins = np.linspace(0.0, config.sample_rate / 2, _PADDING * config.window // 2 + 1)
    low, middle, high = (corners[i : i + config.bands, None] for i in range(3))
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


@partial(jax.jit, static_argnames="config")
def to_image(sound: Float[Array, "n t"], config: Sound) -> UInt8[Array, "n bands frames 1"]:
    """Pictures of sounds of `samples(config)` samples each. Silence is black."""
    heard = jnp.einsum(
        "bf,nft->nbt", jnp.asarray(mel_filters(config)), jnp.abs(_stft(sound, config))
    )
    loudest = jnp.max(heard, axis=(1, 2), keepdims=True)
    level = 20.0 * jnp.log10(jnp.maximum(heard / jnp.maximum(loudest, _SILENCE), _SILENCE))
    image = jnp.round(255.0 * jnp.clip(1.0 + level / config.range_db, 0.0, 1.0))
    return jnp.expand_dims(image[:, ::-1], 3).astype(jnp.uint8)


@partial(jax.jit, static_argnames=("config", "iterations"))
def to_sound(
    image: UInt8[Array, "n bands frames 1"], config: Sound, iterations: int = 60
) -> Int16[Array, "n t"]:
    """Sounds with these pictures, or nearly; the loudest sample of each is at 0.9 of full scale.

    Frequencies of the bands as `to_magnitude` has them, phases by the fast algorithm of Griffin &
    Lim (1984) (Perraudin et al. 2013, alg. 2, alpha 0.99) from random ones, the same in every row:
    a row depends on its picture alone.
    """
    level = image[:, ::-1, :, 0].astype(jnp.float32)
    heard = jnp.where(level > 0, 10.0 ** ((level / 255.0 - 1.0) * config.range_db / 20.0), 0.0)
    magnitude = to_magnitude(heard, config)

    def phases(spectrum: Array) -> Array:
        return magnitude * spectrum / jnp.maximum(jnp.abs(spectrum), _SILENCE)

    def nearer(_: Any, state: tuple[Array, Array]) -> tuple[Array, Array]:
        spectrum, before = state
        now = _stft(_istft(phases(spectrum), config), config)
        return now + 0.99 * (now - before), now

    angles = jax.random.uniform(jax.random.key(0), magnitude.shape[1:], maxval=2.0 * jnp.pi)
    begun = magnitude * jnp.expand_dims(jnp.exp(1j * angles), 0)
    spectrum, _ = lax.fori_loop(0, iterations, nearer, (begun, begun))
    sound = _istft(phases(spectrum), config)
    loudest = jnp.max(jnp.abs(sound), axis=1, keepdims=True)
    return jnp.round(sound * (_PEAK * 32767.0) / jnp.maximum(loudest, _SILENCE)).astype(jnp.int16)


def to_magnitude(heard: Float[Array, "n bands t"], config: Sound) -> Float[Array, "n bins t"]:
    """Magnitudes of frequencies whose bands are these: non-negative least squares.

    Multiplicative updates (Lee & Seung 2001, eq. 4), from what the bands hear of each frequency.
    """
    filters = jnp.asarray(mel_filters(config))
    mixed = jnp.einsum("bf,nbt->nft", filters, heard)

    def unmix(_: Any, magnitude: Array) -> Array:
        again = jnp.einsum("bf,nbt->nft", filters, jnp.einsum("bf,nft->nbt", filters, magnitude))
        return magnitude * mixed / jnp.maximum(again, _SILENCE)

    return lax.fori_loop(0, _UNMIXING, unmix, mixed)


def _options(config: Sound) -> dict[str, Any]:
    return {
        "nperseg": config.window,
        "noverlap": config.window - config.hop,
        "nfft": _PADDING * config.window,
    }


def _stft(sound: Float[Array, "n t"], config: Sound) -> Array:
    """[n, bins, frames], each moment centred on its column."""
    return jax.scipy.signal.stft(sound, **_options(config))[2][:, :, : config.frames]


def _istft(spectrum: Array, config: Sound) -> Float[Array, "n t"]:
    return jax.scipy.signal.istft(spectrum, **_options(config))[1][:, : samples(config)]
