"""Peak memory of `manifold_scores` above its inputs: GiB and seconds, for benchmarks.evaluation.

    python -m benchmarks.memory ROWS

Linux alone keeps a process's own peak; what a parent process used is not in it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from genaug.devices import use_cpu_cores_as_devices
from genaug.evaluation import manifold_scores


def resident(which: str) -> float:
    """GiB of memory that the process holds ("VmRSS") or has held at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{which}:"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    """Make the sets, score them, print."""
    use_cpu_cores_as_devices()
    generator = np.random.default_rng(0)
    rows = int(sys.argv[1])
    real, other = (generator.standard_normal((rows, 2_048), np.float32) for _ in range(2))
    before, began = resident("VmRSS"), time.perf_counter()
    manifold_scores(real, other)
    print(resident("VmHWM") - before, time.perf_counter() - began)


if __name__ == "__main__":
    main()
