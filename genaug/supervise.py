"""A run that is started again when it dies: `genaug train EXPERIMENT --run-dir DIR --supervise`.

The supervisor is a process of its own that does no work. It starts the same command without
`--supervise`, and looks at the run folder. What the command ends with decides:

    0, 2, 3, 4, 130     done, a mistake, bad data, no hope, the user: the supervisor ends alike
    143                 as above if it was the supervisor that was told; else it is started again
    all else            it died: it is started again, after a pause that doubles

A command that writes nothing for long enough has stalled, and is stopped and started again. Before
one that died by a signal without anything new is started again, JAX's compile cache is emptied, or
left out where that cannot be: a damaged entry would kill it for ever. Where the time went stands in
`goodput.json`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genaug.compile_cache import NAME, wipe
from genaug.files import write_json

FINAL = (0, 2, 3, 4, 130)
LEAVE_S = 15.0
"""How long a command that stalled may take to leave before it is killed."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait, and how often."""

    stall_s: float = 1800.0  # without a file written, compiling included
    max_restarts: int = 10  # in a row, without anything new that a next launch builds on
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    look_every_s: float = 0.5


@dataclass(kw_only=True)
class Launch:
    """One start of the command. Seconds of the wall clock."""

    exit_code: int | None = None
    stalled: bool = False
    seconds: float = 0.0
    starting_s: float = 0.0  # until something is written: imports, data, compiling, restoring
    lost_s: float = 0.0  # after the last thing that is kept: done again by the next
    waited_s: float = 0.0  # before it


@dataclass
class Ledger:
    """Where the time of all launches went."""

    path: Path
    launches: list[Launch] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Totals, the share of the time that made progress, and every launch."""
        total = {
            name: sum(getattr(one, name) for one in self.launches)
            for name in ("seconds", "starting_s", "lost_s", "waited_s")
        }
        wall = total["seconds"] + total["waited_s"]
        progress = total["seconds"] - total["starting_s"] - total["lost_s"]
        return {
            "goodput": progress / wall if wall else 0.0,
            "wall_s": wall,
            "progress_s": progress,
            "starting_s": total["starting_s"],
            "lost_s": total["lost_s"],
            "waited_s": total["waited_s"],
            "launches": [asdict(one) for one in self.launches],
        }

    def write(self) -> None:
        """Into the run folder, once it is one: a folder that holds anything else is no run's."""
        if (self.path.parent / "config.json").is_file():
            write_json(self.path, self.summary())


def supervise(command: Sequence[str], run: Path, patience: Patience) -> int:
    """Run a command to its end, through crashes; returns the exit code to end with."""
    told: list[int] = []
    child: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: Any) -> None:
        told.append(number)
        if child and child[-1].poll() is None:
            child[-1].send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    ledger = Ledger(run / "goodput.json")
    environment, fruitless, pause = dict(os.environ), 0, 0.0
    try:
        while True:
            waited = _wait(pause, told)
            if told:
                return 128 + told[0]
            ledger.launches.append(Launch(waited_s=waited))
            seen, kept = _newest(run), _newest(run, kept=True)
            child.append(subprocess.Popen(command, env=environment))
            code = _watched(child[-1], run, patience, ledger.launches[-1], seen)
            ledger.write()
            if code in FINAL or told:
                return code if code >= 0 else 128 - code
            progress = _newest(run, kept=True) > kept
            fruitless = 0 if progress else fruitless + 1
            if fruitless > patience.max_restarts:
                print(f"genaug: it died {fruitless} times without anything new in {run}.",
                      file=sys.stderr)  # fmt: skip
                return code if code >= 0 else 128 - code
            if code < 0 and not progress and not wipe(environment.get(NAME)):
                environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
            pause = min(patience.first_pause_s * 2**fruitless, patience.longest_pause_s)
            how = "stalled" if ledger.launches[-1].stalled else f"ended with {code}"
            print(f"genaug: it {how}; started again in {pause:.0f} s.", file=sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watched(
    child: subprocess.Popen[bytes], run: Path, patience: Patience, launch: Launch, seen: float
) -> int:
    """Wait for the child; stop it when it writes nothing for too long. Fills in the launch."""
    began = changed = time.time()
    first: float | None = None
    while child.poll() is None:
        newest = _newest(run)
        if newest > max(seen, changed):
            first, changed = first or newest, newest
        if time.time() - changed > patience.stall_s:
            launch.stalled = True
            _stop(child)
            break
        try:
            child.wait(patience.look_every_s)
        except subprocess.TimeoutExpired:
            continue
    ended = time.time()
    launch.exit_code, launch.seconds = child.wait(), ended - began
    if first is None and _newest(run) > max(seen, began):  # all within one look
        first = _newest(run)
    launch.starting_s = min(max((first or ended) - began, 0.0), launch.seconds)
    if launch.exit_code:
        kept = max(_newest(run, kept=True), began + launch.starting_s)
        launch.lost_s = min(max(ended - kept, 0.0), launch.seconds - launch.starting_s)
    return launch.exit_code if not launch.stalled else -signal.SIGKILL


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _wait(seconds: float, told: list[int]) -> float:
    """Wait, or less when a signal comes; how long it was."""
    began = time.time()
    while not told and time.time() - began < seconds:
        time.sleep(min(0.1, seconds))
    return time.time() - began


NOT_PROGRESS = {"goodput.json", ".lock", "config.json", "data.json", "environment.json"}
NOT_KEPT = {"metrics.jsonl"}
"""What is written as training goes on, and written again by what goes on from a checkpoint."""


def _newest(run: Path, kept: bool = False) -> float:
    """When a file of a run was last written; with `kept` of those that a next launch builds on."""
    newest = 0.0
    for folder, folders, files in os.walk(run):
        if kept and "tensorboard" in folders:
            folders.remove("tensorboard")
        for name in files:
            if name in NOT_PROGRESS or (kept and name in NOT_KEPT):
                continue
            try:
                newest = max(newest, os.stat(os.path.join(folder, name)).st_mtime)
            except OSError:  # removed meanwhile
                continue
    return newest
