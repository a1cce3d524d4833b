"""Denoising diffusion (Ho et al. 2020), and what followed it on the same path from data to noise.

A network is shown x_t = alpha(t) x0 + sigma(t) eps and learns to say eps, x0, v or the flow's
velocity (`nets/noise.py`); the loss is the squared error of what it says, by default unweighted
(Ho et al. 2020, eq. 14), or weighted by min(SNR, gamma) (Hang et al. 2023). With
`variance="learned"` the network also says how noisy a step back is (Nichol & Dhariwal 2021,
eq. 15-16). Classes enter as an embedding that is dropped now and then, for classifier-free
guidance (Ho & Salimans 2022, eq. 6, with their 1 + w as `guidance`):

    eps = eps(x_t, no label) + guidance * (eps(x_t, label) - eps(x_t, no label)).

Small sets are augmented without leaking it into the samples: images are warped and the network is
told how (Karras et al. 2022, app. F.2).

Batch: "image" uint8 [n, h, w, c], "label" int32 [n] where conditional.
Cond:  "index" int32 [n], "label" int32 [n] where conditional, and one value per row of
       "guidance" float32 [n] (where labels are dropped in training) and "num_steps" int32 [n] (the
       steps taken from noise to data);
       optional, "near" uint8 [n, h, w, c] draws variations of an image, which is noised to
       "strength" float32 [n] in [0, 1] of the steps and taken back (Meng et al. 2022, SDEdit);
       optional, "known" uint8 [n, h, w, c] and "mask" uint8 [n, h, w, 1] keep the image where the
       mask is not 0 and draw the rest (Song et al. 2021, app. I.2; Lugmayr et al. 2022, eq. 8).
Score: "bits_per_dim", the variational bound of `num_levels` steps (Ho et al. 2020, eq. 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from genaug.nets import noise, samplers
from genaug.nets.bound import bits_per_dim, term
from genaug.nets.dit import DiT
from genaug.nets.likelihoods import to_bytes, to_net, to_unit
from genaug.nets.noise import Level, Schedule, over
from genaug.nets.unet import UNet
from genaug.state import Adam, Optimizer, Variables, from_loss
from genaug.transforms.images import DESCRIPTION_DIM, Warp, warp_described
from genaug.types import (
    Batch,
    CondField,
    GenerativeModel,
    LabelSpec,
    Metrics,
    Spec,
    UserError,
    Weights,
    row_index,
    row_keys,
    row_normal,
    row_uniform,
    split_keys,
)

Values = Float[Array, "n h w c"]
Images = UInt8[Array, "n h w c"]
PerExample = Float[Array, " n"]

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
"""The golden ratio less 1: no number's multiples, modulo 1, are spread more evenly."""

VLB_WEIGHT = 1e-3
"""Share of the bound in the loss that learns the variance (Nichol & Dhariwal 2021, section 3.1)."""


@dataclass(frozen=True, kw_only=True)
class DDPM:
    """Hyper-parameters of a diffusion model."""

    net: UNet | DiT = field(default_factory=UNet)
    schedule: Schedule = field(default_factory=noise.Linear)
    prediction: noise.Prediction = "eps"
    weighting: Literal["uniform", "min_snr"] = "uniform"
    min_snr_gamma: float = 5.0
    variance: Literal["small", "large", "learned"] = "large"  # of an ancestral step back
    conditional: bool = True
    label_dropout: float = 0.1  # share of training examples whose label is hidden
    augment: float = 0.0  # warps without leaking: times the classical baseline's strength
    augment_probability: float = 0.8  # share of the training images that are warped
    sampler: samplers.Sampler = field(default_factory=samplers.DDIM)
    num_steps: int = 50  # of the sampler, where `cond` names none
    guidance: float = 1.0  # where `cond` names none; 1 = by the label alone, 0 = without it
    clip: bool = True  # what is denoised stays within the range of images
    dtype: Literal["bfloat16", "float32"] = "float32"  # of the net's activations
    num_levels: int = 1000  # T of the variational bound
    score_levels: int = 16  # of the T levels, how many the bound is estimated from
    optimizer: Optimizer = field(default_factory=lambda: Adam(learning_rate=2e-4))
    ema_decay: float = 0.9995

    def make(self, spec: Spec) -> GenerativeModel:
        """The model of images shaped as `spec["image"]`, in the classes of `spec["label"]`."""
        _check(self)
        label_spec = _label_spec(self.conditional, spec)
        height, width, channels = spec["image"].shape
        network = _network(self, (height, width, channels), label_spec)
        return from_loss(
            partial(_init, network),
            partial(_loss, network),
            partial(_sample, network),
            self.optimizer,
            score=partial(_score, network),
            ema_decay=self.ema_decay,
            cond=_conditions(self, spec, label_spec),
        )


class _Network(NamedTuple):
    """The net with what it was bound to."""

    config: DDPM
    module: Any
    shape: tuple[int, int, int]
    num_classes: int  # 0 where labels are not used


def _network(config: DDPM, shape: tuple[int, int, int], label: LabelSpec | None) -> _Network:
    num_classes = 0 if label is None else label.num_classes
    outputs = 2 if config.variance == "learned" else 1
    augment_dim = DESCRIPTION_DIM if config.augment else 0
    return _Network(
        config, config.net.net(shape, num_classes, augment_dim, outputs), shape, num_classes
    )


def _upright(network: _Network, x: Values) -> Array | None:
    """What the network is told of images that are not warped."""
    return jnp.zeros((x.shape[0], DESCRIPTION_DIM)) if network.config.augment else None


def _init(network: _Network, key: jax.Array) -> Variables:
    x = jnp.zeros((1, *network.shape))
    label = jnp.zeros(1, jnp.int32) if network.num_classes else None
    variables = network.module.init(key, x, jnp.zeros(1), label, _upright(network, x))
    return {"params": variables["params"]}


def _predict(
    network: _Network,
    variables: Variables,
    xt: Values,
    level: Level,
    label: Array | None,
    description: Array | None,
    index: Array | None = None,
    key: jax.Array | None = None,
) -> tuple[Values, Array | float]:
    """What the network says, and the log-variance's fraction; index and key are for dropout."""
    raw = network.module.apply(
        {"params": variables["params"]},
        xt.astype(network.config.dtype),
        1000.0 * level.t,
        label,
        description,
        index,
        rngs={} if key is None else {"dropout": key},
    ).astype(jnp.float32)
    if network.config.variance == "learned":
        output, fraction = jnp.split(raw, 2, axis=-1)
        return output, (fraction + 1.0) / 2.0
    return raw, 1.0 if network.config.variance == "large" else 0.0


def _denoised(config: DDPM, output: Values, xt: Values, level: Level) -> Values:
    x0 = noise.x0_of(config.prediction, output, xt, level)
    return jnp.clip(x0, -1.0, 1.0) if config.clip else x0


def _loss(
    network: _Network, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[Array, tuple[Metrics, Variables]]:
    config = network.config
    key_time, key_rows, key_dropout = jax.random.split(key, 3)
    keys_warp, keys_eps, keys_label = split_keys(row_keys(key_rows, batch), 3)
    x0, description = _warped(config, batch["image"], keys_warp)
    n = x0.shape[0]
    times = config.schedule.training_time(spread(key_time, row_index(batch)))
    level = config.schedule.level(times)
    eps = row_normal(keys_eps, x0.shape[1:])
    xt = noise.diffuse(x0, eps, level)
    label = _hidden(network, batch, keys_label)
    output, fraction = _predict(
        network, variables, xt, level, label, description, row_index(batch), key_dropout
    )
    target = noise.target_of(config.prediction, x0, eps, level)
    error = jnp.mean((output - target) ** 2, axis=(1, 2, 3))
    weight = jnp.ones(n)
    if config.weighting == "min_snr":
        weight = noise.min_snr(config.prediction, level, config.min_snr_gamma)
    value = jnp.mean(weight * error)
    metrics = {"error": jnp.mean(error)}
    if config.variance == "learned":
        # The bound teaches the variance alone: its gradient does not reach the mean.
        fixed = jax.lax.stop_gradient(_denoised(config, output, xt, level))
        guess = samplers.Denoised(fixed, fraction)
        bound = jnp.mean(term(config.schedule, config.num_levels, x0, xt, guess, level))
        value = value + VLB_WEIGHT * config.num_levels * bound
        metrics["bound"] = bound
    return value, (metrics, {})


def _denoise_fn(network: _Network, weights: Weights, label: Array | None) -> samplers.Denoise:
    """The denoiser of examples with these labels, unguided."""

    def denoise(xt: Values, level: Level) -> samplers.Denoised:
        output, fraction = _predict(network, weights, xt, level, label, _upright(network, xt))
        return samplers.Denoised(_denoised(network.config, output, xt, level), fraction)

    return denoise


def _guided_fn(
    network: _Network, weights: Weights, label: Array, guidance: PerExample
) -> samplers.Denoise:
    """The denoiser with classifier-free guidance, each row by its own scale."""
    n = label.shape[0]
    unguided = _denoise_fn(network, weights, label)

    def guided(xt: Values, level: Level) -> samplers.Denoised:
        """With and without the label in one pass of twice the batch."""
        both = jnp.concatenate([label, jnp.full_like(label, network.num_classes)])
        xs, levels = jax.tree.map(lambda a: jnp.concatenate([a, a]), (xt, level))
        output, fraction = _predict(network, weights, xs, levels, both, _upright(network, xs))
        labelled, without = output[:n], output[n:]
        scale = over(guidance, xt)
        mixed = jnp.where(scale == 1.0, labelled, without + scale * (labelled - without))
        x0 = _denoised(network.config, mixed, xt, level)
        return samplers.Denoised(x0, fraction[:n] if isinstance(fraction, jax.Array) else fraction)

    def denoise(xt: Values, level: Level) -> samplers.Denoised:
        # Where no row asks for guidance, half of the work would be multiplied by zero.
        return jax.lax.cond(jnp.all(guidance == 1.0), unguided, guided, xt, level)

    return denoise


def _sample(network: _Network, weights: Weights, key: jax.Array, cond: Batch) -> Batch:
    config, keys = network.config, row_keys(key, cond)
    rows = cond["index"].shape
    num_steps = jnp.broadcast_to(cond.get("num_steps", config.num_steps), rows)
    eps = jax.vmap(lambda key: jax.random.normal(key, network.shape))(keys)
    x, start = begin(config.schedule, eps, num_steps, cond)
    denoise = _denoise_fn(network, weights, None)
    if network.num_classes:
        guidance = jnp.broadcast_to(cond.get("guidance", config.guidance), rows)
        denoise = _guided_fn(network, weights, cond["label"], guidance)
    image = samplers.run(
        config.sampler,
        config.schedule,
        denoise,
        x,
        num_steps,
        keys,
        start=start,
        constrain=keep_known(cond),
    )
    drawn = {"image": to_bytes((image + 1.0) / 2.0)}
    return {**drawn, "label": cond["label"]} if network.num_classes else drawn


def _score(network: _Network, weights: Weights, batch: Batch, key: jax.Array) -> Metrics:
    config, x0 = network.config, to_net(batch["image"])
    denoise = _denoise_fn(network, weights, batch["label"] if network.num_classes else None)
    bits = bits_per_dim(config.schedule, denoise, x0, key, config.num_levels, config.score_levels)
    return {"bits_per_dim": bits}


def _check(config: DDPM) -> None:
    least: dict[str, tuple[float, float]] = {
        "num-steps": (config.num_steps, 1),
        "num-levels": (config.num_levels, 2),
        "score-levels": (config.score_levels, 1),
        "guidance": (config.guidance, 0.0),
        "augment": (config.augment, 0.0),
        "min-snr-gamma": (config.min_snr_gamma, 1e-3),
    }
    for name, (value, low) in least.items():
        if not value >= low:
            raise UserError(f"model.{name} is {value}; it must be at least {low:g}.")
    shares = {
        "label-dropout": config.label_dropout,
        "augment-probability": config.augment_probability,
    }
    for name, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise UserError(f"model.{name} is {share}; it must be from 0 to 1.")
    if config.prediction == "eps" and isinstance(config.schedule, noise.Flow):
        raise UserError(
            "model.prediction eps does not go with the schedule Flow, which starts from noise "
            "alone: knowing eps there says nothing of the image. Use flow, v or x0."
        )
    if config.guidance != 1.0 and not config.conditional:
        raise UserError(
            f"model.guidance is {config.guidance}, but the model is unconditional: leave it at 1, "
            "or use --model.conditional."
        )
    if config.guidance != 1.0 and config.label_dropout == 0.0:
        raise UserError(
            f"model.guidance is {config.guidance}, but model.label-dropout 0 never shows the "
            "network an example without its label: use --model.label-dropout 0.1."
        )


def _label_spec(conditional: bool, spec: Spec) -> LabelSpec | None:
    if not conditional:
        return None
    label_spec = spec.get("label")
    if not isinstance(label_spec, LabelSpec):
        raise UserError(
            "A conditional DDPM needs class labels, and this dataset has none: use "
            "--model.no-conditional."
        )
    return label_spec


def _conditions(config: DDPM, spec: Spec, label: LabelSpec | None) -> dict[str, CondField]:
    image = spec["image"]
    whole = jax.ShapeDtypeStruct((), jnp.int32)
    real = jax.ShapeDtypeStruct((), jnp.float32)
    mask = jax.ShapeDtypeStruct((*image.shape[:2], 1), jnp.uint8)
    by_class: dict[str, CondField] = {}
    if label is not None:
        by_class["label"] = CondField(label)
        if config.label_dropout:  # else the network does not know what no label means
            by_class["guidance"] = CondField(real, config.guidance, low=0.0)
    return {
        **by_class,
        "num_steps": CondField(whole, default=config.num_steps, low=1.0),
        "near": CondField(image, optional=True),
        "strength": CondField(real, optional=True, low=0.0, high=1.0),
        "known": CondField(image, optional=True),
        "mask": CondField(mask, optional=True),
    }


def spread(key: jax.Array, place: Int[Array, " n"]) -> PerExample:
    """Values in (0, 1] that cover it evenly, whatever part of the batch 0, 1, ... is at hand.

    Low variance as Kingma et al. 2021, I.1, but by multiples of the golden ratio from a random
    start (Kronecker's sequence), which needs no number of examples.
    """
    return 1.0 - (place * GOLDEN % 1.0 + jax.random.uniform(key)) % 1.0


def _warped(config: DDPM, x: Images, keys: jax.Array) -> tuple[Values, Array | None]:
    """The training images in [-1, 1], augmented as the config asks, and how."""
    if not config.augment:
        return to_net(x), None
    warp = Warp()
    strength = warp.scaled(config.augment)
    images, description = warp_described(
        to_unit(x), keys, strength, warp.smoothing, config.augment_probability
    )
    return 2.0 * images - 1.0, description


def _hidden(network: _Network, batch: Batch, keys: jax.Array) -> Array | None:
    """The labels, some of them replaced by `num_classes`: no label."""
    if not network.num_classes:
        return None
    label = batch["label"]
    hide = row_uniform(keys) < network.config.label_dropout
    return jnp.where(hide, network.num_classes, label)


def begin(
    schedule: Schedule, eps: Values, num_steps: Int[Array, " n"], cond: Batch
) -> tuple[Values, Int[Array, " n"]]:
    """Where every row starts, and with how many steps to go: noise, or a noised example."""
    if "near" not in cond:
        if "strength" in cond:
            raise UserError("cond has 'strength' but not 'near': the image to start from.")
        level = noise.grid(schedule, num_steps, num_steps)
        return over(level.sigma, eps) * eps, num_steps
    strength = jnp.broadcast_to(cond.get("strength", 0.5), num_steps.shape)
    start = jnp.round(jnp.clip(strength, 0.0, 1.0) * num_steps).astype(jnp.int32)
    level = noise.grid(schedule, start, num_steps)
    return noise.diffuse(to_net(cond["near"]), eps, level), start


def keep_known(cond: Batch) -> Callable[[Values, Level, jax.Array], Values]:
    """Puts the known part of an image, noised to the level at hand, back after every step."""
    if ("known" in cond) != ("mask" in cond):
        raise UserError("cond needs 'known' and 'mask' together: an image, and where to keep it.")
    if "known" not in cond:
        return lambda x, level, keys: x
    known, mask = to_net(cond["known"]), cond["mask"] > 0

    def constrain(x: Values, level: Level, keys: jax.Array) -> Values:
        eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        return jnp.where(mask, noise.diffuse(known, eps, level), x)

    return constrain
