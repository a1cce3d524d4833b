"""What it costs to save and to look after the health of updates, for `benchmarks.reliability`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from genaug import checkpoint, digests, layouts, parallel
from genaug.config import load
from genaug.devices import Mesh, make_mesh
from genaug.types import LabelSpec

ROOT = Path(__file__).parents[1]


def _vae(updates: int, guard: parallel.Guard | None) -> Callable[[], Any]:
    """Updates of the MNIST VAE; each call goes on from the one before, and gives the state."""
    config = load(str(ROOT / "experiments" / "mnist_vae.py")).model
    spec = {"image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8), "label": LabelSpec(10)}
    model, mesh = config.make(spec), make_mesh(Mesh(data=2))
    template = layouts.abstract(model.init, mesh)
    program = parallel.compile_steps(model.step, mesh, template, 1, guard)
    generator = np.random.default_rng(0)
    stack = {
        "image": generator.integers(0, 256, (updates, 128, 28, 28, 1)).astype(np.uint8),
        "label": np.zeros((updates, 128), np.int32),
    }
    fed = layouts.split_rows(stack, mesh, axis=1)
    held = [parallel.compile_init(model.init, mesh)(jax.random.key(0))]

    def call() -> Any:
        held[0], metrics = program(held[0], fed, jax.random.key(1), 0)
        jax.block_until_ready((held[0], metrics))
        return held[0]

    return call


class Saving(NamedTuple):
    """Seconds, a value a round: of an update, of a save, and of the digests that it takes."""

    update: list[float]
    save: list[float]
    digests: list[float]


def cost_of_saving(rounds: int, updates: int = 20) -> Saving:
    """Updates and saves of the MNIST VAE in turn; a first round compiles."""
    call, found = _vae(updates, parallel.Guard()), Saving([], [], [])
    with tempfile.TemporaryDirectory() as name:
        for i in range(rounds + 1):
            began = time.perf_counter()
            state = call()
            trained = time.perf_counter()
            digests.arrays(state)
            summed = time.perf_counter()
            checkpoint.save(Path(name), i, state)
            saved = time.perf_counter()
            if i:
                found.update.append((trained - began) / updates)
                found.digests.append(summed - trained)
                found.save.append(saved - summed)
    return found


def cost_of_the_guard(pairs: int, updates: int = 20) -> list[float]:
    """Updates that may be left out, over updates that may not: a ratio a pair, interleaved."""
    sides, ratios = [_vae(updates, parallel.Guard()), _vae(updates, None)], []
    for i in range(pairs + 1):
        seconds = [0.0, 0.0]
        for which in (0, 1) if i % 2 else (1, 0):
            began = time.perf_counter()
            sides[which]()
            seconds[which] = time.perf_counter() - began
        if i:
            ratios.append(seconds[0] / seconds[1])
    return ratios
