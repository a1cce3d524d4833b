"""A prepared dataset: random access to examples, and what is true of all of them."""

from __future__ import annotations

import functools
import hashlib
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, Integer, UInt64

from genaug.data.config import Data, Sound, data_directory
from genaug.data.raw import IN_MEMORY_BYTES
from genaug.data.sources import BUILT_IN, check, open_builder, read
from genaug.data.store import dataset_name, prepare
from genaug.types import DataError, LabelSpec, Spec, UserError


@dataclass(frozen=True)
class Examples:
    """Random access to `{"image": uint8 [h, w, c], "label": int32 []}`; each reads one record."""

    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        return parse(self.records[operator.index(index)])


def parse(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Give what TFDS decodes (scalars come as Python numbers) the dtypes of the spec."""
    return {
        "image": np.asarray(record["image"], np.uint8),
        "label": np.asarray(record["label"], np.int32),
    }


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Examples that do not change, addressed by position 0..n-1.

    spec:        one example's shapes and dtypes: image uint8 [h, w, c], label int32 [] (LabelSpec).
    digests:     64 bits of each image's hash: equal images have equal digests.
    preset_test: where the source came with its own test split, which examples are in it.
    fingerprint: sha256 of the content; equal fingerprints are equal data.
    sound:       how the images were made of sounds; None of images that are none.
    """

    source: Examples
    spec: Spec
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]
    digests: UInt64[np.ndarray, " n"]
    preset_test: Bool[np.ndarray, " n"] | None
    name: str
    licence: str
    origin: str
    fingerprint: str
    directory: Path
    sound: Sound | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self, indices: Integer[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """The examples at `indices`: image uint8 [b, h, w, c] and label int32 [b].

        Small datasets are decoded once and kept (up to 512 MB); larger ones are read each time.
        """
        if self._decoded is not None:
            return {"image": self._decoded[indices], "label": self.labels[indices]}
        image = np.empty((len(indices), *self.spec["image"].shape), np.uint8)
        for row, index in enumerate(indices):
            image[row] = self.source[index]["image"]
        return {"image": image, "label": self.labels[indices]}

    @property
    def in_memory(self) -> bool:
        """Whether all examples are kept in memory, so that `arrays` of all costs no more."""
        return self._decoded is not None

    @functools.cached_property
    def _decoded(self) -> np.ndarray | None:
        shape = (len(self), *self.spec["image"].shape)
        if int(np.prod(shape, dtype=np.int64)) > IN_MEMORY_BYTES:
            return None
        images = np.empty(shape, np.uint8)
        for index in range(len(self)):
            images[index] = self.source[index]["image"]
        return images


def load(config: Data) -> Dataset:
    """Read the source, write it into the data directory unless it is there, and open it.

    Raises UserError for a config that cannot be, DataError for data that is missing or wrong.
    """
    check(config)
    path = Path(config.source).expanduser()
    if is_prepared(path):
        return _fitting(open_dataset(path), config)
    if config.source not in BUILT_IN and path.is_dir():
        _require_apart(path.resolve(), data_directory(config.directory).resolve())
    return open_dataset(prepare(read(config), config))


def _require_apart(source: Path, prepared: Path) -> None:
    """A folder into which its own prepared data would be written is another folder next time."""
    if (prepared / dataset_name(source.name)).is_relative_to(source):
        raise UserError(
            f"the prepared data of {source} would be written into it: move it out of {prepared} or "
            "name another place with --data.directory"
        )


def is_prepared(path: Path) -> bool:
    """Whether genaug wrote the dataset in this directory (else it is a source to be read)."""
    metadata = path / "metadata.json"
    return metadata.is_file() and '"genaug_format"' in metadata.read_text(errors="replace")


def open_dataset(directory: Path) -> Dataset:
    """Open what `write_examples` wrote. Raises DataError if it holds no images with labels."""
    builder = open_builder(directory)
    features, metadata = builder.info.features, builder.info.metadata
    if missing := sorted({"image", "label"} - set(features)):
        raise DataError(f"{directory} has no feature {missing[0]!r}; it has {', '.join(features)}")
    try:
        source = Examples(builder.as_data_source("train"))
        records = _scan(source.records)
    # A damaged file speaks through ArrayRecord, zlib or protobuf, each with its own class.
    except Exception as error:
        raise DataError(
            f"the prepared data in {directory} is damaged ({type(error).__name__}: {error}); "
            "remove the directory and it is prepared again"
        ) from error
    if blank := np.flatnonzero(records["blank"]).tolist():
        logging.warning(
            "%s: %d of %d images are of one colour throughout (the first is %d): see whether they "
            "were read as they should be.", directory, len(blank), len(source), blank[0],
        )  # fmt: skip
    names = features["label"].names if hasattr(features["label"], "names") else None
    class_names = tuple(names or (str(i) for i in range(int(records["label"].max()) + 1)))
    return Dataset(
        source=source,
        spec={
            "image": jax.ShapeDtypeStruct(tuple(features["image"].shape), np.uint8),
            "label": LabelSpec(len(class_names)),
        },
        labels=records["label"],
        class_names=class_names,
        digests=records["digest"],
        preset_test=records["preset_test"] if "preset_test" in features else None,
        name=metadata.get("name", builder.name),
        licence=metadata.get("licence", "not stated"),
        origin=metadata.get("origin", str(directory)),
        fingerprint=metadata["fingerprint"],
        directory=directory,
        sound=Sound(**metadata["sound"]) if "sound" in metadata else None,
    )


def _scan(records: Any) -> dict[str, np.ndarray]:
    """One pass over all records, which also proves that each can be read."""
    labels = np.empty(len(records), np.int32)
    digests = np.empty(len(records), np.uint64)
    preset, blank = np.zeros((2, len(records)), np.bool_)
    for index in range(len(records)):
        record = records[index]
        labels[index] = record["label"]
        preset[index] = record.get("preset_test", False)
        blank[index] = np.ptp(record["image"]) == 0
        digests[index] = np.frombuffer(
            hashlib.blake2b(record["image"].tobytes(), digest_size=8).digest(),
            np.uint64,
        )[0]
    return {"label": labels, "digest": digests, "preset_test": preset, "blank": blank}


def _fitting(dataset: Dataset, config: Data) -> Dataset:
    """Prepared images are as they are: asking for another shape is a mistake, not a conversion."""
    height, width, channels = dataset.spec["image"].shape
    wanted = (config.image_size or height, config.image_size or width, config.channels or channels)
    if wanted != (height, width, channels):
        raise DataError(
            f"{dataset.directory} holds images of {height}x{width}x{channels}; for another "
            "--data.image-size or --data.channels give the source it was prepared from "
            f"({dataset.origin})"
        )
    return dataset
