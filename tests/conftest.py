"""Every test: 8 virtual CPU devices, no silent rank promotion, shapes checked at run time."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Nearly all of the suite's time is compilation; what is tested is what programs compute.
jax.config.update("jax_disable_most_optimizations", True)

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("genaug", "beartype.beartype")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def optimized():
    """For a test about what XLA makes of a program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """Equal programs are compiled once in the whole session, by any worker or subprocess."""
    from jax.experimental.compilation_cache import compilation_cache

    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()
    return directory


@pytest.fixture(autouse=True)
def few_memory_maps():
    """Every compiled program takes some, and a process that has 65,530 of them crashes (Linux)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's prepared data."""
    monkeypatch.setenv("GENAUG_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data"))
