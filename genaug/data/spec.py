"""What one example looks like, as far as it can be said without reading the data."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from genaug.data.config import Data
from genaug.data.text import TextData
from genaug.data.tokens import read_tokenizer, size_to_learn
from genaug.types import DataError, LabelSpec, Spec, TokenSpec, UserError

_BUILT_IN = {"mnist5k": (28, 1, 10), "digits": (8, 1, 10)}  # side, channels, classes


def spec_of(
    config: Data | TextData, *, num_classes: int | None = None, vocab_size: int | None = None
) -> Spec:
    """The spec of a source; the source itself is read only where nothing else tells.

    num_classes: of data that is not here, with data.image-size and data.channels.
    vocab_size: ids of text, of a tokenizer that is not here.

    Raises:
        UserError: what has to be said of data that is not here.
    """
    if isinstance(config, TextData):
        return _of_text(config, num_classes, vocab_size)
    if num_classes is not None:
        if config.image_size is None or config.channels is None:
            raise UserError(
                "--num-classes says what the data is without reading it: also give "
                "--data.image-size and --data.channels."
            )
        return _images(config.image_size, config.image_size, config.channels, num_classes)
    if config.source in _BUILT_IN:
        side, channels, classes = _BUILT_IN[config.source]
        side = config.image_size or side
        return _images(side, side, config.channels or channels, classes)
    if config.source.startswith("tfds:") and (found := _tfds(config)):
        return found
    try:
        return config.read()[0].spec
    except DataError as error:
        raise DataError(
            f"{error}. To plan without the data give --num-classes, --data.image-size and "
            "--data.channels"
        ) from error


def _images(height: int, width: int, channels: int, num_classes: int) -> Spec:
    image = jax.ShapeDtypeStruct((height, width, channels), np.uint8)
    return {"image": image, "label": LabelSpec(num_classes)}


def _tfds(config: Data) -> Spec | None:
    """What TFDS declares of a dataset, downloaded or not; None where it does not say enough."""
    import tensorflow_datasets as tfds

    try:
        features: Any = tfds.builder(
            config.source.removeprefix("tfds:"), file_format="array_record", try_gcs=False
        ).info.features
        height, width, channels = features["image"].shape
        num_classes = features["label"].num_classes
    except Exception:  # an unknown name, no network, other features: reading will say which
        return None
    height, width = config.image_size or height, config.image_size or width
    channels = config.channels or channels
    if None in (height, width, channels, num_classes):
        return None
    return _images(height, width, channels, num_classes)


def _of_text(config: TextData, num_classes: int | None, vocab_size: int | None) -> Spec:
    if num_classes is None and config.conditional:
        return config.read()[0].spec
    num_text = vocab_size or size_to_learn(config.tokenizer)  # a BPE to be learned has at most N
    if num_text is None:
        try:
            num_text = read_tokenizer(config.tokenizer).num_text
        except UserError as error:
            raise UserError(f"{error}. To plan without it give --vocab-size N") from error
    tokens = TokenSpec(config.context + 1, num_text, num_classes or 0)
    return {
        "tokens": tokens,
        "segments": jax.ShapeDtypeStruct(tokens.shape, np.int32),
        "num_bytes": jax.ShapeDtypeStruct((), np.int32),
    }
