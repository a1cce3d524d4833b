"""genaug's families once more in PyTorch, with its weights: what its training is raced against.

Each twin says `loss(batch, *noise)`: noise that is not given is drawn. Images are channels-last,
which is PyTorch's fastest on a CPU, optimisers fused, and averages of weights taken with
`_foreach_lerp_`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genaug.state import Adam

LAST = torch.channels_last


def tensor(leaf: Any) -> Tensor:
    """A copy of an array."""
    return torch.from_numpy(np.array(leaf))


def linear(leaf: Mapping[str, Any]) -> nn.Linear:
    """A dense layer."""
    inputs, outputs = leaf["kernel"].shape
    module = nn.Linear(inputs, outputs, bias="bias" in leaf)
    return filled(module, tensor(leaf["kernel"]).T, leaf)


def conv(leaf: Mapping[str, Any], stride: int = 1, padding: int = 1) -> nn.Conv2d:
    """A convolution."""
    kh, _, c, f = leaf["kernel"].shape
    module = nn.Conv2d(c, f, kh, stride, padding, bias="bias" in leaf)
    return filled(module, tensor(leaf["kernel"]).permute(3, 2, 0, 1), leaf).to(memory_format=LAST)


def conv_transpose(leaf: Mapping[str, Any]) -> nn.ConvTranspose2d:
    """A transposed convolution of 4x4 and stride 2, whose kernel PyTorch keeps turned."""
    _, _, c, f = leaf["kernel"].shape
    module = nn.ConvTranspose2d(c, f, 4, 2, 1, bias="bias" in leaf)
    kernel = tensor(np.asarray(leaf["kernel"])[::-1, ::-1]).permute(2, 3, 0, 1)
    return filled(module, kernel, leaf).to(memory_format=LAST)


def filled(module: Any, weight: Tensor, leaf: Mapping[str, Any]) -> Any:
    """The module, with these weights and the leaf's bias."""
    with torch.no_grad():
        module.weight.copy_(weight)
        if "bias" in leaf:
            module.bias.copy_(tensor(leaf["bias"]))
    return module


class Trainer:
    """A loss, Adam and an average of the weights, as `genaug.state.from_loss`."""

    def __init__(
        self,
        loss: Callable[..., Tensor],
        parameters: Iterable[nn.Parameter],
        adam: Adam,
        ema_decay: float,
    ):
        self.loss, self.ema_decay, self.count = loss, ema_decay, 0
        self.parameters: list[Tensor] = list(parameters)
        self.clip_norm = adam.clip_norm
        rate, betas = adam.learning_rate, (adam.b1, adam.b2)
        if adam.weight_decay:
            matrices = [p for p in self.parameters if p.ndim > 1]
            rest = [p for p in self.parameters if p.ndim < 2]
            groups = [
                {"params": matrices, "weight_decay": adam.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ]
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=rate, betas=betas, fused=True
            )
        else:
            self.optimizer = torch.optim.Adam(self.parameters, lr=rate, betas=betas, fused=True)
        self.ema = [p.detach().clone() for p in self.parameters] if ema_decay else []

    def step(self, *inputs: Any) -> Tensor:
        """One update; the loss before it."""
        value = self.loss(*inputs)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        if self.ema:
            decay = min(self.ema_decay, (1.0 + self.count) / (10.0 + self.count))
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, self.parameters, 1.0 - decay)
        self.count += 1
        return value.detach()


class Autoencoder(nn.Module):
    """A VAE of perceptrons with a Bernoulli likelihood; with labels, a CVAE."""

    def __init__(self, params: Any, num_classes: int = 0):
        super().__init__()
        encoder, decoder = params["encoder"], params["decoder"]
        dense = lambda net: nn.ModuleList(  # noqa: E731
            linear(net[f"Dense_{i}"]) for i in range(sum(n.startswith("Dense_") for n in net))
        )
        self.encoder, self.decoder = dense(encoder), dense(decoder)
        self.mean = linear(encoder["posterior"]["mean"])
        self.logvar = linear(encoder["posterior"]["logvar"])
        self.num_classes = num_classes

    def loss(self, batch: Mapping[str, Tensor], eps: Tensor | None = None) -> Tensor:
        """The mean negative bound of one draw."""
        x = batch["image"].flatten(1).float() / 255.0
        join = lambda h: h  # noqa: E731
        if self.num_classes:
            y = F.one_hot(batch["label"].long(), self.num_classes).float()
            join = lambda h: torch.cat([h, y], 1)  # noqa: E731
        h = join(2.0 * x - 1.0)
        for layer in self.encoder:
            h = F.silu(layer(h))
        mean, logvar = self.mean(h), self.logvar(h)
        noise = torch.randn_like(mean) if eps is None else eps
        h = mean + torch.exp(0.5 * logvar) * noise
        for layer in self.decoder[:-1]:
            h = F.silu(layer(join(h)))
        logits = self.decoder[-1](h)
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
        kl = 0.5 * (torch.exp(logvar) + mean**2 - 1.0 - logvar).sum(1)
        return (nll + kl).mean()


class Normalised(nn.Module):
    """Batch norm by the batch's own moments, its gain and bias."""

    def __init__(self, leaf: Any):
        super().__init__()
        self.weight = nn.Parameter(tensor(leaf["gain"])[0])
        self.bias = nn.Parameter(tensor(leaf["bias"])[0])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every channel."""
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, 1e-5)


class Generator(nn.Module):
    """DCGAN's, without classes."""

    def __init__(self, params: Any, base: tuple[int, int, int]):
        super().__init__()
        levels = sum(name.startswith("norm_") for name in params)
        self.project, self.base = linear(params["project"]), base
        self.norms = nn.ModuleList(Normalised(params[f"norm_{i}"]) for i in range(levels))
        self.convs = nn.ModuleList(conv_transpose(params[f"conv_{i}"]) for i in range(levels))

    def forward(self, z: Tensor) -> Tensor:
        """Images in [-1, 1]."""
        x = self.project(z).view(-1, *self.base).permute(0, 3, 1, 2)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = layer(F.relu(norm(x)))
        return torch.tanh(x)


class Discriminator(nn.Module):
    """DCGAN's, with batch norm from the second level on."""

    def __init__(self, params: Any):
        super().__init__()
        levels = sum(name.startswith("conv_") for name in params)
        self.convs = nn.ModuleList(conv(params[f"conv_{i}"], 2) for i in range(levels))
        self.norms = nn.ModuleList(Normalised(params[f"norm_{i}"]) for i in range(1, levels))
        self.psi = linear(params["psi"])

    def forward(self, x: Tensor) -> Tensor:
        """A logit an image."""
        x = F.leaky_relu(self.convs[0](x), 0.2)
        for layer, norm in zip(self.convs[1:], self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x)), 0.2)
        return self.psi(x.permute(0, 2, 3, 1).flatten(1))[:, 0]


class GAN:
    """One update of both networks, and the batch that the averaged generator makes."""

    def __init__(self, state: Any, config: Any, shape: tuple[int, ...], wrap: Callable[[Any], Any]):
        levels = len(config.generator_features)
        base = (shape[0] >> levels, shape[1] >> levels, config.generator_features[0])
        params = state.generator.variables["params"]
        self.latent_dim = config.latent_dim
        self.averaged = Generator(state.generator.ema, base)
        generator = Generator(params, base)
        discriminator = Discriminator(state.discriminator.variables["params"])
        self.generate, self.generate_averaged = wrap(generator), wrap(self.averaged)

        @wrap
        def d_loss(real: Tensor, fake: Tensor) -> Tensor:
            return F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake)).mean()

        @wrap
        def g_loss(z: Tensor) -> Tensor:
            return F.softplus(-discriminator(generator(z))).mean()

        adam = config.generator_optimizer
        self.d = Trainer(d_loss, discriminator.parameters(), config.discriminator_optimizer, 0.0)
        self.g = Trainer(g_loss, generator.parameters(), adam, config.ema_decay)
        self.g.ema = list(self.averaged.parameters())

    def step(self, batch: Mapping[str, Tensor], *noise: Tensor) -> Tensor:
        """The sum of both losses before their updates."""
        count = len(batch["image"])
        zs = noise or [2.0 * torch.rand(count, self.latent_dim) - 1.0 for _ in range(3)]
        real = 2.0 * (batch["image"].permute(0, 3, 1, 2).float() / 255.0) - 1.0
        with torch.no_grad():
            fake = self.generate(zs[0])
        total = self.d.step(real, fake)
        for parameter in self.d.parameters:  # The generator's loss needs no gradient of theirs.
            parameter.requires_grad_(False)
        total = total + self.g.step(zs[1])
        for parameter in self.d.parameters:
            parameter.requires_grad_(True)
        with torch.no_grad():
            self.generate_averaged(zs[2])
        return total


class Classifier(nn.Module):
    """The downstream classifier: convolutions of stride 2, a hidden layer, logits."""

    def __init__(self, params: Any, levels: int):
        super().__init__()
        self.convs = nn.ModuleList(conv(params[f"Conv_{i}"], 2, 0) for i in range(levels))
        self.hidden, self.logits = linear(params["Dense_0"]), linear(params["Dense_1"])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of bytes [n, h, w, c]."""
        x = (images.float() / 255.0).permute(0, 3, 1, 2)
        for layer in self.convs:
            x = F.relu(layer(F.pad(x, _same(x.shape[2:]))))
        return self.logits(F.relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))


def _same(sides: Iterable[int]) -> list[int]:
    """Padding of a 3x3 kernel of stride 2, the last axis first: left, right, top, bottom."""
    padding: list[int] = []
    for side in sides:
        total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
        padding = [total // 2, total - total // 2, *padding]
    return padding


def classifier_loss(net: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(net(images), labels)


def train_classifier(
    net: Classifier, loss: Callable[..., Tensor], images: Tensor, labels: Tensor, config: Any
) -> None:
    """One run of the study's recipe: AdamW, a warm-up over a tenth, then a cosine to zero."""
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    for step in range(config.num_steps):
        share = (step + 1.0) / config.num_steps
        scale = min(share / 0.1, 0.5 * (1.0 + math.cos(math.pi * share)))
        optimizer.param_groups[0]["lr"] = config.learning_rate * scale
        rows = torch.randint(len(labels), (config.batch_size,))
        value = loss(images[rows], labels[rows])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
