"""Several ways to one result, timed in turn in one process.

Every round runs every arm once, each round beginning with another one. A ratio is an arm's time
over genaug's in the same round (above 1: genaug is faster). An arm's results are compared with
genaug's before anything is timed; one that cannot be made, or differs, is a row that says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

TOLERANCE = 1e-4
OURS = "genaug"
_LONG_S, _CLOSE, _ROUNDS = 0.3, 1.2, 4
_PAUSE_S = 0.005  # so that one arm's threads have stopped spinning when the next arm begins


class Made(NamedTuple):
    """An arm that is ready.

    call:       does the work once and blocks.
    difference: how far its results are from genaug's; None where its net is another.
    remark:     what the table says of it.
    """

    call: Callable[[], object]
    difference: float | None
    remark: str = ""


class Arm(NamedTuple):
    """One way to the result.

    name: "PyTorch, eager"; arms of one peer share what stands before the comma.
    make: compiles and compares, and raises whatever it raises.
    torch: whether the number of PyTorch's threads is to be chosen for it.
    """

    name: str
    make: Callable[[], Made]
    torch: bool = False


def quickest(
    calls: Sequence[Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> int:
    """Which of some calls is the fastest, by the best of a few rounds.

    Of calls that take long one round is enough, or two if they are close.
    """
    best = [float("inf")] * len(calls)
    for number in range(_ROUNDS if len(calls) > 1 else 0):
        for i, call in enumerate(calls):
            began = clock()
            call()
            best[i] = min(best[i], clock() - began)
        first, second = sorted(best)[:2]
        if first >= _LONG_S and (number or second >= _CLOSE * first):
            break
    return min(range(len(calls)), key=best.__getitem__)


def left_out() -> Made:
    """In the place of an arm's `make`: it takes longer than a quick run has."""
    raise LeftOut("takes long; in the full run alone")


class LeftOut(Exception):
    """An arm that a quick run leaves out."""


class Race(NamedTuple):
    """genaug's call and its peers'.

    work:    what a call does, in the case's unit.
    profile: where the time of genaug's call goes, as a table.
    steps:   updates (or samples of one program) in a call, what `flops` and `bytes` are of.
    """

    work: float
    ours: Callable[[], object]
    arms: Sequence[Arm]
    profile: Callable[[], str]
    steps: int = 1
    flops: float = 0.0
    bytes: float = 0.0
    remark: str = ""


class Case(NamedTuple):
    """A race before it is made.

    must:    of every peer, the least ratio that is wanted.
    of_peak: the least share of the machine's matrix products a second that is wanted of genaug.
    """

    name: str
    part: str
    title: str
    unit: str
    must: Mapping[str, float]
    make: Callable[[], Race]
    of_peak: float = 0.0


def run(case: Case, rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Make, compare, time: a record that JSON can hold."""
    record: dict[str, Any] = {
        "name": case.name,
        "part": case.part,
        "title": case.title,
        "unit": case.unit,
        "must": dict(case.must),
        "of_peak": case.of_peak,
    }
    with _silent():
        try:
            race = case.make()
            race.ours()
        except Exception as error:  # Of any library; the other cases are still run.
            return {**record, "failed": said(error)}
        arms: dict[str, dict[str, Any]] = {OURS: {}}
        calls: dict[str, tuple[Callable[[], object], int]] = {OURS: (race.ours, 0)}
        for arm in race.arms:
            arms[arm.name] = _made(arm, calls, clock)
        seconds = timed(calls, rounds, clock)
        try:
            profile = race.profile()
        except Exception as error:  # What was measured is kept all the same.
            profile = said(error)
    for name, found in seconds.items():
        arms[name]["seconds"] = found
    return {
        **record,
        "work": race.work,
        "steps": race.steps,
        "flops": race.flops,
        "bytes": race.bytes,
        "remark": race.remark,
        "arms": arms,
        "profile": profile,
    }


def _made(
    arm: Arm, calls: dict[str, tuple[Callable[[], object], int]], clock: Callable[[], float]
) -> dict[str, Any]:
    """An arm's record; its call is put among the others if it is one to be timed."""
    began = clock()
    try:
        call, difference, remark = arm.make()
        if difference is not None and not difference <= TOLERANCE:  # NaN is one too.
            return {"difference": difference, "failed": f"differs by {difference:.1e}"}
        call()
        threads = fastest_threads(call, clock) if arm.torch else 0
    except Exception as error:  # Of any library; the other arms are still run.
        return {"failed": said(error)}
    calls[arm.name] = call, threads
    record: dict[str, Any] = {"ready_s": clock() - began}
    if difference is not None:
        record["difference"] = difference
    if threads:
        record["threads"] = threads
    return {**record, "remark": remark} if remark else record


def said(error: Exception) -> str:
    """An error in one line that fits a table."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not here"
    first = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
    return first[:160]


def timed(
    calls: Mapping[str, tuple[Callable[[], object], int]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, a round each; who begins moves on by one from round to round."""
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            call, threads = calls[name]
            if threads:
                set_threads(threads)
            time.sleep(_PAUSE_S)
            began = clock()
            call()
            seconds[name].append(clock() - began)
    return seconds


def thread_counts() -> list[int]:
    """What `fastest_threads` chooses from: one, and one per core."""
    return sorted({1, len(os.sched_getaffinity(0))})


def fastest_threads(
    call: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> int:
    """One thread of PyTorch's or one per core, whichever is faster for this call."""

    def on(count: int) -> object:
        set_threads(count)
        return call()

    counts = thread_counts()
    return counts[quickest([partial(on, count) for count in counts], clock)]


def set_threads(count: int) -> None:
    """The number of PyTorch's threads."""
    import torch

    torch.set_num_threads(count)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Peers' own; what they print would break the table.
        yield


def ratios(record: Mapping[str, Any], name: str) -> list[float]:
    """An arm's time over genaug's, round by round."""
    ours, theirs = (record["arms"][key]["seconds"] for key in (OURS, name))
    return [their / own for own, their in zip(ours, theirs, strict=True)]


def best(record: Mapping[str, Any], peer: str) -> str | None:
    """The fastest of a peer's arms that were timed."""
    arms = record.get("arms", {})
    timed = [n for n in arms if n.split(",")[0] == peer and arms[n].get("seconds")]
    return min(timed, key=lambda name: statistics.median(arms[name]["seconds"]), default=None)


def peers(record: Mapping[str, Any]) -> list[str]:
    """The peers of a record, in order."""
    return list(dict.fromkeys(name.split(",")[0] for name in record.get("arms", {})
                              if name != OURS))  # fmt: skip
