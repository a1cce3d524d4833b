"""What `genaug evaluate` does: two sets from wherever they are, measured, printed and compared."""

from __future__ import annotations

import argparse
import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from genaug import export
from genaug.bundle import load_sampler
from genaug.data import Data, load
from genaug.data.raw import ONE_CLASS
from genaug.devices import Mesh, make_mesh
from genaug.evaluation import classifier, features
from genaug.evaluation.audit import audit
from genaug.evaluation.features import FeatureNet
from genaug.evaluation.matching import Labels
from genaug.evaluation.results import Result, change, from_json
from genaug.files import read_json
from genaug.logs import plain
from genaug.outputs import MARK
from genaug.types import UserError


class Images(NamedTuple):
    """One side of the comparison."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    source: str


def evaluate(options: argparse.Namespace) -> list[Result]:
    """Likeness, variety and memorisation of a synthetic set.

    Raises:
        UserError, DataError: sets that cannot be read, or not be compared.
    """
    train, holdout = _real(options)
    if _sampler(options.synthetic):
        made = _draw(Path(options.synthetic), holdout, options.seed)
    else:
        made = _read(_images_of(options.synthetic), options)
    sides = (train, holdout, made)
    for each in sides[1:]:
        _require_alike(train, each)
    labelled = all(len(each.class_names) > 1 for each in sides)
    net, scorer = _net(options, train, labelled)
    return audit(
        *(each.images for each in sides),
        net=net,
        scorer=scorer,
        every=options.all,
        labels=Labels(*(each.labels for each in sides)) if labelled else None,
        class_names=train.class_names if labelled else (),
        seed=options.seed,
        mesh=make_mesh(Mesh()),
    )


def changes(results: Sequence[Result], path: Path) -> dict[tuple[str, str | None], str]:
    """By metric and class, how each number moved since `path` was written with --json.

    Raises:
        UserError: a number that was measured in another way.
    """
    before = {(each.name, each.group): each for each in from_json(read_json(path))}
    found = {}
    for each in results:
        if old := before.get((each.name, each.group)):
            moved = change(each, old)
            found[each.name, each.group] = (
                f"{moved.estimate:+.3f} [{moved.low:+.3f}, {moved.high:+.3f}]"
            )
    return found


def _real(options: argparse.Namespace) -> tuple[Images, Images]:
    """What the generator may have seen, and what it has not."""
    for source in (options.real, options.holdout):
        if source and (_sampler(source) or _is_synthetic(Path(source))):
            raise UserError(
                f"{source} is generated, and real data stands first: genaug evaluate REAL SYNTHETIC"
            )
    real = _read(options.real, options)
    if options.holdout:
        return real, _read(options.holdout, options)
    # Without data that the generator never saw there is no null: half of REAL is the best left.
    order = np.random.Generator(np.random.PCG64(options.seed)).permutation(len(real.images))
    parts = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    train, holdout = (
        real._replace(images=real.images[rows], labels=real.labels[rows]) for rows in parts
    )
    return train, holdout


def _read(source: str, options: argparse.Namespace) -> Images:
    dataset = load(Data(source=source, image_size=options.image_size, channels=options.channels))
    arrays = dataset.arrays(np.arange(len(dataset)))
    return Images(arrays["image"], arrays["label"], dataset.class_names, source)


def _images_of(source: str) -> str:
    """Where the images are: of a run those that it drew."""
    drawn = Path(source) / "synthetic"
    if not (Path(source) / "config.json").is_file():
        return source
    if not drawn.is_dir():
        raise UserError(
            f"{source} has drawn no images: name a folder made by `genaug sample {source}`"
        )
    return str(drawn)


def _sampler(source: str) -> bool:
    return (Path(source) / "bundle.json").is_file()


def _is_synthetic(path: Path) -> bool:
    """Whether genaug drew what is there: a run, or what `genaug sample` wrote in any format."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            kept = {f"{name}.npy" for name in ("label_probability", "nearest_train")}  # of a run
            return archive.comment == MARK or kept <= set(archive.namelist())
    fields = path / "features.json"
    if (path / "config.json").is_file() or (
        fields.is_file() and '"synthetic"' in fields.read_text(errors="replace")
    ):
        return True
    try:
        if sound := next(path.glob("*/*.wav"), None):
            return b'"synthetic": "genaug"' in sound.read_bytes()
        with Image.open(next(path.glob("*/*.png"))) as picture:
            return picture.info.get("synthetic") == "genaug"
    except (StopIteration, OSError):  # An unreadable one is named where the folder is read.
        return False


def _draw(path: Path, like: Images, seed: int) -> Images:
    """As many images of each class as `like` has, from a bundle; no model is imported for it."""
    bundle = load_sampler(path, make_mesh(Mesh()).devices)
    about = bundle.description
    if "image" not in about["spec"]:
        raise UserError(f"{path} draws {', '.join(about['spec'])}, and images are compared here.")
    cond = {"index": np.arange(len(like.images), dtype=np.int32)}
    found = like._replace(labels=np.zeros_like(like.labels), class_names=(ONE_CLASS,))
    if "label" in about["conditions"]:
        names = tuple(about["data"]["class_names"])
        if missing := sorted(set(like.class_names) - set(names)):
            raise UserError(
                f"{path} draws the classes {', '.join(map(plain, names))}, and the real set has "
                f"{plain(missing[0])!r}: bring them to the same names."
            )
        numbers = np.array([names.index(name) for name in like.class_names], np.int32)
        cond["label"], found = numbers[like.labels], like
    drawn = bundle.blocks(min(256, len(like.images)))(jax.random.key(seed), cond)["image"]
    return found._replace(images=drawn, source=str(path))


def _require_alike(real: Images, other: Images) -> None:
    if real.class_names != other.class_names and min(
        len(real.class_names), len(other.class_names)
    ) > 1:  # fmt: skip
        raise UserError(
            f"{other.source} has the classes {', '.join(map(plain, other.class_names))} and the "
            f"real set {', '.join(map(plain, real.class_names))}: bring them to the same names."
        )
    if real.images.shape[1:] != other.images.shape[1:]:
        raise UserError(
            f"{other.source} holds images of shape {other.images.shape[1:]}, the real set "
            f"{real.images.shape[1:]}: give --image-size and --channels."
        )


def _net(
    options: argparse.Namespace, real: Images, labelled: bool
) -> tuple[FeatureNet, FeatureNet | None]:
    """What sees the images, as asked, else what fits them; and what classifies them, if it does."""
    asked = options.features or ("classifier" if labelled else "efflite0")
    mesh = make_mesh(Mesh())
    if asked == "inception":
        if options.weights is None:
            raise UserError(
                "--features inception needs --weights pt_inception-2015-12-05-6726825d.pth, a file "
                "that pytorch-fid's releases have."
            )
        of = functools.partial(features.inception, options.weights, options.convention, mesh=mesh)
        return of(), of("logits_unbiased") if options.all else None
    if asked == "classifier":
        if not labelled:
            raise UserError(
                "--features classifier needs the classes of both sets: use --features efflite0"
            )
        return _classifier(real)
    if asked == "pixels":
        return features.pixels(), None
    return features.efflite0_for(real.images.shape[1:], mesh=mesh), None


def _classifier(real: Images) -> tuple[FeatureNet, FeatureNet]:
    """A classifier trained on the real training images alone, class-balanced and warped."""
    from genaug.transforms.images import Warp

    config, warp, mesh = classifier.Classifier(), Warp(), make_mesh(Mesh())
    num_classes = len(real.class_names)
    counts = np.bincount(real.labels, minlength=num_classes)
    draws = 1.0 / (np.count_nonzero(counts) * counts[real.labels])
    condition = classifier.Condition(
        real.images,
        real.labels,
        np.cumsum(draws).astype(np.float32),
        np.ones(num_classes, np.float32),
        np.int32(config.num_steps),
        warp.affine_elastic().as_arrays(),
    )
    program = classifier.trainer(config, num_classes, warp.smoothing, mesh)
    trained = classifier.train_replicas(program, condition, real.images[:1], 1, mesh)
    about = {"weights": export.digest(trained.params)}
    hidden, logits = (
        FeatureNet("classifier", of(config, num_classes, trained.params), about)
        for of in (classifier.features, classifier.logits)
    )
    return hidden, logits
