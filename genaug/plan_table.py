"""What `genaug plan` prints."""

from __future__ import annotations

from collections.abc import Sequence

from genaug.config import Experiment
from genaug.plan import Plan, Program
from genaug.plan_search import advice
from genaug.table import aligned
from genaug.topologies import GIB


def gib(size: float | int) -> str:
    """Bytes in GiB, or smaller units where that says more."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= 0.1 * unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"


def quantity(value: float | int, unit: str = "") -> str:
    """A number with three digits and a prefix."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def plan_table(plans: Sequence[Plan]) -> str:
    """A column a machine: what an update takes of each device, and what bounds it."""
    rows = [["per device", *(one.topology for one in plans)]]

    def row(title: str, cells: Sequence[str]) -> None:
        if any(cell not in ("", "-") for cell in cells):
            rows.append([title, *cells])

    row("devices (data x fsdp x tensor)", [_mesh(one) for one in plans])
    row("batch", [str(one.batch_size) for one in plans])
    row("parameters", [f"{quantity(p.parameters)}, {gib(p.parameter_bytes)}" for p in plans])
    row("state", [gib(one.state_bytes) for one in plans])
    row("activations and temporaries", [gib(p.activations) if p.peak else "-" for p in plans])
    row("peak", [gib(p.peak) if p.peak else "-" for p in plans])
    row("memory", [gib(one.available) for one in plans])
    row("fits", ["yes" if one.fits else "NO" for one in plans])
    row("FLOPs an update", [quantity(one.step.flops) for one in plans])
    row(
        "memory traffic", [_told(one, one.step, quantity(one.step.hbm_bytes, "B")) for one in plans]
    )
    for kind in sorted({c.kind for one in plans for c in one.step.collectives}):
        row(f"  {kind}", [_collectives(one.step, kind) for one in plans])
    for name in ("compute", "memory", "network"):
        row(f"{name} time", [_told(p, p.step, seconds(p.seconds(p.step)[name])) for p in plans])
    row("step, at least", [_told(p, p.step, seconds(p.step_seconds)) for p in plans])
    row("bound by", [_told(p, p.step, p.bound) for p in plans])
    row("at most, all devices", [_told(p, p.step, _rate(p)) for p in plans])
    row("MFU, at most", [_told(p, p.step, f"{100 * p.mfu:.1f} %") for p in plans])
    sampled = [one.sampler for one in plans]
    row("sampler: peak", ["-" if s is None else _peak(s) for s in sampled])
    row("  a block takes at least", [_drawn(one) for one in plans])
    row(
        "compile",
        [seconds(p.step.seconds + (p.sampler.seconds if p.sampler else 0)) for p in plans],
    )
    return aligned(rows)


def _mesh(plan: Plan) -> str:
    sides = "x".join(str(side) for side in plan.mesh.values())
    return f"{plan.devices} ({sides})"


def _told(plan: Plan, program: Program, text: str) -> str:
    return "-" if program.needs is not None else text


def _collectives(program: Program, kind: str) -> str:
    found = [c for c in program.collectives if c.kind == kind]
    if not found:
        return "-"
    return f"{sum(c.times for c in found):g}, {quantity(sum(c.bytes for c in found), 'B')}"


def _rate(plan: Plan) -> str:
    return f"{quantity(plan.rate)} {'tokens' if plan.tokens else 'images'}/s"


def _peak(program: Program) -> str:
    return "does not fit" if program.needs is not None else gib(program.peak)


def _drawn(plan: Plan) -> str:
    one = plan.sampler
    if one is None or one.needs is not None:
        return "-"
    return f"{seconds(max(plan.seconds(one).values()))} for {one.rows}"


def verdicts(plans: Sequence[Plan], experiment: Experiment) -> list[str]:
    """A line or more a plan: whether it fits, what to change, what is not known."""
    lines = []
    for one in plans:
        if not one.fits:
            needs = f"needs {gib(one.peak)} of {gib(one.available)}" if one.peak else "no room"
            if one.step.needs is None and one.peak <= one.chip.hbm:
                needs = "training fits, the sampler does not"
            lines.append(f"{one.topology}: DOES NOT FIT: {needs}.")
        lines += [f"{one.topology}: try {line}" for line in advice(one, experiment)]
        for name, program in (("train step", one.step), ("sampler", one.sampler)):
            if program and program.unknown_loops:
                lines.append(
                    f"{one.topology}: {program.unknown_loops} loop(s) of the {name} run as often "
                    "as the data says: counted as --loop-rounds says."
                )
    return lines


def search_table(plans: Sequence[Plan], num_tried: int) -> str:
    """What fits, the fastest first."""
    rows = [["", "images or tokens/s", "step", "bound by", "MFU", "peak"]]
    for one in plans:
        mfu = f"{100 * one.mfu:.1f} %"
        title = f"{one.topology} {' '.join(one.fields)}"
        rows.append([title, quantity(one.rate), seconds(one.step_seconds), one.bound, mfu,
                     gib(one.peak)])  # fmt: skip
    return f"{aligned(rows)}\n{len(plans)} of {num_tried} fit."
