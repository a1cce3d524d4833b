"""The classifier's one program: arms are data, replicas are independent, draws are as asked."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from genaug.devices import Mesh, make_mesh
from genaug.evaluation.classifier import (
    Classifier,
    Condition,
    apply_blocked,
    features,
    judge,
    net_of,
    rate,
    to_net,
    train_replicas,
    trainer,
)
from genaug.transforms.images import Strength, Warp

TINY = Classifier(features=(3,), hidden=8, num_steps=60, batch_size=32, learning_rate=0.02)
NUM_CLASSES, SMOOTHING = 3, 0.2


def pool(count=30, seed=0):
    """Images with a bright row that says the class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % NUM_CLASSES
    images = generator.integers(0, 100, (count, 6, 6, 1)).astype(np.uint8)
    images[np.arange(count), 2 * labels] += 150
    return images, labels


IMAGES, LABELS = pool()
JUDGED, TRUE = pool(seed=1)


def condition(images=IMAGES, labels=LABELS, draws=None, weights=None, strength=None, num_steps=60):
    draws = np.full(len(labels), 1 / len(labels)) if draws is None else draws
    return Condition(
        images=images,
        labels=labels,
        cumulative=np.cumsum(draws).astype(np.float32),
        class_weights=np.ones(NUM_CLASSES, np.float32) if weights is None else weights,
        num_steps=np.int32(num_steps),
        strength=(strength or Strength()).as_arrays(),
    )


@pytest.fixture(scope="module")
def program():
    return trainer(TINY, NUM_CLASSES, SMOOTHING, make_mesh(Mesh(data=1)))


def train(program, arm, seeds=2, judged=JUDGED, devices=1, first=0):
    return train_replicas(program, arm, judged, seeds, make_mesh(Mesh(data=devices)), first)


def test_every_arm_is_one_compiled_program(program):
    arms = [
        condition(),
        condition(num_steps=3),
        condition(strength=Warp().affine_elastic()),
        condition(weights=np.array([1, 0, 2], np.float32)),
        condition(draws=np.eye(len(LABELS))[4]),
        condition(images=255 - IMAGES),
    ]
    results = [train(program, arm).probabilities for arm in arms]
    assert program._cache_size() == 1
    for i in range(len(arms)):
        for j in range(i):
            assert np.abs(results[i] - results[j]).max() > 1e-3


def test_it_learns_what_it_is_shown(program):
    found = train(program, condition()).probabilities
    assert found.shape == (2, len(TRUE), NUM_CLASSES)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert (found.argmax(-1) == TRUE).mean() > 0.95


def test_a_seed_gives_the_same_replica_in_any_company(program):
    """Within 1e-4: other batch shapes may round otherwise. Seeds differ by much more."""
    arm = condition(num_steps=20, strength=Warp().affine())
    six = train(program, arm, 6)
    two = train(program, arm)
    fifth = train(program, arm, 1, first=4)
    spread = trainer(TINY, NUM_CLASSES, SMOOTHING, make_mesh(Mesh(data=8)))
    wide = train(spread, arm, 6, devices=8)
    assert wide.probabilities.shape == six.probabilities.shape
    np.testing.assert_allclose(two.probabilities, six.probabilities[:2], atol=1e-4)
    np.testing.assert_allclose(fifth.probabilities, six.probabilities[4:5], atol=1e-4)
    np.testing.assert_allclose(wide.probabilities, six.probabilities, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), wide.params, six.params)
    for i in range(6):
        for j in range(i):
            assert np.abs(six.probabilities[i] - six.probabilities[j]).max() > 1e-2


def test_images_of_probability_zero_change_nothing_bit_for_bit(program):
    """At the front, in the middle and at the end of the pool, and wrongly labelled."""
    never = np.isin(np.arange(len(LABELS)), [0, 1, 7, 15, 16, 28, 29])
    draws = np.where(never, 0.0, 1.0) / np.sum(~never)
    arm = condition(draws=draws)
    images, labels = IMAGES.copy(), LABELS.copy()
    images[never], labels[never] = 255, (LABELS[never] + 1) % NUM_CLASSES
    poisoned = condition(images, labels, draws)
    np.testing.assert_array_equal(
        train(program, arm).probabilities, train(program, poisoned).probabilities
    )
    drawn = condition(images, labels)
    assert np.abs(train(program, drawn).probabilities - train(program, arm).probabilities).max() > 0


@pytest.mark.parametrize(
    "draws, weights",
    [
        ([0.7, 0.2, 0.1], [1, 1, 1]),
        ([1 / 3, 1 / 3, 1 / 3], [2.1, 0.6, 0.3]),
        ([0.5, 0.25, 0.25], [1.4, 0.8, 0.4]),
        ([0.5, 0.3, 0.2], [1, 0, 2]),
    ],
)
def test_class_weights_do_in_expectation_what_drawing_more_often_does(program, draws, weights):
    """One image in three classes: the net can only learn draws times weights, normalised.

    The tolerance is five standard errors of a mean over 6 seeds and about 20 batches of 32 (those
    that the last steps remember).
    """
    image = np.full_like(IMAGES, 120)
    arm = condition(
        image,
        LABELS,
        np.array(draws)[LABELS] / 10,
        np.array(weights, np.float32),
        num_steps=300,
    )
    want = np.multiply(draws, weights) / np.dot(draws, weights)
    found = train(program, arm, 6, image).probabilities[:, 0].mean(0)
    np.testing.assert_allclose(found, want, atol=5 * 0.5 / np.sqrt(6 * 20 * 32))


def test_a_class_of_weight_zero_is_never_learnt(program):
    arm = condition(weights=np.array([1, 0, 1], np.float32))
    found = train(program, arm).probabilities.argmax(-1)
    assert not (found == 1).any()
    assert (found == TRUE)[:, TRUE != 1].mean() > 0.9


@pytest.mark.parametrize("num_steps", [10, 37, 400])
def test_the_rate_warms_up_and_falls_as_a_cosine(num_steps):
    steps = np.arange(num_steps)
    share = (steps + 1) / num_steps
    want = np.minimum(10 * share, (1 + np.cos(np.pi * share)) / 2) * 3e-3
    got = [float(rate(jnp.float32(s), jnp.float32(num_steps), 3e-3)) for s in steps[::7]]
    np.testing.assert_allclose(got, want[::7], rtol=1e-4, atol=1e-9)
    last = rate(jnp.float32(num_steps - 1), jnp.float32(num_steps), 3e-3)
    np.testing.assert_allclose(last, 0, atol=1e-9)


@pytest.fixture(scope="module")
def trained(program):
    found = train(program, condition(num_steps=20))
    return found._replace(params=jax.tree.map(jnp.asarray, found.params))


def test_a_judge_averages_its_replicas(trained):
    got = judge(TINY, NUM_CLASSES, trained.params)(JUDGED)
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, trained.probabilities.mean(0), atol=1e-5)


def test_features_are_the_first_replicas_hidden_layer(trained):
    hidden = features(TINY, NUM_CLASSES, trained.params)(JUDGED)
    assert hidden.shape == (len(JUDGED), TINY.hidden)
    head = jax.tree.map(lambda a: a[0], trained.params["Dense_1"])
    probabilities = scipy.special.softmax(
        hidden @ np.asarray(head["kernel"]) + np.asarray(head["bias"]), axis=-1
    )
    np.testing.assert_allclose(probabilities, trained.probabilities[0], atol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_blocks_do_not_change_the_net(count, trained):
    net, params = net_of(TINY, NUM_CLASSES), jax.tree.map(lambda a: a[0], trained.params)
    images = jnp.asarray(np.concatenate([JUDGED, IMAGES])[:count])
    got = apply_blocked(net, params, images, block=8)
    want = net.apply({"params": params}, images.astype(jnp.float32) / 255)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_the_net_is_flaxs_convolution_and_dense_layers(trained):
    """The same parameters in plain Flax layers."""
    params, x = jax.tree.map(lambda a: a[0], trained.params), to_net(jnp.asarray(JUDGED))
    h = nn.relu(nn.Conv(3, (3, 3), (2, 2)).apply({"params": params["Conv_0"]}, x))
    h = nn.relu(
        h.reshape(len(x), -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
    )
    logits, hidden = net_of(TINY, NUM_CLASSES).apply({"params": params}, x)
    np.testing.assert_allclose(hidden, h, atol=1e-5)
    want = h @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"][None]
    np.testing.assert_allclose(logits, want, atol=1e-5)
