"""`genaug plan`: what an experiment needs and could reach on machines that are not here.

The real train step and sampler are compiled for the machine ahead of time, by its own compiler
(libtpu compiles without a TPU), and measured: memory by the compiler, operations in the jaxpr
(`flops.py`), traffic and collectives in the compiled program (`hlo.py`).

The roofline, per device and step (Williams et al. 2009), with P the peak operations, B the memory's
and W a link's bytes a second:

    compute = flops / P      memory = hbm_bytes / B      network = ici_bytes / 2 W + dcn_bytes / D
    step >= max(compute, memory, network)     MFU <= model_flops / (devices P step)

It assumes that the three overlap wholly and that a ring uses both ways of one axis of the torus, so
a step takes longer. `model_flops` leaves out what remat computes again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genaug import topologies
from genaug.config import Experiment
from genaug.hlo import Collective
from genaug.topologies import Chip
from genaug.types import UserError

LIMIT = 1800.0
"""Seconds after which a compiler is taken to hang."""


@dataclass(frozen=True)
class Program:
    """A compiled program, per device; of a train step one update.

    needs: of one that does not fit, the bytes it needs and may have; the rest is then 0.
    """

    flops: float
    peak: float = 0.0
    hbm_bytes: float = 0.0
    collectives: tuple[Collective, ...] = ()
    unknown_loops: int = 0
    seconds: float = 0.0  # to compile
    rows: int = 0  # of a sampler: what it draws at once
    needs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Plan:
    """An experiment on a machine. Bytes are a device's."""

    experiment: str
    topology: str
    chip: Chip
    devices_a_slice: int
    devices: int
    mesh: Mapping[str, int]
    fields: tuple[str, ...]
    batch_size: int
    tokens: int  # an example; 0 of images
    parameters: int
    parameter_bytes: int
    state_bytes: int
    batch_bytes: int
    steps_per_call: int
    model_flops: float  # an update, all devices
    step: Program
    sampler: Program | None = None

    @property
    def peak(self) -> float:
        """The most memory in use: the compiler's figure, and the stack of a call's batches."""
        if self.step.needs is not None:
            return self.step.needs[0] if self.step.needs else 0.0
        return self.step.peak + max(self.steps_per_call - 2, 0) * self.batch_bytes

    @property
    def available(self) -> float:
        """The memory that a program may have."""
        needs = self.step.needs
        return needs[1] if needs else self.chip.hbm

    @property
    def fits(self) -> bool:
        """Whether training and sampling find room."""
        runs = self.step.needs is None and (self.sampler is None or self.sampler.needs is None)
        return runs and self.peak <= self.chip.hbm

    @property
    def activations(self) -> float:
        """The peak less what is always there: activations, gradients and other temporaries."""
        return max(self.peak - self.state_bytes - self.steps_per_call * self.batch_bytes, 0.0)

    def seconds(self, program: Program) -> dict[str, float]:
        """The three times that bound a program from below."""
        inside, across = 0.0, 0.0
        for one in program.collectives:
            if one.spans > self.devices_a_slice:
                across += one.bytes
            else:
                inside += one.bytes
        return {
            "compute": program.flops / self.chip.flops,
            "memory": program.hbm_bytes / self.chip.bandwidth,
            "network": inside / (2 * self.chip.ici) + across / self.chip.dcn,
        }

    @property
    def step_seconds(self) -> float:
        """The shortest time an update can take."""
        return max(self.seconds(self.step).values())

    @property
    def bound(self) -> str:
        """Which of the three that is."""
        times = self.seconds(self.step)
        return max(times, key=lambda name: times[name])

    @property
    def rate(self) -> float:
        """Images or tokens a second at the bound, all devices."""
        return self.batch_size * (self.tokens or 1) / self.step_seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the bound (Chowdhery et al. 2022, app. B)."""
        return self.model_flops / (self.devices * self.chip.flops * self.step_seconds)


def plan(
    file: str,
    experiment: Experiment,
    spec: Mapping[str, Any],
    topology: str,
    variants: Sequence[Sequence[str]] = ((),),
    *,
    fields: Sequence[str] = (),
    exact: bool = False,
    sampler: bool = True,
    trips: int = 1,
    limit: float = LIMIT,
) -> list[Plan | str]:
    """A plan of every variant, or why there is none.

    file, fields: the experiment's file and the fields given, of which `experiment` was made: the
                  process that compiles makes it again.
    spec:         one example as `bundle.spec_to_json` writes it.
    trips:        what a loop counts whose length is data.
    limit:        seconds that a variant may take.

    Raises:
        UserError: without libtpu, or when the compiler's process breaks.
    """
    local = topology == "local"
    found = None if local else topologies.find(topology)
    if not local:
        require_libtpu()
    task = {
        "experiment": str(Path(file).resolve()),
        "fields": list(fields),
        "variants": [list(one) for one in variants],
        "topology": topology,
        "spec": spec,
        "exact": exact,
        "sampler": sampler,
        "trips": trips,
    }
    plans: list[Plan | str] = []
    for result in _work(task, local, limit):
        if "error" in result:
            plans.append(result["error"])
            continue
        chip = found.chip if found else _this_machine(result.pop("machine"))
        a_slice = found.num_devices // found.num_slices if found else result["devices"]
        plans.append(_read(result, experiment.name, topology, chip, a_slice))
    return plans


def require_libtpu() -> None:
    """Refuse to plan for TPUs without their compiler."""
    if find_spec("libtpu") is None:
        raise UserError(
            'The TPU compiler is not installed: pip install "genaug[tpu]" (it needs no TPU), or '
            "use --topology local."
        )


def _this_machine(found: Mapping[str, Any]) -> Chip:
    bandwidth = found["bandwidth"]  # what devices tell each other goes through the same memory
    return Chip(found["kind"], found["flops"], found["hbm"], bandwidth, bandwidth / 2, bandwidth)


def _work(task: dict[str, Any], local: bool, limit: float) -> list[dict[str, Any]]:
    """What processes that compile found of every variant, in order.

    A compile takes one core, so there is a process a core; but one of this machine itself, whose
    speed is measured.
    """
    environment = dict(os.environ)
    if not local:
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    variants = task["variants"]
    count = 1 if local else min(len(variants), len(os.sched_getaffinity(0)))
    found: list[dict[str, Any]] = [{}] * len(variants)
    with ThreadPoolExecutor(max(count, 1)) as pool:
        shares = [{**task, "variants": variants[first::count]} for first in range(count)]
        done = pool.map(lambda share: _compile(share, environment, limit), shares)
        for first, results in enumerate(done):
            found[first::count] = results
    return found


def _compile(
    task: dict[str, Any], environment: dict[str, str], limit: float
) -> list[dict[str, Any]]:
    """What one process found; of what it did not reach in time, that."""
    variants = task["variants"]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "genaug.plan_worker"],
                input=json.dumps({**task, "results": str(results)}),
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit * len(variants),
            )
        except subprocess.TimeoutExpired:
            done = None
        lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    if done is not None and done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise UserError(
            f"Planning for {task['topology']} stopped: the compiler's process ended with "
            f"{done.returncode} ({' '.join(last)[:400]})."
        )
    late = (
        f"Planning for {task['topology']} took more than {limit:g} s and was stopped: give it more "
        "with --limit SECONDS, or the model fewer or scanned layers."
    )
    missing: list[dict[str, Any]] = [{"error": late}] * (len(variants) - len(lines))
    return [*map(json.loads, lines), *missing]


def _read(result: dict[str, Any], experiment: str, topology: str, chip: Chip, a_slice: int) -> Plan:
    devices = result["devices"]
    programs: dict[str, Any] = {
        name: _program(result.pop(name), devices) for name in ("step", "sampler") if name in result
    }
    fields = tuple(result.pop("fields"))
    return Plan(
        experiment=experiment,
        topology=topology,
        chip=chip,
        devices_a_slice=a_slice,
        fields=fields,
        **programs,
        **result,
    )


def _program(found: dict[str, Any], devices: int) -> Program:
    whole: dict[str, Any] = {
        name: found[name] for name in ("unknown_loops", "rows") if name in found
    }
    real: dict[str, Any] = {
        n: float(found[n]) for n in ("peak", "hbm_bytes", "seconds") if n in found
    }
    return Program(
        flops=found["flops"] / devices,
        collectives=tuple(Collective(**one) for one in found.get("collectives", ())),
        needs=tuple(found["needs"]) if "needs" in found else None,
        **whole,
        **real,
    )


def to_json(plan: Plan) -> dict[str, Any]:
    """All figures of a plan."""

    def program(one: Program | None) -> dict[str, Any] | None:
        if one is None:
            return None
        collectives = [c._asdict() for c in one.collectives]
        return {**vars(one), "collectives": collectives, "roofline_seconds": plan.seconds(one)}

    static = {**vars(plan), "chip": vars(plan.chip), "mesh": dict(plan.mesh)}
    derived: dict[str, Any] = {"peak": plan.peak, "available": plan.available, "fits": plan.fits}
    if plan.fits:
        derived |= {
            "step_seconds": plan.step_seconds,
            "bound": plan.bound,
            "examples_or_tokens_a_second": plan.rate,
            "mfu": plan.mfu,
        }
    return {**static, **derived, "step": program(plan.step), "sampler": program(plan.sampler)}
