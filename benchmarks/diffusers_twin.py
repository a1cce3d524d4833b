"""genaug's U-Net as diffusers' UNet2DModel, with its weights, and DDIM and DPM-Solver++ around it.

The schedulers are given genaug's noise levels as a table of as many steps as are taken
(`trained_betas`), and the loop is the one of diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.twins import LAST
from benchmarks.unet_twin import UNetTwin
from genaug.nets.unet import UNet


def unet(params: Any, config: UNet, sides: tuple[int, int]) -> nn.Module:
    """UNet2DModel with these parameters, of grey images; channels-last, as the twin."""
    from diffusers import UNet2DModel

    twin, last = UNetTwin(params, config), len(config.features) - 1
    attended = [max(sides) // 2**i in config.attention for i in range(last + 1)]
    net: Any = UNet2DModel(
        sample_size=sides,
        in_channels=1,
        out_channels=1,
        freq_shift=0,
        flip_sin_to_cos=False,
        down_block_types=tuple(f"{'Attn' * a}DownBlock2D" for a in attended),
        up_block_types=tuple(f"{'Attn' * a}UpBlock2D" for a in reversed(attended)),
        block_out_channels=config.features,
        layers_per_block=config.num_blocks,
        downsample_padding=0,
        attention_head_dim=config.features[-1] // config.num_heads,
        norm_num_groups=config.groups,
        attn_norm_num_groups=config.groups,
        norm_eps=1e-6,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=len(twin.label),
    )
    pairs = {
        "conv_in": "in",
        "time_embedding.linear_1": "condition/level_in",
        "time_embedding.linear_2": "condition/level_out",
        "conv_norm_out": "out_norm",
        "conv_out": "out",
        **_block("mid_block", 0, "middle_0", 0),
        **_block("mid_block", 1, "middle_1", None),
    }
    for i, attends in enumerate(attended):
        down, up = f"down_blocks.{i}", f"up_blocks.{last - i}"
        for j in range(config.num_blocks + 1):
            if j < config.num_blocks:
                pairs |= _block(down, j, f"down{i}_{j}", j if attends else None)
            pairs |= _block(up, j, f"up{i}_{j}", j if attends else None)
        if i:
            pairs[f"down_blocks.{i - 1}.downsamplers.0.conv"] = f"down{i}"
            pairs[f"{up}.upsamplers.0.conv"] = f"up{i}"
    with torch.no_grad():
        net.class_embedding.weight.copy_(twin.label)
        for theirs, ours in pairs.items():
            _copy(net.get_submodule(theirs), ours, twin.parts)
    return net.to(memory_format=LAST)


def _block(block: str, j: int, ours: str, attention: int | None) -> dict[str, str]:
    found = {f"{block}.resnets.{j}": ours}
    return found if attention is None else {**found, f"{block}.attentions.{attention}": ours}


def _copy(theirs: Any, ours: str, parts: Any) -> None:
    """Fill a module with the twin's parts of that name."""
    if hasattr(theirs, "to_q"):
        parts_of = f"{ours}_attention"
        qkv = parts[f"{parts_of}/attention/qkv"]
        for name, weight, bias in zip("qkv", qkv.weight.chunk(3), qkv.bias.chunk(3), strict=True):
            target = getattr(theirs, f"to_{name}")
            target.weight.copy_(weight)
            target.bias.copy_(bias)
        theirs.group_norm.load_state_dict(parts[f"{parts_of}/norm"].state_dict())
        theirs.to_out[0].load_state_dict(parts[f"{parts_of}/attention/out"].state_dict())
    elif hasattr(theirs, "time_emb_proj"):
        own = {"norm1": "norm_0", "conv1": "conv_0", "time_emb_proj": "condition",
               "norm2": "norm_1", "conv2": "conv_1", "conv_shortcut": "skip"}  # fmt: skip
        for name, part in own.items():
            if target := getattr(theirs, name):
                target.load_state_dict(parts[f"{ours}/{part}"].state_dict())
    else:
        theirs.load_state_dict(parts[ours].state_dict())


def called(net: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The net as the twin is called."""
    return lambda x, level, label: net(x, level, class_labels=label).sample


class Loop(NamedTuple):
    """A scheduler, how its steps are begun, and what each step is told."""

    scheduler: Any
    begin: dict[str, Any]
    options: dict[str, Any]


def ddim(num_steps: int) -> Loop:
    """As `samplers.DDIM`: the noise follows from the clipped example."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(num_train_timesteps=num_steps, trained_betas=_betas(num_steps))
    return Loop(scheduler, {"num_inference_steps": num_steps}, {"use_clipped_model_output": True})


def dpm_solver(num_steps: int) -> Loop:
    """As `samplers.DPMSolver`: 2M, the first and the last step of first order.

    The example is clipped by its thresholding at 1.
    """
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=num_steps,
                                            trained_betas=_betas(num_steps),
                                            thresholding=True)  # fmt: skip
    return Loop(scheduler, {"timesteps": list(range(num_steps))[::-1]}, {})


def _times(num_steps: int) -> np.ndarray:
    return np.linspace(1e-3, 1.0, num_steps)


def _betas(num_steps: int) -> Sequence[float]:
    """The linear schedule at the times of the steps, nearest to the data first."""
    times = _times(num_steps)
    log_alpha_bar = -(0.1 * times + 0.5 * 19.9 * times**2)
    return (-np.expm1(np.diff(log_alpha_bar, prepend=0.0))).tolist()


def draw(net: nn.Module, loop: Loop, eps: Tensor, label: Tensor) -> np.ndarray:
    """Images from noise [n, c, h, w], as bytes [n, h, w, c]."""
    scheduler = loop.scheduler
    with torch.inference_mode():
        scheduler.set_timesteps(**loop.begin)
        levels = torch.from_numpy(1000.0 * _times(len(scheduler.timesteps))).float()
        x = scheduler.init_noise_sigma * eps
        for t in scheduler.timesteps:
            out = net(scheduler.scale_model_input(x, t), levels[t], class_labels=label).sample
            x = scheduler.step(out, t, x, **loop.options).prev_sample
        return ((x + 1.0) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
