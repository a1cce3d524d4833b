"""Samplers of the U-Net raced: one program here, a loop in Python there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.race import Arm, Made, Race, left_out
from benchmarks.subjects import IMAGES, UNET, Drawing, sample_flops, weights_of
from genaug.models.ddpm import DDPM
from genaug.nets import samplers
from genaug.types import GenerativeModel, row_keys, row_normal

NUM_STEPS = 10


def model_of(solver: samplers.Sampler) -> GenerativeModel:
    """The diffusion model that is drawn from."""
    return DDPM(net=UNET, num_steps=NUM_STEPS, sampler=solver).make(IMAGES)


def conditions(rows: int) -> dict[str, np.ndarray]:
    """Rows of every class."""
    index = np.arange(rows, dtype=np.int32)
    return {"index": index, "label": index % 10}


class _Torch:
    """What PyTorch's arms need: genaug's weights, its noise, and the images that it drew."""

    def __init__(self, weights: Any, cond: dict[str, np.ndarray], want: np.ndarray):
        import torch

        keys = row_keys(jax.random.key(0), jax.tree.map(jnp.asarray, cond))
        eps = row_normal(keys, IMAGES["image"].shape)
        self.params = jax.device_get(weights["params"])
        self.noise = torch.from_numpy(np.array(eps)).permute(0, 3, 1, 2)
        self.label = torch.from_numpy(cond["label"]).long()
        self.want = want.astype(np.float64)

    def made(self, draw: Callable[[Any, Any], np.ndarray]) -> Made:
        """`draw(noise, label) -> bytes`, compared and then drawing noise of its own."""
        import torch

        got = draw(self.noise, self.label)
        # A byte that rounds the other way is no difference of what was computed.
        difference = float(np.abs(got - self.want).mean() / 255.0)
        call = lambda: draw(torch.randn_like(self.noise), self.label)  # noqa: E731
        return Made(call, difference, "the difference is that of bytes, on average")


def _twin(torch_of: Callable[[], _Torch], compiled: bool) -> Made:
    import torch

    from benchmarks import unet_twin

    torch._dynamo.reset()
    given = torch_of()
    net = unet_twin.UNetTwin(given.params, UNET).eval()
    one = torch.compile(net) if compiled else net
    return given.made(lambda noise, label: unet_twin.ddim(one, noise, label, NUM_STEPS))


def _diffusers(torch_of: Callable[[], _Torch], loop_of: Callable[[Any], Any]) -> Made:
    from benchmarks import diffusers_twin

    given = torch_of()
    net = diffusers_twin.unet(given.params, UNET, IMAGES["image"].shape[:2]).eval()
    loop = loop_of(diffusers_twin)
    return given.made(lambda noise, label: diffusers_twin.draw(net, loop, noise, label))


def _own(torch_of: Callable[[], _Torch], rows: int) -> Made:
    from benchmarks import libraries

    diffusion = libraries.own_diffusion(NUM_STEPS).eval()
    assert diffusion.sample(rows).shape == (rows, 1, 28, 28)
    remark = libraries.sizes(diffusion.model, torch_of().params, UNET)
    return Made(lambda: diffusion.sample(rows).numpy(), None, remark)


def _race(solver: samplers.Sampler, rows: int, arms: Callable[[Any], list[Arm]]) -> Race:
    model, cond = model_of(solver), conditions(rows)
    weights = weights_of(model)
    ours = Drawing(model, weights, cond)
    want = np.asarray(ours()["image"])
    return Race(
        work=float(rows),
        ours=ours,
        arms=arms(partial(_Torch, weights, cond, want)),
        profile=partial(ours.profile, NUM_STEPS),
        # The guided branch, twice the work, is the dearer one and is not taken.
        flops=sample_flops(model, weights, cond, NUM_STEPS) / 2,
        remark=f"genaug on {ours.devices} device(s)",
    )


def ddim(rows: int, quick: bool) -> Race:
    """DDIM, by hand, by diffusers, and by a library with a U-Net of its own."""

    def arms(torch_of: Callable[[], _Torch]) -> list[Arm]:
        by = lambda twin: twin.ddim(NUM_STEPS)  # noqa: E731
        found = [
            Arm("PyTorch, eager", partial(_twin, torch_of, False), torch=True),
            Arm(
                "PyTorch, compiled",
                left_out if quick else partial(_twin, torch_of, True),
                torch=True,
            ),
            Arm("diffusers, UNet2DModel", partial(_diffusers, torch_of, by), torch=True),
        ]
        if not quick:
            own = partial(_own, torch_of, rows)
            found.append(Arm("denoising-diffusion-pytorch", own, torch=True))
        return found

    return _race(samplers.DDIM(), rows, arms)


def dpm_solver(rows: int) -> Race:
    """DPM-Solver++(2M), by diffusers."""

    def arms(torch_of: Callable[[], _Torch]) -> list[Arm]:
        draw = partial(_diffusers, torch_of, lambda twin: twin.dpm_solver(NUM_STEPS))
        return [Arm("diffusers, UNet2DModel", draw, torch=True)]

    return _race(samplers.DPMSolver(), rows, arms)
