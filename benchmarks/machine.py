"""The machine that a benchmark ran on: what it is, and what it can do at most."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genaug import parallel
from genaug.devices import Mesh, make_mesh

PACKAGES = ("genaug", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers",
            "diffusers", "denoising-diffusion-pytorch", "pythae")  # fmt: skip


def fingerprint() -> dict[str, Any]:
    """Processor, cores, memory, devices and versions: what two runs must share to be compared."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    if name == "genaug":
        import genaug

        return genaug.__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two fingerprints are of one kind of machine; versions may differ."""
    names = ("processor", "cores", "devices")
    return all(a.get(name) == b.get(name) for name in names)


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of some calls, after one that is not timed."""
    call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def limits(side: int = 2048, repeats: int = 8) -> dict[str, float]:
    """FLOP/s of float32 matrix products and bytes/s of copies, all cores at work: the fastest seen.

    The products are XLA's, PyTorch's where it is installed, and NumPy's, whichever is fastest: a
    limit is the machine's, not a library's. A copy reads and writes what no cache holds.
    """
    mesh, key = make_mesh(Mesh()), jax.random.key(0)
    count = 2**25
    product = parallel.compile_rows(lambda w, k, rows: rows["x"] @ rows["x"], mesh)
    copy = parallel.compile_rows(lambda w, k, rows: rows["x"] + 1.0, mesh)
    squares = {"x": jnp.ones((mesh.size, side, side))}
    wide = {"x": jnp.ones((mesh.size, count))}
    square = np.ones((side, side), np.float32)
    work = 2.0 * side**3
    flops = [
        mesh.size * work / fastest(lambda: _block(product(0.0, key, squares)), repeats),
        work / fastest(lambda: square @ square, repeats),
    ]
    bandwidth = [mesh.size * 8.0 * count / fastest(lambda: _block(copy(0.0, key, wide)), repeats)]
    try:
        import torch
    except ImportError:
        return {"flops": max(flops), "bandwidth": max(bandwidth)}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    x, y, z = torch.ones(side, side), torch.ones(2 * count), torch.ones(2 * count)
    flops.append(work / fastest(lambda: x @ x, repeats))
    bandwidth.append(16.0 * count / fastest(lambda: z.copy_(y), repeats))
    return {"flops": max(flops), "bandwidth": max(bandwidth)}


def _block(value: Any) -> Any:
    return jax.block_until_ready(value)
