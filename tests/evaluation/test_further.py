"""The metrics of `audit(every=True)`: each is the public function's, beside its floor."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from genaug.evaluation import (
    Labels,
    audit,
    classifier_score,
    clipped_scores,
    frechet_infinity,
    mifid,
    rbf_mmd,
)
from genaug.evaluation.features import FeatureNet, is_inception_score, pixels
from genaug.evaluation.further import median_distance
from genaug.report_audit import title

CENTRES = np.random.default_rng(99).integers(60, 196, size=(3, 4, 4, 1))
NAMES = [
    "fd_infinity/pixels",
    "mmd/pixels",
    "clipped_density",
    "clipped_coverage",
    "mifd/pixels",
    "classifier_score",
]


def draw(n, seed, shift=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(n) % 3)
    noise = generator.normal(shift, 15, size=(n, 4, 4, 1))
    return np.clip(CENTRES[labels] + noise, 0, 255).astype(np.uint8), labels


def nearness(images):
    return -np.square((images[:, None] - 1.0 * CENTRES[None]) / 30).mean(axis=(2, 3, 4))


SCORER = FeatureNet("classifier", nearness, {"weights": "abc"})
TRAIN, HOLDOUT = draw(90, 0)[0], draw(90, 1)[0]


def by_name(results):
    return {each.name: each for each in results}


@pytest.fixture(scope="module")
def honest():
    return audit(TRAIN, HOLDOUT, draw(90, 2)[0], draws=8, seed=0, every=True, scorer=SCORER)


def test_each_is_what_its_function_gives_and_the_floor_is_of_real_data(honest):
    found, net = by_name(honest), pixels().apply
    train, holdout, made = net(TRAIN), net(HOLDOUT), net(draw(90, 2)[0])
    sigma = float(np.median(pdist(holdout)))
    of_made, of_real = (
        {
            "fd_infinity/pixels": frechet_infinity(holdout, x, both=True, seed=0).estimate,
            "mmd/pixels": rbf_mmd(holdout, x, sigma=sigma).estimate,
            "clipped_density": clipped_scores(holdout, x).density,
            "clipped_coverage": clipped_scores(holdout, x).coverage,
            "mifd/pixels": mifid(y, train, threshold=0.0).value,  # nobody copies here
            "classifier_score": classifier_score(nearness(z), splits=10).value,
        }
        for x, y, z in ((made, made, draw(90, 2)[0]), (train, holdout, TRAIN))
    )
    for name in NAMES:
        assert found[name].value == pytest.approx(of_made[name], rel=1e-5, abs=1e-9), name
        assert found[name].floor == pytest.approx(of_real[name], rel=1e-5, abs=1e-9), name
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].n == 90
        assert found[name].provenance["features"] == "pixels"
    assert found["mmd/pixels"].provenance["sigma"] == f"{median_distance(holdout):.9g}"
    assert found["classifier_score"].provenance["scored_by"] == "classifier"
    assert found["classifier_score"].provenance["weights"] == "abc"
    assert "sigma" not in found["precision"].provenance


def test_the_rest_of_the_audit_does_not_change(honest):
    usual = audit(TRAIN, HOLDOUT, draw(90, 2)[0], draws=8, seed=0)
    assert [each for each in honest if each.name not in NAMES] == usual


def test_they_tell_a_copyist_and_a_poor_set_from_an_honest_one(honest):
    good = by_name(honest)
    copyist, poor = (
        by_name(audit(TRAIN, HOLDOUT, x, draws=8, seed=0, every=True, scorer=SCORER))
        for x in (TRAIN[:89], draw(90, 3, shift=40)[0])
    )
    assert copyist["mifd/pixels"].value > 1e3 * good["mifd/pixels"].value
    for name in ("fd_infinity/pixels", "mmd/pixels"):
        assert good[name].low < good[name].floor < poor[name].low
    for name in ("clipped_density", "clipped_coverage"):
        assert poor[name].high < good[name].low
    assert all(title({"name": name}) != name for name in NAMES)


def test_a_second_real_set_is_the_floor_and_mifid_still_asks_the_training_set():
    second, labels = draw(90, 4), Labels(*(draw(90, seed)[1] for seed in (0, 1, 0, 4)))
    copied = np.concatenate([TRAIN[:1] ^ 1, TRAIN[1:]])  # not one set twice
    options = {"labels": labels, "draws": 2, "seed": 0, "every": True}
    found = by_name(
        each
        for each in audit(TRAIN, HOLDOUT, copied, second=second[0], **options)
        if each.group is None
    )
    assert found["mifd/pixels"].value > 100 * found["mifd/pixels"].floor
    net = pixels().apply
    expected = rbf_mmd(
        net(HOLDOUT), net(second[0]), sigma=float(found["mmd/pixels"].provenance["sigma"])
    ).estimate
    assert found["mmd/pixels"].floor == pytest.approx(expected, rel=1e-6)


def test_what_the_sets_do_not_allow_is_said():
    sets = TRAIN, HOLDOUT, draw(24, 2)[0]
    found = by_name(audit(*sets, draws=2, seed=0, every=True))
    assert not {"fd_infinity/pixels", "classifier_score"} & set(found)
    said = " ".join(found["fd/pixels"].remarks)
    assert "No fd_infinity/pixels: no curve from 32 to 24 examples of 16 features" in said
    assert "No classifier_score: it needs a classifier" in said


def test_only_the_papers_network_gives_the_papers_names():
    weights = {"weights_sha256": "6726825d0af5f729", "resize": "torch-fidelity"}
    logits = FeatureNet("inception-logits_unbiased", nearness, weights)
    fid = FeatureNet("inception-2048", pixels().apply, weights, is_fid=True)
    options = {"net": fid, "draws": 2, "seed": 0, "every": True}
    found = by_name(audit(TRAIN, HOLDOUT, draw(90, 2)[0], scorer=logits, **options))
    assert {"fid", "kid", "fid_infinity", "mifid", "inception_score"} <= set(found)
    assert found["mifid"].provenance["threshold"] == "0.1"
    for change in ({"weights_sha256": "0"}, {"resize": "clean"}):
        other = logits._replace(provenance={**weights, **change})
        assert not is_inception_score(other)
