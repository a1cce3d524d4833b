"""Three of ten digits are rare (12 images each): do a CVAE's samples help to recognise them?

genaug run experiments/mnist_rare.py
"""

from genaug.augmentation import Balance
from genaug.config import Experiment
from genaug.data import Data
from genaug.models.cvae import CVAE
from genaug.train import Train


def config() -> Experiment:
    """The main job."""
    return Experiment(
        name="mnist_rare",
        data=Data(source="mnist5k", rare_classes=("2", "5", "8"), rare_count=12),
        model=CVAE(latent_dim=10, beta=2.0, augment=0.25),
        train=Train(num_steps=3000, class_balance=0.5),
        balance=Balance(per_class=300),
    )
