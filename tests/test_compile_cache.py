"""The compile cache: the user's alone, and a damaged entry changes nothing."""

import os
import random
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from genaug.compile_cache import keep_private, wipe
from genaug.types import UserError


def test_the_folder_is_made_for_the_user_alone(tmp_path):
    before = os.umask(0)
    try:
        keep_private(str(tmp_path / "a" / "cache"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a" / "cache").stat().st_mode) == 0o700
    keep_private(None)
    keep_private("gs://bucket/cache")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match=r"others may write to.*chmod 700"):
        keep_private(str(tmp_path))
    tmp_path.chmod(0o755)  # they may read
    keep_private(str(tmp_path))


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    if tmp_path.stat().st_uid == 0:  # the superuser's own is fine
        keep_private(str(tmp_path))
        os.chown(tmp_path, 4712, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        keep_private(str(tmp_path))


@pytest.fixture
def cache(tmp_path, compile_cache):
    def use(directory):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        compilation_cache.reset_cache()

    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    use(tmp_path)
    yield tmp_path
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    use(compile_cache)


def compiled():
    """A program compiled anew, or read from the cache: the function is another object."""

    def cosines(x):
        return jnp.cos(x) @ jnp.cos(x).T

    return np.asarray(jax.jit(cosines)(jnp.arange(12.0).reshape(3, 4)))


@pytest.mark.parametrize("kind", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_compiled_again(cache, kind):
    draw, wanted = random.Random(0), compiled()
    (entry,) = cache.glob("jit_cosines-*-cache")
    whole = entry.read_bytes()
    for _ in range(8 if kind == "flip" else 1):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        sizes = {"flip": len(whole), "cut": len(whole) // 2, "empty": 0}
        entry.write_bytes((damaged if kind == "flip" else whole)[: sizes[kind]])
        with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
            np.testing.assert_array_equal(compiled(), wanted)
    assert wipe(str(cache))
    assert not list(cache.glob("*-cache"))
    np.testing.assert_array_equal(compiled(), wanted)
