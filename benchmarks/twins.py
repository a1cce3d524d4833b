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

from genaug.models.ddpm import GOLDEN
from genaug.nets.unet import UNet
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


class UNetTwin(nn.Module):
    """`genaug.nets.unet` on whole pixels, with classes."""

    def __init__(self, params: Any, config: UNet):
        super().__init__()
        assert config.patch_size == 1
        self.config = config
        self.parts = nn.ModuleDict()
        self._add("", params)
        table = params["condition"]["label"]["embedding"]
        self.label = nn.Parameter(tensor(table))

    def _add(self, prefix: str, params: Any) -> None:
        for name, leaf in params.items():
            path = f"{prefix}/{name}" if prefix else name
            if "kernel" in leaf and leaf["kernel"].ndim == 4:
                strided = name.startswith("down")
                padding = 0 if strided else leaf["kernel"].shape[0] // 2
                self.parts[path] = conv(leaf, 2 if strided else 1, padding)
            elif "kernel" in leaf:
                self.parts[path] = linear(leaf)
            elif "scale" in leaf:
                module = nn.GroupNorm(self._groups(len(leaf["scale"])), len(leaf["scale"]), 1e-6)
                self.parts[path] = filled(module, tensor(leaf["scale"]), leaf)
            elif "embedding" not in leaf:
                self._add(path, leaf)

    def _groups(self, channels: int) -> int:
        return max(g for g in range(1, self.config.groups + 1) if channels % g == 0)

    def _residual(self, name: str, x: Tensor, condition: Tensor) -> Tensor:
        of = lambda part: self.parts[f"{name}/{part}"]  # noqa: E731
        h = of("conv_0")(F.silu(of("norm_0")(x)))
        scale, shift = of("condition")(condition)[:, :, None, None].chunk(2, dim=1)
        h = of("conv_1")(F.silu(of("norm_1")(h) * (1.0 + scale) + shift))
        return h + (of("skip")(x) if f"{name}/skip" in self.parts else x)

    def _attend(self, name: str, x: Tensor) -> Tensor:
        if f"{name}_attention/norm" not in self.parts:
            return x
        n, c, height, width = x.shape
        h = self.parts[f"{name}_attention/norm"](x).permute(0, 2, 3, 1).flatten(1, 2)
        qkv = self.parts[f"{name}_attention/attention/qkv"](h)
        qkv = qkv.view(n, height * width, 3, self.config.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(n, height, width, c)
        y = self.parts[f"{name}_attention/attention/out"](y)
        return x + y.permute(0, 3, 1, 2)

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """What the net says of x [n, c, h, w]."""
        config, width = self.config, self.config.features[0]
        half = width // 2
        angle = level[:, None] * torch.exp(-math.log(10_000.0) / half * torch.arange(half))
        h = torch.cat([angle.sin(), angle.cos()], 1)
        h = self.parts["condition/level_out"](F.silu(self.parts["condition/level_in"](h)))
        condition = F.silu(h + self.label[label])
        h = self.parts["in"](x)
        skips = [h]
        for i in range(len(config.features)):
            if i:
                h = self.parts[f"down{i}"](F.pad(h, (0, 1, 0, 1)))
                skips.append(h)
            for j in range(config.num_blocks):
                h = self._attend(f"down{i}_{j}", self._residual(f"down{i}_{j}", h, condition))
                skips.append(h)
        h = self._attend("middle_0", self._residual("middle_0", h, condition))
        h = self._residual("middle_1", h, condition)
        for i in reversed(range(len(config.features))):
            for j in range(config.num_blocks + 1):
                h = torch.cat([h, skips.pop()], 1)
                h = self._attend(f"up{i}_{j}", self._residual(f"up{i}_{j}", h, condition))
            if i:
                h = self.parts[f"up{i}"](F.interpolate(h, scale_factor=2, mode="nearest"))
        return self.parts["out"](F.silu(self.parts["out_norm"](h)))


def level_of(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the linear schedule, to multiply images by."""
    log_alpha_bar = -(0.1 * t + 0.5 * 19.9 * t**2)
    alpha, sigma = torch.exp(0.5 * log_alpha_bar), torch.sqrt(-torch.expm1(log_alpha_bar))
    return alpha[:, None, None, None], sigma[:, None, None, None]


class Diffusion(nn.Module):
    """The squared error of the noise that the net sees."""

    def __init__(self, net: Callable[..., Tensor], num_classes: int, label_dropout: float):
        super().__init__()
        self.net, self.num_classes, self.label_dropout = net, num_classes, label_dropout

    def loss(self, batch: Mapping[str, Tensor], *noise: Tensor) -> Tensor:
        """noise: times [n], eps [n, h, w, c], labels of which some are hidden."""
        x0 = 2.0 * (batch["image"].float() / 255.0) - 1.0
        if noise:
            t, eps, label = noise
        else:
            n = len(x0)
            t = 1.0 - (torch.arange(n) * GOLDEN % 1.0 + torch.rand(1)) % 1.0
            eps = torch.randn_like(x0)
            hide = torch.rand(n) < self.label_dropout
            label = torch.where(hide, self.num_classes, batch["label"])
        alpha, sigma = level_of(t)
        xt = (alpha * x0 + sigma * eps).permute(0, 3, 1, 2)
        out = self.net(xt, 1000.0 * t, label).permute(0, 2, 3, 1)
        return ((out - eps) ** 2).mean()


def ddim(net: Callable[..., Tensor], eps: Tensor, label: Tensor, num_steps: int) -> np.ndarray:
    """Images from noise [n, c, h, w] by DDIM, as bytes [n, h, w, c] (`samplers.DDIM`)."""
    with torch.inference_mode():
        times = torch.linspace(1.0, 1e-3, num_steps)
        alphas, sigmas = level_of(times)
        x = sigmas[:1] * eps
        for i in range(num_steps):
            alpha, sigma = alphas[i], sigmas[i]
            out = net(x, (1000.0 * times[i]).expand(len(x)), label)
            x0 = ((x - sigma * out) / alpha).clamp(-1.0, 1.0)
            if i + 1 == num_steps:
                break
            x = alphas[i + 1] * x0 + sigmas[i + 1] * ((x - alpha * x0) / sigma)
        return ((x0 + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


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
