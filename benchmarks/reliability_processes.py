"""The faults of `benchmarks.reliability` that end processes: killed, told to leave, fewer or more.

Each function takes how often, and a seed; what is random is drawn from that. Injections go
on beside one another, one a core: what is told to leave has to do so with others at work.
"""

from __future__ import annotations

import collections
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.reliability_faults import Counted, listed
from genaug import checkpoint
from genaug.logs import read_metrics

ROOT = Path(__file__).parents[1]
EXPERIMENT = Path(__file__).with_name("reliability_run.py")


def _environment(scratch: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "GENAUG_CPU_DEVICES": "2",
        "GENAUG_DATA_DIR": str(scratch / "data"),
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _start(
    command: str, run: Path, scratch: Path, *more: str, devices: int = 2
) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "genaug.cli", command, str(EXPERIMENT), "--run-dir", str(run)]
    return subprocess.Popen(
        [*words, "--quiet", *more],
        env={**_environment(scratch), "GENAUG_CPU_DEVICES": str(devices)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _results(run: Path) -> dict[str, Any]:
    """What must be the same, bit for bit, however often a run was stopped."""
    (*_, last) = checkpoint.steps(run / "checkpoints")
    mark = checkpoint.read_mark(run / "checkpoints", last)
    assert mark is not None
    names = ("metrics.jsonl", "results.json", "synthetic.npz", "export/weights.safetensors")
    files = {name: (run / name).read_bytes() for name in names if (run / name).is_file()}
    return {"step": last, "arrays": mark["arrays"], **files}


def _where(run: Path) -> str:
    """What a run was doing, by what it has left."""
    saves = run / "checkpoints"
    if not (run / "config.json").is_file():
        return "start"
    if (run / "synthetic").is_dir():
        return "evaluate and report"
    if (run / "study").is_dir():
        return "baselines and draw"
    unmarked = [p for p in saves.glob("[0-9]*") if p.is_dir()
                and not (saves / f"{p.name}.json").is_file()]  # fmt: skip
    return "save" if unmarked else "train" if (run / "metrics.jsonl").is_file() else "compile"


@contextlib.contextmanager
def _unbroken(command: str) -> Iterator[tuple[Path, dict[str, Any], float]]:
    """A scratch folder, what an unbroken run finds, and how long it takes with warm caches."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for i in range(2):
            began = time.monotonic()
            child = _start(command, scratch / f"whole_{i}", scratch)
            words = child.communicate()[1]
            if child.returncode:
                raise RuntimeError(words)
        first, second = (_results(scratch / f"whole_{i}") for i in range(2))
        if first != second:
            raise RuntimeError("two unbroken runs differ")
        yield scratch, first, time.monotonic() - began


class _Outcome(NamedTuple):
    """What came of one injection: whether all was as promised, what was going on, how long it
    took to react."""

    survived: bool
    places: tuple[str, ...] = ()
    wait: float = 0.0


def _outcomes(
    inject: Callable[[int, random.Random], _Outcome], count: int, seed: int
) -> tuple[int, str, tuple[float, ...]]:
    """As many at a time as there are cores, each with random numbers of its own: how many were
    survived, in what, and the waits."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda i: inject(i, random.Random(f"{seed}/{i}")), range(count)))
    places = collections.Counter(place for one in found for place in one.places)
    waits = tuple(one.wait for one in found)
    return sum(one.survived for one in found), listed(places), waits


def killed(command: str, count: int, seed: int) -> Counted:
    """kill -9 at a random moment, then the same command again, to the same bits."""
    with _unbroken(command) as (scratch, wanted, seconds):

        def inject(i: int, draw: random.Random) -> _Outcome:
            run, places = scratch / f"run_{i}", []
            for _ in range(draw.choice((1, 1, 2))):
                child = _start(command, run, scratch)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(draw.uniform(0.1, 1.0) * seconds)
                child.kill()
                child.communicate()
                places.append(_where(run))
            child = _start(command, run, scratch)
            child.communicate()
            survived = child.returncode == 0 and _results(run) == wanted
            shutil.rmtree(run)
            return _Outcome(survived, tuple(places))

        survived, places, _ = _outcomes(inject, count, seed)
    return Counted(survived, count, f"killed in: {places}")


def told(command: str, count: int, seed: int) -> Counted:
    """SIGTERM or Ctrl-C at a random moment after the start: the code, the time, and the rest."""
    with _unbroken(command) as (scratch, wanted, seconds):

        def inject(i: int, draw: random.Random) -> _Outcome:
            run, number = scratch / f"run_{i}", draw.choice((signal.SIGTERM, signal.SIGINT))
            child = _start(command, run, scratch)
            while child.poll() is None and not (run / "config.json").is_file():
                time.sleep(0.01)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(draw.uniform(0.0, 0.7) * seconds)
            place = _where(run)
            child.send_signal(number)
            began = time.monotonic()
            child.communicate()
            wait = time.monotonic() - began
            # A run that ends by itself in this moment ends well.
            good = child.returncode in (128 + number, 0) and wait <= 10
            child = _start(command, run, scratch)
            child.communicate()
            survived = good and child.returncode == 0 and _results(run) == wanted
            shutil.rmtree(run)
            return _Outcome(survived, (place,), wait)

        survived, places, waits = _outcomes(inject, count, seed)
    remark = f"told in: {places}; left within {max(waits):.1f} s at most"
    return Counted(survived, count, remark, waits)


# --- several processes


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _together(run: Path, scratch: Path, count: int, *more: str) -> list[int]:
    """Exit codes of a run by this many processes, on two devices in all."""
    where = ("--coordinator", f"127.0.0.1:{_free_port()}", "--num-processes", str(count))
    alone = count == 1
    found = [
        _start("train", run, scratch, *more, *(() if alone else (*where, "--process-id", str(i))),
               devices=2 // count)
        for i in range(count)
    ]  # fmt: skip
    for one in found:
        one.communicate()
    return [one.returncode for one in found]


def handed_on(count: int, seed: int) -> Counted:
    """A third of the updates in one process, a third in two, the rest in one again."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)

        def inject(i: int, _: random.Random) -> _Outcome:
            run, whole = scratch / f"run_{i}", scratch / f"whole_{i}"
            seeded = ("--seed", str(seed + i))
            updates = ("--train.num-steps", "120", *seeded)
            good = _together(whole, scratch, 1, *updates) == [0]
            for number, to in enumerate((40, 80, 120)):
                more = ("--train.num-steps", str(to), *seeded)
                changed = ("--allow-change", "train.num-steps") if number else ()
                processes = (1, 2, 1)[number]
                good &= _together(run, scratch, processes, *more, *changed) == [0] * processes
            # Restoring compares digests and the next batch; what differs is set aside or refused.
            good &= not (run / "checkpoints" / "damaged").exists()
            good &= [line["step"] for line in read_metrics(run) if "loss" in line] == [
                line["step"] for line in read_metrics(whole) if "loss" in line
            ]
            same = good and _results(run)["arrays"] == _results(whole)["arrays"]
            for folder in (run, whole):
                shutil.rmtree(folder, ignore_errors=True)
            return _Outcome(good, ("same",) * same)

        survived, same, _ = _outcomes(inject, count, seed)
    number = same.removeprefix("same ") or "0"
    return Counted(survived, count, f"the bits of a run in one process in {number}")


def _launch(run: Path, scratch: Path) -> subprocess.Popen[str]:
    """Two processes on this machine, started again when one is lost."""
    program = scratch / "genaug"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m genaug.cli "$@"\n')
    program.chmod(0o755)
    words = [sys.executable, "-m", "genaug.cli", "launch", str(EXPERIMENT), "--to", "hosts"]
    words += ["--apply", "--host", "localhost", "--host", "localhost", "--port", str(_free_port())]
    words += ["--genaug", str(program), "--command", "train", "--run-dir", str(run)]
    return subprocess.Popen(
        words,
        env={**_environment(scratch), "GENAUG_CPU_DEVICES": "1", "PAUSE": "5", "GRACE": "5"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=scratch,
    )


def _members(run: Path) -> dict[int, int]:
    """The processes of a launched run: number of each by its place."""
    found = {}
    asked = re.compile(rf"--process-id ([01]) --run-dir {re.escape(str(run))} ")
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if words.startswith(sys.executable) and (match := asked.search(words)):
                found[int(match[1])] = int(path.parent.name)
    return found


def _until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for it; how long that took, or infinity."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return float("inf")
        time.sleep(0.05)
    return time.monotonic() - began


def lost(count: int, seed: int) -> Counted:
    """kill -9 or SIGSTOP of one of two processes: both are started again, to the same bits."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        whole = _launch(scratch / "whole", scratch)
        if whole.wait():
            raise RuntimeError("the unbroken launch did not end well")
        wanted = _results(scratch / "whole")

        def inject(i: int, draw: random.Random) -> _Outcome:
            run, number = scratch / f"run_{i}", (signal.SIGKILL, signal.SIGSTOP)[i % 2]
            launcher = _launch(run, scratch)
            _until((run / "checkpoints" / "20.json").exists, 300)
            time.sleep(draw.uniform(0.0, 1.0))
            before = _members(run)
            os.kill(before[draw.randrange(2)], number)

            def again() -> bool:
                now = _members(run)
                return len(now) == 2 and not {*now.values()} & {*before.values()}

            wait = _until(again, 120)
            try:
                code = launcher.wait(600)
            finally:
                launcher.terminate()
            survived = code == 0 and wait <= 60 and _results(run) == wanted
            shutil.rmtree(run)
            return _Outcome(survived, ("killed" if number == signal.SIGKILL else "stopped",), wait)

        survived, places, waits = _outcomes(inject, count, seed)
    return Counted(
        survived, count, f"{places}; relaunched within {max(waits):.0f} s at most", waits
    )
