"""A main job small enough to run often: what the tests of the command line and the job share.

A test module takes these fixtures with `pytest_plugins = ["tiny_run"]` and may import the rest
(PYTEST_DONT_REWRITE: it may be imported before pytest sees it).
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from genaug import cli, devices
from genaug.augmentation import Balance, Filters
from genaug.config import Experiment
from genaug.data import Data, load
from genaug.devices import Mesh
from genaug.evaluation.classifier import Classifier
from genaug.evaluation.study import Study
from genaug.models.cvae import CVAE
from genaug.nets.autoencoder import MLP
from genaug.train import Train

EXPERIMENT_FILE = """
from tiny_run import tiny


def config():
    return tiny()
"""


def tiny() -> Experiment:
    """Digits with three rare classes; seconds from data to verdict."""
    return Experiment(
        name="tiny",
        data=Data(source="digits", rare_classes=("2", "5", "8"), rare_count=12),
        model=CVAE(latent_dim=4, net=MLP(hidden=(32,)), score_samples=2),
        train=Train(
            num_steps=20,
            batch_size=64,
            steps_per_call=5,
            evaluate_every=10,
            sample_every=20,
            checkpoint_every=10,
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


def files(directory: Path) -> set[str]:
    """Every file below a folder, by relative path."""
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def run_cli(compile_cache, monkeypatch):
    """`run_cli("run", ...)` calls the command line here, on the devices that are already there."""
    monkeypatch.setattr(devices, "use_cpu_cores_as_devices", lambda: None)
    return lambda *arguments: cli.main([str(a) for a in arguments])


@pytest.fixture
def experiment_file(tmp_path) -> Path:
    path = tmp_path / "tiny_experiment.py"
    path.write_text(EXPERIMENT_FILE)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> dict[str, np.ndarray]:
    """All of scikit-learn's digits: image uint8 [1797, 8, 8, 1] and label."""
    directory = str(tmp_path_factory.getbasetemp() / "data")
    dataset = load(Data(source="digits", directory=directory))
    return dataset.arrays(np.arange(len(dataset)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, compile_cache) -> Path:
    """The folder of a run that went to its end. Read it; `finished_copy` is to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny_experiment.py").write_text(EXPERIMENT_FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "use_cpu_cores_as_devices", lambda: None)
        patch.setenv("GENAUG_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))
        arguments = ["run", str(folder / "tiny_experiment.py"), "--run-dir", str(folder / "run")]
        assert cli.main([*arguments, "--quiet"]) == 0
    return folder / "run"


@pytest.fixture
def finished_copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "finished"))


def subprocess_environment(compile_cache: Path, num_devices: int) -> dict[str, str]:
    """For a `genaug` of its own: as the tests see it, on its own devices."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        ),
        "GENAUG_CPU_DEVICES": str(num_devices),
        "JAX_COMPILATION_CACHE_DIR": str(compile_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
