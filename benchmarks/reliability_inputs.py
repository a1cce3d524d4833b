"""Bad inputs for `benchmarks.reliability`: the catalogue, parsers, and JAX's compiled programs."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from benchmarks import errors
from benchmarks.reliability_faults import Counted

ROOT = Path(__file__).parents[1]


def answered(count: int, seed: int) -> Counted:
    """So many of the cases of `benchmarks.errors`, drawn at random; all where there are fewer."""
    cases = errors.all_cases()
    chosen = random.Random(seed).sample(cases, min(count, len(cases)))
    found = [(case, failed) for case, _, failed in errors.asked(chosen)]
    bad = [f"{case.wrong}: {'; '.join(failed)}" for case, failed in found if failed]
    of = f"{len(chosen)} of the {len(cases)} inputs of ERRORS.md"
    return Counted(len(found) - len(bad), len(found), "; ".join([of, *bad[:3]]))


def fuzzed(count: int, seed: int) -> Counted:
    """The properties of tests/test_fuzz.py, with at least so many inputs in all.

    An input that is read or refused in words is survived. A property that hangs is stopped after
    a second an input, and all of its inputs count as not survived.
    """
    file = ROOT / "tests" / "test_fuzz.py"
    listed = _pytest([str(file), "--collect-only"], {}, 300)[1]
    names = [line for line in listed.splitlines() if "::" in line and "as_they_are" not in line]
    each = -(-count // len(names))

    def properties(name: str) -> tuple[int, int, int]:
        more = ["--hypothesis-show-statistics", f"--hypothesis-seed={seed}"]
        code, said = _pytest([name, *more], {"GENAUG_FUZZ": str(each)}, 120 + each)
        runs = re.findall(r"(\d+) passing(?: examples)?, (\d+) failing", said)
        good, bad = (sum(int(run[i]) for run in runs) for i in (0, 1))
        return code, good, max(bad, 1) if code else bad

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # one a core; pytest does the work
        found = list(pool.map(properties, names))
    failed = [name.partition("::")[2] for name, one in zip(names, found, strict=True) if one[0]]
    passed = sum(good for _, good, _ in found)
    tried = passed + sum(bad for _, _, bad in found)
    remark = f"{len(names)} properties of what reads files" + "".join(
        f"; {n} fails" for n in failed
    )
    return Counted(passed, tried, remark)


def _pytest(words: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider",
             *words],
            cwd=ROOT,
            env={**os.environ, **environment,
                 "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
            capture_output=True,
            text=True,
            timeout=seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, ""
    return done.returncode, done.stdout


def recompiled(count: int, seed: int) -> Counted:
    """Bits flipped in an entry of JAX's compile cache, or the entry cut off: the right result."""
    draw, survived, noticed = random.Random(seed), 0, 0
    before = {name: jax.config.values[name] for name in (
        "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes")}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        for option, value in zip(before, (name, 0, -1), strict=True):
            jax.config.update(option, value)
        compilation_cache.reset_cache()
        try:
            wanted = _cosines()
            (entry,) = Path(name).glob("jit_cosines-*-cache")
            whole = entry.read_bytes()
            for i in range(count):
                damaged = bytearray(whole)
                damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
                entry.write_bytes(damaged[: draw.randrange(len(whole))] if i % 4 == 3 else damaged)
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    survived += bool(np.array_equal(_cosines(), wanted))
                noticed += any("persistent compilation cache" in str(one.message) for one in said)
        finally:
            for option, value in before.items():
                jax.config.update(option, value)
            compilation_cache.reset_cache()
    return Counted(survived, count, f"3 of 4 flipped, 1 cut off; noticed by JAX {noticed}")


def _cosines() -> np.ndarray:
    """A program that is read from the cache, or compiled: the function is another each time."""

    def cosines(x: jax.Array) -> jax.Array:
        return jnp.cos(x) @ jnp.cos(x).T

    return np.asarray(jax.jit(cosines)(jnp.arange(12.0).reshape(3, 4)))
