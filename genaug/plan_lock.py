"""The lock file of `genaug plan`: static figures written once, and checked against afterwards.

A performance test without hardware: peak memory, traffic and collectives of a program for a TPU are
the same on every machine that compiles it with the same versions. Of a program for this machine's
own CPU, what is fused, and so memory and traffic, follows its instructions: only what does not is
locked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from genaug.files import read_json, write_json
from genaug.plan import Plan
from genaug.types import UserError

TOLERANCE = 0.01
"""Share by which a figure may exceed the locked one before that is a regression."""


def figures(plan: Plan) -> dict[str, float]:
    """What is locked: figures that are the same on every machine that compiles."""
    made: dict[str, float] = {"state_bytes": float(plan.state_bytes)}
    if elsewhere := plan.topology != "local":
        made["fits"] = float(plan.fits)
    for name, one in (("step", plan.step), ("sampler", plan.sampler)):
        if one is None:
            continue
        made[f"{name}.flops"] = one.flops
        if elsewhere:
            made[f"{name}.peak"], made[f"{name}.hbm_bytes"] = float(one.peak), one.hbm_bytes
        for c in one.collectives:
            for what, value in (("count", c.times), ("bytes", c.bytes)):
                label = f"{name}.{c.kind}.{what}"
                made[label] = made.get(label, 0.0) + value
    return made


def _label(plan: Plan) -> str:
    return f"{plan.experiment} on {plan.topology}"


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "libtpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def write_lock(path: Path, plans: Sequence[Plan]) -> None:
    """Write the static figures of plans, to be checked against later."""
    plain = {_label(one): figures(one) for one in plans}
    write_json(path, {"versions": _versions(), "plans": plain})


def check_lock(path: Path, plans: Sequence[Plan], tolerance: float = TOLERANCE) -> None:
    """Compare plans with what a lock file holds.

    Raises:
        UserError: with every figure that grew, or a plan that the file does not hold.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}: write it with --lock {path}.")
    held = read_json(path)
    if not isinstance(held, dict) or not isinstance(held.get("plans"), dict):
        raise UserError(f"{path} is no lock file: write one with --lock.")
    worse = []
    for one in plans:
        old = held["plans"].get(_label(one))
        if old is None:
            raise UserError(f"{path} does not hold {_label(one)}: write it anew with --lock.")
        worse += [f"{_label(one)}: {line}" for line in regressions(old, figures(one), tolerance)]
    if worse:
        versions = [
            f"{name} {held.get('versions', {}).get(name)} -> {new}"
            for name, new in _versions().items()
            if held.get("versions", {}).get(name) != new
        ]
        other = f" (other versions: {', '.join(versions)})" if versions else ""
        raise UserError(f"Regressed against {path}{other}: {'; '.join(worse)}.")


def regressions(
    old: Mapping[str, float], new: Mapping[str, float], tolerance: float = TOLERANCE
) -> list[str]:
    """The figures that grew by more than a share, each with both values."""
    lines = []
    if old.get("fits") and not new.get("fits"):
        lines.append("it no longer fits")
    for name, value in new.items():
        before = old.get(name, 0.0)
        if name != "fits" and value > before * (1 + tolerance):
            lines.append(f"{name} {before:.6g} -> {value:.6g}")
    return lines
