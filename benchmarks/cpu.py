"""Why genaug does on a CPU what it does: each choice against the obvious way, in pairs.

    pip install -e ".[bench]" && python -m benchmarks.cpu

Every round runs both sides once, in turn; a ratio is other / ours of one round (above 1: ours is
faster), reported as median (min to max) over the rounds. Compilation is not in it. Values of both
sides are compared before anything is timed. `--write` puts the table into CHOICES.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.subjects import UNET
from genaug import layouts, parallel
from genaug.devices import Mesh, keep_freed_memory, make_mesh, use_cpu_cores_as_devices
from genaug.evaluation import classifier
from genaug.models.cvae import CVAE
from genaug.models.ddpm import DDPM
from genaug.nets import layers
from genaug.nets.autoencoder import ConvNet
from genaug.transforms import images as transforms
from genaug.types import GenerativeModel, LabelSpec

ROUNDS = 7
CHOICES = Path(__file__).with_name("CHOICES.md")


class Pair(NamedTuple):
    """Two ways to the same result, compiled; each call blocks."""

    title: str
    ours: Callable[[], object]
    other: Callable[[], object]


def measure(pair: Pair) -> tuple[float, float, float, float]:
    """Median, minimum and maximum of the ratio, and our median in milliseconds."""
    ratios, own = [], []
    for _ in range(ROUNDS):
        seconds = []
        for call in (pair.ours, pair.other):
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[1] / seconds[0])
        own.append(1000 * seconds[0])
    return statistics.median(ratios), min(ratios), max(ratios), statistics.median(own)


def agree(ours: object, other: object, tolerance: float) -> None:
    """Both sides compute the same."""
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)  # noqa: E731
    jax.tree.map(compare, jax.device_get(ours), jax.device_get(other))


def descent(convolve: Callable, kernel: jax.Array, x: jax.Array) -> Callable[[], object]:
    """Four gradient steps on a kernel in one `lax.scan`."""

    def step(kernel: jax.Array, _: None) -> tuple[jax.Array, None]:
        loss = lambda kernel: jnp.mean(convolve(x, kernel) ** 2)  # noqa: E731
        return kernel - 0.1 * jax.grad(loss)(kernel), None

    run = jax.jit(lambda kernel: lax.scan(step, kernel, length=4)[0]).lower(kernel).compile()
    return lambda: run(kernel)


def convolutions() -> list[Pair]:
    """genaug's layers against `lax`'s, gradient inside a scan."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (16, 28, 28, 32))
    thin = jax.random.normal(key, (64, 28, 28, 1))
    small = jax.random.normal(key, (32, 14, 14, 64))
    axes = ("NHWC", "HWIO", "NHWC")
    cases = [
        ("convolution 3x3", x, (3, 3, 32, 32), layers.conv,
         lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=axes)),
        ("convolution 3x3, stride 2", x, (3, 3, 32, 32),
         lambda x, k: layers.conv(x, k, (2, 2)),
         lambda x, k: lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=axes)),
        ("convolution 3x3 of one channel to 16, stride 2", thin, (3, 3, 1, 16),
         lambda x, k: layers.conv(x, k, (2, 2)),
         lambda x, k: lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=axes)),
        ("transposed convolution 4x4, stride 2", small, (4, 4, 64, 32),
         layers.conv_transpose,
         lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME", dimension_numbers=axes)),
    ]  # fmt: skip
    pairs = []
    for title, x, shape, ours, other in cases:
        kernel = 0.05 * jax.random.normal(key, shape)
        runs = descent(ours, kernel, x), descent(other, kernel, x)
        agree(runs[0](), runs[1](), 1e-3)
        pairs.append(Pair(f"{title}: four gradient steps in a scan; other: plain `lax`", *runs))
    return pairs


def replicas() -> Pair:
    """Six classifiers mapped over the devices, against `vmap` over the seeds."""
    config = classifier.Classifier(num_steps=50)
    mesh = make_mesh(Mesh())
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (512, 28, 28, 1), dtype=np.uint8)
    condition = classifier.Condition(
        images, generator.integers(0, 10, 512).astype(np.int32),
        np.linspace(1 / 512, 1, 512, dtype=np.float32), np.ones(10, np.float32), np.int32(50),
        transforms.Strength().as_arrays(),
    )  # fmt: skip
    keys = jax.vmap(jax.random.key)(jnp.arange(6))
    mapped = classifier.trainer(config, 10, 0.1, mesh)
    vmapped = jax.jit(jax.vmap(classifier.replica_fn(config, 10, 0.1), in_axes=(None, 0)))
    shared = (condition, images[:64])
    runs = (lambda: mapped(shared, keys)[1]), (lambda: vmapped(shared, keys)[1])
    agree(runs[0](), runs[1](), 5e-2)
    return Pair("six classifiers, mapped over devices; other: `vmap` over seeds", *runs)


def devices() -> list[Pair]:
    """Training steps with cores as devices, as `genaug` has them by itself, against one device."""
    spec = {"image": jax.ShapeDtypeStruct((28, 28, 1), np.uint8), "label": LabelSpec(10)}
    cases: list[tuple[str, GenerativeModel, int, int]] = [
        ("diffusion U-Net, 4 steps of 16", DDPM(net=UNET).make(spec), 4, 16),
        ("convolutional CVAE, 4 steps of 64", CVAE(net=ConvNet()).make(spec), 4, 64),
        ("perceptron CVAE, 20 steps of 128", CVAE().make(spec), 20, 128),
    ]
    pairs = []
    for title, model, steps, rows in cases:
        runs = [steps_over(count, model, steps, rows) for count in (jax.device_count(), 1)]
        agree(runs[0](), runs[1](), 1e-3)
        pairs.append(Pair(f"{title}, cores as devices; other: one device", *runs))
    return pairs


def steps_over(count: int, model: GenerativeModel, steps: int, rows: int) -> Callable[[], object]:
    """Steps of training over so many devices; the state goes on from call to call."""
    generator = np.random.default_rng(0)
    # Arrays of the host: that they cross to the devices is part of a call.
    stack: Any = {
        "image": generator.integers(0, 256, (steps, rows, 28, 28, 1), dtype=np.uint8),
        "label": generator.integers(0, 10, (steps, rows)).astype(np.int32),
    }
    mesh = make_mesh(Mesh(data=count))
    holder = [parallel.compile_init(model.init, mesh)(jax.random.key(0))]
    run = parallel.compile_steps(model.step, mesh, layouts.abstract(model.init, mesh))

    def call() -> object:
        holder[0], metrics = run(holder[0], stack, jax.random.key(1), 0)
        return metrics["loss"]

    return call


def warps() -> Pair | None:
    """The classical baseline's warp against dm-pix's two, on 64 images; None without dm-pix."""
    try:
        import dm_pix
    except ImportError:
        return None
    images = jax.random.uniform(jax.random.key(0), (64, 28, 28, 1))
    warp = transforms.Warp()
    keys = jax.random.split(jax.random.key(1), 64)
    strength = warp.affine_elastic()

    def theirs(image: jax.Array, key: jax.Array) -> jax.Array:
        matrix = jnp.eye(3).at[:2, :2].set(transforms.affine_matrix(key, strength))
        image = dm_pix.affine_transform(image, matrix, order=1, mode="constant")
        return dm_pix.elastic_deformation(key, image, alpha=34.0, sigma=4.0, mode="constant")

    ours = jax.jit(lambda k: transforms.warp_batch(images, k, strength, warp.smoothing))
    other = jax.jit(lambda k: jax.vmap(theirs)(images, k))
    runs = (lambda: ours(keys)), (lambda: other(keys))
    jax.block_until_ready([run() for run in runs])
    return Pair("affine and elastic warp of 64 images; other: dm-pix (not the same draws)", *runs)


def main() -> None:
    """Measure, print, and write on request."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--write", action="store_true", help="write CHOICES.md")
    write = arguments.parse_args().write
    use_cpu_cores_as_devices()
    keep_freed_memory()
    pairs = [*convolutions(), replicas(), *devices(), warps()]
    lines = [
        "# Choices on a CPU",
        "",
        f"`python -m benchmarks.cpu`: {os.cpu_count()} cores ({platform.machine()}), jax "
        f"{jax.__version__}, float32, {ROUNDS} interleaved rounds. Ratio: other / ours, median "
        "(min to max); above 1, ours is faster.",
        "",
        "| what | ratio | ours, ms |",
        "|---|---|---|",
    ]
    for pair in filter(None, pairs):
        median, low, high, own = measure(pair)
        lines.append(f"| {pair.title} | {median:.2f} ({low:.2f} to {high:.2f}) | {own:.1f} |")
        print(lines[-1], flush=True)
    if write:
        CHOICES.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
