"""The losses of two networks against closed forms and PyTorch; the penalty on critics it fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug.nets.adversarial import Hinge, NonSaturating, WassersteinGP, gradient_penalty

REAL = np.array([-2.0, -0.5, 0.3, 1.0, 4.0], np.float32)
FAKE = np.array([1.5, -1.0, 0.2, -3.0, -0.1], np.float32)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x.astype(np.float64)))


CLOSED = [
    (
        NonSaturating(),
        -log_sigmoid(REAL).mean() - log_sigmoid(-FAKE).mean(),
        -log_sigmoid(FAKE).mean(),
    ),
    (Hinge(), (3.0 + 1.5 + 0.7) / 5 + (2.5 + 1.2 + 0.9) / 5, 2.4 / 5),
    (WassersteinGP(), -2.4 / 5 - 2.8 / 5, 2.4 / 5),
]


def name(value):
    return type(value).__name__


@pytest.mark.parametrize("loss, d_value, g_value", CLOSED, ids=name)
def test_losses_are_their_formulas(loss, d_value, g_value):
    np.testing.assert_allclose(loss.d_loss(jnp.array(REAL), jnp.array(FAKE)), d_value, rtol=1e-6)
    np.testing.assert_allclose(loss.g_loss(jnp.array(FAKE)), g_value, rtol=1e-6)


@pytest.mark.parametrize("loss", [NonSaturating(), Hinge(), WassersteinGP()], ids=name)
def test_gradients_are_pytorch_s(loss):
    torch = pytest.importorskip("torch", reason="the twin is written in PyTorch")
    functional = torch.nn.functional

    def bce(logits, target):
        return functional.binary_cross_entropy_with_logits(logits, torch.full((5,), target))

    d_twin, g_twin = {
        "NonSaturating": (lambda r, f: bce(r, 1.0) + bce(f, 0.0), lambda f: bce(f, 1.0)),
        "Hinge": (
            lambda r, f: functional.relu(1 - r).mean() + functional.relu(1 + f).mean(),
            lambda f: -f.mean(),
        ),
        "WassersteinGP": (lambda r, f: f.mean() - r.mean(), lambda f: -f.mean()),
    }[name(loss)]
    # No logit on a margin: there the two programs may choose different subgradients.
    real, fake = (torch.tensor(x + 0.01, requires_grad=True) for x in (REAL, FAKE))
    logits = jnp.array(REAL + 0.01), jnp.array(FAKE + 0.01)
    want = torch.autograd.grad(d_twin(real, fake), (real, fake))
    found = jax.grad(loss.d_loss, (0, 1))(*logits)
    np.testing.assert_allclose(np.stack(found), torch.stack(want), rtol=1e-5, atol=1e-7)
    (want,) = torch.autograd.grad(g_twin(fake), fake)
    np.testing.assert_allclose(jax.grad(loss.g_loss)(logits[1]), want, rtol=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.4, 1.0, 3.0])
def test_penalty_of_a_linear_critic_is_in_closed_form(slope, key):
    """D(x) = w.x has the slope |w| everywhere; d/dw (|w| - 1)^2 = 2 (|w| - 1) w/|w|."""
    real, fake, w = jax.random.normal(key, (3, 6, 4, 5, 2))
    w, keys = slope * w[0] / jnp.linalg.norm(w[0]), jax.random.split(key, 6)

    def penalty(w):
        return gradient_penalty(lambda x: jnp.einsum("nhwc,hwc->n", x, w), real, fake, keys)

    value, gradient = jax.value_and_grad(penalty)(w)
    np.testing.assert_allclose(value, (slope - 1) ** 2, rtol=1e-5, atol=1e-10)
    want = 2 * (slope - 1) * w / max(slope, 1e-9)
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-5)


def test_penalty_is_taken_between_pairs_at_uniform_places(key):
    """D(x) = |x|^2 / 2 has the slope |x|; real is at 0 and fake at distance 2, so |x| is 2u."""
    count = 20_000
    real = jnp.zeros((count, 1, 1, 1))
    fake = jnp.full((count, 1, 1, 1), 2.0)
    keys = jax.random.split(key, count)
    found = gradient_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3)) / 2, real, fake, keys)
    # E (2u - 1)^2 = 1/3, with variance 1/5 - 1/9.
    np.testing.assert_allclose(found, 1 / 3, atol=5 * np.sqrt(4 / 45 / count))
