"""Diffusion: loss, bound, guidance, variations, inpainting; against closed forms and SciPy."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genaug import layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.models import ddpm
from genaug.models.ddpm import DDPM
from genaug.nets import bound
from genaug.nets.dit import DiT
from genaug.nets.likelihoods import to_net
from genaug.nets.noise import EDM, Cosine, Flow, Linear
from genaug.nets.samplers import DDIM, Ancestral, DPMSolver, Heun
from genaug.nets.unet import UNet
from genaug.state import Adam
from genaug.types import LabelSpec, UserError

SPEC = {"image": jax.ShapeDtypeStruct((4, 4, 1), np.uint8), "label": LabelSpec(3)}
NET = UNet(features=(4,), num_blocks=1, attention=(), groups=2)
CONFIG = DDPM(net=NET, num_steps=5, num_levels=20, score_levels=20)


def batch(n, seed=0):
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8)
    return {"image": jnp.asarray(image), "label": jnp.arange(n) % 3}


def random_weights(model, key):
    """Weights that say something: at first a net's last layer is zero."""
    weights = model.weights(jax.jit(model.init)(key))
    leaves, tree = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope="module")
def model():
    return CONFIG.make(SPEC)


@pytest.fixture(scope="module")
def weights(model):
    return random_weights(model, jax.random.key(5))


def draw(model, weights, cond, key=None):
    return jax.jit(model.sample)(weights, jax.random.key(0) if key is None else key, cond)["image"]


def cond_of(n, **more):
    return {"index": jnp.arange(n), "label": jnp.arange(n) % 3, **more}


@pytest.mark.parametrize(
    "config, expected",
    [
        (CONFIG, lambda x0: 1.0),
        (dataclasses.replace(CONFIG, prediction="x0"), lambda x0: np.mean(x0**2)),
        (dataclasses.replace(CONFIG, prediction="flow"), lambda x0: 1.0 + np.mean(x0**2)),
        # At uniform t of a cosine, alpha^2 and sigma^2 are one half on average.
        (
            dataclasses.replace(CONFIG, prediction="v", schedule=Cosine()),
            lambda x0: 0.5 + 0.5 * np.mean(x0**2),
        ),
    ],
    ids=["eps", "x0", "flow", "v"],
)
def test_the_loss_of_a_net_that_says_nothing_is_the_targets_power(config, expected, key):
    """A new net's output is 0, so its loss is the mean square of what it should have said."""
    model = config.make(SPEC)
    examples = batch(4000)
    _, metrics = jax.jit(model.step)(model.init(key), examples, key)
    x0 = np.asarray(examples["image"], np.float64) / 127.5 - 1
    np.testing.assert_allclose(metrics["loss"], expected(x0), rtol=0.02)
    np.testing.assert_allclose(metrics["error"], metrics["loss"], rtol=1e-6)


def test_min_snr_weighs_the_loss(key):
    """E over t of min(SNR, 5) E||x0||^2 for x0 prediction, by numerical integration."""
    config = dataclasses.replace(CONFIG, prediction="x0", weighting="min_snr", schedule=Flow())
    model, examples = config.make(SPEC), batch(4000)
    _, metrics = jax.jit(model.step)(model.init(key), examples, key)
    t = (np.arange(100_000) + 0.5) / 100_000
    weight = np.minimum(((1 - t) / t) ** 2, 5.0).mean()
    x0 = np.asarray(examples["image"], np.float64) / 127.5 - 1
    np.testing.assert_allclose(metrics["loss"], weight * np.mean(x0**2), rtol=0.02)


def test_times_are_spread_evenly(key):
    """However many there are: no gap is above twice the mean (the three-gap theorem)."""
    for count in (2, 50, 257):
        u = np.sort(ddpm.spread(key, jnp.arange(count)))
        gaps = np.diff([*u, u[0] + 1.0])
        assert gaps.min() > 0.3 / count
        assert gaps.max() < 2.0 / count
        assert u.min() > 0
        assert u.max() <= 1
    whole, part = ddpm.spread(key, jnp.arange(64)), ddpm.spread(key, jnp.arange(40, 48))
    np.testing.assert_array_equal(whole[40:48], part)


def reference_bound(schedule, num_levels, images, large):
    """Bits per value of a model that sees x0 = 0 in everything: all T terms in float64, by SciPy.

    The KL of two Gaussians with the posteriors at x0 and at 0 as means; the mass of the byte's bin.
    """
    x0 = images.astype(np.float64) / 127.5 - 1
    level = schedule.level(jnp.arange(num_levels + 1) / num_levels)
    alpha, sigma = np.asarray(level.alpha, np.float64), np.asarray(level.sigma, np.float64)
    alpha[0], sigma[0] = 1.0, 0.0
    nats = np.zeros(len(x0))
    for i in range(1, num_levels + 1):
        ratio = alpha[i] / alpha[i - 1]
        beta = sigma[i] ** 2 - ratio**2 * sigma[i - 1] ** 2
        small = beta * sigma[i - 1] ** 2 / sigma[i] ** 2
        if i == 1:
            r2 = alpha[2] / alpha[1]
            floor = (sigma[2] ** 2 - r2**2 * sigma[1] ** 2) * sigma[1] ** 2 / sigma[2] ** 2
            std = np.sqrt(max(beta, floor) if large else floor)
            upper = np.where(x0 > 0.999, 1.0, stats.norm.cdf((x0 + 1 / 255) / std))
            lower = np.where(x0 < -0.999, 0.0, stats.norm.cdf((x0 - 1 / 255) / std))
            nats += -np.log(upper - lower).mean((1, 2, 3))
        else:
            variance = beta if large else small
            shift = alpha[i - 1] * beta / sigma[i] ** 2 * x0
            kl = 0.5 * (np.log(variance / small) + (small + shift**2) / variance - 1)
            nats += kl.mean((1, 2, 3))
    prior = 0.5 * (sigma[-1] ** 2 + (alpha[-1] * x0) ** 2 - 1 - 2 * np.log(sigma[-1]))
    return (nats + prior.mean((1, 2, 3))) / np.log(2)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
def test_the_bound_is_the_sum_of_its_terms(schedule, variance, key):
    config = dataclasses.replace(
        CONFIG,
        prediction="x0",
        schedule=schedule,
        variance=variance,
        num_levels=12,
    )
    model, examples = config.make(SPEC), batch(6)
    # Moderate grays: a float32 Gaussian's tail says nothing of bytes fifty deviations away.
    examples["image"] = (examples["image"] // 16 + 120).astype(jnp.uint8)
    weights = model.weights(model.init(key))
    got = jax.jit(model.score)(weights, examples, key)["bits_per_dim"]
    want = reference_bound(schedule, 12, np.asarray(examples["image"]), variance == "large")
    np.testing.assert_allclose(got, want, rtol=2e-3)


def test_few_levels_estimate_the_bound_without_bias(key):
    whole, few = (dataclasses.replace(CONFIG, prediction="x0", score_levels=k) for k in (20, 4))
    examples = batch(2)
    examples["image"] = (examples["image"] // 16 + 120).astype(jnp.uint8)
    many = jax.tree.map(lambda x: jnp.repeat(x, 2000, axis=0), examples)
    weights = whole.make(SPEC).weights(whole.make(SPEC).init(key))
    exact = whole.make(SPEC).score(weights, examples, key)["bits_per_dim"]
    drawn = np.asarray(few.make(SPEC).score(weights, many, key)["bits_per_dim"]).reshape(2, -1)
    error = drawn.std(1) / np.sqrt(drawn.shape[1])
    assert (np.abs(drawn.mean(1) - exact) < 4 * error).all()


def test_a_bin_s_mass_is_the_gaussians(key):
    x0 = jnp.arange(256).reshape(256, 1, 1, 1) / 127.5 - 1.0
    mean = jax.random.uniform(key, x0.shape, minval=-0.9, maxval=0.9)
    got = bound.log_bin(x0, mean, jnp.full(x0.shape, -2.0))
    edges = np.asarray(x0, np.float64)
    std, mean = np.exp(-1.0), np.asarray(mean, np.float64)
    upper = np.where(edges > 0.999, 1, stats.norm.cdf((edges + 1 / 255 - mean) / std))
    lower = np.where(edges < -0.999, 0, stats.norm.cdf((edges - 1 / 255 - mean) / std))
    np.testing.assert_allclose(got, np.log(upper - lower), rtol=2e-4)


def test_learned_variance_is_learned_and_leaves_the_mean_alone(key, monkeypatch):
    """The bound falls on fixed examples and noise, though the mean never sees its gradient."""
    config = dataclasses.replace(CONFIG, variance="learned", optimizer=Adam(learning_rate=1e-2))
    model, examples = config.make(SPEC), batch(64)
    state, step = jax.jit(model.init)(key), jax.jit(model.step)
    bounds = []
    for _ in range(100):
        state, metrics = step(state, examples, key)
        bounds.append(float(metrics["bound"]))
    assert bounds[-1] < 0.9 * bounds[0]
    network = ddpm._network(config, (4, 4, 1), SPEC["label"])
    variables = random_weights(model, key)

    def gradient(weight):
        monkeypatch.setattr(ddpm, "VLB_WEIGHT", weight)
        grads = jax.jit(jax.grad(lambda v: ddpm._loss(network, v, examples, key)[0]))(variables)
        kernel = grads["params"]["out"]["kernel"]  # the last axis: what is said, and the fraction
        return kernel[..., 0], kernel[..., 1]

    (mean, fraction), (mean_alone, nothing) = gradient(1.0), gradient(0.0)
    np.testing.assert_allclose(mean, mean_alone, rtol=1e-4, atol=1e-6)
    assert np.abs(fraction).max() > 1e-3
    assert not nothing.any()


def test_guidance_is_the_stated_combination_row_by_row(weights, key):
    network = ddpm._network(CONFIG, (4, 4, 1), SPEC["label"])
    config = dataclasses.replace(CONFIG, clip=False)
    network = network._replace(config=config)
    xt, label = jax.random.normal(key, (4, 4, 4, 1)), jnp.array([0, 1, 2, 0])
    level = Linear().level(jnp.array([0.9, 0.6, 0.3, 0.5]))
    scale = jnp.array([0.0, 1.0, 2.5, 1.0])
    labelled = ddpm._denoise_fn(network, weights, label)(xt, level)
    without = ddpm._denoise_fn(network, weights, jnp.full(4, 3))(xt, level)
    got = ddpm._guided_fn(network, weights, label, scale)(xt, level)
    s = scale.reshape(4, 1, 1, 1)
    want = without.x0 + s * (labelled.x0 - without.x0)  # linear in eps, so linear in x0
    np.testing.assert_allclose(got.x0, want, rtol=1e-3, atol=1e-4)
    assert np.abs(labelled.x0 - without.x0).max() > 1e-2
    plain = ddpm._guided_fn(network, weights, label, jnp.ones(4))(xt, level)
    # Values near 0 are differences of terms as large as the largest.
    largest = np.abs(labelled.x0).max()
    np.testing.assert_allclose(plain.x0, labelled.x0, rtol=1e-5, atol=1e-6 * largest)


def test_each_row_has_its_own_guidance_and_steps(model, weights):
    guidance, steps = jnp.array([1.0, 3.0, 0.0, 2.0]), jnp.array([5, 2, 7, 1])
    together = draw(model, weights, cond_of(4, guidance=guidance, num_steps=steps))
    for i in range(4):
        row = {k: v[i : i + 1] for k, v in cond_of(4, guidance=guidance, num_steps=steps).items()}
        alone = draw(model, weights, row)
        assert np.abs(together[i].astype(int) - alone[0].astype(int)).max() <= 1
    default = draw(model, weights, cond_of(4))
    assert (together[0] == default[0]).all()
    assert (together[1] != default[1]).any()


def test_steps_and_guidance_are_data(model, weights):
    sampler = jax.jit(lambda *arguments: model.sample(*arguments))
    for steps, scale in ((3, 1.0), (9, 2.0), (1, 0.5)):
        cond = cond_of(2, num_steps=jnp.full(2, steps), guidance=jnp.full(2, scale))
        sampler(weights, jax.random.key(0), cond)
    assert sampler._cache_size() == 1


def test_a_variation_is_the_image_at_strength_zero_and_moves_away_with_it(model, weights):
    near = batch(3)["image"]
    distance = []
    for strength in (0.0, 0.4, 1.0):
        images = draw(model, weights, cond_of(3, near=near, strength=jnp.full(3, strength)))
        distance.append(np.abs(images.astype(float) - near).mean())
    assert distance[0] == 0.0 < distance[1] < distance[2]
    with pytest.raises(UserError, match="'strength' but not 'near'"):
        model.sample(weights, jax.random.key(0), cond_of(3, strength=jnp.ones(3)))


def test_what_is_known_stays_and_the_rest_is_drawn(model, weights):
    known = batch(3)["image"]
    mask = jnp.zeros((3, 4, 4, 1), jnp.uint8).at[:, :2].set(1)
    one, other = (
        draw(model, weights, cond_of(3, known=known, mask=mask), jax.random.key(k)) for k in (0, 1)
    )
    np.testing.assert_array_equal(one[:, :2], known[:, :2])
    assert (one[:, 2:] != other[:, 2:]).any()
    with pytest.raises(UserError, match="'known' and 'mask' together"):
        model.sample(weights, jax.random.key(0), cond_of(3, known=known))


def test_labels_are_hidden_as_often_as_asked(key):
    config = dataclasses.replace(CONFIG, label_dropout=0.25)
    network = ddpm._network(config, (4, 4, 1), SPEC["label"])
    keys = jax.random.split(key, 20_000)
    hidden = ddpm._hidden(network, {"label": jnp.ones(20_000, jnp.int32)}, keys)
    assert set(np.unique(hidden)) == {1, 3}
    np.testing.assert_allclose(np.mean(np.asarray(hidden) == 3), 0.25, atol=0.015)


def test_augmented_images_are_described_and_samples_are_not_warped(key):
    config = dataclasses.replace(CONFIG, augment=1.0, augment_probability=0.5)
    images, description = ddpm._warped(config, batch(200)["image"], jax.random.split(key, 200))
    warped = np.abs(np.asarray(description)).max(1) > 0
    moved = np.abs(np.asarray(images) - np.asarray(to_net(batch(200)["image"]))).max((1, 2, 3))
    np.testing.assert_array_equal(warped, moved > 1e-4)
    assert 0.35 < warped.mean() < 0.65
    network = ddpm._network(config, (4, 4, 1), SPEC["label"])
    assert not np.any(ddpm._upright(network, jnp.zeros((2, 4, 4, 1))))


def test_under_bfloat16_the_net_computes_in_it_and_nothing_else_does(key):
    model = dataclasses.replace(CONFIG, dtype="bfloat16").make(SPEC)
    state = jax.eval_shape(model.init, key)
    jaxpr = jax.make_jaxpr(model.step)(state, batch(8), key)
    made = str(jaxpr)
    convolutions = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", made)
    assert set(convolutions) == {"bf16"}
    kept = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
    plain = dataclasses.replace(CONFIG).make(SPEC)
    fresh = jax.jit(plain.init)(key)
    loss, want = (jax.jit(m.step)(fresh, batch(8), key)[1]["loss"] for m in (model, plain))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, want, rtol=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": EDM(), "prediction": "v", "sampler": Heun()},
        {"schedule": Flow(log_std=1.0), "prediction": "flow", "sampler": DPMSolver()},
        {"schedule": Cosine(), "prediction": "x0", "sampler": Ancestral(), "variance": "learned"},
        {"sampler": DDIM(eta=0.5), "conditional": False},
        {"net": DiT(patch_size=2, embed_dim=8, depth=1, num_heads=2), "augment": 0.5},
        {"dtype": "bfloat16", "variance": "learned"},
    ],
    ids=["edm-heun", "flow-dpm", "cosine-ancestral", "unconditional", "dit", "bfloat16"],
)
def test_every_combination_trains_scores_and_draws(changes, key):
    model = dataclasses.replace(CONFIG, **changes).make(SPEC)
    state, metrics = jax.jit(model.step)(jax.jit(model.init)(key), batch(8), key)
    assert all(np.isfinite(v) for v in metrics.values())
    scores = jax.jit(model.score)(model.weights(state), batch(3), key)["bits_per_dim"]
    assert (np.isfinite(scores) & (np.asarray(scores) > 0)).all()
    cond = cond_of(3) if "label" in model.cond else {"index": jnp.arange(3)}
    images = draw(model, model.weights(state), cond)
    assert images.shape == (3, 4, 4, 1)
    assert images.dtype == np.uint8


def test_the_cifar_preset_takes_updates_on_made_up_images(key):
    """Its shape, resolutions and attention, at an eighth of its width and half of its depth."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[2] / "experiments" / "cifar10_ddpm.py"
    spec = importlib.util.spec_from_file_location("cifar10_ddpm", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.config().model
    shape = {"image": jax.ShapeDtypeStruct((32, 32, 3), np.uint8), "label": LabelSpec(10)}
    whole = jax.eval_shape(config.make(shape).init, jax.random.key(0))
    assert 35e6 < sum(leaf.size for leaf in jax.tree.leaves(whole.ema)) < 45e6
    net = dataclasses.replace(config.net, features=(16, 32, 32, 32), num_blocks=1, groups=4)
    model, mesh = dataclasses.replace(config, net=net).make(shape), make_mesh(Mesh(data=2))
    run = parallel.compile_steps(model.step, mesh, layouts.abstract(model.init, mesh))
    generator = np.random.default_rng(0)
    stack = {
        "image": generator.integers(0, 256, (2, 4, 32, 32, 3)).astype(np.uint8),
        "label": np.zeros((2, 4), np.int32),
    }
    state = parallel.compile_init(model.init, mesh)(key)
    _, metrics = run(state, layouts.split_rows(stack, mesh, axis=1), key, 0)
    assert np.isfinite(metrics["loss"])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_steps": 0}, "model.num-steps is 0; it must be at least 1"),
        ({"guidance": -1.0}, "model.guidance is -1.0"),
        ({"guidance": 2.0, "conditional": False}, "unconditional: leave it at 1"),
        ({"guidance": 2.0, "label_dropout": 0.0}, "label-dropout 0 never shows"),
        ({"label_dropout": 1.5}, "model.label-dropout is 1.5; it must be from 0 to 1"),
        ({"num_levels": 1}, "model.num-levels is 1"),
        ({"schedule": Flow()}, "prediction eps does not go with the schedule Flow"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes).make(SPEC)


def test_classes_that_the_data_lacks_are_refused():
    with pytest.raises(UserError, match=r"needs class labels.* --model\.no-conditional"):
        CONFIG.make({"image": SPEC["image"]})
    unconditional = dataclasses.replace(CONFIG, conditional=False).make(SPEC)
    assert {"label", "guidance"}.isdisjoint(unconditional.cond)
    always = dataclasses.replace(CONFIG, label_dropout=0.0).make(SPEC)
    assert "label" in always.cond
    assert "guidance" not in always.cond, "the net was never without a label"
