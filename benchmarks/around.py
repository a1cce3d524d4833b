"""What is around training: the input pipeline, and the time until the first update.

Both are measured on data of the real shape that is written here, so that nothing need be installed
or downloaded: 2,000 images of 28x28, read back from ArrayRecord.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.subjects import UNET, images
from genaug import layouts, parallel
from genaug.data import Data, batches, load, pipeline, split
from genaug.devices import Mesh, make_mesh
from genaug.models.cvae import CVAE
from genaug.models.ddpm import DDPM
from genaug.train import Train, fit
from genaug.types import GenerativeModel

BATCH = 64
_FIRST = """
import time
began = time.perf_counter()
from genaug.devices import keep_freed_memory, use_cpu_cores_as_devices
use_cpu_cores_as_devices()
keep_freed_memory()
import jax
from benchmarks.around import first_update
print(json.dumps([first_update({name!r}), time.perf_counter() - began]))
"""


def data(folder: Path) -> Data:
    """A set of images in a file, prepared under a folder."""
    stack = images(1, 2000)
    path = folder / "images.npz"
    np.savez(path, images=stack["image"][0], labels=stack["label"][0])
    return Data(source=str(path), directory=str(folder / "prepared"))


def inputs(quick: bool) -> Iterator[dict[str, Any]]:
    """Batches a second, and what share of training's time is spent waiting for them."""
    count = 200 if quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        config = data(Path(folder))
        dataset = load(config)
        parts = split(dataset, config)
        stream = pipeline(dataset, parts.train, batch_size=BATCH, seed=0)
        began = time.perf_counter()
        for _ in batches(stream, 0, count):
            pass
        alone = count / (time.perf_counter() - began)
        fast: tuple[str, Any, int, int] = ("CVAE, 400-200 hidden units", CVAE(), count, 50)
        slow = ("DDPM U-Net 28x28", DDPM(net=UNET), 20, 5)  # takes two hundred times as long
        for title, family, steps, per_call in (fast,) if quick else (fast, slow):
            marks = waits(family.make(dataset.spec), stream, steps, per_call)
            # From the first call's metrics on: compilation is not in it.
            (start, before), (end, after) = marks[0], marks[-1]
            yield {
                "title": title,
                "batches_s": alone,
                "updates_s": (len(marks) - 1) * per_call / (end - start),
                "waited": (after - before) / (end - start),
            }


def waits(
    model: GenerativeModel, stream: Any, steps: int, per_call: int
) -> list[tuple[float, float]]:
    """When the metrics of each call came, and how long batches had been waited for until then, s.

    stream: of `pipeline`.
    """
    waited = 0.0
    marks: list[tuple[float, float]] = []

    def timed(start: int, stop: int) -> Iterator[Any]:
        nonlocal waited
        source = batches(stream, start, stop, ahead=per_call)
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    fit(
        model,
        timed,
        Train(num_steps=2 * steps, batch_size=BATCH, steps_per_call=per_call,
              evaluate_every=steps, sample_every=steps, checkpoint_every=steps),
        key=jax.random.key(0),
        mesh=make_mesh(Mesh()),
        log=lambda step, metrics: marks.append((time.perf_counter(), waited)),
    )  # fmt: skip
    return marks


def first_update(name: str) -> dict[str, float]:
    """Seconds that the first update of a family takes in this process, all and by kind."""
    from benchmarks.subjects import IMAGES, lm_config, text_spec, texts

    began = time.perf_counter()
    families: dict[str, Any] = {
        "CVAE, 400-200 hidden units": lambda: (CVAE().make(IMAGES), images(1, 128)),
        "DDPM U-Net 28x28": lambda: (DDPM(net=UNET).make(IMAGES), images(1, 16)),
        "LM 4 layers of 128": lambda: (lm_config(128).make(text_spec(65)), texts(1, 12, 65)),
    }
    model, stack = families[name]()
    mesh = make_mesh(Mesh())
    template = layouts.abstract(model.init, mesh)
    key, spent = jax.random.key(0), {"traced": 0.0, "compiled": 0.0}

    def compiled(program: Any, *arguments: Any) -> Any:
        times = [time.perf_counter()]
        lowered = program.lower(*arguments)
        times.append(time.perf_counter())
        found = lowered.compile()
        times.append(time.perf_counter())
        spent["traced"] += times[1] - times[0]
        spent["compiled"] += times[2] - times[1]
        return found

    state = compiled(parallel.compile_init(model.init, mesh), key)(key)
    rows = layouts.split_rows(stack, mesh, axis=1)
    # The count of updates as `fit` passes it: a number of Python's.
    run = compiled(parallel.compile_steps(model.step, mesh, template), state, rows, key, 0)
    jax.block_until_ready(run(state, rows, key, 0))
    return {"all": time.perf_counter() - began, **spent}


FAMILIES = ("CVAE, 400-200 hidden units", "DDPM U-Net 28x28", "LM 4 layers of 128")


def starts(quick: bool) -> Iterator[dict[str, Any]]:
    """Time to the first update in a process of its own, with an empty cache and with a full one."""
    for title in FAMILIES[:2] if quick else FAMILIES:
        with tempfile.TemporaryDirectory() as cache:
            environment = {
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
                ),
            }
            program = f"import json\n{_FIRST.format(name=title)}"
            found = []
            for _ in range(2):
                done = subprocess.run(
                    [sys.executable, "-c", program],
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                found.append(json.loads(done.stdout.splitlines()[-1]))
        (cold, cold_all), (warm, warm_all) = found
        yield {
            "title": title,
            "cold_s": cold["all"],
            "warm_s": warm["all"],
            "warm_traced_s": warm["traced"],
            "warm_read_s": warm["compiled"],
            "cold_process_s": cold_all,
            "warm_process_s": warm_all,
        }
