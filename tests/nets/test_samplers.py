"""Samplers on a Gaussian mixture, whose denoiser is known: errors fall at the sampler's order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genaug.nets import noise, samplers
from genaug.nets.noise import EDM, Cosine, Flow, Linear
from genaug.nets.samplers import DDIM, Ancestral, Denoised, DPMSolver, Heun

MEANS, STDS, WEIGHTS = np.array([[-0.8, 0.1, 0.7], [0.15, 0.1, 0.2], [0.3, 0.2, 0.5]])
SCHEDULES = [Linear(), Cosine(), EDM(), Flow()]
ORDERS = [(DDIM(), 1), (DPMSolver(), 2), (Heun(), 2)]


def denoise(xt, level):
    """E[x0 | x_t] of the mixture (in closed form)."""
    alpha, sigma = (noise.over(v, xt)[..., None] for v in (level.alpha, level.sigma))
    x = xt[..., None]
    means, stds, weights = (jnp.reshape(jnp.float32(v), (1, 1, 3)) for v in (MEANS, STDS, WEIGHTS))
    variance = alpha**2 * stds**2 + sigma**2
    logits = jnp.log(weights) - 0.5 * jnp.log(variance) - 0.5 * (x - alpha * means) ** 2 / variance
    within = means + alpha * stds**2 / variance * (x - alpha * means)
    return Denoised(jnp.sum(jax.nn.softmax(logits) * within, axis=-1))


def draw(sampler, schedule, num_steps, x, **options):
    n = x.shape[0]
    steps = jnp.broadcast_to(jnp.asarray(num_steps, jnp.int32), (n,))
    keys = jax.random.split(jax.random.key(1), n)
    return jax.jit(lambda x: samplers.run(sampler, schedule, denoise, x, steps, keys, **options))(x)


def start(schedule, n=400):
    """The mixture's quantiles at pure noise."""
    eps = stats.norm.ppf((np.arange(n) + 0.5) / n)
    return jnp.asarray(eps[:, None], jnp.float32) * schedule.level(jnp.ones(1)).sigma[0]


@pytest.fixture(params=SCHEDULES, ids=lambda s: type(s).__name__)
def schedule(request):
    return request.param


@pytest.mark.parametrize("sampler, order", ORDERS, ids=["ddim", "dpm", "heun"])
def test_the_error_falls_at_the_samplers_order(schedule, sampler, order):
    x = start(schedule)
    exact = draw(Heun(), schedule, 600, x)
    counts = np.array([40, 80, 160])
    errors = [
        float(jnp.sqrt(jnp.mean((draw(sampler, schedule, int(c), x) - exact) ** 2))) for c in counts
    ]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > order - 0.3, (errors, slope)
    assert errors[-1] < 0.02


def cdf(x):
    return np.sum(WEIGHTS * stats.norm.cdf((np.asarray(x)[..., None] - MEANS) / STDS), axis=-1)


@pytest.mark.parametrize(
    "sampler", [Ancestral(), DDIM(eta=1.0), DDIM(eta=0.5), DDIM(), DPMSolver(), Heun()], ids=str
)
def test_samples_are_the_mixtures(schedule, sampler, key):
    x = jax.random.normal(key, (4000, 1)) * schedule.level(jnp.ones(1)).sigma[0]
    samples = draw(sampler, schedule, 200, x)[:, 0]
    assert stats.kstest(np.asarray(samples), cdf).pvalue > 1e-3


def test_the_ancestral_error_falls_with_steps(key):
    """Of the distribution: the largest distance between the CDFs, over one fixed set of keys."""
    x = jax.random.normal(key, (20_000, 1))
    apart = [
        stats.kstest(np.asarray(draw(Ancestral(), Cosine(), n, x)[:, 0]), cdf).statistic
        for n in (4, 16, 64)
    ]
    assert apart[0] > 2 * apart[1] > 3 * apart[2]


@pytest.mark.parametrize("fraction, deviation", [(0.0, "variance"), (1.0, "large")])
def test_one_ancestral_step_has_the_stated_variance(fraction, deviation, key):
    n, schedule = 100_000, Linear()
    now, then = (schedule.level(jnp.full(n, t)) for t in (0.6, 0.4))
    xt = jnp.full((n, 1), 0.3)
    back = noise.posterior(denoise(xt, now).x0, xt, now, then)
    drawn = jax.random.normal(key, (n, 1))
    step = samplers.Step(xt, xt, now, now, then, drawn, jnp.zeros(n, bool))
    fractional = lambda x, level: denoise(x, level)._replace(fraction=fraction)  # noqa: E731
    x, _ = Ancestral().step(fractional, step)
    np.testing.assert_allclose(np.mean(x), np.mean(back.mean), atol=0.01)
    np.testing.assert_allclose(np.var(x), getattr(back, deviation)[0], rtol=0.02)


def test_ddim_at_eta_one_is_ancestral():
    """Song et al. 2021, section 4.1: with the posterior's variance both draw the same."""
    x = start(Linear(), 50)
    np.testing.assert_allclose(
        draw(DDIM(eta=1.0), Linear(), 20, x), draw(Ancestral(), Linear(), 20, x), atol=2e-4
    )


def test_dpm_solver_passes_levels_that_are_equal():
    """The cosine's levels above t = 0.999 are one level: a step between two of them is no step."""
    x = start(Cosine(), 2000)
    many = draw(DPMSolver(), Cosine(), 1500, x)
    assert np.isfinite(many).all()
    np.testing.assert_allclose(many, draw(DPMSolver(), Cosine(), 500, x), atol=0.05)


def test_what_is_drawn_beside_a_known_part_fits_it(key):
    """Of two Gaussians with correlation 0.9 the first is known: the second follows it."""
    n, rho, known = 4000, 0.9, 1.5
    covariance = jnp.array([[1.0, rho], [rho, 1.0]])

    def denoise(xt, level):
        noisy = level.alpha[0] ** 2 * covariance + level.sigma[0] ** 2 * jnp.eye(2)
        return samplers.Denoised(xt @ (level.alpha[0] * jnp.linalg.solve(noisy, covariance)))

    def constrain(x, level, keys):
        eps = jax.vmap(jax.random.normal)(keys)
        return x.at[:, 0].set(level.alpha * known + level.sigma * eps)

    x, keys = jax.random.normal(key, (n, 2)), jax.random.split(key, n)
    steps = jnp.full(n, 200)
    run = lambda **options: samplers.run(  # noqa: E731
        Ancestral(), Linear(), denoise, x, steps, keys, **options
    )
    free, held = jax.jit(run)(), jax.jit(lambda: run(constrain=constrain))()
    np.testing.assert_allclose(np.corrcoef(free.T)[0, 1], rho, atol=0.03)
    np.testing.assert_allclose(held[:, 0], known)
    # Replacing is an approximation (Lugmayr et al. 2022, section 4.1): the rest leans the right way
    assert abs(float(jnp.mean(free[:, 1]))) < 0.1
    assert 0.5 * rho * known < float(jnp.mean(held[:, 1])) < 1.1 * rho * known


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(), DPMSolver(), Heun()], ids=str)
def test_every_row_takes_its_own_number_of_steps(schedule, sampler):
    x = start(schedule, 6)
    counts = jnp.array([1, 2, 3, 7, 12, 5])
    together = draw(sampler, schedule, counts, x)
    for i, count in enumerate(counts):
        alone = draw(sampler, schedule, int(count), x)
        np.testing.assert_allclose(together[i], alone[i], rtol=1e-5, atol=1e-6)
    assert np.isfinite(together).all()


def test_a_start_on_the_way_leaves_earlier_steps_out():
    schedule, n = Flow(), 8
    x0 = jnp.full((n, 1), 0.1)
    begin = jnp.array([0, 1, 2, 5, 8, 10, 3, 4])
    level = noise.grid(schedule, begin, jnp.full(n, 10))
    x = noise.diffuse(x0, jnp.zeros_like(x0), level)
    moved = jnp.abs(draw(DDIM(), schedule, 10, x, start=begin) - x0)
    assert float(moved[0, 0]) == 0.0
    assert (np.asarray(moved)[1:] > 0).all()


def test_a_constraint_holds_at_the_end(key):
    x = jax.random.normal(key, (50, 2))

    def constrain(x, level, keys):
        return x.at[:, 0].set(level.alpha * 0.25)

    samples = draw(Ancestral(), Cosine(), 50, x, constrain=constrain)
    np.testing.assert_allclose(samples[:, 0], 0.25)
    assert np.std(samples[:, 1]) > 0.1
