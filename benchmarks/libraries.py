"""Libraries that a user would pick instead, with genaug's weights where they can hold them.

pythae's VAE takes genaug's perceptrons, and diffusers' UNet2DModel is genaug's U-Net to the last
parameter (`diffusers_twin`). denoising-diffusion-pytorch has a U-Net of its own: one of about the
same size is chosen, its parameters and operations are told beside genaug's, and there is nothing
to compare.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers, twins, unet_twin
from genaug.models.vae import VAE
from genaug.state import Adam


class Pythae:
    """pythae's VAE of genaug's perceptrons and weights, with Adam and no average of the weights."""

    def __init__(self, params: Any, config: VAE):
        from pythae.models import VAE as Model
        from pythae.models import VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder

        net = twins.Autoencoder(params)

        class Encoder(BaseEncoder):
            def __init__(self) -> None:
                super().__init__()
                self.hidden, self.mean, self.logvar = net.encoder, net.mean, net.logvar

            def forward(self, x: Tensor) -> Any:
                h = 2.0 * x.flatten(1) - 1.0
                for layer in self.hidden:
                    h = F.silu(layer(h))
                return ModelOutput(embedding=self.mean(h), log_covariance=self.logvar(h))

        class Decoder(BaseDecoder):
            def __init__(self) -> None:
                super().__init__()
                self.layers = net.decoder

            def forward(self, z: Tensor) -> Any:
                for layer in self.layers[:-1]:
                    z = F.silu(layer(z))
                return ModelOutput(reconstruction=torch.sigmoid(self.layers[-1](z)))

        shape = VAEConfig(input_dim=(1, 28, 28), latent_dim=config.latent_dim,
                          reconstruction_loss="bce")  # fmt: skip
        self.model = Model(shape, Encoder(), Decoder())
        assert isinstance(config.optimizer, Adam)
        self.adam = config.optimizer
        self.step = twins.Trainer(self.loss, self.model.parameters(), self.adam, 0.0).step

    def loss(self, batch: Mapping[str, Tensor], *noise: Tensor) -> Tensor:
        """The mean negative bound, by what the model's forward pass says."""
        inputs = {"data": batch["image"].permute(0, 3, 1, 2).float() / 255.0}
        if not noise:
            return self.model(inputs).loss
        given = lambda mean, std: (mean + std * noise[0], noise[0])  # noqa: E731
        with mock.patch.object(self.model, "_sample_gauss", given):
            return self.model(inputs).loss

    def epoch(self, images: np.ndarray, rows: int) -> Callable[[], float]:
        """An epoch of `BaseTrainer` over images [n, h, w, c] in batches of `rows`; its mean loss.

        Without its progress bars and logs.
        """
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig
        from pythae.trainers.training_callbacks import CallbackHandler, TrainingCallback

        logging.getLogger(BaseTrainer.__module__).setLevel(logging.WARNING)
        data = torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0
        with mock.patch.dict(os.environ):  # The config writes there.
            config = BaseTrainerConfig(
                per_device_train_batch_size=rows, learning_rate=self.adam.learning_rate
            )
        trainer = BaseTrainer(self.model, BaseDataset(data, torch.zeros(len(data))),
                              training_config=config)  # fmt: skip
        trainer.set_optimizer()
        trainer.callback_handler = CallbackHandler([TrainingCallback()], self.model)
        return lambda: trainer.train_step(1)


OWN_UNET = {"dim": 28, "dim_mults": (1, 2, 2), "attn_heads": 1, "attn_dim_head": 64}
"""About as many operations as genaug's, and one head as there."""


def own_diffusion(num_steps: int) -> Any:
    """denoising-diffusion-pytorch's U-Net in its `GaussianDiffusion`, of 28x28 grey images.

    The linear schedule in 1,000 steps, the noise predicted, DDIM in `num_steps`.
    """
    package = peers.denoising_diffusion()
    net = package.Unet(**OWN_UNET, channels=1)
    return package.GaussianDiffusion(
        net,
        image_size=28,
        objective="pred_noise",
        beta_schedule="linear",
        sampling_timesteps=num_steps,
    )


def diffusion_loss(diffusion: Any) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """What it says of a batch in training."""
    return lambda batch: diffusion(batch["image"].permute(0, 3, 1, 2).float() / 255.0)


def sizes(theirs: nn.Module, params: Any, config: Any) -> str:
    """Parameters and operations of both U-Nets in words, by PyTorch's counter."""
    x, level, label = torch.zeros(1, 1, 28, 28), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    own = _size(theirs, x, level)
    ours = _size(unet_twin.UNetTwin(params, config), x, level, label)
    return (
        f"a U-Net of its own: {own[0] / 1e6:.2f} million parameters, {own[1] / 1e9:.2f} GFLOP "
        f"an image and pass; the twin {ours[0] / 1e6:.2f} and {ours[1] / 1e9:.2f}"
    )


def _size(net: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()
