"""The faults that `benchmarks.reliability` injects, one function a row of its table.

Each takes how often, and a seed; what is random is drawn from that.
"""

from __future__ import annotations

import collections
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genaug import checkpoint, digests, layouts, parallel
from genaug.devices import Mesh, make_mesh
from genaug.models.cvae import CVAE
from genaug.nets.autoencoder import MLP
from genaug.train import Train, fit
from genaug.types import GenerativeModel, LabelSpec, UserError

SPEC = {"image": jax.ShapeDtypeStruct((8, 8, 1), np.uint8), "label": LabelSpec(10)}


class Counted(NamedTuple):
    """How often a fault was injected, how often all was as promised, and what to know of it."""

    survived: int
    tried: int
    remark: str = ""
    seconds: tuple[float, ...] = ()


def listed(places: collections.Counter[str]) -> str:
    """What happened how often, the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in places.most_common())


def _state(seed: int, mesh: Any) -> tuple[GenerativeModel, Any]:
    model = CVAE(latent_dim=2, net=MLP(hidden=(16,))).make(SPEC)
    return model, parallel.compile_init(model.init, mesh)(jax.random.key(seed))


def _same(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def _flip(draw: random.Random, step: Path, path: Path) -> list[Path]:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))
    return [path]


def _truncate(draw: random.Random, step: Path, path: Path) -> list[Path]:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    return [path]


def _delete(draw: random.Random, step: Path, path: Path) -> list[Path]:
    path.unlink()
    return [path]


def _swap(draw: random.Random, step: Path, path: Path) -> list[Path]:
    """Any file of the other step in its place, as where two were copied to one name."""
    others = [p for p in step.with_name("10").rglob("*") if p.is_file()]
    different = [p for p in others if p.read_bytes() != path.read_bytes()]
    path.write_bytes(draw.choice(different).read_bytes())
    return [path]


def _half_copied(draw: random.Random, step: Path, path: Path) -> list[Path]:
    files = sorted(p for p in step.rglob("*") if p.is_file())
    lost = files[draw.randrange(len(files)) :]
    for one in lost:
        one.unlink()
    return lost


def _emptied(draw: random.Random, step: Path, path: Path) -> list[Path]:
    lost = [p for p in step.rglob("*") if p.is_file()]
    shutil.rmtree(step)
    step.mkdir()
    return lost


def damaged(count: int, seed: int) -> Counted:
    """Bits, files and folders of the newest of two checkpoints."""
    draw, survived = random.Random(seed), 0
    kinds: list[Callable[[random.Random, Path, Path], list[Path]]] = [
        _flip, _flip, _flip, _truncate, _delete, _swap, _half_copied, _emptied,
    ]  # fmt: skip
    tried: collections.Counter[str] = collections.Counter()
    named = 0
    mesh = make_mesh(Mesh(data=2))
    with tempfile.TemporaryDirectory() as name:
        saved, copy = Path(name) / "saved", Path(name) / "copy"
        model, ten = _state(10, mesh)
        checkpoint.save(saved, 10, ten)
        checkpoint.save(saved, 20, _state(20, mesh)[1])
        template = layouts.abstract(model.init, mesh)
        for i in range(count):
            shutil.copytree(saved, copy)
            kind = kinds[i % len(kinds)]
            files = sorted(p for p in (copy / "20").rglob("*") if p.is_file())
            files = [p for p in files if p.stat().st_size] + [copy / "20.json"] * (kind is _flip)
            hit = kind(draw, copy / "20", draw.choice(files))
            tried[kind.__name__.strip("_").replace("_", " ")] += 1
            words = " ".join(checkpoint.faults(copy, 20))
            named_all = all(one.name in words for one in hit)
            named += "array " in " ".join(checkpoint.array_faults(copy, 20))
            found = checkpoint.restore(copy, template, owner=True)
            fell_back = found is not None and found[1] == 10 and _same(found[0], ten)
            aside = (copy / "damaged" / "20" / "reason.json").is_file()
            survived += bool(words) and named_all and fell_back and aside
            shutil.rmtree(copy)
    remark = f"{listed(tried)}; an array was hit, and named, in {named}"
    return Counted(survived, count, remark)


def moved(count: int, seed: int) -> Counted:
    """8 to 4 to 1 to 8 devices, copied and split, saved and restored on the way: one digest."""
    survived = 0
    over = partial(Mesh, min_split=1)
    ways = [[over(data=8), over(data=4), over(data=1), over(data=8)],
            [over(fsdp=8), over(fsdp=4), over(data=1), over(fsdp=8)],
            [over(data=2, fsdp=4), over(data=4), over(fsdp=2), over(data=4, fsdp=2)]]  # fmt: skip
    for i in range(count):
        meshes = [make_mesh(one) for one in ways[i % len(ways)]]
        model, state = _state(seed + i, meshes[0])
        wanted, start, good = digests.arrays(state), jax.device_get(state), True
        with tempfile.TemporaryDirectory() as name:
            for step, mesh in enumerate(meshes[1:], start=1):
                checkpoint.save(Path(name), step, state)
                found = checkpoint.restore(Path(name), layouts.abstract(model.init, mesh))
                good = good and found is not None and found[1] == step
                if found:
                    state = found[0]
                good = good and digests.arrays(state) == wanted and _same(state, start)
        survived += good
    return Counted(survived, count, "copied, fully sharded and both, in turn")


SICK = Train(num_steps=24, batch_size=8, steps_per_call=4, evaluate_every=24, sample_every=24,
             checkpoint_every=4, patience=3)  # fmt: skip


def _regression(kind: str, sick: range) -> GenerativeModel:
    """A linear regression; `kind` says where a NaN comes in, in updates of that range."""

    def step(state: Any, batch: Any, key: jax.Array) -> Any:
        number = batch["number"][0]
        bad = (number >= sick.start) & (number < sick.stop)
        row = jnp.where(jnp.arange(8) == 5, jnp.nan, 1.0)  # of one example, so on one device
        x = batch["x"] * jnp.where(bad & (kind == "batch"), row, 1.0)[:, None]
        y = batch["y"] + 0.1 * jax.random.normal(key)
        value, grad = jax.value_and_grad(lambda w: jnp.mean((x @ w - y) ** 2))(state["w"])
        grad = jnp.where(bad & (kind == "gradient"), jnp.nan, grad)
        w = state["w"] - 0.1 * grad
        w = jnp.where((number == sick.start - 1) & (kind == "weight"), w.at[0].set(jnp.nan), w)
        norm = jnp.sqrt(jnp.sum(grad**2))
        return {"w": w, "n": state["n"] + 1}, {"loss": value, "grad_norm": norm}

    return GenerativeModel(
        init=lambda key: {"w": jnp.zeros(3), "n": jnp.zeros((), jnp.int32)},
        step=step,
        weights=lambda state: state,
        sample=lambda weights, key, cond: cond,
        score=lambda weights, batch, key: {},
    )


def _numbered(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for i in range(start, stop):
        generator = np.random.Generator(np.random.PCG64([7, i]))
        x = generator.normal(size=(8, 3)).astype(np.float32)
        y = (x @ np.array([1.0, -2.0, 0.5], np.float32)).astype(np.float32)
        yield {"x": x, "y": y, "number": np.full(8, i, np.int32)}


def sick(count: int, seed: int) -> Counted:
    """NaN in one example, in a gradient or in a weight, for one update or for a row of them."""
    draw, survived = random.Random(seed), 0
    kinds: collections.Counter[str] = collections.Counter()
    mesh, key = make_mesh(Mesh(data=2)), jax.random.key(seed)
    for i in range(count):
        kind = ("batch", "gradient", "weight")[i % 3]
        long = kind == "weight" or bool(i % 2)
        first = draw.randrange(9, 13)
        bad = range(first, first + (3 if long else 1))
        kinds[f"{kind}, {'a row' if long else 'once'}"] += 1
        lines: dict[int, dict[str, float]] = {}
        with tempfile.TemporaryDirectory() as name:
            state = fit(_regression(kind, bad), _numbered, SICK, key=key, mesh=mesh,
                        checkpoints=Path(name), log=lines.__setitem__)  # fmt: skip
        back = first - first % 4 if kind != "weight" or first % 4 else first - 4
        row_end = -(-(first + 3) // 4) * 4
        seen = [n for n in range(24) if not (back <= n < row_end if long else n in bad)]
        wanted = _without(mesh, key, seen)
        call = (first // 4 + 1) * 4
        noticed = lines[call].get("left_out", 0) >= 1
        survived += noticed and _same(state, wanted)
    return Counted(survived, count, listed(kinds))


def _without(mesh: Any, key: jax.Array, seen: list[int]) -> Any:
    """The state of a run whose batches are those alone."""
    model = _regression("none", range(0))
    template = layouts.abstract(model.init, mesh)
    program = parallel.compile_steps(model.step, mesh, template)
    init_key, step_key = jax.random.split(key)
    state = parallel.compile_init(model.init, mesh)(init_key)
    batches = list(_numbered(0, 24))
    for number in seen:
        stack = {name: np.stack([array]) for name, array in batches[number].items()}
        state, _ = program(state, layouts.split_rows(stack, mesh, axis=1), step_key, number)
    return state


def refused_by_the_disk(count: int, seed: int) -> Counted | None:
    """A full disk, or one that can be read alone, half of the times each; None without mounts."""
    if os.geteuid() or not shutil.which("mount"):
        return None
    survived, mesh = 0, make_mesh(Mesh(data=2))
    model = CVAE(latent_dim=2, net=MLP(hidden=(64,))).make(SPEC)
    init = parallel.compile_init(model.init, mesh)
    states = [init(jax.random.key(seed + i)) for i in range(2)]
    template = layouts.abstract(model.init, mesh)
    with tempfile.TemporaryDirectory() as name:
        for i in range(count):
            if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", name]).returncode:
                return None
            try:
                folder = Path(name) / "checkpoints"
                checkpoint.save(folder, 10, states[0])
                if i % 2:
                    subprocess.run(["mount", "-o", "remount,ro", name], check=True)
                else:
                    free = shutil.disk_usage(name).free
                    rest = random.Random(seed + i).randrange(30_000)
                    (Path(name) / "filler").write_bytes(b"x" * max(free - rest, 0))
                try:
                    checkpoint.save(folder, 20, states[1])
                    clear = False
                except UserError as error:
                    clear = "cannot be written" in str(error) and "update 10 is still" in str(error)
                found = checkpoint.restore(folder, template)
                survived += clear and found is not None and _same(found[0], states[0])
            finally:
                subprocess.run(["umount", name], check=True)
    return Counted(survived, count, f"full {-(-count // 2)}, read-only {count // 2}")
