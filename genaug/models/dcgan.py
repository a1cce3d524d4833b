"""Generative adversarial network of convolutions (DCGAN: Radford et al. 2016).

A generator G makes images of noise z, uniform in [-1, 1]; a discriminator D tells them from real
ones. Each is updated in turn, on the two objectives of a loss below. By default it is the published
one: batch norm in both, the non-saturating loss, Adam with b1 0.5. Class-conditional it has a gain
and a bias per class in G's batch norm and a projection in D (Miyato & Koyama 2018); classes of
generated images are those of the real ones in the batch.

A batch is split into `critic_steps` parts and D takes one update on each, so that no update sees
another's examples, as in Gulrajani et al. 2017, Algorithm 1: the batch is their m times n_critic.
G then takes one, on as many images as a part has.

Batch: "image" uint8 [n, h, w, c]; "label" int32 [n] where conditional.
Cond:  "index" int32 [n]; "label" int32 [n] where conditional; "temperature" float32 [n] scales z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int

from genaug.models.vae import check_latent_dim
from genaug.nets import dcgan as nets
from genaug.nets.adversarial import Loss, NonSaturating, gradient_penalty
from genaug.nets.likelihoods import to_bytes, to_net
from genaug.state import (
    Adam,
    NetworkState,
    Optimizer,
    Params,
    Variables,
    apply_gradients,
    create,
    gradient_norm,
)
from genaug.transforms import diffaugment
from genaug.transforms.diffaugment import DiffAugment
from genaug.types import (
    Batch,
    CondField,
    GenerativeModel,
    LabelSpec,
    Metrics,
    Spec,
    UserError,
    Weights,
    no_score,
    row_keys,
    row_uniform,
    split_keys,
)

Scalar = Float[Array, ""]

# Statistics are averaged over this many updates' worth, the weights they belong to over ten times
# as many: they are fresh where those move, and smooth where those rest.
STATISTICS_DECAY = 0.99


class GANState(NamedTuple):
    """Both networks in training.

    generator:     its "batch_stats" are those of its EMA, not of the parameters in training.
    discriminator: "spectral" holds a vector per matrix where it is spectrally normalised.
    """

    generator: NetworkState
    discriminator: NetworkState


class Bound(NamedTuple):
    """Both networks in training, bound to one example's shapes, and their optimisers.

    generate:  `(params, z, label) -> (images, moments of the batch in every layer)`.
    judge:     `(params, images, label) -> logits`.
    constrain: `(discriminator's variables) -> (params to judge with, its new statistics)`.
    """

    generate: Callable[[Params, Array, Array | None], tuple[Array, Any]]
    judge: Callable[[Params, Array, Array | None], Array]
    constrain: Callable[[Variables], tuple[Params, Variables]]
    g_optimizer: optax.GradientTransformation
    d_optimizer: optax.GradientTransformation


@dataclass(frozen=True, kw_only=True)
class DCGAN:
    """Hyper-parameters of a DCGAN."""

    latent_dim: int = 100
    generator_features: tuple[int, ...] = (256, 128)  # channels from the base up; a level doubles
    discriminator_features: tuple[int, ...] = (128, 256)  # from the image down; a level halves
    conditional: bool = False  # on the label, which the dataset must have
    loss: Loss = field(default_factory=NonSaturating)  # and how often D is updated for each G
    norm: nets.Norm = "batch"  # of the discriminator: batch, spectral, layer or none
    augment: DiffAugment = field(default_factory=DiffAugment)  # of what the discriminator sees
    generator_optimizer: Optimizer = field(default_factory=lambda: Adam(learning_rate=2e-4, b1=0.5))
    discriminator_optimizer: Optimizer = field(
        default_factory=lambda: Adam(learning_rate=2e-4, b1=0.5)
    )
    ema_decay: float = 0.999  # of the generator
    temperature: float = 1.0  # of the noise, where `cond` names none

    def make(self, spec: Spec) -> GenerativeModel:
        """The DCGAN of images shaped as `spec["image"]`, in the classes of `spec["label"]`."""
        check(self, spec)
        shape = height, width, channels = spec["image"].shape
        label_spec = spec["label"] if self.conditional else None
        num_classes = label_spec.num_classes if isinstance(label_spec, LabelSpec) else None
        generator = nets.Generator(self.generator_features, shape, num_classes)
        discriminator = nets.Discriminator(self.discriminator_features, self.norm, num_classes)
        bound = bind(self, generator, discriminator)

        def init(key: jax.Array) -> GANState:
            key_g, key_d, key_u = jax.random.split(key, 3)
            label = jnp.zeros(1, jnp.int32) if self.conditional else None
            z = jnp.zeros((1, self.latent_dim))
            maker = generator.init(key_g, z, label, train=True)
            image = jnp.zeros((1, height, width, channels))
            judge = {"params": discriminator.init(key_d, image, label)["params"]}
            if self.norm == "spectral":
                judge["spectral"] = nets.spectral_vectors(judge["params"], key_u)
            return GANState(
                create(dict(maker), bound.g_optimizer), create(judge, bound.d_optimizer)
            )

        def step(state: GANState, batch: Batch, key: jax.Array) -> tuple[GANState, Metrics]:
            return adversarial_step(self, bound, state, batch, key)

        def sample(weights: Weights, key: jax.Array, cond: Batch) -> Batch:
            keys = row_keys(key, cond)
            z = latents(keys, self.latent_dim)
            default = jnp.full(z.shape[0], self.temperature)
            z = jnp.expand_dims(cond.get("temperature", default), 1) * z
            label = {"label": cond["label"]} if self.conditional else {}
            images = generator.apply(weights, z, label.get("label"), train=False)
            return {"image": to_bytes((jnp.asarray(images) + 1.0) / 2.0), **label}

        one = jax.ShapeDtypeStruct((), jnp.float32)
        cond = {"temperature": CondField(one, default=self.temperature, low=0.0)}
        return GenerativeModel(
            init=init,
            step=step,
            weights=lambda state: {**state.generator.variables, "params": state.generator.ema},
            sample=sample,
            score=no_score,
            cond={"label": CondField(spec["label"]), **cond} if self.conditional else cond,
            falls="moment_gap",
        )


def check(config: DCGAN, spec: Spec) -> None:
    """Refuse what cannot be built, or would not be what its name says."""
    check_latent_dim(config.latent_dim)
    diffaugment.check(config.augment)
    check_levels("generator-features", config.generator_features, spec["image"].shape)
    check_levels("discriminator-features", config.discriminator_features, spec["image"].shape)
    if config.conditional and not isinstance(spec.get("label"), LabelSpec):
        raise UserError(
            "model.conditional is set and this dataset has no class labels: use "
            "--model.no-conditional, or a source with labels."
        )
    if config.norm not in get_args(nets.Norm):
        known = ", ".join(get_args(nets.Norm))
        raise UserError(f"model.norm is {config.norm!r}; it must be one of {known}.")
    if config.loss.critic_steps < 1:
        raise UserError(
            f"model.loss.critic-steps is {config.loss.critic_steps}; it must be at least 1."
        )
    if config.loss.penalty_weight < 0:
        raise UserError(
            f"model.loss.penalty-weight is {config.loss.penalty_weight}; it must be 0 or more."
        )
    if config.loss.penalty_weight and config.norm == "batch":
        raise UserError(
            "model.norm is 'batch' and WassersteinGP penalises the slope at each example, which "
            "batch norm makes depend on the others: use --model.norm layer."
        )
    if config.temperature < 0:
        raise UserError(f"model.temperature is {config.temperature}; it must be 0 or more.")


def check_levels(name: str, features: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse an image that the levels do not halve into whole pixels."""
    if not features or min(features) < 1:
        raise UserError(f"model.{name} is {features}; it must hold a width from 1 up per level.")
    height, width, _ = shape
    unit = 2 ** len(features)
    if height % unit or width % unit:
        levels = 0
        while not (height % 2 ** (levels + 1) or width % 2 ** (levels + 1)):
            levels += 1
        size = max(round(max(height, width) / unit), 1) * unit
        fewer = f"at most {levels} widths, or " if levels else ""
        raise UserError(
            f"model.{name} has {len(features)} levels, and {height}x{width} images cannot be "
            f"halved as often: give it {fewer}--data.image-size {size}."
        )


def latents(keys: jax.Array, latent_dim: int) -> Float[Array, "n d"]:
    """Noise that generators start from (Radford et al. 2016, 4.1: uniform), each by its own key."""
    return 2.0 * row_uniform(keys, (latent_dim,)) - 1.0


def bind(config: DCGAN, generator: nets.Generator, discriminator: nets.Discriminator) -> Bound:
    """The forward passes of two modules, and their optimisers."""

    def generate(params: Params, z: Array, label: Array | None) -> tuple[Array, Any]:
        made, moments = generator.apply(
            {"params": params}, z, label, train=True, mutable=["batch_stats"]
        )
        return made, moments["batch_stats"]

    def judge(params: Params, images: Array, label: Array | None) -> Array:
        # A discriminator only ever meets batches, and so keeps no statistics of them.
        return discriminator.apply({"params": params}, images, label, mutable=["batch_stats"])[0]

    def constrain(variables: Variables) -> tuple[Params, Variables]:
        if "spectral" not in variables:
            return variables["params"], {}
        params, vectors = nets.spectral_normalise(variables["params"], variables["spectral"])
        return params, {"spectral": vectors}

    return Bound(
        generate,
        judge,
        constrain,
        config.generator_optimizer.make(),
        config.discriminator_optimizer.make(),
    )


def moment_gap(real: Float[Array, "n h w c"], fake: Float[Array, "m h w c"]) -> Scalar:
    """How far means and deviations of pixels are apart, averaged over them, on the scale of x."""
    mean = jnp.abs(jnp.mean(real, axis=0) - jnp.mean(fake, axis=0))
    deviation = jnp.abs(jnp.std(real, axis=0) - jnp.std(fake, axis=0))
    return jnp.mean(mean + deviation)


class Part(NamedTuple):
    """Real examples, and the keys of what is drawn for each of them."""

    x: Float[Array, "n h w c"]
    label: Int[Array, " n"] | None
    keys: jax.Array  # [n]


def discriminator_update(
    config: DCGAN, bound: Bound, generator: Params, state: NetworkState, part: Part
) -> tuple[NetworkState, Metrics]:
    """One update of the discriminator, on real images and as many generated."""

    def loss(params: Params, rows: Part, shared: Any) -> tuple[Array, tuple[Metrics, Variables]]:
        statistics, generator = shared
        keys_z, keys_real, keys_fake, keys_share = split_keys(rows.keys, 4)
        params, statistics = bound.constrain({**statistics, "params": params})
        judge = lambda images: bound.judge(params, images, rows.label)  # noqa: E731
        fake, _ = bound.generate(generator, latents(keys_z, config.latent_dim), rows.label)
        real = diffaugment.augment_batch(rows.x, keys_real, config.augment)
        fake = diffaugment.augment_batch(fake, keys_fake, config.augment)
        real_logits, fake_logits = judge(real), judge(fake)
        value = config.loss.d_loss(real_logits, fake_logits)
        metrics = {"d_real": jnp.mean(real_logits), "d_fake": jnp.mean(fake_logits)}
        if config.loss.penalty_weight:
            metrics["penalty"] = gradient_penalty(judge, real, fake, keys_share)
            value = value + config.loss.penalty_weight * metrics["penalty"]
        return value, ({"d_loss": value, **metrics}, statistics)

    (_, (metrics, statistics)), grads = state.grad(loss)(
        state.variables["params"], part, (state.statistics, generator)
    )
    metrics = {**metrics, "d_grad_norm": gradient_norm(grads)}
    return apply_gradients(state, grads, statistics, bound.d_optimizer, 0.0), metrics


def generator_update(
    config: DCGAN, bound: Bound, state: NetworkState, discriminator: Variables, part: Part
) -> tuple[NetworkState, Metrics]:
    """One update of the generator, on as many images as `part` has; its statistics stay."""
    params_d, _ = bound.constrain(discriminator)

    def loss(params: Params, rows: Part, params_d: Params) -> tuple[Array, None]:
        keys_z, keys_fake = split_keys(rows.keys, 2)
        fake, _ = bound.generate(params, latents(keys_z, config.latent_dim), rows.label)
        seen = diffaugment.augment_batch(fake, keys_fake, config.augment)
        return config.loss.g_loss(bound.judge(params_d, seen, rows.label)), None

    (value, _), grads = state.grad(loss)(state.variables["params"], part, params_d)
    metrics = {"g_loss": value, "g_grad_norm": gradient_norm(grads)}
    return apply_gradients(state, grads, {}, bound.g_optimizer, config.ema_decay), metrics


def with_statistics(state: NetworkState, moments: Any) -> NetworkState:
    """The network with the moments of one more batch in its average of them."""
    # Before its first update a network has no statistics, only places for them.
    decay = jnp.minimum(STATISTICS_DECAY, (state.step - 1.0) / (state.step + 9.0))
    average = jax.tree.map(
        lambda old, new: old + (1.0 - decay) * (new - old),
        state.variables["batch_stats"],
        moments,
    )
    return state.replace(variables={**state.variables, "batch_stats": average})  # type: ignore[attr-defined]


def adversarial_step(
    config: DCGAN,
    bound: Bound,
    state: GANState,
    batch: Batch,
    key: jax.Array,
) -> tuple[GANState, Metrics]:
    """`critic_steps` updates of the discriminator, then one of the generator and of its EMA.

    Sampling runs the EMA weights with running statistics. Those of the generator in training
    belong to other weights, and an average of them to none. So the EMA generator itself makes a
    batch after every update, and the statistics are those of its layers; nothing else keeps any.
    """
    x, label = to_net(batch["image"]), batch["label"] if config.conditional else None
    count, parts = x.shape[0], config.loss.critic_steps
    if count % parts:
        below = max(count // parts, 1) * parts
        raise UserError(
            f"train.batch-size {count} does not divide into model.loss.critic-steps {parts} "
            f"parts: use {below} or {below + parts}."
        )
    keys_d, keys_g, keys_ema = split_keys(row_keys(key, batch), 3)
    # Every part takes rows from all over the batch, so from every device that holds some of it.
    split = jax.tree.map(
        lambda rows: jnp.swapaxes(rows.reshape(count // parts, parts, *rows.shape[1:]), 0, 1),
        Part(x, label, keys_d),
    )

    params_g = state.generator.used["params"]

    def critic(discriminator: NetworkState, part: Part) -> tuple[NetworkState, Metrics]:
        return discriminator_update(config, bound, params_g, discriminator, part)

    discriminator, d_metrics = lax.scan(critic, state.discriminator, split)
    d_metrics = jax.tree.map(lambda values: jnp.mean(values, axis=0), d_metrics)
    some = jax.tree.map(lambda rows: rows[::parts], Part(x, label, keys_g))
    generator, g_metrics = generator_update(
        config, bound, state.generator, discriminator.used, some
    )
    z = latents(keys_ema, config.latent_dim)
    averaged, moments = bound.generate(generator.in_use(generator.ema), z, label)
    metrics = {
        "loss": d_metrics["d_loss"] + g_metrics["g_loss"],
        **d_metrics,
        **g_metrics,
        "moment_gap": moment_gap(x, averaged),
    }
    return GANState(with_statistics(generator, moments), discriminator), metrics
