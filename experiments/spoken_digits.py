"""Spoken digits, three of them rare: do a diffusion model's sounds help to recognise them?

    git clone --depth 1 https://github.com/Jakobovski/free-spoken-digit-dataset fsdd
    for d in {0..9}; do mkdir -p spoken/$d; cp fsdd/recordings/${d}_*.wav spoken/$d; done
    genaug run experiments/spoken_digits.py --data.source spoken
    genaug sample runs/spoken_digits --class 7 --n 10

Data: 3,000 recordings of six voices at 8 kHz (CC BY-SA 4.0), half a second of each as a picture of
64 bands of pitch and 64 moments; 90 test, 30 validation and 180 training recordings a digit, of
which 2, 5 and 8 keep 12. Every voice is in every part: of others nothing is claimed.
The main job with `mnist_ddpm.py`'s flow matching, in patches of 4x4; 30 % of the pictures it learns
from are warped, and it is told how. Classical arms shift, stretch and bend pictures in time and
pitch, and do not turn them.

Not measured yet.
"""

import dataclasses

from genaug.augmentation import Balance, Filters
from genaug.config import Experiment
from genaug.data import Data
from genaug.evaluation.classifier import Classifier
from genaug.evaluation.study import Study
from genaug.models.ddpm import DDPM
from genaug.nets.noise import Flow
from genaug.nets.samplers import DDIM
from genaug.nets.unet import UNet
from genaug.state import Adam
from genaug.train import Train
from genaug.transforms.images import Warp


def config() -> Experiment:
    """The main job on a folder of sounds."""
    return Experiment(
        name="spoken_digits",
        data=Data(source="spoken", rare_classes=("2", "5", "8"), rare_count=12),
        model=DDPM(
            net=UNet(patch_size=4, features=(64, 96), num_blocks=1, attention=(8,)),
            schedule=Flow(log_std=1.0),
            prediction="flow",
            augment=1.0,
            augment_probability=0.3,
            sampler=DDIM(),
            num_steps=20,
            optimizer=Adam(learning_rate=1e-3, clip_norm=1.0, warmup_steps=100, decay_steps=4000),
        ),
        train=Train(
            num_steps=4000,
            batch_size=32,
            class_balance=0.5,
            evaluate_every=4000,
            sample_every=2000,
            checkpoint_every=500,
        ),
        balance=Balance(per_class=180),
        filters=Filters(label=None),
        study=Study(
            classifier=Classifier(features=(16, 32, 64), learning_rate=2e-3),
            warp=Warp(rotation_degrees=0.0, scale=0.1, shear=0.0, shift=0.1, elastic=0.02),
            on_top="all",
            weights=(0.25, 0.5),
            checks=(0.0, 0.5),
            metric="rare_recall",
            num_seeds=5,
        ),
    )


def tiny() -> Experiment:
    """The same in seconds, on scikit-learn's 8x8 digits."""
    return dataclasses.replace(
        config(),
        name="spoken_digits_tiny",
        data=Data(source="digits", rare_classes=("2", "5", "8"), rare_count=12),
        model=DDPM(
            net=UNet(features=(8, 16), num_blocks=1, attention=(4,), groups=4),
            schedule=Flow(),
            prediction="flow",
            augment=1.0,
            num_steps=4,
            score_levels=4,
            optimizer=Adam(learning_rate=3e-3),
            ema_decay=0.99,
        ),
        train=Train(
            num_steps=100,
            batch_size=32,
            steps_per_call=10,
            class_balance=0.5,
            evaluate_every=50,
            sample_every=50,
            checkpoint_every=50,
        ),
        balance=Balance(per_class=30, max_draws=4.0),
        study=Study(
            classifier=Classifier(features=(8, 16), hidden=16, num_steps=40, batch_size=32),
            on_top="all",
            weights=(0.5,),
            metric="rare_recall",
            num_seeds=2,
            bootstrap_draws=200,
        ),
    )
