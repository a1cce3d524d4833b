"""The machines that genaug plans for and launches on: chips, the shapes sold, and their names.

    v5e-256  v5p-128  2xv5e-256     as clouds sell them (v4, v5p and tpu7x count cores)
    v5e:16x16  2xv5p:4x4x4          as libtpu names them
    local                           the devices of this machine

Figures of a chip are dense peaks, per JAX device (a tpu7x chip is two), as Google Cloud's pages
give them (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e and tpu7x; a v5e's network is its pod's 6.4
Tb/s over 256 chips). Links of v4 to v6e are those of "How to Scale Your Model"
(jax-ml.github.io/scaling-book/tpus), a tenth below the pages' figures; a tpu7x link is the page's
1,200 GB/s over six links, two ways and two devices. No page tells v4's network: v5p's is taken.
None was measured by genaug. The compiler tried is libtpu 0.0.52 under jax 0.10.2.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from genaug.types import UserError

GIB = 2.0**30


@dataclass(frozen=True)
class Chip:
    """What bounds a program on one device.

    flops:     bfloat16 multiply-adds a second, times 2. On a TPU float32 matrices are multiplied in
               one bfloat16 pass too: JAX's default precision.
    hbm:       bytes of memory; the compiler keeps some of them for itself.
    bandwidth: bytes a second from and to it.
    ici:       bytes a second over one link, one way. A ring uses a link each way: twice this.
    dcn:       bytes a second of a device out of its slice.
    """

    name: str
    flops: float
    hbm: float
    bandwidth: float
    ici: float
    dcn: float
    dimensions: int = 2
    devices: int = 1  # JAX devices a chip
    cores: int = 1  # what clouds count, a chip


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * GIB, 1.2e12, 4.5e10, 6.25e9, dimensions=3, cores=2),
        Chip("v5e", 197e12, 16 * GIB, 0.819e12, 4.5e10, 3.125e9),
        Chip("v5p", 459e12, 95 * GIB, 2.765e12, 9e10, 6.25e9, dimensions=3, cores=2),
        Chip("v6e", 918e12, 32 * GIB, 1.638e12, 9e10, 12.5e9),
        Chip("tpu7x", 1153.5e12, 96 * GIB, 3.69e12, 5e10, 6.25e9, dimensions=3, devices=2, cores=2),
    )
}

# The shapes that are sold, by their number of chips (MaxText's accelerator table names them alike).
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
    *((8, 8, 16), (8, 16, 16)),
)
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6": "v6e", "v7x": "tpu7x"}
_NAME = re.compile(r"(?:(\d+)x)?([a-z]\w*?)(?:-(\d+)|[:=](\d+(?:x\d+)*))$")


@dataclass(frozen=True)
class Topology:
    """A machine: slices of one shape of one chip."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def num_devices(self) -> int:
        """JAX devices, over all slices."""
        return self.chips * self.chip.devices * self.num_slices

    @property
    def chips(self) -> int:
        """Chips of a slice."""
        return math.prod(self.shape)

    @property
    def chips_a_host(self) -> int:
        """Chips that one machine of a slice drives."""
        if self.shape == (2, 4) and self.chip.dimensions == 2:
            return 8  # sold as one host
        return min(self.chips, 4)

    @property
    def hosts(self) -> int:
        """Machines of a slice."""
        return self.chips // self.chips_a_host

    @property
    def is_sold(self) -> bool:
        """Whether clouds sell a slice under its number of cores."""
        return self.shape in (_FLAT if self.chip.dimensions == 2 else _CUBES)

    @property
    def libtpu(self) -> tuple[str, dict[str, Any]]:
        """The name and the options that libtpu takes."""
        options: dict[str, Any] = {}
        if self.chips == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        elif self.chips_a_host == 8:
            options["chips_per_host_bounds"] = (2, 4, 1)
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # else two devices a chip
        if self.num_slices > 1:
            options["num_slices"] = self.num_slices
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}", options


def sold(chip: Chip) -> tuple[str, ...]:
    """The names a chip's shapes are sold under."""
    shapes = _FLAT if chip.dimensions == 2 else _CUBES
    return tuple(f"{chip.name}-{math.prod(shape) * chip.cores}" for shape in shapes)


def known() -> str:
    """All names, for a message."""
    ranges = [f"{names[0]} to {names[-1]}" for names in map(sold, CHIPS.values())]
    return f"{', '.join(ranges)}, a shape as v5e:16x16 or v5p:4x4x4, 2xNAME for two slices, local"


def find(name: str) -> Topology:
    """The machine of this name.

    Raises:
        UserError: with the names that are known.
    """
    match = _NAME.match(name.strip().lower())
    chip = CHIPS.get(_ALIASES.get(match[2], match[2])) if match else None
    if not match or chip is None:
        raise UserError(f"There is no topology {name!r}. Known: {known()}.")
    slices = int(match[1] or 1)
    if slices < 1:
        raise UserError(f"--topology {name}: there must be at least 1 slice.")
    if match[4]:
        shape = tuple(int(side) for side in match[4].split("x"))
        if len(shape) != chip.dimensions or min(shape) < 1:
            example = "16x16" if chip.dimensions == 2 else "4x4x4"
            raise UserError(
                f"--topology {name}: {chip.name} chips are wired in {chip.dimensions} dimensions: "
                f"give a shape as {chip.name}:{example}."
            )
        return Topology(name, chip, shape, slices)
    shapes = _FLAT if chip.dimensions == 2 else _CUBES
    for shape in shapes:
        if math.prod(shape) * chip.cores == int(match[3]):
            return Topology(name, chip, shape, slices)
    raise UserError(
        f"--topology {name} is not sold; {chip.name} is, as {', '.join(sold(chip))}"
        f"{f' ({chip.cores} cores a chip)' if chip.cores > 1 else ''}."
    )
