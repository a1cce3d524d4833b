"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes a loop's body once however often it runs; here a `scan` counts its length. A
kernel counts its body once for every cell of its grid, those that a mask leaves out among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax


class Flops(NamedTuple):
    """Operations of all matrix products and convolutions: a multiply-add is two.

    unknown: loops whose length is data; each is counted as `trips` rounds.
    """

    total: float
    unknown: int = 0


def count(function: Callable[..., Any], *arguments: Any, trips: int = 1) -> Flops:
    """What one call of a function costs, over all devices; arguments may be shapes alone.

    Where it differs by platform, the dearest counts.
    """
    return of(jax.make_jaxpr(function)(*arguments).jaxpr, trips)


def of(jaxpr: Any, trips: int = 1, platform: str | None = None) -> Flops:
    """What a jaxpr costs on a platform."""
    total, unknown = 0.0, 0
    for eqn in jaxpr.eqns:
        found = _equation(eqn, trips, platform)
        total, unknown = total + found.total, unknown + found.unknown
    return Flops(total, unknown)


def _equation(eqn: Any, trips: int, platform: str | None) -> Flops:
    name = eqn.primitive.name
    if name == "dot_general":
        return Flops(_dot(eqn))
    if name == "conv_general_dilated":
        return Flops(_conv(eqn))
    inner = [of(jaxpr, trips, platform) for jaxpr in _jaxprs(eqn.params)]
    if not inner:
        return Flops(0.0)
    if name == "cond":  # branches, of which one runs: at most the dearest
        for branch, names in zip(inner, eqn.params.get("branches_platforms") or (), strict=False):
            if platform and (names is None or platform in names):
                return branch
        return Flops(max(one.total for one in inner), max(one.unknown for one in inner))
    total, unknown = sum(one.total for one in inner), sum(one.unknown for one in inner)
    if name == "scan":
        return Flops(total * eqn.params["length"], unknown)
    if name == "while":
        return Flops(total * trips, unknown + (total > 0))
    if name == "pallas_call":
        grid = eqn.params["grid_mapping"].grid
        return Flops(total * math.prod(side for side in grid if isinstance(side, int)), unknown)
    if name == "shard_map":  # shapes inside are one device's, along the axes that it splits
        sides = eqn.params["mesh"].shape
        devices = math.prod(sides[axis] for axis in eqn.params["newly_manual_axes"])
        return Flops(total * devices, unknown)
    return Flops(total, unknown)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    over = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * over


def _conv(eqn: Any) -> float:
    """Every output value is a sum over the kernel's window and the input channels of its group.

    Of a window over a dilated input, the zeros in between are not counted.
    """
    kernel = eqn.invars[1].aval.shape
    out_features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    dilated = math.prod(eqn.params["lhs_dilation"])
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / out_features / dilated
