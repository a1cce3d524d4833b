"""What reads files: whatever is in them, it is read or refused in words, and nothing else.

GENAUG_FUZZ=100000 pytest tests/test_fuzz.py      as many inputs of each; a few otherwise
"""

import contextlib
import functools
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_run import tiny

from genaug import bundle, checkpoint, logs, verify
from genaug.config import experiment_from_json, to_json
from genaug.data import Data
from genaug.data.arrays import read_npz
from genaug.data.folder import decode
from genaug.data.sound_files import read_sound, wav
from genaug.data.text import TextData
from genaug.data.text_files import read_file
from genaug.data.tokens import bpe
from genaug.files import read_json
from genaug.types import DataError, UserError

FUZZ = settings(
    max_examples=int(os.environ.get("GENAUG_FUZZ", 60)),
    deadline=None,
    derandomize="GENAUG_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@st.composite
def mutated(draw, content: bytes):
    """A file with bytes changed, cut out, doubled or put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        how = draw(st.sampled_from(["set", "cut", "end", "put", "double"]))
        if how == "set" and found:
            found[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del found[at : at + draw(st.integers(1, 16))]
        elif how == "end":
            del found[at:]
        elif how == "put":
            found[at:at] = draw(st.binary(max_size=16))
        else:
            found[at:at] = found[at : at + draw(st.integers(1, 64))]
    return bytes(found)


@st.composite
def mutated_json(draw, value):
    """A JSON value with one node replaced by any other, or left out."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value)))
        if not draw(st.integers(0, 6)):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: draw(mutated_json(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(mutated_json(value[at])), *value[at + 1 :]]
    return draw(JSON)


@functools.cache
def encoded(kind: str) -> bytes:
    image = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def array_file() -> bytes:
    file = io.BytesIO()
    np.savez(file, image=np.zeros((3, 4, 4), np.uint8), label=np.arange(3))
    return file.getvalue()


def read_or_refused(read, *arguments):
    """What was read, or None. Anything but an error in words fails the test."""
    with contextlib.suppress(UserError):
        return read(*arguments)
    return None


def sound_file() -> bytes:
    return wav(np.arange(-300, 300, dtype=np.int16) * 50, 8000, {"synthetic": "genaug"})


@FUZZ
@given(st.data())
def test_configs(data):
    value = json.loads(json.dumps(to_json(tiny())))
    read_or_refused(experiment_from_json, data.draw(mutated_json(value)), "config.json")


@FUZZ
@given(content=st.binary(max_size=200) | mutated(json.dumps(to_json(tiny())).encode()))
def test_json_files(folder, content):
    (folder / "x.json").write_bytes(content)
    read_or_refused(read_json, folder / "x.json")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP"])
@FUZZ
@given(data=st.data())
def test_images(folder, kind, data):
    path = folder / f"x.{kind.lower()}"
    path.write_bytes(data.draw(mutated(encoded(kind))))
    found = read_or_refused(decode, path, 255)
    assert found is None or (found.dtype == np.uint8 and found.ndim == 3)


@FUZZ
@given(content=mutated(sound_file()))
def test_sounds(folder, content):
    (folder / "x.wav").write_bytes(content)
    found = read_or_refused(read_sound, folder / "x.wav", 8000)
    assert found is None or (found.ndim == 1 and np.isfinite(found).all())


@FUZZ
@given(content=mutated(array_file()))
def test_array_files(folder, content):
    (folder / "x.npz").write_bytes(content)
    read_or_refused(read_npz, folder / "x.npz", Data(source="x.npz"))


@pytest.mark.parametrize(
    "name, content",
    [
        ("x.csv", b'text,label\n"a ""b"" c",one\nd,two\n'),
        ("x.jsonl", b'{"text": "a", "label": "one"}\n{"text": "\\u00e9", "label": "two"}\n'),
        ("x.txt", b"one\n\ntwo\n"),
    ],
    ids=["csv", "jsonl", "txt"],
)
@FUZZ
@given(data=st.data())
def test_texts(folder, name, content, data):
    config = TextData(source=name, label_column="label" if name != "x.txt" else None)
    path = folder / name
    any_text = st.binary(max_size=100) | st.text(max_size=60).map(str.encode)
    path.write_bytes(data.draw(mutated(content) | any_text))
    for found in read_or_refused(lambda: list(read_file(path, name, config))) or []:
        if isinstance(found, DataError):
            assert str(found)
        else:
            found.text.decode()


def mark():
    files = {"state/d/x": "0" * 64}
    one = {"shape": [2, 3], "dtype": "float32", "digest": "0" * 8}
    about = {"config": to_json(tiny()), "data": "x", "next_batch": "y"}
    return {"format": 2, "step": 5, "files": files, "arrays": {"a.b": one}, "about": about}


@FUZZ
@given(st.data())
def test_marks(folder, data):
    """A mark that was changed is never taken for whole, with or without a digest that fits."""
    value = data.draw(mutated_json(json.loads(json.dumps(mark()))))
    signed = isinstance(value, dict) and data.draw(st.booleans())
    if signed:
        value = {**value, "digest": checkpoint._digest(value)}
    text = json.dumps(value).encode()
    (folder / "5.json").write_bytes(text if data.draw(st.booleans()) else data.draw(mutated(text)))
    assert checkpoint.faults(folder, 5)
    assert isinstance(checkpoint.array_faults(folder, 5), list)
    checkpoint.about(folder, 5)


@FUZZ
@given(content=mutated(b'{"step": 5, "loss": 1.5}\n{"step": 10, "loss": 1.25}\n'))
def test_metrics(folder, content):
    (folder / "metrics.jsonl").write_bytes(content)
    assert all("step" in line for line in logs.read_metrics(folder))


@FUZZ
@given(st.data())
def test_bundles(folder, data):
    """Also where the digests were made to agree with what was changed."""
    about = {
        "format": 1,
        "genaug": "0",
        "jax": "0",
        "calling_convention": 10,
        "platforms": ["cpu"],
        "weights_digest": "0" * 64,
        "spec": {"image": {"shape": [2, 2, 1], "dtype": "uint8"}},
        "conditions": {"index": {"shape": [], "dtype": "int32"}},
    }
    directory = folder / "export"
    directory.mkdir(exist_ok=True)
    files = {name: data.draw(st.binary(max_size=64)) for name in bundle.FILES}
    text = json.dumps(data.draw(mutated_json(about))).encode()
    files["bundle.json"] = data.draw(st.just(text) | mutated(text))
    for name, content in files.items():
        (directory / name).write_bytes(content)
    sums = bundle.sums(files)
    (directory / bundle.SUMS).write_bytes(data.draw(st.just(sums) | mutated(sums)))
    assert read_or_refused(bundle.load_sampler, directory) is None
    assert verify.bundle_faults(directory)


@FUZZ
@given(value=JSON | st.text(max_size=30))
def test_tokenizers(value):
    assert read_or_refused(bpe, value if isinstance(value, str) else json.dumps(value)) is None


def test_the_files_that_are_changed_can_be_read_as_they_are(folder):
    """Or all of the above would be refused for another reason."""
    (folder / "x.npz").write_bytes(array_file())
    assert len(read_npz(folder / "x.npz", Data(source="x.npz")).images) == 3
    assert zipfile.is_zipfile(folder / "x.npz")
    path = folder / "x.png"
    path.write_bytes(encoded("PNG"))
    assert decode(path, 255).shape == (8, 8, 3)
    whole = {**mark(), "digest": checkpoint._digest(json.loads(json.dumps(mark())))}
    (folder / "5.json").write_text(json.dumps(whole))
    assert checkpoint.faults(Path(folder), 5) == ["state/d/x is missing"]
