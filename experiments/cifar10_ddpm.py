"""Diffusion on CIFAR-10 after Ho et al. 2020, app. B: a preset for accelerators.

    genaug train experiments/cifar10_ddpm.py --model.no-conditional

Dropout 0.1, batches of 128, 800,000 updates, EMA 0.9999, sampled by 1,000 ancestral steps.
The residual blocks scale and shift (Nichol & Dhariwal 2021) where theirs add.
Run here: 20 updates at full width and depth on made-up images, all of them finite (`genaug profile
experiments/cifar10_ddpm.py --num-classes 10 --data.image-size 32 --data.channels 3
--train.batch-size 4`, 2 CPU cores).
Not run: the training itself, which took its authors 10.6 hours on a TPU v3-8. The images are not
flipped (Ho et al. do).
"""

import dataclasses

from genaug.config import Experiment
from genaug.data import Data
from genaug.models.ddpm import DDPM
from genaug.nets.dit import DiT
from genaug.nets.noise import Cosine
from genaug.nets.samplers import Ancestral, DPMSolver
from genaug.nets.unet import UNet
from genaug.state import Adam
from genaug.train import Train


def config() -> Experiment:
    """The published run, by class."""
    return Experiment(
        name="cifar10_ddpm",
        data=Data(source="tfds:cifar10"),
        model=DDPM(
            net=UNet(
                features=(128, 256, 256, 256),
                num_blocks=2,
                attention=(16,),
                groups=32,
                dropout=0.1,
            ),
            sampler=Ancestral(),
            num_steps=1000,
            optimizer=Adam(learning_rate=2e-4, clip_norm=1.0, warmup_steps=5000),
            ema_decay=0.9999,
        ),
        train=Train(
            num_steps=800_000,
            batch_size=128,
            steps_per_call=100,
            evaluate_every=50_000,
            sample_every=50_000,
            checkpoint_every=10_000,
        ),
    )


def tiny() -> Experiment:
    """What `mnist_ddpm` does not: a transformer, v, learned variance, min-SNR, another solver."""
    return dataclasses.replace(
        config(),
        name="cifar10_ddpm_tiny",
        data=Data(source="digits"),
        model=DDPM(
            net=DiT(patch_size=2, embed_dim=16, depth=1, num_heads=2),
            schedule=Cosine(),
            prediction="v",
            weighting="min_snr",
            variance="learned",
            sampler=DPMSolver(),
            num_steps=4,
            guidance=1.5,
            score_levels=4,
            optimizer=Adam(learning_rate=3e-3),
            ema_decay=0.99,
        ),
        train=Train(
            num_steps=100,
            batch_size=32,
            steps_per_call=10,
            evaluate_every=50,
            sample_every=50,
            checkpoint_every=50,
        ),
    )
