"""Does generated data help? Arms trained alike, compared in pairs, and a plain verdict.

Every arm draws its batches from the same pool (real, SMOTE and generated images) by its own
probabilities, for the same number of steps, with the same seeds. What is chosen (the strongest
non-generative arm, the weight of generated data) is chosen on validation data; what is reported is
measured on test data that nothing was fitted to or chosen by.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from genaug.evaluation.classifier import Classifier, Condition
from genaug.evaluation.intervals import Interval, bootstrap_scores, difference, resampling
from genaug.evaluation.scores import classification_scores
from genaug.transforms.images import Strength, Warp
from genaug.types import UserError

Images = UInt8[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]
More = tuple[UInt8[np.ndarray, "m h w c"], Int[np.ndarray, " m"]]  # images and labels
Probabilities = Float[np.ndarray, "s n k"]

GENERATED = "generated"
CLASSICAL = "classical"
KINDS = ("affine", "elastic", "affine + elastic")
"""The kinds of classical arm: their names at strength 1, and their families."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The downstream comparison."""

    classifier: Classifier = field(default_factory=Classifier)
    warp: Warp = field(default_factory=Warp)
    strengths: tuple[float, ...] = (1.0,)  # times the warp's, of every classical arm
    on_top: Literal["best", "all"] = "best"  # classical arm, or kind, that generated data go on
    budgets: tuple[int, ...] = ()  # training images a class, each a study; none: all there are
    imbalances: tuple[float, ...] = ()  # of a budget: times as many common as rare ones
    num_splits: int = 1  # each with a split of the data, a generator and arms of its own
    num_seeds: int = 6  # paired: seed i starts from the same net and draws in every arm
    # Share of a class's draws to generate. 1 is training on generated images alone, if the balance
    # plan asks for some of every class (balance.factor 2: as many as there are real ones).
    weights: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    checks: tuple[float, ...] = (0.0,)  # least label probabilities, each tried; 0 = all are used
    metric: Literal["balanced_accuracy", "accuracy", "macro_f1", "rare_recall"] = (
        "balanced_accuracy"  # what is chosen by, and what the verdict is about
    )
    bootstrap_draws: int = 2000
    level: float = 0.95  # of the intervals


class Pool(NamedTuple):
    """Every image that an arm may draw. `origin` is 0 for real, 1 for SMOTE, 2 for generated."""

    images: Images
    labels: Labels
    origin: Int[np.ndarray, " n"]
    certainty: Float[np.ndarray, " n"]  # the judge's probability of a generated image's label


class Arm(NamedTuple):
    """One training condition, in words and as data."""

    name: str
    family: str  # arms of one family differ in the weight alone, classical ones in the strength
    base: str  # name of the arm that the family is at weight 0
    weight: float  # share of generated draws in the classes that were generated; 0 = none
    draws: Float[np.ndarray, " n"]  # probability of every image of the pool
    class_weights: Float[np.ndarray, " k"]
    lengthening: int  # times the study's number of steps
    strength: Strength


def make_pool(real: Images, labels: Labels, smote: More, capacity: int) -> Pool:
    """Real and SMOTE images, and room for `capacity` generated ones: one shape for every arm."""
    empty = np.zeros((capacity, *real.shape[1:]), np.uint8)
    parts = [(real, labels), smote, (empty, np.zeros(capacity, np.int32))]
    return Pool(
        images=np.concatenate([images for images, _ in parts]),
        labels=np.concatenate([labels for _, labels in parts]).astype(np.int32),
        origin=np.repeat([0, 1, 3], [len(images) for images, _ in parts]),
        certainty=np.ones(sum(len(images) for images, _ in parts)),
    )


def with_generated(
    pool: Pool, images: Images, labels: Labels, certainty: Float[np.ndarray, " n"]
) -> Pool:
    """The pool with generated images in its free places."""
    free = np.flatnonzero(pool.origin == 3)[: len(images)]
    if len(free) < len(images):
        raise UserError(f"{len(images)} generated images do not fit into a pool for {len(free)}.")
    filled = Pool(*(column.copy() for column in pool))
    filled.images[free], filled.labels[free], filled.origin[free] = images, labels, 2
    filled.certainty[free] = certainty
    return filled


def require_smote() -> None:
    """Refuse to go on without the library of the SMOTE arm."""
    if importlib.util.find_spec("imblearn") is None:
        raise UserError('The SMOTE arm needs imbalanced-learn: pip install "genaug[demo]".')


def smote(images: Images, labels: Labels, wanted: Int[np.ndarray, " k"]) -> More:
    """SMOTE (Chawla et al. 2002) on pixels: `wanted[c]` images between neighbours of class c."""
    require_smote()
    from imblearn.over_sampling import SMOTE

    counts = np.bincount(labels, minlength=len(wanted))
    targets = {c: int(counts[c] + wanted[c]) for c in np.flatnonzero(wanted) if counts[c] > 1}
    if not targets:
        return images[:0], labels[:0]
    neighbours = int(min(5, min(counts[c] for c in targets) - 1))
    rows, new_labels = SMOTE(
        sampling_strategy=targets, k_neighbors=neighbours, random_state=0
    ).fit_resample(images.reshape(len(images), -1).astype(np.float32), labels)
    made = np.clip(np.rint(rows[len(images) :]), 0, 255).astype(np.uint8)
    return made.reshape(-1, *images.shape[1:]), new_labels[len(images) :].astype(np.int32)


def balanced_draws(
    pool: Pool, wanted: Int[np.ndarray, " k"], weight: float, check: float = 0.0
) -> Float[np.ndarray, " n"]:
    """Every class as often as after the balance plan; `weight` of it generated where there is some.

    A class's share is its real count plus what the plan wants for it. With weight 0 that is
    random oversampling. What a class without any real image lacks goes to the others. Generated
    images whose label is less certain than `check` are not drawn.
    """
    used = (pool.origin == 2) & (pool.certainty >= check)
    counts = np.bincount(pool.labels[pool.origin == 0], minlength=len(wanted))
    generated = np.bincount(pool.labels[used], minlength=len(wanted))
    share = (counts + wanted) / (counts + wanted).sum()
    of_generated = np.where((wanted > 0) & (generated > 0), weight, 0.0)
    of_real = share * (1 - of_generated) / np.maximum(counts, 1)
    of_each = share * of_generated / np.maximum(generated, 1)
    draws = np.where(pool.origin == 0, of_real[pool.labels], 0.0)
    draws = np.where(used, of_each[pool.labels], draws)
    return draws / draws.sum()


def baseline_arms(
    pool: Pool, wanted: Int[np.ndarray, " k"], warp: Warp, strengths: Sequence[float] = (1.0,)
) -> list[Arm]:
    """What a generator must beat: everything that needs none, classical arms at every strength."""
    ones = np.ones(len(wanted), np.float32)
    real = (pool.origin == 0) / (pool.origin == 0).sum()
    counts = np.bincount(pool.labels[pool.origin == 0], minlength=len(wanted))
    inverse = counts.sum() / (len(wanted) * np.maximum(counts, 1))
    with_smote = (pool.origin <= 1) / (pool.origin <= 1).sum()
    balanced = balanced_draws(pool, wanted, 0.0)

    def arm(name: str, draws: np.ndarray, **changes: Any) -> Arm:
        return Arm(name, name, name, 0.0, draws, ones, 1, warp.none())._replace(**changes)

    return [
        arm("none", real),
        arm("none, longer", real, lengthening=2),
        arm("class weights", real, class_weights=inverse.astype(np.float32)),
        arm("oversampling", balanced),
        arm("SMOTE", with_smote),
        *(
            arm(
                classical_name(kind, times),
                balanced,
                family=kind,
                strength=Strength(*(times * float(value) for value in strength)),
            )
            for kind, strength in zip(
                KINDS, (warp.affine(), warp.elastic_only(), warp.affine_elastic()), strict=True
            )
            for times in strengths
        ),
    ]


def classical_name(kind: str, times: float) -> str:
    """The arm of a kind at `times` the warp's strength."""
    return kind if times == 1 else f"{kind} x{times:g}"


def generative_arms(
    pool: Pool,
    wanted: Int[np.ndarray, " k"],
    weights: Sequence[float],
    bases: Mapping[str, Arm],
    checks: Sequence[float] = (0.0,),
) -> list[Arm]:
    """Every family of `bases` at every weight: its base, with generated data in the place of real.

    bases: family -> the arm that it is at weight 0. With a check above 0 it is another family.
    """
    return [
        base._replace(
            name=f"{checked}, weight {weight:g}",
            family=checked,
            base=base.name,
            weight=weight,
            draws=balanced_draws(pool, wanted, weight, check),
        )
        for family, base in bases.items()
        for check in checks
        for checked in [f"{family} (label {check:g})" if check else family]
        for weight in weights
    ]


def condition(arm: Arm, pool: Pool, num_steps: int) -> Condition:
    """The arm as the classifier's program reads it."""
    return Condition(
        images=pool.images,
        labels=pool.labels,
        cumulative=np.cumsum(arm.draws).astype(np.float32),
        class_weights=arm.class_weights,
        num_steps=np.int32(num_steps * arm.lengthening),
        strength=arm.strength.as_arrays(),
    )


class Part(NamedTuple):
    """Probabilities of one arm's replicas on one split."""

    valid: Probabilities
    test: Probabilities


class Judged(NamedTuple):
    """The splits that arms are judged on."""

    valid_labels: Labels
    test_labels: Labels
    rare_classes: tuple[int, ...]


def validation_score(part: Part, judged: Judged, metric: str) -> float:
    """The mean over seeds of a metric on validation data."""
    scores = classification_scores(part.valid, judged.valid_labels, judged.rare_classes)
    return float(np.mean(scores[metric]))


def best(arms: Sequence[Arm], parts: Mapping[str, Part], judged: Judged, metric: str) -> Arm:
    """The arm with the highest validation score; the first of equals."""
    return max(arms, key=lambda arm: validation_score(parts[arm.name], judged, metric))


def choose_bases(
    baselines: Sequence[Arm], parts: Mapping[str, Part], judged: Judged, study: Study
) -> dict[str, Arm]:
    """Generative family -> its arm at weight 0: oversampling, and what validation puts first of
    all classical arms (`on_top` "best") or of every kind of them ("all").
    """
    kinds = {CLASSICAL: KINDS} if study.on_top == "best" else {kind: (kind,) for kind in KINDS}
    bases = {GENERATED: next(arm for arm in baselines if arm.name == "oversampling")}
    for name, among in kinds.items():
        arms = [arm for arm in baselines if arm.family in among]
        bases[f"{name} + {GENERATED}"] = best(arms, parts, judged, study.metric)
    return bases


class Comparison(NamedTuple):
    """What the study found."""

    bar: Arm  # the strongest non-generative arm
    chosen: dict[str, Arm]  # by generative family, what validation chose; its base is weight 0
    candidate: Arm  # the generative arm that validation puts first
    against_bar: dict[str, dict[str, Interval]]  # arm -> metric -> test difference to the bar


def compare(
    baselines: Sequence[Arm],
    generative: Sequence[Arm],
    parts: Mapping[str, Part],
    judged: Judged,
    study: Study,
) -> Comparison:
    """Choose on validation data, and measure every arm against the bar on test data."""
    bar = best(baselines, parts, judged, study.metric)
    chosen = {}
    for family in dict.fromkeys(arm.family for arm in generative):
        arms = [arm for arm in generative if arm.family == family]
        at_zero = [arm for arm in baselines if arm.name == arms[0].base]
        chosen[family] = best([*at_zero, *arms], parts, judged, study.metric)
    candidate = best(generative, parts, judged, study.metric)
    labels, num_seeds = judged.test_labels, len(parts[bar.name].test)
    weights = resampling(labels, num_seeds, draws=study.bootstrap_draws, seed=0)
    drawn = {
        arm.name: bootstrap_scores(parts[arm.name].test, labels, judged.rare_classes, weights)
        for arm in (*baselines, *generative)
    }
    against = {
        name: difference(scores, drawn[bar.name], study.level) for name, scores in drawn.items()
    }
    return Comparison(bar, chosen, candidate, against)


class Verdict(NamedTuple):
    """The answer, in one word and one sentence."""

    use: bool
    sentence: str


def points(difference: float) -> str:
    """A difference of shares in points, signed, without a negative zero."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def verdict(
    candidate: str,
    bar: str,
    gain: Interval,
    *,
    metric: str,
    level: float,
    prefers_none: bool,
    num_generated: int,
    num_splits: int = 1,
) -> Verdict:
    """Use generated data only where its whole interval against the bar is a gain.

    Args:
        candidate: the generative arm that validation puts first.
        bar: the arm that it must beat.
        gain: how much better the candidate is in `metric` on test data, a share.
        metric: what the comparison is about.
        level: of the interval.
        prefers_none: whether validation puts the candidate's family first at weight 0.
        num_generated: how many generated images there were to train with.
        num_splits: how many splits of the data the interval is over.
    """
    if not num_generated:
        return Verdict(False, "DO NOT USE IT: no generated image passed the checks.")
    over = f" over {num_splits} splits" if num_splits > 1 else ""
    interval = (
        f"{points(gain.estimate)} points of {metric.replace('_', ' ')} ({100 * level:g} % interval "
        f"{points(gain.low)} to {points(gain.high)}{over}) against {bar}, "
        "the best arm without a generator"
    )
    if prefers_none:
        interval += "; validation prefers to do without (weight 0)"
    elif gain.low > 0:
        return Verdict(True, f"USE IT: {candidate} gains {interval}.")
    if gain.high < 0:
        return Verdict(False, f"DO NOT USE IT: {candidate} loses: {interval}.")
    return Verdict(False, f"DO NOT USE IT: no gain is shown for {candidate}: {interval}.")
