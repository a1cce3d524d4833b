"""Variational autoencoder (Kingma & Welling 2014; beta: Higgins et al. 2017).

Objective, maximised (Kingma & Welling 2014, eq. 3, with beta on the second term):

    L(x) = E_q(z|x) [log p(x|z)] - beta * KL(q(z|x) || N(0, I))

with q(z|x) = N(mean(x), exp(logvar(x))), one reparametrised draw z = mean + exp(logvar/2) eps.
The importance-weighted bound with k draws (Burda et al. 2016, eq. 8) is

    L_k(x) = E [log 1/k sum_i p(x|z_i) p(z_i) / q(z_i|x)]   >= L_1(x) = L(x) at beta = 1.

Batch: "image" uint8 [n, h, w, c].
Cond:  "index" int32 [n], and to steer, each optional and one value per row:
       "temperature" float32 [n]  scales the noise in latent space;
       "near" uint8 [n, h, w, c]  draws around q(z | near) instead of the prior;
       "toward" uint8 [n, h, w, c], "fraction" float32 [n]  from `near` to `toward` on the great
       arc between their posterior means, without noise unless a temperature asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from genaug.nets.autoencoder import MLP, ConvNet
from genaug.nets.likelihoods import Bernoulli, Likelihood, to_bytes, to_net
from genaug.state import Adam, Optimizer, Variables, from_loss
from genaug.transforms.images import Warp, warp_bytes
from genaug.types import (
    Batch,
    CondField,
    GenerativeModel,
    Metrics,
    Spec,
    UserError,
    Weights,
    row_keys,
    row_normal,
    split_keys,
)

Latent = Float[Array, "n z"]
Posterior = tuple[Latent, Latent]
PerExample = Float[Array, " n"]


@dataclass(frozen=True, kw_only=True)
class VAE:
    """Hyper-parameters of a VAE."""

    latent_dim: int = 20
    net: MLP | ConvNet = field(default_factory=MLP)
    likelihood: Likelihood = field(default_factory=Bernoulli)
    beta: float = 1.0  # weight of the KL term; above 1 for disentangled, below for sharper
    augment: float = 0.0  # warps of the training images: times the classical baseline's strength
    optimizer: Optimizer = field(default_factory=Adam)
    ema_decay: float = 0.999
    temperature: float = 1.0  # of the latent noise, where `cond` names none
    draw_pixels: bool = False  # sample pixel noise too, rather than the likelihood's mean
    score_samples: int = 16  # k of the importance-weighted bound

    def make(self, spec: Spec) -> GenerativeModel:
        """The VAE of images shaped as `spec["image"]`."""
        check_latent_dim(self.latent_dim)
        height, width, channels = spec["image"].shape
        encoder: Any = self.net.encoder(self.latent_dim)
        decoder: Any = self.net.decoder(
            (height, width, channels), self.likelihood.outputs_per_value
        )

        def encode(variables: Variables, x: UInt8[Array, "n h w c"]) -> Posterior:
            return encoder.apply({"params": variables["params"]["encoder"]}, to_net(x))

        def decode(variables: Variables, z: Latent) -> Array:
            return decoder.apply({"params": variables["params"]["decoder"]}, z)

        def init(key: jax.Array) -> Variables:
            key_e, key_d = jax.random.split(key)
            image = jnp.zeros((1, height, width, channels))
            z = jnp.zeros((1, self.latent_dim))
            return {
                "params": {
                    "encoder": encoder.init(key_e, image)["params"],
                    "decoder": decoder.init(key_d, z)["params"],
                }
            }

        def log_prob(variables: Variables, x: Array, z: Latent) -> PerExample:
            return self.likelihood.log_prob(decode(variables, z), x)

        def loss(
            variables: Variables, batch: Batch, key: jax.Array
        ) -> tuple[Array, tuple[Metrics, Variables]]:
            keys_eps, keys_warp = split_keys(row_keys(key, batch), 2)
            x = augmented(batch["image"], keys_warp, self.augment)
            terms = elbo_terms(lambda z: log_prob(variables, x, z), encode(variables, x), keys_eps)
            return negative_elbo(*terms, self.beta)

        def sample(weights: Weights, key: jax.Array, cond: Batch) -> Batch:
            keys = row_keys(key, cond)
            z = steer(lambda x: encode(weights, x), keys, cond, self.latent_dim, self.temperature)
            return {"image": observe(self.likelihood, decode(weights, z), keys, self.draw_pixels)}

        def score(weights: Weights, batch: Batch, key: jax.Array) -> Metrics:
            posterior = encode(weights, batch["image"])
            return bounds(
                lambda z: log_prob(weights, batch["image"], z), posterior, key, self.score_samples
            )

        return from_loss(
            init,
            loss,
            sample,
            self.optimizer,
            score=score,
            ema_decay=self.ema_decay,
            cond=steering(spec, self.temperature),
        )


def steering(spec: Spec, temperature: float) -> dict[str, CondField]:
    """What a VAE's `sample` reads."""
    if temperature < 0:
        raise UserError(f"model.temperature is {temperature}; it must be 0 or more.")
    one = jax.ShapeDtypeStruct((), jnp.float32)
    return {
        "temperature": CondField(one, default=temperature, low=0.0),
        "near": CondField(spec["image"], optional=True),
        "toward": CondField(spec["image"], optional=True),
        "fraction": CondField(one, optional=True),
    }


def check_latent_dim(latent_dim: int) -> None:
    """Refuse a latent space without dimensions."""
    if latent_dim < 1:
        raise UserError(f"model.latent-dim is {latent_dim}; it must be at least 1.")


def augmented(
    x: UInt8[Array, "n h w c"], keys: jax.Array, factor: float
) -> UInt8[Array, "n h w c"]:
    """The images, warped `factor` times as strongly as the classical baseline does.

    The warps leak into the samples (a slanted digit is a digit); without them the encoder and
    decoder learn a small dataset by heart.
    """
    warp = Warp()
    return warp_bytes(x, keys, warp.scaled(factor), warp.smoothing) if factor else x


def gaussian_kl(posterior: Posterior) -> PerExample:
    """KL(N(mean, exp(logvar)) || N(0, I)) in nats (Kingma & Welling 2014, app. B)."""
    mean, logvar = posterior
    return 0.5 * jnp.sum(jnp.exp(logvar) + mean**2 - 1.0 - logvar, axis=-1)


def reparametrise(posterior: Posterior, eps: Latent) -> Latent:
    """z = mean + std * eps (Kingma & Welling 2014, section 2.4)."""
    mean, logvar = posterior
    return mean + jnp.exp(0.5 * logvar) * eps


def elbo_terms(
    log_prob: Callable[[Latent], PerExample], posterior: Posterior, keys: jax.Array
) -> tuple[PerExample, PerExample]:
    """One-draw log p(x|z), and the exact KL, per example."""
    eps = row_normal(keys, posterior[0].shape[1:])
    return log_prob(reparametrise(posterior, eps)), gaussian_kl(posterior)


def negative_elbo(
    reconstruction: PerExample, kl: PerExample, beta: float
) -> tuple[Array, tuple[Metrics, Variables]]:
    """The loss, its metrics, and no statistics."""
    metrics = {
        "elbo": jnp.mean(reconstruction - kl),
        "reconstruction": jnp.mean(reconstruction),
        "kl": jnp.mean(kl),
    }
    return jnp.mean(beta * kl - reconstruction), (metrics, {})


def bounds(
    log_prob: Callable[[Latent], PerExample],
    posterior: Posterior,
    key: jax.Array,
    num_samples: int,
) -> Metrics:
    """`elbo` (k draws averaged) and `iwae` (k draws importance-weighted), nats per example."""
    mean, logvar = posterior

    def log_weight(key: jax.Array) -> PerExample:
        eps = jax.random.normal(key, mean.shape)
        z = reparametrise(posterior, eps)
        log_q = jnp.sum(jax.scipy.stats.norm.logpdf(eps) - 0.5 * logvar, axis=-1)
        log_prior = jnp.sum(jax.scipy.stats.norm.logpdf(z), axis=-1)
        return log_prob(z) + log_prior - log_q

    log_weights = jax.lax.map(log_weight, jax.random.split(key, num_samples))
    iwae = jax.nn.logsumexp(log_weights, axis=0) - jnp.log(float(num_samples))
    return {"elbo": jnp.mean(log_weights, axis=0), "iwae": iwae}


def slerp(a: Latent, b: Latent, fraction: PerExample) -> Latent:
    """Spherical interpolation between rows of a and b (Shoemake 1985, section 3.3).

    High-dimensional Gaussian vectors lie near a sphere; a straight line between two of them would
    pass through the unlikely middle. Parallel vectors are interpolated on the line.
    """
    norm = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    cosine = jnp.sum(a * b, axis=-1) / jnp.maximum(norm, 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    straight = sine < 1e-4
    safe = jnp.where(straight, 1.0, sine)
    weight_a = jnp.where(straight, 1.0 - fraction, jnp.sin((1.0 - fraction) * angle) / safe)
    weight_b = jnp.where(straight, fraction, jnp.sin(fraction * angle) / safe)
    return jnp.expand_dims(weight_a, 1) * a + jnp.expand_dims(weight_b, 1) * b


def steer(
    encode: Callable[[Array], Posterior],
    keys: jax.Array,
    cond: Batch,
    latent_dim: int,
    temperature: float,
) -> Latent:
    """Latent vectors as `cond` asks: from the prior, around an example, or between two."""
    eps = jax.vmap(lambda key: jax.random.normal(key, (latent_dim,)))(keys)
    default = jnp.full(eps.shape[0], 0.0 if "toward" in cond else temperature)
    noise = jnp.expand_dims(cond.get("temperature", default), 1) * eps
    if "near" not in cond:
        if "toward" in cond:
            raise UserError("cond has 'toward' but not 'near': an arc needs both ends.")
        return noise
    mean, logvar = encode(cond["near"])
    if "toward" in cond:
        end, end_logvar = encode(cond["toward"])
        share = jnp.expand_dims(cond["fraction"], 1)
        mean = slerp(mean, end, cond["fraction"])
        logvar = (1.0 - share) * logvar + share * end_logvar
    return mean + jnp.exp(0.5 * logvar) * noise


def observe(
    likelihood: Likelihood, outputs: Array, keys: jax.Array, draw_pixels: bool
) -> UInt8[Array, "n h w c"]:
    """Images from a decoder's outputs: the likelihood's mean, or a draw from it."""
    if not draw_pixels:
        return to_bytes(likelihood.mean(outputs))

    def draw(outputs: Array, key: jax.Array) -> Array:
        pixel_key = jax.random.fold_in(key, 1)
        return likelihood.draw(jnp.expand_dims(outputs, 0), pixel_key)[0]

    return to_bytes(jax.vmap(draw)(outputs, keys))
