"""A class-conditional DCGAN of CIFAR-10, 32x32 in colour: the larger preset.

    genaug train experiments/cifar10_dcgan.py

The paper's widths (Radford et al. 2016, figure 1) without the level that would make 64x64 images;
hinge loss, spectral norm and the whole DiffAugment policy. It is meant for an accelerator.

Not run: the full training, here or anywhere, so no figure of quality or time is claimed; TFDS has
to download the data first. Run here: 20 updates at full width on made-up images (`genaug profile
experiments/cifar10_dcgan.py --num-classes 10 --data.image-size 32 --data.channels 3
--train.batch-size 16`, 2 CPU cores), all of them finite.
"""

import dataclasses

from genaug.config import Experiment
from genaug.data import Data
from genaug.models.dcgan import DCGAN
from genaug.nets.adversarial import Hinge
from genaug.state import Adam
from genaug.train import Train
from genaug.transforms import diffaugment


def config() -> Experiment:
    """The full run."""
    return Experiment(
        name="cifar10_dcgan",
        data=Data(source="tfds:cifar10"),
        model=DCGAN(
            generator_features=(512, 256, 128),
            discriminator_features=(128, 256, 512),
            conditional=True,
            loss=Hinge(),
            norm="spectral",
            augment=diffaugment.PAPER,
            discriminator_optimizer=Adam(learning_rate=4e-4, b1=0.5),
            ema_decay=0.9999,
        ),
        train=Train(
            num_steps=200_000,
            steps_per_call=100,
            coverage_samples=100,
            evaluate_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
        ),
    )


def tiny() -> Experiment:
    """What `mnist_dcgan` does not, in seconds: the DCGAN as published, without classes."""
    return dataclasses.replace(
        config(),
        name="cifar10_dcgan_tiny",
        data=Data(source="digits"),
        model=DCGAN(
            latent_dim=16,
            generator_features=(16, 8),
            discriminator_features=(8, 16),
            generator_optimizer=Adam(learning_rate=2e-3, b1=0.5),
            discriminator_optimizer=Adam(learning_rate=2e-3, b1=0.5),
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
