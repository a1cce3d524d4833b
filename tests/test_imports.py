"""Other people's programs: each imports a trained sampler and learns from real and synthetic."""

import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest_plugins = ["tiny_run"]

PROGRAMS = Path(__file__).parents[1] / "experiments" / "import"


@pytest.fixture
def real(digits, tmp_path):
    path = tmp_path / "real.npz"
    np.savez(path, image=digits["image"], label=digits["label"])
    return path


@pytest.mark.parametrize("name", ["flax_loop", "grain_pipeline", "pure_jax"])
def test_a_program_trains_on_real_and_synthetic(name, finished, real, monkeypatch):
    """Ten digits are told apart, which no program does that is fed nonsense."""
    monkeypatch.syspath_prepend(PROGRAMS)
    program = runpy.run_path(str(PROGRAMS / f"{name}.py"))
    with jax.numpy_rank_promotion("allow"):  # as it is for everyone else
        accuracy = program["main"](finished / "export", real, num_steps=300)
    assert accuracy > 0.8


def test_the_program_in_pure_jax_needs_no_genaug():
    code = (
        f"import sys; sys.path.insert(0, {str(PROGRAMS)!r}); import pure_jax; "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('genaug', 'flax', 'optax')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
