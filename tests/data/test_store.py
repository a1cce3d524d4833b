"""What is on disk: readable by TFDS alone, written once, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from genaug.data import Data, catalogue, load, split, write_examples
from genaug.types import DataError, UserError

FEATURES = {
    "image": jax.ShapeDtypeStruct((4, 4, 1), np.uint8),
    "label": np.int32,
    "seed": np.int64,
    "model_digest": str,
    "label_probability": np.float32,
    "latent": jax.ShapeDtypeStruct((3,), np.float32),
}


def rows(n=5):
    for i in range(n):
        yield {
            "image": np.full((4, 4, 1), i, np.uint8),
            "label": np.int32(i % 2),
            "seed": np.int64(2**40 + i),
            "model_digest": "späß",
            "label_probability": np.float32(0.25),
            "latent": np.arange(3, dtype=np.float32),
        }


def store(directory, examples=None, **options):
    options = {"class_names": ("no", "yes")} | options
    return write_examples(
        directory,
        name="My set!",
        features=FEATURES,
        examples=rows() if examples is None else examples,
        **options,
    )


def test_tfds_alone_reads_it_back(tmp_path):
    directory = store(tmp_path / "d", metadata={"steps": 7}, licence="CC0")
    builder = tfds.builder_from_directory(directory)
    source = builder.as_data_source("train")
    assert [int(r["seed"]) - 2**40 for r in source] == [0, 1, 2, 3, 4]
    assert (source[3]["image"] == 3).all()
    assert source[3]["model_digest"].decode() == "späß"
    assert source[3]["label_probability"] == 0.25
    assert source[3]["latent"].tolist() == [0, 1, 2]
    assert builder.info.features["label"].names == ["no", "yes"]
    assert builder.info.metadata["steps"] == 7
    assert "tensorflow" not in sys.modules
    assert os.listdir(tmp_path) == ["d"]


def test_synthetic_data_loads_like_real_data(tmp_path):
    dataset = load(Data(source=str(store(tmp_path / "d"))))
    assert dataset.class_names == ("no", "yes")
    assert dataset.labels.tolist() == [0, 1, 0, 1, 0]
    assert dataset.source[2]["label"].dtype == np.int32
    assert dataset.source[2]["image"].dtype == np.uint8
    other = load(Data(source=str(store(tmp_path / "e", list(rows())[::-1]))))
    assert other.fingerprint != dataset.fingerprint
    with pytest.raises(DataError, match="4x4x1"):
        load(Data(source=str(tmp_path / "d"), image_size=9))


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield from rows(3)
        raise RuntimeError("sampler died")

    with pytest.raises(RuntimeError, match="sampler died"):
        store(tmp_path / "d", broken())
    with pytest.raises(DataError, match="no examples"):
        store(tmp_path / "d", [])
    with pytest.raises(DataError, match="class name"):
        store(tmp_path / "d", class_names=("no", "a\nb"))
    assert os.listdir(tmp_path) == []


def test_the_directory_appears_only_when_complete(tmp_path):
    def watched():
        for row in rows():
            assert not (tmp_path / "d").exists()
            yield row

    renamed = []

    def replace(source, target, real=os.replace):
        renamed.append((os.path.isfile(os.path.join(source, "dataset_info.json")), str(target)))
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        store(tmp_path / "d", watched())
    assert (True, str(tmp_path / "d")) in renamed


def test_existing_data_is_never_overwritten(tmp_path):
    store(tmp_path / "d")
    with pytest.raises(UserError, match="not empty"):
        store(tmp_path / "d")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        store(tmp_path / "file" / "d")


KILLED = """
import sys, time
import numpy as np
from pathlib import Path
from genaug.data import write_examples
def rows():
    for i in range(10**9):
        if i == 100:
            print("writing", flush=True)
        if i > 100:
            time.sleep(0.01)
        yield {"a": i}
write_examples(Path(sys.argv[1]), name="k", features={"a": np.int64}, examples=rows())
"""


def test_a_killed_write_leaves_no_dataset(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "set" / "d")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "set" / "d").exists()
    assert catalogue(str(tmp_path))[2].kind == "form"
    (partial,) = (tmp_path / "set").iterdir()
    os.utime(partial, (0, time.time() - 2 * 24 * 3600))
    write_examples(tmp_path / "set" / "d", name="k", features={"a": np.int64}, examples=[{"a": 1}])
    assert os.listdir(tmp_path / "set") == ["d"]


def test_prepared_once_read_afterwards(tmp_path):
    config = Data(source="digits", directory=str(tmp_path))
    first = load(config)
    stamp = {p: p.stat().st_mtime_ns for p in first.directory.iterdir()}
    again = load(config)
    assert again.directory == first.directory
    assert {p: p.stat().st_mtime_ns for p in again.directory.iterdir()} == stamp
    assert again.fingerprint == first.fingerprint
    assert json.loads((first.directory / "metadata.json").read_text())["name"] == "digits"
    assert load(Data(source="digits", channels=3, directory=str(tmp_path))).directory not in stamp
    assert [e.name for e in catalogue(str(tmp_path)) if e.kind == "prepared"] == ["digits"] * 2
    assert (load(Data(source=str(first.directory))).digests == first.digests).all()


def test_prepared_data_is_not_written_into_its_own_source(tmp_path, monkeypatch):
    """The folder would have one class more the next time."""
    from PIL import Image

    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for i in range(5):
        Image.new("L", (4, 4), i).save(tmp_path / "pets" / "cat" / f"{i}.png")
    config = Data(source=str(tmp_path / "pets"), directory=str(tmp_path))
    with pytest.raises(UserError, match=r"--data\.directory"):
        load(config)
    assert sorted(path.name for path in (tmp_path / "pets").iterdir()) == ["cat"]
    load(Data(source=config.source, directory=str(tmp_path / "data")))
    monkeypatch.chdir(tmp_path)
    load(Data(source="digits", directory="."))
    load(Data(source="digits", directory=".", channels=3))


def test_two_processes_may_prepare_at_once(tmp_path):
    code = f"""
from genaug.data import Data, load
print(load(Data(source="digits", directory={str(tmp_path)!r})).directory)
"""
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list((tmp_path / "digits").iterdir())) == 1


def test_images_of_one_colour_are_pointed_out(tmp_path, caplog):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), np.uint8)
    images[[2, 5]] = 7
    np.savez(tmp_path / "set.npz", image=images, label=np.arange(6) % 2)
    config = Data(source=str(tmp_path / "set.npz"), directory=str(tmp_path))
    load(config)
    assert "2 of 6 images are of one colour throughout (the first is 2)" in caplog.text
    caplog.clear()
    np.savez(tmp_path / "set.npz", image=images[:2], label=np.arange(2))
    load(config)
    assert "one colour" not in caplog.text


def test_damaged_data_is_said_to_be(tmp_path):
    dataset = load(Data(source="digits", directory=str(tmp_path)))
    (shard,) = dataset.directory.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    shard.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load(Data(source="digits", directory=str(tmp_path)))


def test_a_tfds_directory_that_genaug_did_not_write(tmp_path):
    names, features = ["p", "q"], tfds.features
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name="foreign",
            version=tfds.core.Version("1.0.0"),
            data_dir=str(tmp_path),
            module_name="elsewhere",
        ),
        features=features.FeaturesDict(
            {
                "image": features.Tensor(shape=(6, 6, 3), dtype=np.uint8),
                "label": features.ClassLabel(names=names),
            }
        ),
    )
    writer = tfds.core.SequentialWriter(info, 100, file_format="array_record")
    writer.initialize_splits(["train", "test"])
    example = [{"image": np.full((6, 6, 3), i, np.uint8), "label": i % 2} for i in range(12)]
    writer.add_examples({"train": example[:8], "test": example[8:]})
    writer.close_splits(["train", "test"])
    config = Data(source=str(tmp_path), channels=1)
    dataset = load(config)
    assert dataset.spec["image"].shape == (6, 6, 1)
    assert dataset.class_names == ("p", "q")
    assert split(dataset, config).test.tolist() == [8, 9, 10, 11]
