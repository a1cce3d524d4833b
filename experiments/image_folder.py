"""Your own images: a folder with one subfolder per class (or an .npz, or a TFDS name).

    genaug run experiments/image_folder.py --data.source PATH --data.image-size 32

Every class is brought to twice the size of the largest one with a convolutional CVAE's samples, and
the report says whether that beats class weights, oversampling, SMOTE and classical augmentation.
Mirror images are no classical baseline here, and rotations are small: what keeps its class depends
on the data. Set `--study.warp.*` to what does.
"""

import dataclasses

from genaug.augmentation import Balance
from genaug.config import Experiment
from genaug.data import Data
from genaug.evaluation.classifier import Classifier
from genaug.evaluation.study import Study
from genaug.models.cvae import CVAE
from genaug.nets.autoencoder import ConvNet
from genaug.nets.likelihoods import Gaussian
from genaug.state import Adam
from genaug.train import Train


def config() -> Experiment:
    """The main job on a folder."""
    return Experiment(
        name="image_folder",
        data=Data(source="images"),
        model=CVAE(
            latent_dim=32,
            net=ConvNet(features=(32, 64, 64), hidden=256),
            likelihood=Gaussian(scale=0.1),
            beta=2.0,
            augment=0.25,
            optimizer=Adam(learning_rate=1e-3, clip_norm=1000.0),
        ),
        train=Train(num_steps=3000, batch_size=64, class_balance=0.5),
        balance=Balance(factor=2.0),
        study=Study(classifier=Classifier(features=(16, 32, 64))),
    )


def tiny() -> Experiment:
    """The same in seconds, on scikit-learn's 8x8 digits."""
    return dataclasses.replace(
        config(),
        name="image_folder_tiny",
        data=Data(source="digits"),
        model=CVAE(
            latent_dim=4,
            net=ConvNet(features=(8, 8), hidden=16),
            likelihood=Gaussian(scale=0.2),
            beta=2.0,
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
        study=Study(classifier=Classifier(features=(8, 16), hidden=16, num_steps=20), num_seeds=2),
    )
