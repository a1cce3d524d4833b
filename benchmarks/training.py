"""Training raced: every family against its twin in PyTorch, libraries and plain Flax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.race import Arm, Case, Made, Race, left_out
from benchmarks.subjects import GAN, IMAGES, SMALL, UNET, images, lm_config, text_spec, texts
from benchmarks.updates import Noise, Twin, Updates, race, torch_arm
from genaug.models import dcgan
from genaug.models.cvae import CVAE
from genaug.models.ddpm import DDPM, spread
from genaug.models.vae import VAE
from genaug.state import Adam
from genaug.types import (
    Batch,
    TokenSpec,
    row_index,
    row_keys,
    row_normal,
    row_uniform,
    split_keys,
)

PART = "training"


def _updates(config: Any, loss: Callable[..., Any], net: Any) -> Callable[..., Any]:
    """Updates of a net of PyTorch's by the optimiser and the average of weights of a config."""
    from benchmarks import twins

    assert isinstance(config.optimizer, Adam)
    return twins.Trainer(loss, net.parameters(), config.optimizer, config.ema_decay).step


def _autoencoder(config: VAE | CVAE, steps: int, rows: int, calls: int) -> Race:
    labelled = isinstance(config, CVAE)

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        from benchmarks import twins

        net = twins.Autoencoder(state.variables["params"], 10 if labelled else 0)
        return _updates(config, wrap(net.loss), net)

    def noise(key: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        keys, _ = split_keys(row_keys(key, batch), 2)
        return (row_normal(keys, (config.latent_dim,)),)

    stack = images(steps, rows)
    libraries = lambda ours: _pythae(config, stack, noise, ours) if isinstance(config, VAE) else []  # noqa: E731
    return race(config.make(IMAGES), stack, Twin(make, noise), calls=calls, libraries=libraries)


def _pythae(config: VAE, stack: Any, noise: Noise, ours: Updates) -> list[Arm]:
    """pythae's model in a loop of one's own, and by pythae's trainer with its data loader."""
    remark = "keeps no average of its weights"

    def checked(models: list[Any]) -> Made:
        def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
            from benchmarks.libraries import Pythae

            models.append(Pythae(state.variables["params"], config))
            return models[0].step

        return torch_arm(stack, Twin(make, noise), ours, remark=remark)

    def trainer() -> Made:
        models: list[Any] = []
        made = checked(models)
        shape = stack["image"].shape
        epoch = models[0].epoch(stack["image"].reshape(-1, *shape[2:]), shape[1])
        return made._replace(call=lambda: [epoch() for _ in range(ours.calls)])

    return [
        Arm("pythae, its model", lambda: checked([]), torch=True),
        Arm("pythae, its trainer", trainer, torch=True),
    ]


def _dcgan(rows: int, steps: int) -> Race:
    config = GAN

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        from benchmarks import twins

        return twins.GAN(state, config, IMAGES["image"].shape, wrap).step

    def noise(key: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        keys_d, keys_g, keys_ema = split_keys(row_keys(key, batch), 3)
        of = (split_keys(keys_d, 4)[0], split_keys(keys_g, 2)[0], keys_ema)
        return tuple(dcgan.latents(keys, config.latent_dim) for keys in of)

    twin = Twin(make, noise)
    return race(config.make(IMAGES), images(steps, rows), twin, against_flax=True)


def _ddpm(rows: int, steps: int, quick: bool) -> Race:
    config = DDPM(net=UNET)

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        from benchmarks import unet_twin

        net = unet_twin.UNetTwin(state.variables["params"], UNET)
        whole = unet_twin.Diffusion(net, 10, config.label_dropout)
        return _updates(config, wrap(whole.loss), net)

    def noise(key: jax.Array, batch: Batch) -> tuple[jax.Array, ...]:
        key_time, key_rows, _ = jax.random.split(key, 3)
        _, keys_eps, keys_label = split_keys(row_keys(key_rows, batch), 3)
        hide = row_uniform(keys_label) < config.label_dropout
        t = spread(key_time, row_index(batch))
        return t, row_normal(keys_eps, (28, 28, 1)), jnp.where(hide, 10, batch["label"])

    def libraries(ours: Updates) -> list[Arm]:
        arms = [Arm("denoising-diffusion-pytorch", partial(_own_diffusion, config, stack, ours),
                    torch=True)]  # fmt: skip
        if not quick:
            twin = Twin(partial(_diffusers, config), noise)
            made = partial(torch_arm, stack, twin, ours)
            arms.insert(0, Arm("diffusers, UNet2DModel", made, torch=True))
        return arms

    stack = images(steps, rows)
    return race(config.make(IMAGES), stack, Twin(make, noise), compiled=not quick,
                against_flax=True, scanned=not quick and rows == 16, single=not quick,
                libraries=libraries)  # fmt: skip


def _diffusers(config: DDPM, state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
    from benchmarks import diffusers_twin, unet_twin

    net = diffusers_twin.unet(state.variables["params"], UNET, IMAGES["image"].shape[:2])
    whole = unet_twin.Diffusion(diffusers_twin.called(net), 10, config.label_dropout)
    return _updates(config, wrap(whole.loss), net)


def _own_diffusion(config: DDPM, stack: Any, ours: Updates) -> Made:
    import torch

    from benchmarks import libraries

    diffusion = libraries.own_diffusion(10)
    step = _updates(config, libraries.diffusion_loss(diffusion), diffusion.model)
    batches = [{"image": torch.from_numpy(one)} for one in stack["image"]]
    remark = libraries.sizes(diffusion.model, ours.start.variables["params"], UNET)
    return Made(lambda: float([step(batch) for batch in batches][-1]), None, remark)


def _lm(dim: int, context: int, rows: int, steps: int, whole: bool) -> Race:
    """whole: with what takes long to get ready or to run."""
    config, spec = lm_config(dim), text_spec(context + 1)

    def make(state: Any, wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        import torch.nn.functional as F

        from benchmarks import lm_twin

        tokens = spec["tokens"]
        assert isinstance(tokens, TokenSpec)
        net = lm_twin.GPT(config, tokens.vocab_size, context)
        lm_twin.copied(net, state.variables["params"])

        def loss(batch: Mapping[str, Any]) -> Any:
            tokens = batch["tokens"].long()
            logits = net.logits(tokens[:, :-1])
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

        return _updates(config, wrap(loss), net)

    twin = Twin(make, lambda key, batch: ())
    stack = texts(steps, rows, context + 1)
    flax = [] if whole else [Arm("plain Flax, a step a call", left_out)]
    return race(config.make(spec), stack, twin, compiled=whole, against_flax=whole, single=whole,
                libraries=lambda ours: flax)  # fmt: skip


def cases(quick: bool) -> list[Case]:
    """Every race of training, in the order of the table."""
    flax = "plain Flax"
    few = 4 if quick else 10  # of calls that take seconds
    unet = {"PyTorch": 0.8, "diffusers": 1.0, "denoising-diffusion-pytorch": 1.0, flax: 1.7}

    def case(
        name: str, title: str, unit: str, must: dict[str, float], make: Any, of_peak: float = 0.0
    ) -> Case:
        return Case(name, PART, title, unit, must, make, of_peak)

    found = [
        case("vae-small", "VAE, 64 hidden units, batch 32, 20 steps a call", "examples",
             {"PyTorch": 2.0, "pythae": 1.0}, lambda: _autoencoder(SMALL, 20, 32, 5)),
        case("cvae-128", "CVAE, 400-200 hidden units, batch 128, 20 steps a call", "examples",
             {"PyTorch": 1.0}, lambda: _autoencoder(CVAE(), 20, 128, 1)),
        case("dcgan-64", "DCGAN 28x28, both updates, batch 64", "examples",
             {"PyTorch": 1.0, flax: 4.0}, lambda: _dcgan(64, 2 if quick else 4)),
        case("unet-16", f"DDPM U-Net 28x28, batch 16, {few} steps a call", "examples",
             {**unet, f"{flax} in a scan": 30.0}, lambda: _ddpm(16, few, quick), 0.4),
        case("lm-128", "LM 4 layers of 128, 12 rows of 64, 10 steps a call", "tokens",
             {"PyTorch": 0.9, flax: 1.5}, lambda: _lm(128, 64, 12, 10, True), 0.6),
        case("lm-256", f"LM 4 layers of 256, 16 rows of 128, {few} steps a call", "tokens",
             {"PyTorch": 0.9, flax: 1.5}, lambda: _lm(256, 128, 16, few, not quick), 0.6),
    ]  # fmt: skip
    if not quick:
        found += [
            case("dcgan-32", "DCGAN 28x28, both updates, batch 32", "examples",
                 {"PyTorch": 1.0, flax: 4.0}, lambda: _dcgan(32, 4)),
            case("unet-64", "DDPM U-Net 28x28, batch 64, 10 steps a call", "examples",
                 unet, lambda: _ddpm(64, few, False), 0.4),
        ]  # fmt: skip
    return found
