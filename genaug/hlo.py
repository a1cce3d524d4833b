"""What a compiled program moves: bytes from and to memory, and collectives, from its HLO text.

Loops count as often as they run: the number is XLA's own note where there is one, else the constant
that the loop's condition compares with. What is told is an estimate of the traffic: every fusion
reads its operands and writes its results (of a slice only the slice, of an update in place only
the update), and so does a kernel, which may read a block more than once; what lies in on-chip
memory, `S(1)` in a TPU's layouts, is free. Arrays are padded to the tiles of their layouts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from genaug.hlo_text import Computation, Instruction, parse

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "domain"),
    *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
}


class Collective(NamedTuple):
    """All collectives of one kind over groups of one size.

    bytes: what one device sends by a ring: of the n parts of an array of size s, (n - 1) / n s for
           an all-gather, reduce-scatter or all-to-all, twice that for an all-reduce.
    spans: devices from a group's first to its last, by position in the mesh.
    """

    kind: str
    group: int
    spans: int
    times: float  # how often
    bytes: float


class _Piece(NamedTuple):
    """A collective, or a part of an asynchronous one, that runs `times` times."""

    kind: str
    group: int
    spans: int
    times: float
    bytes: float
    whole: bool  # told by an instruction of its own, not within a fusion
    starts: bool  # the part of an asynchronous one that begins it


class Moved(NamedTuple):
    """What one run of a program moves, on one device."""

    hbm_bytes: float
    collectives: tuple[Collective, ...]
    unknown: int  # loops of unknown length, counted once


def measure(text: str, trips: int = 1) -> Moved:
    """The traffic and the collectives of a program; `trips` stands for lengths that are data."""
    program, entry = parse(text)
    counter = _Counter(program, trips)
    traffic = counter.traffic(entry)
    counter.collect(entry, 1.0, entry, whole=True)
    groups: dict[tuple[str, int, int], list[float]] = {}
    for pieces in counter.found.values():
        # One told in pieces is where it starts; of one that is told whole, every telling is one.
        told = [one for one in pieces if one.whole] or [one for one in pieces if one.starts]
        for one in told or pieces[:1]:
            entry_ = groups.setdefault((one.kind, one.group, one.spans), [0.0, 0.0])
            entry_[0] += one.times
            entry_[1] += one.times * one.bytes
    collectives = tuple(Collective(*key, *value) for key, value in sorted(groups.items()))
    return Moved(traffic, collectives, len(counter.unknown))


def by_instruction(text: str, trips: int = 1) -> dict[str, float]:
    """Bytes that every instruction moves in a run of the program, on one device, by its name.

    They add up to `measure`'s, but that of a conditional's branches every one is counted.
    """
    program, entry = parse(text)
    counter = _Counter(program, trips)
    found: dict[str, float] = {}
    counter.share(entry, 1.0, found)
    return found


class _Counter:
    """A program with what was found in it so far."""

    def __init__(self, program: dict[str, Computation], trips: int):
        self.program, self.trips = program, trips
        self.unknown: set[str] = set()
        self.found: dict[tuple[str, str], list[_Piece]] = {}
        self._traffic: dict[str, float] = {}

    def traffic(self, name: str) -> float:
        """Bytes that one run of a computation moves."""
        if name not in self._traffic:
            computation = self.program[name]
            self._traffic[name] = math.fsum(
                self._of(computation, i) for i in computation.instructions.values()
            )
        return self._traffic[name]

    def _of(self, computation: Computation, i: Instruction) -> float:
        if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
            return 0.0
        if i.opcode == "while":
            body, condition = i.called("body"), i.called("condition")
            assert body
            assert condition
            rounds = self.rounds(computation, i)
            return rounds * (self.traffic(body) + self.traffic(condition))
        if i.opcode == "conditional":
            return max(map(self.traffic, _branches(i)), default=0.0)
        if i.opcode in ("call", "async-start") and (called := i.called("to_apply|calls")):
            return self.traffic(called)
        return self._boundary(computation, i)

    def share(self, name: str, times: float, found: dict[str, float]) -> None:
        """Add what every instruction of a computation that runs `times` times moves."""
        computation = self.program[name]
        for i in computation.instructions.values():
            if i.opcode == "while":
                rounds = times * self.rounds(computation, i)
                inner = [(i.called("body"), rounds), (i.called("condition"), rounds)]
            elif i.opcode == "conditional":
                inner = [(branch, times) for branch in _branches(i)]
            elif i.opcode in ("call", "async-start") and i.called("to_apply|calls"):
                inner = [(i.called("to_apply|calls"), times)]
            else:
                found[i.name] = found.get(i.name, 0.0) + times * self._of(computation, i)
                continue
            for called, count in inner:
                assert called
                self.share(called, count, found)

    def _boundary(self, computation: Computation, i: Instruction) -> float:
        """What an instruction reads and writes."""
        if "AllocateBuffer" in i.rest:
            return 0.0
        fused = self.program.get(i.called("calls") or "")
        if fused and any("AsyncCollectiveDone" in one.rest for one in fused.instructions.values()):
            return 0.0  # its start has counted it
        operands = [computation.instructions.get(name) for name in i.operands]
        aliased = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", i.rest)
        pairs = re.findall(r"\{(\d*)\}: \((\d+)", aliased[1]) if aliased else []
        skip_in, skip_out = {int(b) for _, b in pairs}, {int(a or 0) for a, _ in pairs}
        if i.opcode == "copy-start":  # the result is (copy, original, token)
            arrays = [*i.arrays[:1], *(a for one in operands if one for a in one.arrays)]
            return math.fsum(array.moved for array in arrays)
        if i.opcode in ("slice-start", "dynamic-slice-start"):  # (original, slice, token)
            source, part = i.arrays[:2]
            return part.moved + (part.padded if source.in_hbm else 0.0)
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            source = operands[0].arrays[0] if operands[0] else i.arrays[0]
            return i.arrays[0].moved + (i.arrays[0].padded if source.in_hbm else 0.0)
        if i.opcode == "dynamic-update-slice" and operands[1]:
            update = operands[1].arrays[0]
            return update.moved + (update.padded if i.arrays[0].in_hbm else 0.0)
        total = 0.0
        for position, operand in enumerate(operands):
            if operand is None or position in skip_in or operand.name in i.operands[:position]:
                continue
            whole = sum(array.moved for array in operand.arrays)
            total += min(whole, _read(self.program, fused, position)) if fused else whole
        written = _written(fused, len(i.arrays)) if fused else [math.inf] * len(i.arrays)
        for position, (array, size) in enumerate(zip(i.arrays, written, strict=True)):
            total += 0.0 if position in skip_out else min(array.moved, size)
        return total

    def rounds(self, computation: Computation, loop: Instruction) -> float:
        """How often a loop runs its body."""
        if noted := re.search(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)', loop.rest):
            return float(noted[1])
        found = _compared(self.program, loop)
        if found is None:
            self.unknown.add(loop.name)
            return float(self.trips)
        limit, index = found
        return float(max(limit - _initial(computation, loop, index), 0))

    def collect(self, name: str, times: float, home: str, whole: bool) -> None:
        """Note every collective of a computation that runs `times` times.

        An asynchronous one is told in several fusions with one channel. A sum that is scattered is
        a fusion of its own, and several that XLA made of one have its channel.
        """
        computation = self.program[name]
        starts = any("AsyncCollectiveStart" in i.rest for i in computation.instructions.values())
        for i in computation.instructions.values():
            kind = i.opcode.removesuffix("-start")
            if i.opcode == "while":
                body = i.called("body")
                assert body
                self.collect(body, times * self.rounds(computation, i), body, whole=True)
            elif i.opcode == "conditional":
                for branch in _branches(i):
                    self.collect(branch, times, branch, whole=True)
            elif kind in COLLECTIVES:
                channel = re.search(r"channel_id=(\d+)", i.rest)
                scattered = "all-reduce-scatter" in name
                key = (home, channel[1] if channel else i.name)
                kind, members, spans, size = _sent(computation, i, kind, scattered)
                piece = _Piece(kind, members, spans, times, size, whole, starts)
                self.found.setdefault(key, []).append(piece)
            elif i.opcode == "send" and (between := _between_slices(computation, i, times)):
                self.found.setdefault((home, i.name), []).append(between)
            elif i.opcode in ("fusion", "call", "async-start") and (
                called := i.called("calls|to_apply")
            ):
                told = i.opcode != "fusion" or "all-reduce-scatter" in called
                self.collect(called, times, home, whole and told)


def _branches(i: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
    named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", i.rest)
    return re.findall(r"%?([\w.\-]+)", listed[1]) if listed else named


def _sent(
    computation: Computation, i: Instruction, kind: str, scattered: bool
) -> tuple[str, int, int, float]:
    read = [computation.instructions[n] for n in i.operands if n in computation.instructions]
    size = math.fsum(array.bytes for one in read for array in one.arrays)
    kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
    members = group(i.rest)
    n = len(members)
    if kind == "all-gather":  # its operand is one part
        size *= n
    share = (n - 1) / n
    factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return kind, n, members[-1] - members[0] + 1, size * factor.get(kind, share)


def _between_slices(computation: Computation, i: Instruction, times: float) -> _Piece | None:
    """What a device sends to other slices: through the hosts, by the runtime of several slices."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)
    target = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x\{([\d,:]+)\}"', i.rest)
    operand = computation.instructions.get(i.operands[0])
    if not kind or not target or operand is None:
        return None
    slices, devices = (sum(map(_length, part.split(","))) for part in target.groups())
    size = math.fsum(array.bytes for array in operand.arrays)
    share = (slices - 1) / slices * (2 if kind[1] == "ALL_REDUCE" else 1)
    name = kind[1].lower().replace("_", "-")
    return _Piece(name, slices, (slices - 1) * devices + 1, times, size * share, True, True)


def _length(listed: str) -> int:
    """Of `3` 1, of `0:15` 16."""
    first, _, last = listed.partition(":")
    return int(last or first) - int(first) + 1


def group(attributes: str) -> list[int]:
    """The first group of a collective: devices by their position in the mesh.

    Three ways to write it: listed, as `[groups,members]<=[dims]T(order)`, or by axes of a mesh.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return sorted({int(pairs[1]), int(pairs[2])})
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return sorted(int(member) for member in listed[1].split(","))
    ways = r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if iota := re.search(ways, attributes):
        dims = [int(d) for d in iota[3].split(",")]
        order = [int(d) for d in iota[4].split(",")] if iota[4] else list(range(len(dims)))
        return sorted(_iota(dims, order, int(iota[2])))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = [(n, int(s)) for n, s in re.findall(r"'([^']+)'=(\d+)", mesh[1])]
        used = set(re.findall(r"'([^']+)'", mesh[2]))
        members, stride = [0], 1
        for name, size in reversed(sizes):
            if name in used:
                members = [m + stride * k for k in range(size) for m in members]
            stride *= size
        return sorted(members)
    return [0]


def _iota(dims: list[int], order: list[int], members: int) -> Iterator[int]:
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    turned = [dims[axis] for axis in order]
    for flat in range(members):
        position = 0
        for axis, side in zip(reversed(order), reversed(turned), strict=True):
            position += (flat % side) * strides[axis]
            flat //= side
        yield position


def _read(program: dict[str, Computation], fused: Computation, position: int) -> float:
    """Bytes that a fusion reads of its operand at `position`, at most."""
    values = fused.instructions.values()
    names = [i.name for i in values if i.opcode == "parameter" and i.text == str(position)]
    total = 0.0
    while names:
        name = names.pop()
        for user in (i for i in values if name in i.operands):
            inner = program.get(user.called("calls") or "")
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather"):
                total += user.arrays[0].padded
            elif user.opcode == "fusion" and inner:
                total += _read(program, inner, user.operands.index(name))
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return math.inf
    return total


def _written(fused: Computation, count: int) -> list[float]:
    """Bytes that a fusion writes of each of its results, at most: of an update in place, those."""
    roots = [fused.root.name] if fused.root.opcode != "tuple" else [*fused.root.operands]
    if len(roots) != count:
        return [math.inf] * count
    sizes = []
    for name in roots:
        root = fused.instructions.get(name)
        while root and root.opcode == "bitcast":
            root = fused.instructions.get(root.operands[0])
        update = root and root.opcode == "dynamic-update-slice" and root.operands[1]
        found = fused.instructions.get(update) if update else None
        sizes.append(found.arrays[0].padded if found else math.inf)
    return sizes


def _compared(program: dict[str, Computation], loop: Instruction) -> tuple[int, int] | None:
    """What a loop's condition compares its counter with, and the counter's place in the state."""
    computation = program[loop.called("condition") or ""]
    limits, index = [], 0
    for one in (computation, *_fusions(program, computation)):
        for i in one.instructions.values():
            if i.opcode == "compare" and "direction=LT" not in i.rest:
                return None
            if i.opcode == "constant" and i.text.isdigit():
                limits.append(int(i.text))
            if i.opcode == "get-tuple-element" and (at := re.search(r"index=(\d+)", i.rest)):
                index = int(at[1])
    states = [i for i in computation.instructions.values() if i.opcode == "get-tuple-element"]
    return (limits[0], index) if len(limits) == 1 and len(states) == 1 else None


def _fusions(program: dict[str, Computation], computation: Computation) -> list[Computation]:
    named = [i.called("calls") for i in computation.instructions.values()]
    return [program[name] for name in named if name]


def _initial(computation: Computation, loop: Instruction, index: int) -> int:
    """Where the counter begins, if that is a constant; else 0, as JAX's loops do."""
    state = computation.instructions.get(loop.operands[0])
    if state is None or state.opcode != "tuple" or index >= len(state.operands):
        return 0
    first = computation.instructions.get(state.operands[index])
    while first and first.opcode in ("copy", "bitcast") and first.operands:
        first = computation.instructions.get(first.operands[0])
    return int(first.text) if first and first.opcode == "constant" and first.text.isdigit() else 0
