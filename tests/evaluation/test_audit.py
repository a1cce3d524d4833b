import json
import subprocess
import sys

import numpy as np
import pytest

from genaug.devices import Mesh, make_mesh
from genaug.evaluation import Labels, audit, from_json, to_json
from genaug.evaluation.features import FeatureNet
from genaug.types import UserError

CENTRES = np.random.default_rng(99).integers(60, 196, size=(3, 5, 5, 1))


def draw(counts, seed):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(3), counts))
    noise = generator.normal(0, 15, size=(len(labels), 5, 5, 1))
    return np.clip(CENTRES[labels] + noise, 0, 255).astype(np.uint8), labels


def by_name(results):
    return {result.name: result for result in results if result.group is None}


@pytest.fixture(scope="module")
def real():
    return draw([200, 150, 50], 0), draw([100, 75, 25], 1)


@pytest.fixture(scope="module")
def honest(real):
    (train, _), (holdout, _) = real
    return audit(train, holdout, draw([100, 75, 25], 2)[0], draws=15, seed=0)


def test_an_honest_generator(honest):
    found = by_name(honest)
    assert list(found) == [
        "fd/pixels",
        "kd/pixels",
        "mind/pixels",
        "vendi/pixels",
        "precision",
        "recall",
        "density",
        "coverage",
        "closer_to_train",
        "exact_copies",
        "near_copies",
        "standing_out",
        "authenticity",
        "copying_test",
    ]
    for name in list(found)[:8]:
        assert found[name].low <= found[name].floor <= found[name].high, name
        assert found[name].n == 200
    closer = found["closer_to_train"]
    assert closer.low < closer.floor == 0.5 < closer.high
    assert found["exact_copies"].value == 0
    assert found["near_copies"].low <= found["near_copies"].floor
    assert all(result.low <= result.value <= result.high for result in honest)
    assert all(result.meaning.count(".") <= 3 for result in honest)
    assert all(result.group is None for result in honest)


def test_a_copyist(real):
    (train, _), (holdout, _) = real
    found = by_name(audit(train, holdout, train[:200], draws=5, seed=0))
    assert found["closer_to_train"].low > 0.55
    assert found["exact_copies"].value == 1
    assert found["near_copies"].low > found["near_copies"].floor
    assert found["authenticity"].high < found["authenticity"].floor


def test_a_poor_generator(real):
    (train, _), (holdout, _) = real
    noise = np.random.default_rng(3).integers(256, size=(200, 5, 5, 1)).astype(np.uint8)
    found = by_name(audit(train, holdout, noise, draws=5, seed=0))
    assert found["fd/pixels"].low > 3 * found["fd/pixels"].floor
    assert found["precision"].high < found["precision"].floor


def test_labels_make_the_class_mix_alike(real):
    # An honest generator asked for balanced classes is not blamed for its class mix.
    (train, train_labels), (holdout, holdout_labels) = real
    synthetic, drawn = draw([25, 25, 25], 4)
    labels = Labels(train_labels, holdout_labels, drawn)
    matched = by_name(audit(train, holdout, synthetic, labels=labels, draws=15, seed=0))
    assert matched["fd/pixels"].n == 75
    assert matched["fd/pixels"].low < matched["fd/pixels"].floor * 1.1
    assert not matched["fd/pixels"].remarks
    blind = by_name(audit(train, holdout, synthetic, draws=15, seed=0))
    assert blind["fd/pixels"].value > 2 * matched["fd/pixels"].value
    assert "class mix" in " ".join(blind["fd/pixels"].remarks)


def test_a_class_short_of_real_examples_is_named(real):
    (train, train_labels), (holdout, holdout_labels) = real
    synthetic, drawn = draw([66, 66, 66], 5)
    labels = Labels(train_labels, holdout_labels, drawn)
    found = audit(train, holdout, synthetic, labels=labels, draws=3, seed=0)
    assert found[0].n == 66 + 66 + 25
    assert "Too few real examples to match class 2 (25 of 66)." in found[0].remarks


def test_features_name_the_distance_and_see_raw_images(real):
    (train, _), (holdout, _) = real

    def features(images):
        assert images.dtype == np.uint8
        return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    made = np.concatenate([holdout[1:], holdout[:2]])
    net = FeatureNet("classifier", features, {"weights": "abc"})
    found = audit(train, holdout, made, net=net, draws=3, seed=0)
    assert found[0].name == "fd/classifier"
    assert found[0].value < found[0].floor / 10
    assert found[0].provenance["weights"] == "abc"
    assert found[-1].provenance["features"] == "pixels"
    named = audit(train, holdout, made, net=net._replace(is_fid=True), draws=3, seed=0)
    assert [each.name for each in named[:2]] == ["fid", "kid"]


def test_every_class_is_measured_as_if_it_were_alone(real):
    (train, train_labels), (holdout, holdout_labels) = real
    synthetic, drawn = draw([60, 60, 8], 4)
    labels = Labels(train_labels, holdout_labels, drawn)
    found = audit(
        train, holdout, synthetic, labels=labels, class_names=["a", "b", "c"], draws=5, seed=0
    )
    of_b = {result.name: result for result in found if result.group == "b"}
    assert list(of_b) == ["fd/pixels", "kd/pixels", "precision", "recall", "density", "coverage"]
    assert {result.group for result in found} == {None, "a", "b"}  # of c there are too few
    rows = [np.flatnonzero(each == 1) for each in (train_labels, holdout_labels, drawn)]
    alone = by_name(
        audit(*(each[some] for each, some in zip((train, holdout, synthetic), rows, strict=True)),
              draws=5, seed=0)
    )  # fmt: skip
    assert of_b["coverage"].n == alone["coverage"].n == 60
    assert of_b["precision"].low <= alone["precision"].value <= of_b["precision"].high


def test_float_arrays_of_any_shape():
    generator = np.random.default_rng(6)
    train, holdout, synthetic = (
        generator.normal(size=(60, 9)).astype(np.float32) for _ in range(3)
    )
    found = by_name(audit(train, holdout, synthetic, draws=3, seed=0))
    # All but C_T, of which 60 rows are too few for most cells.
    assert set(found) >= {"fd/pixels", "vendi/pixels", "coverage", "near_copies", "standing_out"}
    assert all(np.isfinite([each.value, each.low, each.high]).all() for each in found.values())


def test_deterministic_and_through_json(real, honest):
    (train, _), (holdout, _) = real
    again = audit(train, holdout, draw([100, 75, 25], 2)[0], draws=15, seed=0)
    assert again == honest
    assert from_json(json.loads(json.dumps(to_json(honest)))) == honest
    with pytest.raises(UserError, match="no results of an audit"):
        from_json([{"name": "fd"}])


def test_duplicates_are_pointed_out(real):
    (train, _), (holdout, _) = real
    found = by_name(audit(train, holdout, np.repeat(holdout[:20], 10, axis=0), draws=3, seed=0))
    told = " ".join(found["recall"].remarks)
    assert "exact copies in their own set" in told
    assert "180 of the 200 examples of the synthetic set are exact copies" in told


def test_the_mesh_changes_nothing_but_last_digits():
    train, holdout, synthetic = (draw([20, 15, 5], seed)[0] for seed in range(3))
    mesh = make_mesh(Mesh(data=2))
    found = audit(train, holdout, synthetic, draws=2, seed=0, mesh=mesh)
    want = audit(train, holdout, synthetic, draws=2, seed=0)
    for one, other in zip(found, want, strict=True):
        figures = [[each.value, each.low, each.high, each.floor] for each in (one, other)]
        tolerance = 1e-9 if one.name == "kd/pixels" else 0
        np.testing.assert_allclose(figures[0], figures[1], rtol=tolerance, err_msg=one.name)


def test_refusals(real):
    (train, labels), (holdout, holdout_labels) = real
    with pytest.raises(UserError, match="differ in shape or dtype"):
        audit(train, holdout, holdout.astype(np.float32), seed=0)
    with pytest.raises(UserError, match="one label per example"):
        audit(train, holdout, holdout[::-1], labels=Labels(labels, labels, holdout_labels), seed=0)
    with pytest.raises(UserError, match="comparable"):
        audit(train, holdout, holdout[:9], seed=0)
    unknown = Labels(labels, holdout_labels, holdout_labels + 7)
    with pytest.raises(UserError, match="comparable"):
        audit(train, holdout, train[:200], labels=unknown, seed=0)
    with pytest.raises(UserError, match="held-out and the synthetic set are the same"):
        audit(train, holdout, holdout[::-1], seed=0)


def test_evaluation_stands_alone():
    code = (
        "import genaug.evaluation, sys\n"
        "names = [n for n in sys.modules if n.startswith(('genaug.models', 'genaug.train'))]\n"
        "assert not names, names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
