"""One call: how near a synthetic set comes to real data, and whether it copies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Shaped

from genaug.devices import DeviceMesh
from genaug.evaluation.copying import RATIO_NEIGHBOURS, copying_test, ratio_at
from genaug.evaluation.distances import nearest
from genaug.evaluation.diversity import vendi_score
from genaug.evaluation.features import FeatureNet, pixels
from genaug.evaluation.frechet import frechet_distance
from genaug.evaluation.further import Judged, Seen, further
from genaug.evaluation.guards import check_features, check_sets
from genaug.evaluation.intervals import half_sampling
from genaug.evaluation.kernels import kid
from genaug.evaluation.manifold import NEIGHBOURS, manifold_scores
from genaug.evaluation.matching import Labels, Sets, comparable, fewest, pick, require_alike
from genaug.evaluation.meanings import LIKENESS, MEMORISATION, metric_name
from genaug.evaluation.memorisation import (
    authenticity_at,
    closer_to_train,
    copies_at,
    lower_end,
    share_of,
)
from genaug.evaluation.results import Result, provenance
from genaug.evaluation.sliced import mind
from genaug.types import UserError

# Above this share of examples without a neighbourhood of their own, the reader is told.
_EMPTY_BALLS = 0.02


def audit(
    train: Shaped[np.ndarray, "t ..."],
    holdout: Shaped[np.ndarray, "h ..."],
    synthetic: Shaped[np.ndarray, "s ..."],
    *,
    second: Shaped[np.ndarray, "r ..."] | None = None,
    net: FeatureNet | None = None,
    labels: Labels | None = None,
    class_names: Sequence[str] = (),
    k: int = NEIGHBOURS,
    draws: int = 50,
    seed: int,
    mesh: DeviceMesh | None = None,
    every: bool = False,
    scorer: FeatureNet | None = None,
) -> list[Result]:
    """Measure likeness, variety and memorisation of `synthetic`, each beside its floor.

    Likeness and variety compare n synthetic with n held-out examples, in the space of `net`.
    Their floor compares n of a second real set (the training set unless `second` is given) with
    the same n held-out examples: two real sets at that very size, as these numbers are biased by
    1/n. The held-out set is the reference, as nearness to the training set is also had by copying
    it. If `net` was fitted to the training set the floor is a little worse than for a network that
    saw neither. n is the length of the shortest set; given `labels`, all three have the class
    counts of the synthetic set, as far as there are real examples (`Result.remarks` names the
    classes that fall short), and the numbers follow for every class that has enough of them.

    Memorisation is measured on pixels: no network stands between a copy and its original.

    Args:
        train: what the generator was fitted to; uint8 images [t, h, w, c] or floats of any shape.
        holdout: real examples it never saw, of the same shape and dtype.
        synthetic: what it drew, of the same shape and dtype.
        second: real examples in neither set, for the floor; where the training set is small or
            unbalanced, n is larger with it.
        net: what turns examples into features; None takes the pixels.
        labels: classes of the sets.
        class_names: of the labels 0, 1, ...; numbers unless given.
        k: neighbour whose distance is the radius in precision, recall, density, coverage.
        draws: half-samples behind each interval of those and of the Fréchet distance.
        seed: of every subsample.
        mesh: the devices that search for neighbours and sum kernels; None is JAX's default device.
            The net has its own. Nothing but the kernel distances' last digits depends on it.
        every: also what takes longer (`further.further`): the Fréchet distance at infinite n,
            Gaussian MMD, clipped density and coverage, MiFID, the classifier score.
        scorer: examples in, logits of a classifier out, for that score; read if `every`.

    Raises:
        UserError: sets of different shape or dtype, one set given twice, float images, too few
            examples, NaN or infinity.
    """
    net = net or pixels()
    sets = Sets(train, holdout, synthetic)
    of_sets = None if labels is None else Sets(*labels[:3])
    require_alike(sets, of_sets)
    remarks = check_sets(sets)
    compared, of_compared = sets, of_sets
    if second is not None:
        compared = sets._replace(train=second)
        if of_sets is not None and labels is not None:
            if labels.second is None:
                raise UserError("the second real set has no labels and the others do: give them")
            of_compared = of_sets._replace(train=labels.second)
        require_alike(compared, of_compared)
    generator = np.random.Generator(np.random.PCG64(seed))
    names = dict(enumerate(class_names))
    rows, mix = comparable(compared, of_compared, names, generator)
    if len(rows.synthetic) < 2 * (k + 1):
        raise UserError(
            f"only {len(rows.synthetic)} examples of each set are comparable, k={k} needs "
            f"{2 * (k + 1)}: draw more examples or take a smaller k"
        )
    features = Sets(
        *(np.asarray(net.apply(each[some])) for each, some in zip(compared, rows, strict=True))
    )
    how = {"dtype": str(features.synthetic.dtype), **net.provenance}
    about = provenance(holdout[rows.holdout], seed, features=net.name, k=str(k), **how)
    found = _likeness(features, net, k, draws, seed, mesh, whole=True)
    if every:
        matched = rows.train
        if second is not None:
            matched = comparable(sets, of_sets, names, generator)[0].train
        seen = np.asarray(net.apply(train))
        judged = None
        if scorer is not None:
            of_real, made = compared.train[rows.train], synthetic[rows.synthetic]
            judged = Judged(scorer, scorer.apply(of_real), scorer.apply(made))
        more, left_out = further(
            features, Seen(seen, seen[matched]), net, judged,
            k=k, draws=draws, seed=seed, mesh=mesh,
        )  # fmt: skip
        found[0] = dataclasses.replace(found[0], remarks=(*found[0].remarks, *left_out))
        found += more
    found = [
        dataclasses.replace(each, remarks=(*each.remarks, *mix, *remarks.likeness))
        for each in found
    ]
    if of_compared is not None:
        picked = Sets(*(each[some] for each, some in zip(of_compared, rows, strict=True)))
        for label, part in _by_class(features, picked, 2 * (k + 1)):
            found += [
                dataclasses.replace(each, group=names.get(label, str(label)))
                for each in _likeness(part, net, k, draws, seed, mesh, whole=False)
            ]
    flat = pixels()
    own = provenance(train, seed, features=flat.name, **flat.provenance)
    copied = _memorisation(Sets(*(flat.apply(each) for each in sets)), rows, labels, seed, mesh)
    return [
        dataclasses.replace(each, provenance={**about, **each.provenance}) for each in found
    ] + [
        dataclasses.replace(each, remarks=(*each.remarks, *remarks.memorisation), provenance=own)
        for each in copied
    ]


def _by_class(features: Sets, labels: Sets, at_least: int) -> Iterator[tuple[int, Sets]]:
    """The features of each class of which there are enough; the sets have as many of each."""
    for label in np.unique(labels.synthetic):
        part = Sets(*(each[own == label] for each, own in zip(features, labels, strict=True)))
        if len(part.synthetic) >= at_least:
            yield int(label), part


def _likeness(
    features: Sets,
    net: FeatureNet,
    k: int,
    draws: int,
    seed: int,
    mesh: DeviceMesh | None,
    *,
    whole: bool,
) -> list[Result]:
    """Distances, neighbours and variety, all at one n; of a class what needs few examples."""

    def measure(real: np.ndarray, other: np.ndarray) -> dict[str, float]:
        found = {
            "frechet": frechet_distance(real, other),
            **manifold_scores(real, other, k, mesh=mesh)._asdict(),
        }
        if whole:
            found["mind"] = mind(real, other, seed=seed).value
        if whole and not blank:
            found["vendi"] = vendi_score(other)
        return found

    train, holdout, synthetic = features
    blank = sum(int((~each.any(axis=1)).sum()) for each in (train, synthetic))
    measured = half_sampling(measure, holdout, synthetic, draws=draws, seed=seed)
    floor = measure(holdout, train)
    measured["kernel"] = kid(holdout, synthetic, mesh=mesh)
    floor["kernel"] = kid(holdout, train, mesh=mesh).estimate
    n, d = synthetic.shape
    remarks = {"frechet": check_features(n, d, net.name)}
    if whole and blank:
        undirected = (
            f"No {metric_name('vendi', net)}: {blank} rows of features are all 0, of no direction."
        )
        remarks["frechet"] += (undirected,)
    if max(measured[name].estimate for name in ("empty_real", "empty_synthetic")) > _EMPTY_BALLS:
        note = ("Many examples have exact copies in their own set, which lowers this.",)
        remarks |= dict.fromkeys(("precision", "recall", "density", "coverage"), note)
    return [
        Result(
            name=metric_name(name, net),
            value=measured[name].estimate,
            low=measured[name].low if name == "kernel" else max(measured[name].low, 0.0),
            high=min(measured[name].high, 1.0 if meaning.share else np.inf),
            floor=floor[name],
            better=meaning.better,
            n=n,
            share=meaning.share,
            meaning=meaning.text,
            remarks=remarks.get(name, ()),
        )
        for name, meaning in LIKENESS.items()
        if name in measured
    ]


def _memorisation(
    pixels: Sets, rows: Sets, labels: Labels | None, seed: int, mesh: DeviceMesh | None
) -> list[Result]:
    """Nearness to the training data, on pixels."""
    train, holdout, synthetic = pixels
    # Floors hold the class mix of the synthetic set: some classes lie closer together than others.
    unseen = holdout[rows.holdout]
    # One search of each set serves all of these.
    k = min(RATIO_NEIGHBOURS, len(train))
    near, usual = (nearest(each, train, k, mesh=mesh) for each in (synthetic, unseen))
    within = nearest(train, train, exclude_self=True, mesh=mesh).distance[:, 0]
    threshold = lower_end(usual.distance[:, 0])
    found, floor = (copies_at(each.distance[:, 0], threshold) for each in (near, usual))
    genuine, expected = (authenticity_at(each, within) for each in (near, usual))
    ratios, of_unseen = (ratio_at(each.distance) for each in (near, usual))
    standing, outside = (share_of(each < lower_end(of_unseen)) for each in (ratios, of_unseen))
    some, others = train, holdout
    if labels is not None:
        # Both real sets with equal class counts, or nearness would tell of the classes.
        generator = np.random.Generator(np.random.PCG64(seed))
        counts = fewest(labels.train, labels.holdout)
        some = train[pick(labels.train, counts, generator)]
        others = holdout[pick(labels.holdout, counts, generator)]
    closer = closer_to_train(synthetic, some, others, seed, mesh=mesh)
    measured: dict[str, tuple[tuple[float, ...], float]] = {
        "closer_to_train": (closer, 0.5),
        "exact_copies": (found.exact, floor.exact.value),
        "near_copies": (found.near, floor.near.value),
        "standing_out": (standing, outside.value),
        "authenticity": (genuine, expected.value),
    }
    left_out: tuple[str, ...] = ()
    try:
        test = copying_test(synthetic, train, unseen, seed=seed, mesh=mesh)
        measured["copying_test"] = ((test.value, test.low, test.high), 0.0)
    except UserError as error:  # Too few for any cell: the other measures stand without it.
        left_out = (f"No copying_test: {error}.",)
    return [
        Result(
            name=name,
            value=figures[0],
            low=figures[1],
            high=figures[2],
            floor=real,
            better=MEMORISATION[name].better,
            n=len(synthetic),
            share=MEMORISATION[name].share,
            meaning=MEMORISATION[name].text,
            remarks=left_out if name == "closer_to_train" else (),
        )
        for name, (figures, real) in measured.items()
    ]
