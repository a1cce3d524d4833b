"""Sound files as people have them, what is said of bad ones, and those that are written."""

import json
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from genaug.data import Data, load
from genaug.data.config import Sound
from genaug.data.sound_files import read_sound, wav
from genaug.data.sources import read
from genaug.transforms import sounds
from genaug.types import DataError, UserError

SOUND = Sound(window=128, hop=32, bands=16, frames=16)
RATE = SOUND.sample_rate


def tone(hertz, seconds=0.1, rate=RATE):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "birds"
    for label, name in enumerate(("owl", "wren")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            sound = np.int16(32767 * tone(400 + 900 * label + 40 * i))
            wavfile.write(root / name / f"{i}.wav", RATE, sound)
    return root


@pytest.mark.parametrize("dtype, scale", [
    (np.uint8, None), (np.int16, 32767), (np.int32, 2**31 - 1), (np.float32, 1), (np.float64, 1),
])  # fmt: skip
def test_every_kind_of_sample_is_the_same_sound(tmp_path, dtype, scale):
    wanted = tone(500)
    data = wanted * 127 + 128 if scale is None else wanted * scale
    wavfile.write(tmp_path / "a.wav", RATE, data.astype(dtype))
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav", RATE), wanted, atol=0.01)


def test_24_bits_as_another_library_writes_them(tmp_path):
    wanted = tone(500)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 3, RATE, 0, "NONE", ""))
        values = np.int32(wanted * (2**23 - 1)).astype("<i4")
        file.writeframes(b"".join(v.tobytes()[:3] for v in values))
    np.testing.assert_allclose(read_sound(tmp_path / "a.wav", RATE), wanted, atol=1e-4)


def test_channels_are_averaged_and_rates_brought_to_one(tmp_path):
    stereo = np.stack([tone(500, rate=44100), np.zeros(4410)], axis=1)
    wavfile.write(tmp_path / "a.wav", 44100, stereo.astype(np.float32))
    found = read_sound(tmp_path / "a.wav", RATE)
    assert found.shape == (800,)
    np.testing.assert_allclose(found[50:-50], tone(500)[50:-50] / 2, atol=0.01)


def test_a_folder_of_sounds_is_a_dataset_of_their_pictures(folder, tmp_path, caplog):
    config = Data(source=str(folder), sound=SOUND, directory=str(tmp_path / "data"))
    data = load(config)
    assert data.spec["image"].shape == (16, 16, 1)
    assert data.class_names == ("owl", "wren")
    assert data.sound == SOUND
    assert load(config).directory == data.directory
    first = data.arrays(np.array([0]))["image"]
    sound = read_sound(folder / "owl" / "0.wav", RATE)[None, : sounds.samples(SOUND)]
    np.testing.assert_array_equal(first, sounds.to_image(sound, SOUND))
    assert "8 of 8 sounds are longer than 0.06 s" in caplog.text
    other = load(Data(source=str(folder), sound=Sound(bands=8), directory=config.directory))
    assert other.directory != data.directory


def test_short_sounds_end_in_silence(tmp_path):
    (tmp_path / "a").mkdir()
    wavfile.write(tmp_path / "a" / "1.wav", RATE, np.int16(20000 * tone(900, 0.02)))
    raw = read(Data(source=str(tmp_path), sound=SOUND))
    loud = raw.images[0, :, :, 0].max(axis=0)
    assert loud[:4].min() > 100
    assert loud[8:].max() == 0


@pytest.mark.parametrize("content, words", [
    (b"", "cannot read sound"),
    (b"RIFF\x00\x00\x00\x00WAVE", "cannot read sound"),
    (b"not a sound at all, whatever its name", "cannot read sound"),
])  # fmt: skip
def test_what_is_no_sound_is_named(folder, content, words):
    (folder / "owl" / "0.wav").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read(Data(source=str(folder), sound=SOUND))
    assert "owl/0.wav" in str(caught.value)
    assert "--data.skip-bad" in str(caught.value)
    assert len(read(Data(source=str(folder), sound=SOUND, skip_bad=True)).images) == 7


@pytest.mark.parametrize("sound, words", [
    (np.zeros(0, np.int16), "no samples"),
    (np.zeros(900, np.int16), "silent"),
    (np.full(900, np.nan, np.float32), "no numbers"),
])  # fmt: skip
def test_sounds_of_nothing_are_named(folder, sound, words):
    wavfile.write(folder / "wren" / "2.wav", RATE, sound)
    with pytest.raises(DataError, match=words) as caught:
        read(Data(source=str(folder), sound=SOUND))
    assert "wren/2.wav" in str(caught.value)


def test_sounds_and_images_do_not_mix(folder):
    from PIL import Image

    Image.new("L", (16, 16)).save(folder / "owl" / "x.png")
    with pytest.raises(DataError, match="one kind"):
        read(Data(source=str(folder), sound=SOUND))


def test_a_config_that_no_sound_satisfies_is_refused_before_reading(folder):
    with pytest.raises(UserError, match="fewer bands"):
        read(Data(source=str(folder), sound=Sound(bands=500)))


def test_written_sounds_are_read_by_others_and_say_what_they_are(tmp_path):
    sound = np.int16(30000 * tone(700))
    content = wav(sound, RATE, {"synthetic": "genaug", "index": 3})
    (tmp_path / "a.wav").write_bytes(content)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        read_back = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_array_equal(read_back, sound)
    comment = content[content.index(b"ICMT") + 8 :].split(b"\0")[0]
    assert json.loads(comment) == {"synthetic": "genaug", "index": 3}
