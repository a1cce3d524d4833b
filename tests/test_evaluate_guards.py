"""Wrong uses of the evaluation, through the doors that people take: each is answered clearly."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from genaug.evaluation import Labels, audit
from genaug.evaluation.features import of
from genaug.outputs import MARK
from genaug.types import UserError

pytest_plugins = ["tiny_run"]

CENTRES = np.random.default_rng(99).integers(60, 196, size=(2, 4, 4, 1))


def images(n, seed):
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 15, size=(n, 4, 4, 1))
    return np.clip(CENTRES[generator.integers(2, size=n)] + noise, 0, 255).astype(np.uint8)


TRAIN, HOLDOUT, MADE = images(40, 0), images(40, 1), images(40, 2)
ZEROS = np.zeros(40, int)


def nan_in_one(x):
    features = x.reshape(len(x), -1).astype(np.float64)
    features[3, 1] = np.nan
    return features


REFUSED = {
    "the held-out set twice": ((TRAIN, HOLDOUT, HOLDOUT[::-1]), {}, "are the same examples"),
    "the training set twice": ((TRAIN, TRAIN, MADE), {}, "hold others out"),
    "all of the real data as synthetic": (
        (TRAIN, HOLDOUT, np.concatenate([HOLDOUT, TRAIN])),
        {},
        "the whole real and the synthetic set are the same examples",
    ),
    "floats for bytes": (
        tuple(x / np.float32(255) for x in (TRAIN, HOLDOUT, MADE)),
        {},
        "images as float32, and files hold bytes",
    ),
    "floats for bytes in one set": ((TRAIN, HOLDOUT, MADE / 255), {}, "differ in shape or dtype"),
    "floats cast to bytes": (
        (TRAIN, HOLDOUT, (MADE / 255 + 0.5).astype(np.uint8)),
        {},
        "the synthetic set holds no byte but 0 and 1",
    ),
    "labels of other sets, as of swapped ones": (
        (TRAIN, HOLDOUT, MADE[:30]),
        {"labels": Labels(ZEROS[:30], ZEROS, ZEROS)},
        "one label per example",
    ),
    "fewer than k + 1": ((TRAIN, HOLDOUT, MADE[:5]), {}, "only 5 examples .* k=5 needs 12"),
    "NaN in rows": (
        (*(x.reshape(40, -1) * 1.0 for x in (TRAIN, HOLDOUT)), nan_in_one(MADE)),
        {},
        "synthetic set holds NaN or infinity, first in row 3",
    ),
    "NaN in features": (
        (TRAIN, HOLDOUT, MADE),
        {"net": of(nan_in_one, "mine")},
        "the features mine of 1 examples are NaN or infinite",
    ),
}


@pytest.mark.parametrize("sets, options, words", REFUSED.values(), ids=REFUSED)
def test_it_is_refused(sets, options, words):
    with pytest.raises(UserError, match=words):
        audit(*sets, seed=0, draws=2, **options)


WARNED = {
    "n <= d": ((TRAIN, HOLDOUT, MADE[:14]), "fd/pixels", "14 examples are no more than the 16"),
    "an oversampled real set": (
        (np.repeat(TRAIN[:10], 4, axis=0), HOLDOUT, MADE),
        "coverage",
        "30 of the 40 examples of the training set are exact copies",
    ),
    "an oversampled synthetic set": (
        (TRAIN, HOLDOUT, np.repeat(MADE[:10], 4, axis=0)),
        "coverage",
        "30 of the 40 examples of the synthetic set are exact copies",
    ),
    "synthetic examples out of the held-out set": (
        (TRAIN, HOLDOUT, np.concatenate([MADE[:38], HOLDOUT[:2]])),
        "closer_to_train",
        "2 synthetic examples equal held-out ones",
    ),
    "synthetic examples out of the training set": (
        (TRAIN, HOLDOUT, np.concatenate([MADE[:38], TRAIN[:2]])),
        "exact_copies",
        "2 of the 40 synthetic examples equal training ones",
    ),
    "held-out examples in the training set": (
        (np.concatenate([TRAIN[:38], HOLDOUT[:2]]), HOLDOUT, MADE),
        "closer_to_train",
        "2 held-out examples are in the training set too",
    ),
    "features of 0 alone": (
        (TRAIN, HOLDOUT, np.zeros_like(MADE)),
        "fd/pixels",
        "No vendi/pixels: 40 rows of features are all 0",
    ),
}


@pytest.mark.parametrize("sets, name, words", WARNED.values(), ids=WARNED)
def test_the_number_says_it(sets, name, words):
    found = {each.name: each for each in audit(*sets, seed=0, draws=2)}
    assert words in " ".join(found[name].remarks)


def write_folder(folder, some, text=None):
    """As any program would: Pillow alone."""
    folder.mkdir(parents=True)
    for i, image in enumerate(some):
        Image.fromarray(image[:, :, 0]).save(folder / f"{i}.png", pnginfo=text)
    return folder


def drawn_folder(path):
    about = PngImagePlugin.PngInfo()
    about.add_text("synthetic", "genaug")
    return write_folder(path / "images", MADE, about).parent


def drawn_npz(path):
    np.savez(path.with_suffix(".npz"), image=MADE, label=ZEROS)
    with zipfile.ZipFile(path.with_suffix(".npz"), "a") as archive:
        archive.comment = MARK
    return path.with_suffix(".npz")


@pytest.mark.parametrize("drawn", [drawn_folder, drawn_npz])
@pytest.mark.parametrize("holdout", [False, True])
def test_swapped_arguments_of_the_command(run_cli, tmp_path, capsys, drawn, holdout):
    real, made = write_folder(tmp_path / "real", TRAIN), drawn(tmp_path / "made")
    arguments = (real, real, "--holdout", made) if holdout else (made, real)
    assert run_cli("evaluate", *arguments, "--features", "pixels") == 2
    assert f"{made} is generated, and real data stands first" in capsys.readouterr().err


def test_the_command_on_one_set_twice(run_cli, tmp_path, capsys):
    real = write_folder(tmp_path / "real", TRAIN)
    assert run_cli("evaluate", real, real, "--features", "pixels") == 2
    assert "whole real and the synthetic set are the same" in capsys.readouterr().err


def test_floats_in_a_file_out_of_the_range_of_bytes(run_cli, tmp_path, capsys):
    real = write_folder(tmp_path / "real", TRAIN)
    np.savez(tmp_path / "made.npz", image=MADE / 127.5 - 1, label=ZEROS)
    assert run_cli("evaluate", real, tmp_path / "made.npz", "--features", "pixels") == 3
    assert "outside the declared range 0 to 1" in capsys.readouterr().err


def test_folders_of_other_programs_are_judged_and_no_model_is_imported(tmp_path):
    real = write_folder(tmp_path / "real", images(80, 3))
    made = write_folder(tmp_path / "made", MADE)
    code = (
        "import sys\n"
        "from genaug.cli import main\n"
        f"assert main(['evaluate', {str(real)!r}, {str(made)!r}, '--features', 'pixels',"
        f" '--all', '--json', {str(tmp_path / 'found.json')!r}]) == 0\n"
        "own = ('genaug.models', 'genaug.train', 'genaug.job', 'genaug.runs')\n"
        "found = [n for n in sys.modules if n.startswith(own)]\n"
        "assert not found, found\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "fd/pixels" in told.stdout
    assert "clipped_coverage" in told.stdout
    assert (tmp_path / "found.json").is_file()
