"""The diffusion U-Net once more in PyTorch, with genaug's weights: its loss, and DDIM by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.twins import conv, filled, linear, tensor
from genaug.models.ddpm import GOLDEN
from genaug.nets.unet import UNet


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
