"""How good a run's class-conditional samples are, beside what real images score.

    python -m benchmarks.quality runs/mnist_ddpm runs/mnist_ddpm@guidance=1.5 runs/mnist_dcgan ...

After an @ stands what the sampler is told beside the label, where it is not the model's default.
1,000 samples (as many of each class as the held-out images have) against a random half of the
validation and test images, for several halves; the other half is the real-vs-real floor at the
same n. Features are those of a classifier trained on the training split; labels are read by another
that saw only held-out images, trained on the half that is not compared, and its accuracy on the
training images is what a perfect generator would score. Ratios are value / floor; the spread is the
standard deviation over halves. `--write` puts the rows into QUALITY.md, where those of other runs
stay.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from genaug import runs
from genaug.devices import use_cpu_cores_as_devices
from genaug.evaluation import classifier
from genaug.evaluation.frechet import frechet_distance
from genaug.evaluation.manifold import NEIGHBOURS, manifold_scores
from genaug.sampling import make_sampler
from genaug.transforms.images import Warp

HALVES = 5
RESULTS = Path(__file__).with_name("QUALITY.md")
HEAD = (
    "| run | Fréchet ÷ floor | coverage ÷ floor | label agreement, % | of real images, % "
    "| measured on |"
)


class Quality(NamedTuple):
    """One run's figures; each an array over halves."""

    frechet: np.ndarray
    coverage: np.ndarray
    agreement: np.ndarray
    of_real: np.ndarray


def train_classifier(
    images: np.ndarray, labels: np.ndarray, num_classes: int, mesh: Any, seed: int
) -> Any:
    """Parameters of a classifier of these images, warped, classes drawn equally often."""
    config, warp = classifier.Classifier(num_steps=1500), Warp()
    counts = np.bincount(labels, minlength=num_classes)
    draws = 1.0 / (np.count_nonzero(counts) * counts[labels])
    condition = classifier.Condition(
        images,
        labels,
        np.cumsum(draws).astype(np.float32),
        np.ones(num_classes, np.float32),
        np.int32(config.num_steps),
        warp.affine_elastic().as_arrays(),
    )
    program = classifier.trainer(config, num_classes, warp.smoothing, mesh)
    return classifier.train_replicas(program, condition, images[:1], 1, mesh, seed).params


def draw(run: runs.Trained, labels: np.ndarray, settings: dict[str, float]) -> np.ndarray:
    """A sample for every label."""
    sampler = make_sampler(run.model, run.weights, run.mesh, block_size=100)
    cond = {"index": np.arange(len(labels), dtype=np.int32), "label": labels}
    for name, value in settings.items():
        cond[name] = np.full(len(labels), value, run.model.cond[name].spec.dtype)
    return sampler(jax.random.key(0), cond)["image"]


def measure(name: str, cache: dict[str, Any]) -> Quality:
    """The figures of one run folder; classifiers of the same data are trained once."""
    directory, _, told = name.partition("@")
    settings = {key: float(value) for key, value in (s.split("=") for s in told.split(",") if s)}
    run = runs.open_run(Path(directory))
    dataset, splits = run.experiment.data.read()
    num_classes = len(dataset.class_names)
    train = dataset.arrays(splits.train)
    held = dataset.arrays(np.concatenate([splits.valid, splits.test]))
    config = classifier.Classifier(num_steps=1500)

    def cached(name: str, make: Callable[[], Any]) -> Any:
        key = f"{dataset.fingerprint} {run.experiment.data.split_seed} {name}"
        if key not in cache:
            cache[key] = make()
        return cache[key]

    own = cached(
        "own", lambda: train_classifier(train["image"], train["label"], num_classes, run.mesh, 0)
    )
    features = classifier.features(config, num_classes, own)
    found: dict[str, list[float]] = {name: [] for name in Quality._fields}
    labels = np.sort(held["label"][halves(held["label"], 0)[0]])  # the same in every half
    images = draw(run, labels, settings)
    for half in range(HALVES):
        reference, rest = halves(held["label"], half)
        judged = held["image"][rest], held["label"][rest]
        judge_params = cached(
            f"judge {half}", partial(train_classifier, *judged, num_classes, run.mesh, half)
        )
        judge = classifier.judge(config, num_classes, judge_params)
        real, other, made = (
            features(x).astype(np.float64)
            for x in (held["image"][reference], held["image"][rest], images)
        )
        found["frechet"].append(frechet_distance(real, made) / frechet_distance(real, other))
        found["coverage"].append(
            manifold_scores(real, made, NEIGHBOURS).coverage
            / manifold_scores(real, other, NEIGHBOURS).coverage
        )
        found["agreement"].append(100 * float(np.mean(judge(images).argmax(1) == labels)))
        found["of_real"].append(
            100 * float(np.mean(judge(train["image"]).argmax(1) == train["label"]))
        )
    return Quality(*(np.array(found[name]) for name in Quality._fields))


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint halves with the same number of each class."""
    generator = np.random.Generator(np.random.PCG64(seed))
    first, second = [], []
    for c in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == c))
        count = len(members) // 2
        first.append(members[:count])
        second.append(members[count : 2 * count])
    return np.concatenate(first), np.concatenate(second)


def row(name: str, quality: Quality) -> str:
    """One line of the table."""

    def cell(values: np.ndarray, digits: int) -> str:
        return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"

    figures = (
        (quality.frechet, 2),
        (quality.coverage, 2),
        (quality.agreement, 1),
        (quality.of_real, 1),
    )
    cells = [
        Path(name).name.replace("@", ", "),
        *(cell(*f) for f in figures),
        f"{platform.machine()}, jax {jax.__version__}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, print, and write on request."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("runs", nargs="+", help="run folders, as RUN or RUN@NAME=VALUE,...")
    arguments.add_argument("--write", action="store_true", help="write QUALITY.md")
    options = arguments.parse_args()
    use_cpu_cores_as_devices()
    print(HEAD, flush=True)
    cache: dict[str, Any] = {}
    rows = []
    for name in options.runs:
        rows.append(row(name, measure(name, cache)))
        print(rows[-1], flush=True)
    if options.write:
        RESULTS.write_text(table(rows, RESULTS), encoding="utf-8")


def table(rows: list[str], path: Path) -> str:
    """The page with these rows, and those of other runs that are in the file already."""

    def name(line: str) -> str:
        return line.split("|")[1].strip()

    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in known if line.startswith("| ") and line != HEAD]
    merged = {name(line): line for line in [*kept, *rows]}
    lines = [
        "# Quality of samples",
        "",
        f"`python -m benchmarks.quality --write`: 1,000 samples, {HALVES} halves, mean ± sd.",
        "",
        HEAD,
        "|---" * (HEAD.count("|") - 1) + "|",
        *(merged[key] for key in sorted(merged)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
