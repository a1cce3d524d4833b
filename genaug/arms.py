"""Training the arms of a study, each once: what is kept in the run folder is not trained again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from genaug.evaluation import classifier
from genaug.evaluation import study as studies
from genaug.export import named
from genaug.files import load_arrays, save_arrays
from genaug.logs import bar
from genaug.runs import Prepared

JUDGE_ARM = "affine + elastic"
"""The arm whose classifiers check labels and give the features of `fd/classifier`."""


def _file_name(arm: str) -> str:
    return "".join(c if c.isalnum() or c in ".-" else "_" for c in arm)


class Arms:
    """Trains arms, each once: its probabilities are kept in `study/` and found there again."""

    def __init__(self, run: Prepared):
        self._run, self._config = run, run.experiment.study
        self._num_classes = len(run.dataset.class_names)
        self._directory = run.directory / "study"
        self._program = classifier.trainer(
            self._config.classifier, self._num_classes, self._config.warp.smoothing, run.mesh
        )
        rows = np.concatenate([run.splits.valid, run.splits.test])
        self._judged = run.dataset.arrays(rows)["image"]
        self.parts: dict[str, studies.Part] = {}

    def train(self, arms: Sequence[studies.Arm], pool: studies.Pool, title: str, console: Console
              ) -> None:  # fmt: skip
        """Train what is not there yet."""
        with bar(console, title, len(arms), "arms") as progress:
            for count, arm in enumerate(arms):
                progress.advance(count, arm.name)
                self.parts[arm.name] = self._train_one(arm, pool)

    def _train_one(self, arm: studies.Arm, pool: studies.Pool) -> studies.Part:
        path = self._directory / f"{_file_name(arm.name)}.npz"
        if not path.is_file():
            config = self._config.classifier
            trained = classifier.train_replicas(
                self._program,
                studies.condition(arm, pool, config.num_steps),
                self._judged,
                self._config.num_seeds,
                self._run.mesh,
                first_seed=self._config.num_seeds * self._run.experiment.seed,
            )
            if arm.name == JUDGE_ARM:
                flat = {name: np.asarray(a) for name, a in named(trained.params).items()}
                save_arrays(self._directory / "judge.npz", flat)
            save_arrays(path, {"probabilities": trained.probabilities})
        probabilities = load_arrays(path)["probabilities"]
        num_valid = len(self._run.splits.valid)
        return studies.Part(probabilities[:, :num_valid], probabilities[:, num_valid:])

    def judge_params(self) -> Any:
        """The parameters of the judge's replicas, as the net reads them."""
        params: dict[str, Any] = {}
        for name, array in load_arrays(self._directory / "judge.npz").items():
            *path, leaf = name.split(".")
            node = params
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = array
        return params
