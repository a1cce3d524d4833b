"""What every family promises, with every net and likelihood, on images of an odd size."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from genaug.models.cvae import CVAE
from genaug.models.vae import VAE
from genaug.nets.autoencoder import MLP, ConvNet
from genaug.nets.likelihoods import Bernoulli, DiscretizedLogistic, Gaussian
from genaug.state import Adam
from genaug.types import LabelSpec, UserError

SHAPE = (9, 7, 3)
SPEC = {"image": jax.ShapeDtypeStruct(SHAPE, np.uint8), "label": LabelSpec(10)}
FAMILIES = [VAE, CVAE]
NETS = [MLP(hidden=(32, 16)), ConvNet(features=(6, 8), hidden=16)]
LIKELIHOODS = [Bernoulli(), Gaussian(scale=0.2), DiscretizedLogistic()]
OPTIMIZER = Adam(learning_rate=3e-3)


def digits():
    """32 digits, cropped and padded to the odd size, in three colours."""
    data = load_digits()
    images = np.zeros((32, *SHAPE), np.uint8)
    images[:, :8] = np.round(data.images[:32, :, :7, None] * 15.9)
    return {"image": jnp.asarray(images), "label": jnp.asarray(data.target[:32], jnp.int32)}


def cond(index, **more):
    index = jnp.asarray(index, jnp.int32)
    return {"index": index, "label": index % 10, **more}


def tiny(family, **changes):
    config = family(latent_dim=4, net=MLP(hidden=(32, 16)), optimizer=OPTIMIZER, score_samples=2)
    return replace(config, **changes).make(SPEC)


fast_to_compile = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@functools.cache
def trained(family, num_steps=30, **changes):
    """A family after some steps on fixed examples: state, metrics of every step, compiled step."""
    model, batch, key = tiny(family, **changes), digits(), jax.random.key(0)
    state, step, history = fast_to_compile(model.init)(key), fast_to_compile(model.step), []
    for index in range(num_steps):
        state, metrics = step(state, batch, jax.random.fold_in(key, index))
        history.append(metrics)
    metrics = {name: np.array([m[name] for m in history]) for name in history[0]}
    return model, state, metrics, step


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("net", NETS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_dtypes_are_those_of_the_spec(family, net, likelihood, key):
    model = tiny(family, net=net, likelihood=likelihood)
    state = jax.eval_shape(model.init, key)
    after, metrics = jax.eval_shape(model.step, state, digits(), key)
    assert jax.tree.map(str, after) == jax.tree.map(str, state)
    assert set(metrics) == {"loss", "elbo", "reconstruction", "kl", "grad_norm"}
    assert all(value.dtype == np.float32 and not value.shape for value in metrics.values())
    weights = model.weights(state)
    rows = jax.eval_shape(model.sample, weights, key, cond(range(5)))
    assert set(rows) == ({"image", "label"} if family is CVAE else {"image"})
    assert all(row.shape == (5, *SPEC[name].shape) for name, row in rows.items())
    assert all(row.dtype == SPEC[name].dtype for name, row in rows.items())
    scores = jax.eval_shape(model.score, weights, digits(), key)
    assert set(scores) == {"elbo", "iwae"}
    assert all(value.shape == (32,) for value in scores.values())


@pytest.mark.parametrize(
    "family, net, likelihood",
    [
        (VAE, NETS[0], Bernoulli()),
        (CVAE, NETS[0], Bernoulli()),
        (VAE, NETS[1], DiscretizedLogistic()),
        (CVAE, NETS[1], Gaussian(scale=0.2)),
    ],
)
def test_the_loss_falls_and_all_is_finite(family, net, likelihood, key):
    model, state, metrics, _ = trained(family, net=net, likelihood=likelihood)
    scores = fast_to_compile(model.score)(model.weights(state), digits(), key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics, scores)))
    loss = metrics["loss"]
    assert loss[-5:].mean() < loss[:3].mean() - 0.02 * abs(loss[:3].mean())
    np.testing.assert_allclose(loss, -metrics["elbo"], rtol=1e-4, atol=1e-2)  # at beta 1
    assert (np.asarray(scores["iwae"]) >= np.asarray(scores["elbo"]) - 1e-3).all()


def weights_of(family, **changes):
    state = trained(family, net=NETS[0], likelihood=Bernoulli())[1]
    model = tiny(family, **changes)
    return model, model.weights(state)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_addressed_by_their_index(family, key):
    model, weights = weights_of(family)
    sample = jax.jit(model.sample)
    row = np.asarray(sample(weights, key, cond(range(8)))["image"], np.int32)
    some = np.asarray(sample(weights, key, cond([5, 2, 5]))["image"], np.int32)
    assert np.abs(some - row[[5, 2, 5]]).max() <= 1  # rounding of another batch size
    assert np.abs(row[5] - row[2]).max() > 1
    other = sample(weights, jax.random.key(1), cond(range(8)))["image"]
    assert np.abs(np.asarray(other, np.int32) - row).max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_temperature_zero_draws_one_image_a_class(family, key):
    model, weights = weights_of(family)
    condition = {"index": jnp.arange(4), "label": jnp.array([1, 1, 3, 3])}
    rows = model.sample(weights, key, {**condition, "temperature": jnp.zeros(4)})
    np.testing.assert_array_equal(rows["image"][0], rows["image"][1])
    np.testing.assert_array_equal(rows["image"][2], rows["image"][3])
    assert (rows["image"][0] != rows["image"][2]).any() == (family is CVAE)


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_pixels_are_black_or_white_and_the_mean_is_gray(family, key):
    model, weights = weights_of(family, draw_pixels=True)
    drawn = np.asarray(model.sample(weights, key, cond(range(4)))["image"])
    assert set(np.unique(drawn)) == {0, 255}
    again = model.sample(weights, key, cond([2]))["image"]
    assert np.mean(again[0] != drawn[2]) < 0.02
    same, _ = weights_of(family)
    gray = np.unique(same.sample(weights, key, cond(range(4)))["image"])
    assert len(gray) > 20


@pytest.mark.parametrize("family", FAMILIES)
def test_beta_weighs_the_divergence_and_augmentation_changes_the_images(family, key):
    _, state, _, step = trained(family, net=NETS[0], likelihood=Bernoulli())
    _, plain = step(state, digits(), key)
    other = tiny(family, beta=3.0, augment=1.0)
    _, metrics = fast_to_compile(other.step)(state, digits(), key)
    want = 3.0 * metrics["kl"] - metrics["reconstruction"]
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)
    assert abs(float(metrics["elbo"] - plain["elbo"])) > 0.1


@pytest.mark.parametrize("spec", [{}, {"label": jax.ShapeDtypeStruct((), np.int32)}])
def test_cvae_refuses_a_dataset_without_labels(spec):
    with pytest.raises(UserError, match="labels"):
        CVAE().make({"image": SPEC["image"], **spec})


def test_near_label_reads_the_style_in_another_class(key):
    model, weights = weights_of(CVAE)
    near = {**cond(range(4), temperature=jnp.zeros(4)), "near": digits()["image"][:4]}
    sample = functools.partial(model.sample, weights, key)
    plain = sample(near)["image"]
    as_own = {**near, "near_label": near["label"]}
    as_other = {**near, "near_label": jnp.full(4, 9)}
    np.testing.assert_array_equal(sample(as_own)["image"], plain)
    assert (sample(as_other)["image"] != plain).any()


def test_a_trained_cvae_draws_the_class_asked_for(key):
    """The judge is scikit-learn's, fitted to real digits."""
    from sklearn.svm import SVC

    data = load_digits()
    images = np.round(data.data * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = data.target.astype(np.int32)
    spec = {"image": jax.ShapeDtypeStruct((8, 8, 1), np.uint8), "label": LabelSpec(10)}
    model = CVAE(latent_dim=8, net=MLP(hidden=(128,)), beta=2.0, optimizer=OPTIMIZER).make(spec)

    @jax.jit
    def train(key):
        def step(state, index):
            key_rows, key_step = jax.random.split(jax.random.fold_in(key, index))
            rows = jax.random.randint(key_rows, (128,), 0, len(labels))
            batch = {"image": jnp.asarray(images)[rows], "label": jnp.asarray(labels)[rows]}
            return model.step(state, batch, key_step)[0], None

        return model.weights(jax.lax.scan(step, model.init(key), jnp.arange(600))[0])

    asked = np.repeat(np.arange(10, dtype=np.int32), 30)
    condition = {"index": jnp.arange(300), "label": jnp.asarray(asked)}
    rows = jax.jit(model.sample)(train(key), key, condition)
    np.testing.assert_array_equal(rows["label"], asked)
    judge = SVC(gamma="scale").fit(images.reshape(len(images), -1), labels)
    assert np.mean(judge.predict(np.asarray(rows["image"]).reshape(300, -1)) == asked) > 0.8
