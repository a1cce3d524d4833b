"""What to change: advice on one plan, and a search over layouts, each compiled.

A layout is how an update is laid out on a machine: the mesh, the batch, in how many parts it is
taken, and whether activations are kept. The search climbs: first the meshes, then from the best one
a larger batch, remat the other way, parts, for as long as that gets faster.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genaug import config as configs
from genaug.config import Experiment
from genaug.plan import Plan
from genaug.topologies import GIB

FACTOR = 4
"""Times by which a batch and its number of parts change."""
LARGEST = 16
"""Times by which a batch may grow: a larger one is another training."""


@dataclass(frozen=True)
class Layout:
    """One way to lay an update out; remat None where the model has no such choice."""

    batch_size: int
    fsdp: int = 1
    tensor: int = 1
    accumulate: int = 1
    remat: bool | None = None

    def fields(self, remat: str | None) -> list[str]:
        """As arguments of the command; `remat` is the flag that the model calls it."""
        made = ["--mesh.fsdp", str(self.fsdp), "--mesh.tensor", str(self.tensor)]
        made += ["--train.batch-size", str(self.batch_size)]
        made += ["--train.accumulate", str(self.accumulate)]
        if remat and self.remat is not None:
            made.append(remat if self.remat else ".no-".join(remat.rsplit(".", 1)))
        return made


def remat_of(experiment: Experiment) -> tuple[str | None, bool | None]:
    """The flag of a model's remat and its value, wherever in the config it is."""
    return _switch(experiment, ".remat")


def _switch(experiment: Experiment, *names: str) -> tuple[str | None, bool | None]:
    for flag in configs.flags(experiment):
        if flag.endswith(names):
            value: Any = experiment
            for name in flag.removeprefix("--").replace("-", "_").split("."):
                value = getattr(value, name)
            return flag, value
    return None, None


def meshes(experiment: Experiment, devices: int, a_slice: int) -> list[Layout]:
    """Where the search begins: the batch as given, on each of the likely meshes."""
    batch = max(round(experiment.train.batch_size / devices), 1) * devices
    start = Layout(batch, accumulate=experiment.train.accumulate, remat=remat_of(experiment)[1])
    found = [dataclasses.replace(start, fsdp=n) for n in (1, a_slice, 16) if a_slice % n == 0]
    heads = getattr(experiment.model, "num_heads", 1)  # the rules are a transformer's
    if heads % 2 == 0 and a_slice % 2 == 0:
        found.append(dataclasses.replace(start, fsdp=a_slice // 2, tensor=2))
    return list(dict.fromkeys(found))


def neighbours(
    best: Layout, start: Layout, tried: Mapping[Layout, Plan | str], devices: int
) -> list[Layout]:
    """What may be faster than `best`, or fit where it does not."""
    found = []
    plan = tried[best]
    if isinstance(plan, Plan) and plan.fits:
        larger = dataclasses.replace(best, batch_size=FACTOR * best.batch_size)
        if larger.batch_size <= LARGEST * start.batch_size:
            found.append(larger)
            other = tried.get(larger)
            if isinstance(other, Plan) and not other.fits:
                found.append(dataclasses.replace(larger, accumulate=FACTOR * best.accumulate))
    else:
        parts = FACTOR * best.accumulate
        if best.batch_size % (devices * parts) == 0:
            found.append(dataclasses.replace(best, accumulate=parts))
        if best.batch_size % (FACTOR * devices * best.accumulate) == 0:
            found.append(dataclasses.replace(best, batch_size=best.batch_size // FACTOR))
    if best.remat is not None:
        found.append(dataclasses.replace(best, remat=not best.remat))
    return found


def search(
    starts: Sequence[Layout],
    devices: int,
    most: int,
    compiled: Callable[[Sequence[Layout]], Sequence[Plan | str]],
) -> dict[Layout, Plan | str]:
    """Every layout tried with its plan or why it has none; at most `most`."""
    tried: dict[Layout, Plan | str] = {}
    following, best = list(starts), None
    while new := [one for one in dict.fromkeys(following) if one not in tried][: most - len(tried)]:
        tried.update(zip(new, compiled(new), strict=True))
        found = _best(tried)
        if found is None:
            break
        # A round that brought nothing better ends the search, but for parts of a batch too large.
        following = neighbours(found, starts[0], tried, devices)
        if found == best:
            following = [one for one in following if one.accumulate > found.accumulate]
        best = found
    return tried


def _best(tried: Mapping[Layout, Plan | str]) -> Layout | None:
    """The fastest that fits; if none does, the one that lacks the least memory."""
    plans = {layout: one for layout, one in tried.items() if isinstance(one, Plan)}
    fitting = {layout: one.rate for layout, one in plans.items() if one.fits}
    if fitting:
        return max(fitting, key=lambda layout: fitting[layout])
    return min(plans, key=lambda layout: plans[layout].peak, default=None)


def ranked(plans: Sequence[Plan | str]) -> list[Plan]:
    """Those that fit, the fastest first."""
    fitting = [one for one in plans if isinstance(one, Plan) and one.fits]
    return sorted(fitting, key=lambda one: -one.rate)


def advice(plan: Plan, experiment: Experiment) -> list[str]:
    """What to change, the most useful first."""
    remat, used = remat_of(experiment)
    if not plan.fits:
        return _advice_to_fit(plan, experiment, remat if used is False else None)
    given = []
    dtype = getattr(experiment.model, "dtype", None)
    if plan.bound == "memory" and dtype == "float32":
        given.append("--model.dtype bfloat16: activations half as large")
    if plan.bound == "network":
        given.append("a larger --train.batch-size: what is sent does not grow with it")
    if plan.bound == "compute" and plan.step.flops * plan.devices > 1.1 * plan.model_flops:
        times = plan.seconds(plan.step)  # what is kept is written and read
        idle = times["memory"] < 0.5 * times["compute"]
        if remat and used and idle and plan.peak < 0.4 * plan.available:
            without = ".no-".join(remat.rsplit(".", 1))
            given.append(f"{without}: there is room to keep what is computed twice")
    elif plan.bound == "memory" and plan.peak < 0.25 * plan.available:
        given.append("a larger --train.batch-size: there is room, and weights are read once")
    return given


def _advice_to_fit(plan: Plan, experiment: Experiment, remat: str | None) -> list[str]:
    given = []
    most = plan.devices_a_slice // max(plan.mesh["tensor"], 1)
    groups = plan.devices // max(plan.mesh["tensor"], 1)
    parts = experiment.train.accumulate
    rows = plan.batch_size // (groups * parts)
    if plan.state_bytes > 0.25 * plan.chip.hbm and plan.mesh["fsdp"] < most:
        size = f"{plan.state_bytes / GIB:.2f} GiB"
        given.append(f"--mesh.fsdp {most} (the state is {size} a device)")
    loop, looped = _switch(experiment, ".scan-layers", ".scan-blocks")
    if loop and not looped and 4 * plan.parameters > 0.25 * plan.chip.hbm:
        given.append(f"{loop}: with --mesh.fsdp one layer at a time is whole on a device")
    if remat:
        given.append(f"{remat}: activations are computed twice rather than kept")
    if rows > 1:
        least = min(n for n in range(2, rows + 1) if rows % n == 0)
        given.append(f"--train.accumulate {least * parts}: activations of a part at a time")
        given.append(f"a smaller batch: --train.batch-size {rows // 2 * groups * parts}")
    return given or ["a smaller model, or more chips"]
