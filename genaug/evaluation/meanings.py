"""What the metrics of an audit are called, which way is better, and a sentence on each."""

from __future__ import annotations

from typing import NamedTuple

from genaug.evaluation.features import FeatureNet
from genaug.evaluation.results import Better


class Meaning(NamedTuple):
    """How to read a metric: which way is better, a sentence, and whether it is a share."""

    better: Better
    text: str
    share: bool = True


LIKENESS = {
    "frechet": Meaning(
        "lower",
        "How far the synthetic set as a whole lies from held-out real data, seen through the "
        "feature net; the floor is what two real sets of this size score.",
        share=False,
    ),
    "kernel": Meaning(
        "lower",
        "How far the sets lie apart by the kernel distance, which needs few examples: sets of one "
        "kind score 0, some of them a little less.",
        share=False,
    ),
    "mind": Meaning(
        "lower",
        "How far the sets lie apart along a thousand random directions, in all their moments; the "
        "floor is what two real sets of this size score.",
        share=False,
    ),
    "vendi": Meaning(
        "higher",
        "How many different examples the synthetic set is worth; the floor is what as many real "
        "ones are worth.",
        share=False,
    ),
    "precision": Meaning("higher", "Share of synthetic examples that look like some real ones."),
    "recall": Meaning(
        "higher", "Share of real examples that lie within what the generator can draw."
    ),
    "density": Meaning(
        "higher",
        "How firmly synthetic examples sit where real ones are dense; real data scores about 1, "
        "more means they crowd the typical ones.",
        share=False,
    ),
    "coverage": Meaning("higher", "Share of real examples that have a synthetic one close by."),
}
MEMORISATION = {
    "closer_to_train": Meaning(
        "lower",
        "Share of synthetic examples that lie closer to a training example than to any of as many "
        "held-out ones; an honest generator scores one half, a copyist more.",
    ),
    "exact_copies": Meaning(
        "lower",
        "Share of synthetic examples that equal a training example pixel for pixel; the floor is "
        "that of real unseen data.",
    ),
    "near_copies": Meaning(
        "lower",
        "Share of synthetic examples closer to a training example than 99 % of real unseen ones "
        "are.",
    ),
    "standing_out": Meaning(
        "lower",
        "Share of synthetic examples with one training example closer than its neighbours by more "
        "than 99 % of real unseen ones have.",
    ),
    "authenticity": Meaning(
        "higher",
        "Share of synthetic examples that are no closer to their nearest training example than "
        "other training examples are; the floor is that of real unseen data.",
    ),
    "copying_test": Meaning(
        "none",
        "The statistic C_T: below 0 synthetic examples lie nearer to training examples than real "
        "unseen ones do (copies), above 0 further off (a poor fit).",
        share=False,
    ),
}
FURTHER = {
    "frechet_infinity": Meaning(
        "lower",
        "The Fréchet distance that infinitely many examples of both kinds would have, by its fall "
        "with their number: the bias of small sets is out, and sets of one kind score about 0, "
        "some of them less.",
        share=False,
    ),
    "mmd": Meaning(
        "lower",
        "How far the sets lie apart by a Gaussian kernel as wide as real examples lie apart: sets "
        "of one kind score about 0, some of them a little less.",
        share=False,
    ),
    "clipped_density": Meaning(
        "higher",
        "Share of good examples in a set that sits as firmly where real ones are dense; no example "
        "counts more than once and no outlier lends its ball.",
    ),
    "clipped_coverage": Meaning(
        "higher",
        "Share of good examples in a set that covers as many real ones; the rest of it would add "
        "nothing.",
    ),
    "mifid": Meaning(
        "lower",
        "The Fréchet distance to training data, divided by how far synthetic examples keep from "
        "the nearest of them where they come closer than an honest set would.",
        share=False,
    ),
    "classifier_score": Meaning(
        "higher",
        "From 1 to the number of classes: high where a classifier is sure of each example and "
        "finds all classes; the floor is what as many real ones score.",
        share=False,
    ),
}


def metric_name(metric: str, net: FeatureNet) -> str:
    """What a metric on the features of `net` is called in results.

    Distances belong to their features; those of Inception have names of their own, and theirs
    alone hold the letters FID.
    """
    names = {
        "frechet": net.distance_name,
        "frechet_infinity": "fid_infinity" if net.is_fid else f"fd_infinity/{net.name}",
        "kernel": "kid" if net.is_fid else f"kd/{net.name}",
        "mind": f"mind/{net.name}",
        "mmd": f"mmd/{net.name}",
        "vendi": f"vendi/{net.name}",
        "mifid": "mifid" if net.is_fid else f"mifd/{net.name}",
    }
    return names.get(metric, metric)
