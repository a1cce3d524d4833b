"""The study: how arms draw, what SMOTE makes, and a verdict that chance and choice cannot bend."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from genaug.evaluation.intervals import Interval
from genaug.evaluation.study import (
    Arm,
    Judged,
    Part,
    Study,
    balanced_draws,
    baseline_arms,
    best,
    choose_bases,
    compare,
    condition,
    generative_arms,
    make_pool,
    points,
    smote,
    verdict,
    with_generated,
)
from genaug.transforms.images import Strength, Warp
from genaug.types import UserError

COUNTS, WANTED = np.array([6, 4, 2]), np.array([0, 2, 4])
SHAPE = (3, 2, 1)


def some(labels, seed=0):
    labels = np.asarray(labels, np.int32)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), *SHAPE))
    return images.astype(np.uint8), labels


REAL = some(np.repeat(np.arange(3), COUNTS))
SMOTED = some([1, 2, 2], seed=1)


def pool(generated=(1, 2, 2, 2), capacity=7):
    empty = make_pool(*REAL, SMOTED, capacity)
    sure = np.linspace(0.1, 1.0, len(generated))
    return with_generated(empty, *some(generated, seed=2), sure) if generated else empty


def class_shares(draws, of):
    return np.bincount(of.labels, weights=draws, minlength=3)


def test_a_pool_holds_every_kind_and_room():
    empty = pool(generated=())
    np.testing.assert_array_equal(np.bincount(empty.origin), [12, 3, 0, 7])
    filled = pool()
    np.testing.assert_array_equal(np.bincount(filled.origin), [12, 3, 4, 3])
    assert filled.images.shape == empty.images.shape
    np.testing.assert_array_equal(filled.images[filled.origin == 0], REAL[0])
    np.testing.assert_array_equal(filled.images[filled.origin == 1], SMOTED[0])
    np.testing.assert_array_equal(filled.images[filled.origin == 2], some([1, 2, 2, 2], 2)[0])
    np.testing.assert_array_equal(filled.labels[filled.origin == 2], [1, 2, 2, 2])
    assert not empty.images[12 + 3 :].any()  # the empty pool was not written to


def test_more_generated_images_than_places_are_refused():
    with pytest.raises(UserError, match="8 generated images do not fit into a pool for 7"):
        pool(generated=[1] * 8)
    assert (pool(generated=[1] * 7).origin != 3).all()


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_every_class_has_its_share_and_the_weight_of_it_is_generated(weight):
    filled = pool()
    draws = balanced_draws(filled, WANTED, weight)
    np.testing.assert_allclose(draws.sum(), 1)
    np.testing.assert_allclose(class_shares(draws, filled), (COUNTS + WANTED) / 18)
    generated = class_shares(draws * (filled.origin == 2), filled)
    np.testing.assert_allclose(generated, weight * np.array([0, 1 / 3, 1 / 3]))
    assert not draws[np.isin(filled.origin, [1, 3])].any()
    for c in range(3):
        for origin in (0, 2):
            alike = draws[(filled.labels == c) & (filled.origin == origin)]
            assert len(set(alike.tolist())) <= 1


def test_only_classes_that_have_generated_images_are_mixed():
    filled = pool(generated=(0, 2, 2))  # class 0 lacks nothing, class 1 has nothing generated
    draws = balanced_draws(filled, WANTED, 0.5)
    np.testing.assert_allclose(class_shares(draws, filled), 1 / 3)
    generated = class_shares(draws * (filled.origin == 2), filled)
    np.testing.assert_allclose(generated, [0, 0, 1 / 6])


@pytest.mark.parametrize("generated", [(), (2,)])
def test_a_class_without_real_images_leaves_no_probability_over(generated):
    """Nothing is ever drawn from the empty places at the end of the pool."""
    few = make_pool(*some([0, 0, 1]), some([])[:2], 3)
    filled = with_generated(few, *some(generated, seed=2), np.ones(len(generated)))
    for weight in (0.0, 0.5, 1.0):
        draws = balanced_draws(filled, np.array([0, 1, 2]), weight)
        np.testing.assert_allclose(draws.sum(), 1)
        assert not draws[filled.origin == 3].any()


def test_a_condition_ends_at_one_and_draws_nothing_else():
    filled = pool()
    affine = baseline_arms(filled, WANTED, Warp())[5]
    (arm,) = generative_arms(filled, WANTED, [0.25], {"affine + generated": affine})
    found = condition(arm._replace(lengthening=2), filled, 100)
    assert found.cumulative.dtype == np.float32
    assert found.cumulative[-1] == 1
    np.testing.assert_allclose(np.diff(found.cumulative, prepend=0), arm.draws, atol=1e-6)
    assert found.num_steps == 200
    np.testing.assert_allclose(found.strength, Warp().affine(), rtol=1e-6)


def test_the_arms_that_need_no_generator():
    filled, warp = pool(), Warp()
    arms = {arm.name: arm for arm in baseline_arms(filled, WANTED, warp)}
    assert list(arms) == [
        "none",
        "none, longer",
        "class weights",
        "oversampling",
        "SMOTE",
        "affine",
        "elastic",
        "affine + elastic",
    ]
    real, balanced = COUNTS / 12, np.full(3, 1 / 3)
    shares = {"SMOTE": np.array([6, 5, 4]) / 15}
    shares |= dict.fromkeys(["oversampling", "affine", "elastic", "affine + elastic"], balanced)
    for name, arm in arms.items():
        np.testing.assert_allclose(arm.draws.sum(), 1)
        np.testing.assert_allclose(class_shares(arm.draws, filled), shares.get(name, real))
        allowed = [0, 1] if name == "SMOTE" else [0]
        assert not arm.draws[~np.isin(filled.origin, allowed)].any()
        assert (arm.family, arm.weight) == (name, 0)
        assert arm.lengthening == (2 if name == "none, longer" else 1)
    weights = arms["class weights"].class_weights
    np.testing.assert_allclose(weights, [12 / 18, 12 / 12, 12 / 6])  # scikit-learn's "balanced"
    assert all((arms[name].class_weights == 1).all() for name in arms if name != "class weights")
    assert arms["affine"].strength == warp.affine()
    assert arms["elastic"].strength == Strength(elastic=warp.elastic)
    assert arms["affine + elastic"].strength == warp.affine_elastic()
    assert all(arms[name].strength == Strength() for name in list(arms)[:5])


def test_classical_arms_come_at_every_strength_and_nothing_else_of_them_changes():
    filled, warp = pool(), Warp(rotation_degrees=10.0, scale=0.2, shear=0.3, shift=0.1, elastic=0.5)
    arms = baseline_arms(filled, WANTED, warp, (0.5, 1.0, 2.0))[5:]
    assert [(arm.name, arm.family, arm.strength) for arm in arms] == [
        ("affine x0.5", "affine", Strength(5.0, 0.1, 0.15, 0.05)),
        ("affine", "affine", Strength(10.0, 0.2, 0.3, 0.1)),
        ("affine x2", "affine", Strength(20.0, 0.4, 0.6, 0.2)),
        ("elastic x0.5", "elastic", Strength(elastic=0.25)),
        ("elastic", "elastic", Strength(elastic=0.5)),
        ("elastic x2", "elastic", Strength(elastic=1.0)),
        ("affine + elastic x0.5", "affine + elastic", Strength(5.0, 0.1, 0.15, 0.05, 0.25)),
        ("affine + elastic", "affine + elastic", Strength(10.0, 0.2, 0.3, 0.1, 0.5)),
        ("affine + elastic x2", "affine + elastic", Strength(20.0, 0.4, 0.6, 0.2, 1.0)),
    ]
    for arm in arms:
        assert arm.base == arm.name
        np.testing.assert_array_equal(arm.draws, balanced_draws(filled, WANTED, 0.0))


def test_the_generative_arms_come_alone_and_with_the_classical_warp():
    filled = pool()
    arms = {arm.name: arm for arm in baseline_arms(filled, WANTED, Warp())}
    bases = {
        "generated": arms["oversampling"],
        "classical + generated": arms["affine + elastic"],
    }
    arms = generative_arms(filled, WANTED, (0.1, 1.0), bases)
    assert [arm.name for arm in arms] == [
        "generated, weight 0.1",
        "generated, weight 1",
        "classical + generated, weight 0.1",
        "classical + generated, weight 1",
    ]
    assert [arm.strength for arm in arms] == [Strength()] * 2 + [Warp().affine_elastic()] * 2
    assert [arm.base for arm in arms] == ["oversampling"] * 2 + ["affine + elastic"] * 2
    for arm in arms:
        np.testing.assert_array_equal(arm.draws, balanced_draws(filled, WANTED, arm.weight))


def test_a_check_leaves_out_what_the_judge_doubts_and_is_a_family_of_its_own():
    filled = pool()  # certainties .1 of class 1; .4, .7 and 1 of class 2
    draws = balanced_draws(filled, WANTED, 0.5, 0.7)
    np.testing.assert_allclose(class_shares(draws, filled), 1 / 3)
    np.testing.assert_allclose(draws[filled.origin == 2], [0, 0, 1 / 12, 1 / 12])
    oversampling = {arm.name: arm for arm in baseline_arms(filled, WANTED, Warp())}["oversampling"]
    arms = generative_arms(filled, WANTED, (0.5, 1.0), {"generated": oversampling}, (0.0, 0.7))
    assert [(arm.name, arm.family) for arm in arms] == [
        ("generated, weight 0.5", "generated"),
        ("generated, weight 1", "generated"),
        ("generated (label 0.7), weight 0.5", "generated (label 0.7)"),
        ("generated (label 0.7), weight 1", "generated (label 0.7)"),
    ]
    np.testing.assert_array_equal(arms[2].draws, draws)
    assert {arm.base for arm in arms} == {"oversampling"}


def between(made, members):
    """The least distance, in levels, of an image from a line between two of the members."""
    members = members.reshape(len(members), -1).astype(float)
    found = []
    for a in members:
        for b in members:
            way = b - a
            t = np.clip((made - a) @ way / max(way @ way, 1e-9), 0, 1)
            found.append(np.abs(made - a - t * way).max())
    return min(found)


def test_smote_makes_what_is_wanted_between_neighbours_of_a_class():
    made, labels = smote(*REAL, WANTED)
    np.testing.assert_array_equal(np.bincount(labels, minlength=3), WANTED)
    assert made.dtype == np.uint8
    assert labels.dtype == np.int32
    for image, label in zip(made, labels, strict=True):
        members = REAL[0][REAL[1] == label]
        assert between(image.reshape(-1).astype(float), members) <= 1.0  # rounding to levels
    again, _ = smote(*REAL, WANTED)
    np.testing.assert_array_equal(made, again)


def test_smote_is_imbalanced_learns():
    from imblearn.over_sampling import SMOTE

    images, labels = some(np.repeat([0, 1], [12, 8]))
    made, _ = smote(images, labels, np.array([0, 4]))
    rows, _ = SMOTE(random_state=0).fit_resample(images.reshape(20, -1).astype(float), labels)
    np.testing.assert_allclose(made.reshape(4, -1), rows[20:], atol=0.51)


def test_smote_leaves_out_a_class_with_one_image():
    images, labels = some([0, 0, 0, 0, 1, 1, 2])
    made, new_labels = smote(images, labels, np.array([0, 2, 3]))
    np.testing.assert_array_equal(new_labels, [1, 1])
    assert len(made) == 2
    for nothing in (np.array([0, 0, 3]), np.zeros(3, int)):
        made, new_labels = smote(images, labels, nothing)
        assert made.shape == (0, *SHAPE)
        assert len(new_labels) == 0


TEST_LABELS = np.repeat(np.arange(2, dtype=np.int32), 100)
JUDGED = Judged(TEST_LABELS, TEST_LABELS, ())
STUDY = Study(num_seeds=4, bootstrap_draws=400)


def probabilities(accuracy, seed=0, num_seeds=4):
    """Seeds of a classifier that is right on a random share of the examples."""
    generator = np.random.default_rng(seed)
    right = generator.uniform(size=(num_seeds, len(TEST_LABELS))) < accuracy
    shown = np.where(right, TEST_LABELS, 1 - TEST_LABELS)
    return np.where(np.eye(2, dtype=bool)[shown], 0.9, 0.1)


def arm(name, family=None, base="", weight=0.0):
    return Arm(name, family or name, base, weight, np.ones(1), np.ones(2), 1, Strength())


def part(valid, test=None, seed=0):
    return Part(
        probabilities(valid, seed), probabilities(valid if test is None else test, seed + 1)
    )


@pytest.mark.parametrize(
    "on_top, expected",
    [
        ("best", {"classical + generated": "elastic"}),
        (
            "all",
            {
                "affine + generated": "affine x2",
                "elastic + generated": "elastic",
                "affine + elastic + generated": "affine + elastic",
            },
        ),
    ],
)
def test_generated_data_go_on_the_classical_arms_that_validation_prefers(on_top, expected):
    """Test scores are the reverse of validation scores; oversampling is no classical arm."""
    baselines = baseline_arms(pool(), WANTED, Warp(), (1.0, 2.0))
    valid = dict.fromkeys([arm.name for arm in baselines], 0.6)
    valid |= {"oversampling": 0.95, "affine x2": 0.7, "elastic": 0.9, "affine + elastic": 0.8}
    parts = {name: part(share, 1.5 - share) for name, share in valid.items()}
    study = Study(num_seeds=4, on_top=on_top)
    bases = choose_bases(baselines, parts, JUDGED, study)
    assert {family: arm.name for family, arm in bases.items()} == {
        "generated": "oversampling",
        **expected,
    }


def answer(parts, study=STUDY, base=""):
    baselines = [arm(name) for name in parts if "weight" not in name]
    generative = [
        arm(name, name.split(",")[0], base, float(name.split()[-1]))
        for name in parts
        if "weight" in name
    ]
    found = compare(baselines, generative, parts, JUDGED, study)
    name = found.candidate.name
    prefers_none = found.chosen[found.candidate.family].weight == 0
    gain = found.against_bar[name][study.metric]
    return found, said_of(gain, name, found.bar.name, study, prefers_none=prefers_none)


def said_of(gain, candidate="g", bar="a", study=STUDY, **options):
    options = {"prefers_none": False, "num_generated": 1, **options}
    return verdict(candidate, bar, gain, metric=study.metric, level=study.level, **options)


def test_a_clear_gain_is_worth_using():
    found, said = answer({"affine": part(0.7), "generated, weight 1": part(0.9, seed=5)})
    assert said.use
    assert said.sentence.startswith("USE IT: generated, weight 1 gains +")
    assert said.sentence.endswith("against affine, the best arm without a generator.")
    gain = found.against_bar["generated, weight 1"]["balanced_accuracy"]
    assert 0 < gain.low < gain.estimate < gain.high


def test_a_clear_loss_is_called_one():
    _, said = answer({"affine": part(0.9), "generated, weight 1": part(0.7, seed=5)})
    assert not said.use
    assert said.sentence.startswith("DO NOT USE IT: generated, weight 1 loses: -")


def test_no_difference_is_no_gain():
    for other in (part(0.8), part(0.8, seed=5)):
        _, said = answer({"affine": part(0.8), "generated, weight 1": other})
        assert not said.use
        assert "no gain is shown for generated, weight 1" in said.sentence
        assert "-0.0 " not in said.sentence


def test_a_gain_over_a_weak_baseline_is_none_over_the_bar():
    found, said = answer(
        {"none": part(0.6), "affine": part(0.9), "generated, weight 1": part(0.8, seed=5)}
    )
    assert found.bar.name == "affine"
    assert not said.use


def test_all_choices_are_made_on_validation_data_alone():
    """Every arm's test scores are the reverse of its validation scores."""
    parts = {
        "none": part(0.6, 0.9),
        "affine": part(0.8, 0.6),
        "generated, weight 0.1": part(0.7, 0.95),
        "generated, weight 1": part(0.75, 0.5),
        "classical + generated, weight 0.1": part(0.9, 0.7),
        "classical + generated, weight 1": part(0.6, 0.99),
    }
    found, _ = answer(parts)
    assert found.bar.name == "affine"
    assert {family: chosen.name for family, chosen in found.chosen.items()} == {
        "generated": "generated, weight 1",
        "classical + generated": "classical + generated, weight 0.1",
    }
    assert found.candidate.name == "classical + generated, weight 0.1"
    for name, (_, test) in parts.items():
        score, bar = (
            np.mean([accuracy_score(TEST_LABELS, p.argmax(-1)) for p in of])
            for of in (test, parts["affine"].test)
        )
        got = found.against_bar[name]["accuracy"].estimate
        np.testing.assert_allclose(got, score - bar, atol=1e-12)
    assert found.against_bar["affine"]["balanced_accuracy"] == Interval(0, 0, 0)


def test_a_gain_that_validation_does_not_see_is_not_used():
    """Weight 0 is one of the choices: the arm that the family is built on."""
    parts = {"affine": part(0.8, 0.6), "generated, weight 1": part(0.7, 0.9, seed=5)}
    found, said = answer(parts, base="affine")
    assert found.chosen["generated"].name == "affine"
    assert found.candidate.name == "generated, weight 1"
    assert found.against_bar["generated, weight 1"][STUDY.metric].low > 0
    assert not said.use
    assert "validation prefers to do without (weight 0)" in said.sentence
    assert answer(parts)[1].use, "without that choice it would be"


def test_the_metric_of_the_study_decides():
    """Class 1 is rare: an arm that never names it has the better accuracy."""
    labels = np.repeat(np.arange(2, dtype=np.int32), [90, 10])
    judged = Judged(labels, labels, (1,))
    blind = np.broadcast_to([0.9, 0.1], (2, 100, 2))
    keen = np.broadcast_to(
        np.where(labels[:, None] == 1, [0.1, 0.9], [0.6, 0.4]), (2, 100, 2)
    ).copy()
    keen[:, :30] = [0.4, 0.6]
    parts = {"blind": Part(blind, blind), "keen": Part(keen, keen)}
    arms = [arm("blind"), arm("keen")]
    assert best(arms, parts, judged, "accuracy").name == "blind"
    assert best(arms, parts, judged, "balanced_accuracy").name == "keen"
    assert best(arms, parts, judged, "rare_recall").name == "keen"


def test_the_first_of_equals_is_chosen():
    parts = {"a": part(0.8), "b": part(0.8)}
    assert best([arm("b"), arm("a")], parts, JUDGED, "accuracy").name == "b"


def test_the_level_and_the_metric_are_in_the_sentence():
    study = Study(num_seeds=4, bootstrap_draws=400, level=0.9, metric="macro_f1")
    _, said = answer({"affine": part(0.7), "generated, weight 1": part(0.9, seed=5)}, study)
    assert "points of macro f1 (90 % interval +" in said.sentence


@pytest.mark.parametrize(
    "low, estimate, high, use, words",
    [
        (0.001, 0.01, 0.02, True, "gains"),
        (-0.001, 0.01, 0.02, False, "no gain is shown"),
        (0.0, 0.01, 0.02, False, "no gain is shown"),
        (-0.02, -0.01, 0.001, False, "no gain is shown"),
        (-0.02, -0.01, -0.001, False, "loses"),
        (np.nan, np.nan, np.nan, False, "no gain is shown"),
    ],
)
def test_the_whole_interval_decides(low, estimate, high, use, words):
    said = said_of(Interval(estimate, low, high))
    assert said.use == use
    assert said.sentence.startswith("USE IT" if use else "DO NOT USE IT")
    assert words in said.sentence


@pytest.mark.parametrize(
    "value, text",
    [(-0.0001, "+0.0"), (-0.0, "+0.0"), (0.0, "+0.0"), (-0.0051, "-0.5"), (0.123, "+12.3")],
)
def test_points_have_a_sign_and_no_negative_zero(value, text):
    assert points(value) == text


def test_a_sentence_has_no_negative_zero():
    said = said_of(Interval(-0.0001, -0.0004, 0.0003))
    assert "+0.0 points of balanced accuracy (95 % interval +0.0 to +0.0)" in said.sentence


def test_a_sentence_says_over_how_many_splits_it_is():
    said = said_of(Interval(0.03, 0.01, 0.05), num_splits=3)
    assert said.sentence == (
        "USE IT: g gains +3.0 points of balanced accuracy (95 % interval +1.0 to +5.0 over 3 "
        "splits) against a, the best arm without a generator."
    )


def test_without_a_generated_image_there_is_nothing_to_use():
    said = said_of(Interval(0.5, 0.4, 0.6), num_generated=0)
    assert not said.use
    assert "no generated image" in said.sentence
