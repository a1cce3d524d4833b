"""Conditional variational autoencoder (Sohn et al. 2015; Kingma et al. 2014, model M2).

Objective, maximised (Sohn et al. 2015, eq. 5, with the prior independent of the label):

    L(x, y) = E_q(z|x,y) [log p(x|z,y)] - beta * KL(q(z|x,y) || N(0, I))

The label enters the encoder and the decoder one-hot, so z carries what the label does not say:
slant, stroke, size. Draws, bounds and steering are the VAE's (`models/vae.py`).

Batch: "image" uint8 [n, h, w, c], "label" int32 [n].
Cond:  "index" int32 [n], "label" int32 [n], and the VAE's optional "temperature", "near",
       "toward" and "fraction"; "near_label" int32 [n] is the class of `near` (and `toward`) where
       it differs from "label", which then draws the style of one class in the shape of another.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from genaug.models import vae
from genaug.nets.autoencoder import MLP, ConvNet
from genaug.nets.likelihoods import Bernoulli, Likelihood, to_net
from genaug.state import Adam, Optimizer, Variables, from_loss
from genaug.types import (
    Batch,
    CondField,
    GenerativeModel,
    LabelSpec,
    Metrics,
    Spec,
    UserError,
    Weights,
    row_keys,
    split_keys,
)


@dataclass(frozen=True, kw_only=True)
class CVAE:
    """Hyper-parameters of a class-conditional VAE."""

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
        """The CVAE of images shaped as `spec["image"]` in the classes of `spec["label"]`."""
        height, width, channels = spec["image"].shape
        label_spec = spec.get("label")
        if not isinstance(label_spec, LabelSpec):
            raise UserError("A CVAE needs class labels, and this dataset has none: use a VAE.")
        vae.check_latent_dim(self.latent_dim)
        num_classes = label_spec.num_classes
        encoder: Any = self.net.encoder(self.latent_dim)
        decoder: Any = self.net.decoder(
            (height, width, channels), self.likelihood.outputs_per_value
        )

        def one_hot(label: Int[Array, " n"]) -> Float[Array, "n k"]:
            return jax.nn.one_hot(label, num_classes)

        def encode(variables: Variables, x: UInt8[Array, "n h w c"], label: Array) -> vae.Posterior:
            params = {"params": variables["params"]["encoder"]}
            return encoder.apply(params, to_net(x), one_hot(label))

        def decode(variables: Variables, z: vae.Latent, label: Array) -> Array:
            return decoder.apply({"params": variables["params"]["decoder"]}, z, one_hot(label))

        def init(key: jax.Array) -> Variables:
            key_e, key_d = jax.random.split(key)
            image = jnp.zeros((1, height, width, channels))
            label = one_hot(jnp.zeros(1, jnp.int32))
            z = jnp.zeros((1, self.latent_dim))
            return {
                "params": {
                    "encoder": encoder.init(key_e, image, label)["params"],
                    "decoder": decoder.init(key_d, z, label)["params"],
                }
            }

        def log_prob(variables: Variables, batch: Batch, z: vae.Latent) -> vae.PerExample:
            return self.likelihood.log_prob(decode(variables, z, batch["label"]), batch["image"])

        def loss(
            variables: Variables, batch: Batch, key: jax.Array
        ) -> tuple[Array, tuple[Metrics, Variables]]:
            keys_eps, keys_warp = split_keys(row_keys(key, batch), 2)
            batch = {**batch, "image": vae.augmented(batch["image"], keys_warp, self.augment)}
            posterior = encode(variables, batch["image"], batch["label"])
            terms = vae.elbo_terms(lambda z: log_prob(variables, batch, z), posterior, keys_eps)
            return vae.negative_elbo(*terms, self.beta)

        def sample(weights: Weights, key: jax.Array, cond: Batch) -> Batch:
            keys = row_keys(key, cond)
            style = cond.get("near_label", cond["label"])
            z = vae.steer(
                lambda x: encode(weights, x, style), keys, cond, self.latent_dim, self.temperature
            )
            outputs = decode(weights, z, cond["label"])
            images = vae.observe(self.likelihood, outputs, keys, self.draw_pixels)
            return {"image": images, "label": cond["label"]}

        def score(weights: Weights, batch: Batch, key: jax.Array) -> Metrics:
            posterior = encode(weights, batch["image"], batch["label"])
            return vae.bounds(
                lambda z: log_prob(weights, batch, z), posterior, key, self.score_samples
            )

        return from_loss(
            init,
            loss,
            sample,
            self.optimizer,
            score=score,
            ema_decay=self.ema_decay,
            cond={
                "label": CondField(label_spec),
                "near_label": CondField(label_spec, optional=True),
                **vae.steering(spec, self.temperature),
            },
        )
