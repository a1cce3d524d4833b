"""The run that `benchmarks.reliability` kills: every stage of the main job, in seconds.

genaug run benchmarks/reliability_run.py        one CPU, 10 to 20 s; its numbers say nothing
"""

from genaug.augmentation import Balance, Filters
from genaug.config import Experiment
from genaug.data import Data
from genaug.devices import Mesh
from genaug.evaluation.classifier import Classifier
from genaug.evaluation.study import Study
from genaug.models.cvae import CVAE
from genaug.nets.autoencoder import MLP
from genaug.train import Train


def config() -> Experiment:
    """Digits with three rare classes; a save, an evaluation and samples every few updates."""
    return Experiment(
        name="reliability",
        data=Data(source="digits", rare_classes=("2", "5", "8"), rare_count=12),
        model=CVAE(latent_dim=4, net=MLP(hidden=(32,)), score_samples=2),
        train=Train(
            num_steps=400,
            batch_size=64,
            steps_per_call=5,
            evaluate_every=20,
            sample_every=20,
            checkpoint_every=20,
        ),
        balance=Balance(per_class=20),
        filters=Filters(label=0.01),
        study=Study(
            classifier=Classifier(features=(4,), hidden=16, num_steps=10, batch_size=32),
            num_seeds=2,
            weights=(0.5,),
            bootstrap_draws=50,
        ),
        mesh=Mesh(data=2),
    )
