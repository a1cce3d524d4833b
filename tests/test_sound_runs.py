"""A model of sounds, from a folder of .wav files to a folder of .wav files."""

import base64
import dataclasses
import io
import json
import re
import wave

import numpy as np
import pytest
from scipy.io import wavfile
from tiny_run import tiny

from genaug.data import Data
from genaug.data.config import Sound
from genaug.report import write_report
from genaug.transforms import sounds

pytest_plugins = ["tiny_run"]

SOUND = Sound(window=128, hop=32, bands=8, frames=8)
EXPERIMENT = """
import dataclasses
from tiny_run import tiny
from genaug.config import Experiment
from genaug.data import Data
from genaug.data.config import Sound

def config():
    sound = Sound(window=128, hop=32, bands=8, frames=8)
    return dataclasses.replace(tiny(), data=Data(source={source!r}, sound=sound))
"""


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """40 tones, high ones and low ones."""
    root, random = tmp_path_factory.mktemp("sounds") / "birds", np.random.default_rng(0)
    for hertz, name in ((500, "owl"), (2500, "wren")):
        (root / name).mkdir(parents=True)
        for i in range(40):
            time = np.arange(400) / 8000
            tone = np.sin(2 * np.pi * (hertz + random.integers(200)) * time)
            wavfile.write(root / name / f"{i}.wav", 8000, np.int16(20000 * tone))
    return root


@pytest.fixture
def trained(run_cli, birds, tmp_path, monkeypatch):
    monkeypatch.setenv("GENAUG_DATA_DIR", str(tmp_path / "data"))
    file, run = tmp_path / "birds.py", tmp_path / "run"
    file.write_text(EXPERIMENT.format(source=str(birds)))
    assert run_cli("train", file, "--run-dir", run, "--train.batch-size", 16, "--quiet") == 0
    return run


def heard(path):
    with wave.open(str(path)) as file:
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    content = path.read_bytes()
    comment = content[content.index(b"ICMT") + 8 :].split(b"\0")[0]
    return rate, np.frombuffer(data, "<i2"), json.loads(comment)


def test_a_model_of_sounds_draws_sounds(run_cli, trained, birds, tmp_path, capsys):
    out, pictures = tmp_path / "drawn", tmp_path / "pictures.npz"
    assert run_cli("sample", trained, "--n", 6, "--seed", 4, "--out", out) == 0
    assert "6 sounds in" in capsys.readouterr().out
    assert run_cli("sample", trained, "--n", 6, "--seed", 4, "--out", pictures) == 0
    with np.load(pictures) as file:
        wanted = np.asarray(sounds.to_sound(file["image"], SOUND))
    found = sorted(out.rglob("*.wav"), key=lambda path: path.name)
    assert [path.parent.name for path in found] == ["owl", "wren"] * 3
    for i, path in enumerate(found):
        rate, sound, about = heard(path)
        assert rate == 8000
        assert sound.shape == (sounds.samples(SOUND),)
        assert np.abs(sound.astype(int) - wanted[i]).max() <= 1
        assert (about["synthetic"], about["seed"], about["index"]) == ("genaug", 4, i)
    assert (out / "grid.png").is_file()

    assert run_cli("evaluate", out, birds) == 2
    assert "is generated, and real data stands first" in capsys.readouterr().err

    # What was drawn is data again, and a sound is what a variation begins with.
    again = Data(source=str(out), sound=SOUND, valid_fraction=0.0, test_fraction=0.0)
    assert again.read()[0].class_names == ("owl", "wren")
    near = ("--near", birds / "owl" / "0.wav")
    assert run_cli("sample", trained, "--n", 2, *near, "--out", tmp_path / "near") == 0

    assert run_cli("sample", trained, "--format", "jsonl", "--out", tmp_path / "x") == 2
    assert "this model draws sounds; use wav, arrayrecord" in capsys.readouterr().err


def test_its_bundle_draws_the_same_sounds(run_cli, trained, tmp_path):
    bundle = tmp_path / "bundle"
    assert run_cli("export", trained, bundle) == 0
    kept = json.loads((bundle / "bundle.json").read_text())["data"]["sound"]
    assert kept == dataclasses.asdict(SOUND)
    for source, name in ((trained, "of_run"), (bundle, "of_bundle")):
        options = ("--n", 3, "--format", "wav", "--out", tmp_path / name)
        assert run_cli("sample", source, *options) == 0
    for path in (tmp_path / "of_run").rglob("*.wav"):
        other = tmp_path / "of_bundle" / path.relative_to(tmp_path / "of_run")
        assert path.read_bytes() == other.read_bytes()


def test_the_report_plays_them(finished_copy):
    """Of a run whose 8x8 images are declared to be pictures of sounds."""
    path = finished_copy / "results.json"
    results = json.loads(path.read_text())
    page = write_report(finished_copy).read_text()
    assert "<audio" not in page
    results["data"]["sound"] = dataclasses.asdict(SOUND)
    path.write_text(json.dumps(results))
    page = write_report(finished_copy).read_text()
    players = re.findall(
        r'<audio [^>]*aria-label="([^"]*)" src="data:audio/wav;base64,([^"]*)"', page
    )
    kinds = [label.split()[0] for label, _ in players]
    assert kinds.count("real") == 10
    assert kinds.count("generated") == sum(n > 0 for n in results["drawn"]["kept"])
    for _, content in players:
        rate, sound = wavfile.read(io.BytesIO(base64.b64decode(content)))
        assert rate == SOUND.sample_rate
        one = sounds.samples(SOUND) + rate // 4
        assert len(sound) % one == 0
        assert 1 <= len(sound) // one <= 5
        assert np.abs(sound.astype(int)).max() > 20000


def test_a_model_of_images_draws_none(run_cli, finished, tmp_path, capsys):
    assert "sound" not in json.loads((finished / "data.json").read_text())
    assert run_cli("sample", finished, "--format", "wav", "--out", tmp_path / "x") == 2
    assert "--format wav: this model draws images; use folder" in capsys.readouterr().err
    assert tiny().data.sound == Sound()
