"""Pictures of sounds, against SciPy and the formulas, and sounds of pictures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.signal

from genaug.data.config import Sound
from genaug.transforms import sounds
from genaug.types import UserError

CONFIG = Sound(window=128, hop=32, bands=24, frames=32)


def chirps(count=3):
    """Tones that rise and fade, each from a pitch of its own."""
    time = np.arange(sounds.samples(CONFIG)) / CONFIG.sample_rate
    rows = [np.sin(2 * np.pi * (f * time + 6000 * time**2)) for f in (300, 700, 1100)[:count]]
    return (np.stack(rows) * np.exp(-8 * time)).astype(np.float32)


def test_a_picture_is_scipy_s_spectrum_through_triangles_in_mel():
    wanted = []
    for sound in chirps():
        hz, _, spectrum = scipy.signal.stft(
            sound, fs=CONFIG.sample_rate, nperseg=128, noverlap=96, nfft=256
        )
        heard = np.zeros((CONFIG.bands, CONFIG.frames))
        top = 2595 * np.log10(1 + 4000 / 700)
        for band in range(CONFIG.bands):
            mel = np.array([band, band + 1, band + 2]) * top / (CONFIG.bands + 1)
            corners = 700 * (10 ** (mel / 2595) - 1)
            weights = np.interp(hz, corners, [0, 1, 0])
            heard[band] = weights @ np.abs(spectrum[:, : CONFIG.frames])
        level = 20 * np.log10(np.maximum(heard / heard.max(), 1e-9))
        wanted.append(np.clip(255 * (1 + level / 60), 0, 255)[::-1])
    found = np.asarray(sounds.to_image(chirps(), CONFIG)).astype(float)
    assert found.shape == (3, 24, 32, 1)
    # Half a level, and what float32 rounds.
    assert np.abs(found[..., 0] - np.stack(wanted)).max() < 0.55
    assert found.max() == 255


def test_loudness_as_a_whole_is_not_kept_and_silence_is_black():
    sound = np.concatenate([chirps(1), 0.01 * chirps(1), np.zeros_like(chirps(1))])
    loud, faint, silent = np.asarray(sounds.to_image(sound, CONFIG)).astype(int)
    assert np.abs(loud - faint).max() <= 1
    assert silent.max() == 0


def test_a_sound_made_of_a_picture_has_that_picture():
    """Griffin and Lim's measure: how far its spectrum is from the one asked for."""
    image = sounds.to_image(chirps(), CONFIG)
    errors = []
    for iterations in (0, 10, 60):
        again = sounds.to_image(
            np.asarray(sounds.to_sound(image, CONFIG, iterations)) / 32768.0, CONFIG
        )
        loud = np.asarray(image) > 128
        errors.append(np.abs(np.asarray(again, float) - np.asarray(image, float))[loud].mean())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 3


def test_bands_become_frequencies_that_have_them():
    """SciPy's solver says that there are some with exactly these bands."""
    filters = sounds.mel_filters(CONFIG)
    loud = np.random.default_rng(0).exponential(size=(2, filters.shape[1], 3)).astype(np.float32)
    heard = np.einsum("bf,nft->nbt", filters, loud)
    _, residual = scipy.optimize.nnls(filters.astype(float), heard[1, :, 2])
    assert residual < 1e-5
    found = np.asarray(sounds.to_magnitude(jnp.asarray(heard), CONFIG))
    assert found.min() >= 0
    left = np.linalg.norm(np.einsum("bf,nft->nbt", filters, found) - heard, axis=1)
    assert (left < 0.02 * np.linalg.norm(heard, axis=1)).all()


def test_a_sound_depends_on_its_own_picture_alone():
    image = np.asarray(sounds.to_image(chirps(), CONFIG))
    alone = np.asarray(sounds.to_sound(image[1:2], CONFIG, 5))
    together = np.asarray(sounds.to_sound(image, CONFIG, 5))
    assert together.dtype == np.int16
    assert np.abs(alone[0].astype(int) - together[1]).max() <= 1
    assert (np.abs(together.astype(int)).max(axis=1) == round(0.9 * 32767)).all()
    black = np.zeros_like(image[:1])
    assert not np.asarray(sounds.to_sound(black, CONFIG, 5)).any()


def test_both_ways_go_into_another_program():
    def louder_than(sound):
        return sounds.to_sound(sounds.to_image(sound, CONFIG), CONFIG, 2).max()

    assert jax.jit(louder_than)(chirps()) > 0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hop": 65}, "overlap by half"),
        ({"hop": 0}, "data.sound.hop is 0"),
        ({"bands": 200}, "take fewer bands"),
        ({"frames": 1}, "2 or more"),
        ({"range_db": 0.0}, "above 0"),
        ({"sample_rate": -1}, "data.sound.sample-rate is -1"),
    ],
)
def test_what_no_sound_can_satisfy_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        sounds.check(dataclasses.replace(CONFIG, **change))
    sounds.check(CONFIG)
    sounds.check(Sound())
