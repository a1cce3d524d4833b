"""The text of a compiled program (HLO) as instructions: what each computes, of what, how large."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

_SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "bf16": 2,
    "f16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
    "s4": 0.5,
    "u4": 0.5,
}
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")


class Array(NamedTuple):
    """An array's bytes, those with the padding of its layout, and whether main memory holds it."""

    bytes: float
    padded: float
    in_hbm: bool

    @property
    def moved(self) -> float:
        """What reading or writing it costs."""
        return self.padded if self.in_hbm else 0.0


@dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    arrays: tuple[Array, ...]  # its result; of a tuple all parts
    opcode: str
    operands: tuple[str, ...]
    text: str  # what stands between the operands' parentheses
    rest: str  # the attributes

    def called(self, kind: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b(?:{kind})=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclass(frozen=True)
class Computation:
    """The instructions of a computation, in order, by name; the last is its result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """The result."""
        return next(reversed(self.instructions.values()))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of an HLO module by name, and the name of the entry."""
    program: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = program.setdefault(header[1], Computation(header[1]))
            entry = header[1] if line.startswith("ENTRY") else entry
        elif line.rstrip() == "}":  # attributes of kernels go on over lines
            current = None
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(found[1], line[found.end() :])
            current.instructions[found[1]] = instruction
    return program, entry


def _instruction(name: str, line: str) -> Instruction:
    stop = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
    kind, rest = line[:stop], line[stop:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, _arrays(kind), rest[:start], operands, inside, rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def _arrays(kind: str) -> tuple[Array, ...]:
    made = []
    for dtype, dims, layout in _ARRAY.findall(kind):
        sides = [int(side.lstrip("<=")) for side in dims.split(",") if side]
        size = _SIZES.get(dtype, 1 if dtype.startswith("f8") else 0)
        space = re.search(r"S\((\d+)\)", layout)
        whole, padded = (
            float(size * math.prod(found)) for found in (sides, _padded(sides, layout))
        )
        made.append(Array(whole, padded, not space or space[1] == "0"))
    return tuple(made)


def _padded(sides: list[int], layout: str) -> list[int]:
    """The sides of an array as it is kept: the minor ones are multiples of its layout's tile."""
    found = re.match(r"([\d,]*):T\(([\d,]+)\)", layout)
    if not found or not found[1]:
        return sides
    minor, tile = ([int(n) for n in part.split(",")] for part in found.groups())
    sides = list(sides)
    for axis, step in zip(minor, reversed(tile), strict=False):
        sides[axis] = -(-sides[axis] // step) * step
    return sides
