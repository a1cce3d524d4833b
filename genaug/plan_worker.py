"""Compiles what `genaug plan` reports on, in a process of its own: `python -m genaug.plan_worker`.

libtpu wants an environment that training must not see, prints to standard error, and may end the
process. The task is JSON on standard input; results are lines of JSON in the file it names.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from genaug import config as configs
from genaug import flops, hlo, layouts, parallel, topologies
from genaug.bundle import spec_from_json
from genaug.config import Experiment
from genaug.devices import (
    DeviceMesh,
    Mesh,
    check_batch_size,
    make_mesh,
    mesh_elsewhere,
    use_cpu_cores_as_devices,
)
from genaug.train import Train
from genaug.types import GenerativeModel, Spec, UserError

STEPS = 2
"""Updates in the program that is compiled: training's own is a loop, and one of 1 is none."""
BLOCK = 256
"""Rows that a sampler draws at once (`sampling.make_sampler`)."""


def main() -> None:
    """One line of JSON per variant of the experiment."""
    task = json.load(sys.stdin)
    local = task["topology"] == "local"
    if local:
        use_cpu_cores_as_devices()
    if not task["exact"]:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    with Path(task["results"]).open("w", encoding="utf-8") as results:
        for fields in task["variants"]:
            try:
                result = _plan(task, fields, local)
            except UserError as error:
                result = {"error": str(error)}
            results.write(json.dumps({"fields": fields, **result}) + "\n")
            results.flush()


def _plan(task: dict[str, Any], fields: list[str], local: bool) -> dict[str, Any]:
    experiment = configs.override(configs.load(task["experiment"]), [*task["fields"], *fields])
    if local:
        mesh = make_mesh(experiment.mesh)
    else:
        found = topologies.find(task["topology"])
        mesh = mesh_elsewhere(experiment.mesh, found.name, found.libtpu)
    if experiment.mesh.strategy == "pmap":
        raise UserError(
            "genaug plan compiles one program over all devices: leave out --mesh.strategy pmap."
        )
    spec = spec_from_json(task["spec"])
    train = experiment.train
    check_batch_size(train.batch_size, mesh, train.accumulate)
    result = _static(experiment, spec, mesh)
    result["step"] = _step(experiment.model.make(spec), spec, train, mesh)
    if task["sampler"]:
        result["sampler"] = _sampler(experiment.model.make(spec), mesh, task["trips"])
    if local:
        result["machine"] = _measure(make_mesh(Mesh()))
    return result


def _static(experiment: Experiment, spec: Spec, mesh: DeviceMesh) -> dict[str, Any]:
    """What needs no compiler."""
    model = experiment.model.make(spec)
    template = layouts.abstract(model.init, mesh)
    weights = layouts.abstract_weights(model.weights, template, mesh)
    batch = _rows(spec, experiment.train.batch_size)
    plain = _without_remat(experiment.model).make(spec)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(model.init, key)
    row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in batch.values())
    return {
        "devices": mesh.devices.size,
        "mesh": mesh.shape,
        "batch_size": experiment.train.batch_size,
        "tokens": max(spec["tokens"].shape[0] - 1, 1) if "tokens" in spec else 0,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)),
        "parameter_bytes": layouts.share_bytes(weights),
        "state_bytes": layouts.share_bytes(template),
        "batch_bytes": row_bytes // mesh.size,
        "steps_per_call": experiment.train.steps_per_call,
        "model_flops": flops.count(plain.step, state, batch, key).total,
    }


def _without_remat(config: Any) -> Any:
    """A config that computes nothing twice: what is done again is no work of the model's."""
    changes: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if entry.name == "remat" and value is True:
            changes["remat"] = False
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes[entry.name] = _without_remat(value)
    return dataclasses.replace(config, **changes)


def _rows(spec: Spec, *axes: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {n: jax.ShapeDtypeStruct((*axes, *one.shape), one.dtype) for n, one in spec.items()}


def _step(model: GenerativeModel, spec: Spec, config: Train, mesh: DeviceMesh) -> dict[str, Any]:
    """The train step, a loop of `STEPS` of them; what is counted is one."""
    template = layouts.abstract(model.init, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = parallel.compile_steps(model.step, mesh, template, config.accumulate)
    first = jax.ShapeDtypeStruct((), jnp.int32)
    arguments = (template, _rows(spec, STEPS, config.batch_size), key, first)
    return _compiled(program, arguments, mesh, steps=STEPS)


def _sampler(model: GenerativeModel, mesh: DeviceMesh, trips: int) -> dict[str, Any]:
    """The sampler of one block of rows."""
    rows = -(-BLOCK // mesh.size) * mesh.size
    template = layouts.abstract(model.init, mesh)
    weights = layouts.abstract_weights(model.weights, template, mesh)
    needed = {
        name: field.spec
        for name, field in model.cond.items()
        if field.default is None and not field.optional
    }
    cond = _rows({"index": jax.ShapeDtypeStruct((), jnp.int32), **needed}, rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    program = parallel.compile_draws(model.sample, mesh)
    return {**_compiled(program, (weights, key, cond), mesh, trips=trips), "rows": rows}


def _compiled(
    program: Any,
    arguments: tuple[Any, ...],
    mesh: DeviceMesh,
    steps: int = 1,
    trips: int = 1,
) -> dict[str, Any]:
    """What one of the `steps` of a program takes."""
    began = time.monotonic()
    traced = program.trace(*arguments)
    done = flops.of(traced.jaxpr, trips, mesh.platform)
    try:
        compiled, text = compile_and_read(traced.lower(), mesh.platform)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            line = " ".join(str(error).split())[:400]
            raise UserError(f"The compiler refuses the program: {line}") from error
        return {"needs": out_of_memory(str(error)), "flops": done.total / steps}
    memory = compiled.memory_analysis()
    moved = hlo.measure(text, trips)
    return {
        "seconds": time.monotonic() - began,
        "peak": memory.peak_memory_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": done.total / steps,
        "hbm_bytes": moved.hbm_bytes / steps,
        "unknown_loops": max(moved.unknown, done.unknown),
        "collectives": [
            c._replace(times=c.times / steps, bytes=c.bytes / steps)._asdict()
            for c in moved.collectives
        ],
    }


def compile_and_read(lowered: Any, platform: str) -> tuple[Any, str]:
    """A compiled program and its text.

    The compiler for TPUs writes the text down too: jaxlib does not read back all that a newer
    libtpu makes (of 0.0.52, jaxlib 0.10.2 refuses asynchronous updates of several operands).
    """
    if platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        try:
            return compiled, compiled.as_text()
        except jax.errors.JaxRuntimeError:
            written = [path.read_text() for path in Path(folder).glob("*.after_codegen.txt")]
            if not written:
                raise
            return compiled, max(written, key=len)


def out_of_memory(message: str) -> list[float]:
    """What a program needs and may have, in bytes, as XLA says it; empty if it does not."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
    size = r"([\d.]+)([KMGT]?)i?B?"
    for form in (rf"Used {size} of {size}", rf"{size}\)? exceeds[^(]*\({size}\)"):
        if found := re.search(form, message):
            return [float(found[i]) * units[found[i + 1]] for i in (1, 3)]
    return []


def _measure(mesh: DeviceMesh, side: int = 1024) -> dict[str, Any]:
    """Matrix products and copies that every device of this machine makes at once, a second."""
    # Everything is a fold of its input: XLA leaves nothing out.
    key = jax.random.key(0)
    square = {"x": jnp.ones((mesh.size, side, side))}
    wide = {"x": jnp.ones((mesh.size, 2**24))}
    product = parallel.compile_rows(lambda w, k, rows: rows["x"] @ rows["x"], mesh)
    copy = parallel.compile_rows(lambda w, k, rows: rows["x"] + 1.0, mesh)

    def seconds(function: Any, rows: Any) -> float:
        times = []
        for _ in range(4):
            began = time.monotonic()
            jax.block_until_ready(function(0.0, key, rows))
            times.append(time.monotonic() - began)
        return min(times)

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "kind": device.device_kind,
        "flops": 2.0 * side**3 / seconds(product, square),
        "bandwidth": 2.0 * 4 * 2**24 / seconds(copy, wide),
        "hbm": stats.get("bytes_limit") or _machine_memory() / mesh.size,
    }


def _machine_memory() -> float:
    import os

    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


if __name__ == "__main__":
    main()
