"""Several processes that run one program, as on a pod: they meet, agree, and one of them writes.

Every process takes every step of a run on the same values; only the work of the devices is shared
out (`parallel`). The first writes the run folder. The others write what it writes into a copy of
their own and throw that away, so each finds on its own disk what it left there, whatever the
shared disk is slow to show. The exception are checkpoints: each process writes its part of those.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np

from genaug.files import differences
from genaug.types import UserError

ALONE = 5
"""Exit code of a process that the others did not meet; starting all of them again may help."""

HEARTBEAT_S = 30
"""How long a process may be silent before the others take it for lost: JAX's own is 100 s, and what
starts them again should have done so within a minute."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where processes meet. Without a coordinator the cluster's environment says it."""

    coordinator: str | None = None  # HOST:PORT of process 0
    num_processes: int | None = None
    process_id: int | None = None
    timeout_s: int = 300  # how long to wait for the others

    def check(self) -> None:
        """Refuse what says only half, or cannot be."""
        given = (self.coordinator, self.num_processes, self.process_id)
        if any(value is None for value in given) and any(value is not None for value in given):
            raise UserError(
                "--coordinator, --num-processes and --process-id say together who is who: give "
                "all three, or --distributed alone where the cluster says it (Cloud TPU, GKE, "
                "SLURM)."
            )
        if self.timeout_s < 1:
            raise UserError(f"--join-timeout is {self.timeout_s}; it must be at least 1 second.")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise UserError(
                f"--coordinator is {self.coordinator!r}: write HOST:PORT of process 0, as "
                "10.0.0.2:8476."
            )
        if self.num_processes < 1 or not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process-id is {self.process_id} of {self.num_processes}: it must be from 0 to "
                "--num-processes less 1."
            )


@contextmanager
def joined(meeting: Meeting) -> Iterator[None]:
    """Be one of the processes while the body runs; call before JAX is first used.

    A UserError is raised on all (`together`), so all end alike. What stops this process alone ends
    it at once, without a farewell to the others: they notice, and end too instead of waiting.

    Raises:
        UserError: of a meeting that cannot be, or an environment that does not say where it is.
    """
    meeting.check()
    _join(meeting)
    try:
        yield
        barrier("end")
    except UserError as error:
        # Should it be this process's alone after all, the others are not waited for.
        code = error.exit_code
        _after(10, lambda: os._exit(code))
        raise
    except KeyboardInterrupt:
        _leave(f"{_who()}: stopped; the same command goes on from here.", 130)
    except Exception:
        _leave(f"{traceback.format_exc()}{_who()}: failed; the other processes stop too.", 1)


def _join(meeting: Meeting) -> None:
    where = meeting.coordinator or "the address that the cluster names"

    def give_up() -> None:
        of = "" if meeting.process_id is None else f"process {meeting.process_id}: "
        _leave(
            f"genaug: {of}waited {meeting.timeout_s} s for the other processes at {where}, and not "
            "all came. Is every one started, with the same coordinator and number, and can it "
            "reach that address? (--join-timeout waits longer.)",
            ALONE,
        )

    # JAX's own time limit ends the process with a stack trace of C++.
    watch = _after(meeting.timeout_s, give_up)
    try:
        jax.distributed.initialize(
            meeting.coordinator,
            meeting.num_processes,
            meeting.process_id,
            cluster_detection_method="deactivate" if meeting.coordinator else None,
            initialization_timeout=meeting.timeout_s + 600,
            shutdown_timeout_seconds=30,
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes cannot meet ({str(error).splitlines()[0]}): where no cluster says who "
            "is who, give --coordinator HOST:PORT, --num-processes and --process-id."
        ) from error
    finally:
        watch.cancel()


def _after(seconds: float, act: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer


def _who() -> str:
    return f"genaug, process {jax.process_index()} of {jax.process_count()}"


def _leave(words: str, code: int) -> NoReturn:
    print(words, file=sys.stderr, flush=True)
    os._exit(code)


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here."""
    gathered(name)


def must_stop(count: int) -> bool:
    """Whether a machine of one of several processes is to be taken away (SIGTERM).

    All ask again and again, with a `count` that grows by 1 each time, and are told at the same. A
    process by itself is told otherwise (`signals`).
    """
    if jax.process_count() == 1:
        return False
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return reached_preemption_sync_point(count)


def gathered(text: str) -> list[str]:
    """What every process says here, in their order; all must ask."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    said = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(process_allgather(np.asarray(len(said))))
    padded = np.zeros(max(int(sizes.max()), 1), np.uint8)
    padded[: len(said)] = said
    rows = np.asarray(process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def agree(what: str, value: Any) -> None:
    """Refuse to go on where processes would do different things: `value` is JSON, alike on all."""
    said = [json.loads(text) for text in gathered(json.dumps(value))]
    for i, other in enumerate(said):
        if changed := differences(said[0], other):
            raise UserError(
                f"Process {i} has {what} than process 0 ({'; '.join(changed[:5])}): start all "
                "processes with the same command, versions and data."
            )


def together(act: Callable[[], T]) -> T:
    """`act()` on every process. A UserError on one of them is raised on all, naming it.

    For what may fail on one machine alone, as reading files: the others would wait for ever.
    """
    failed: UserError | None = None
    try:
        result = act()
    except UserError as error:
        failed = error
    said = gathered("" if failed is None else f"{failed.exit_code} {failed}")
    if failed:
        raise failed
    for i, text in enumerate(said):
        if text:
            code, _, words = text.partition(" ")
            other = UserError(f"Process {i} stopped: {words}")
            other.exit_code = int(code)
            raise other
    return result


def token() -> str:
    """A name that no other file has, the same on all processes."""
    return gathered(uuid.uuid4().hex)[0]


def check_shared(directory: Path) -> None:
    """Refuse a folder of which some process does not see what the first writes there.

    A shared disk may show a new file late: each looks for a minute.
    """
    path = directory / f".seen-{token()}"

    def touch() -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise UserError(f"{directory} cannot be written to ({error.strerror}).") from None

    together(touch if is_first() else lambda: None)

    def look() -> None:
        deadline = time.monotonic() + 60
        while not path.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"{directory} of {platform.node()} is not the folder that process 0 writes to: "
                    "use a --run-dir on a disk that all machines share."
                )
            time.sleep(0.1)

    try:
        together(look)
    finally:
        if is_first():
            path.unlink(missing_ok=True)


@contextmanager
def own_copy(shared: Path) -> Iterator[Path]:
    """Where this process writes a run: the folder itself on the first, a copy on the others."""
    if jax.process_count() == 1:
        yield shared
        return
    check_shared(shared)
    if is_first():
        barrier("copied")
        yield shared
        return
    with TemporaryDirectory(prefix="genaug-") as scratch:
        copy = Path(scratch) / shared.name
        left_out = shutil.ignore_patterns("checkpoints", "tensorboard", ".lock", ".seen-*")
        if shared.is_dir():
            shutil.copytree(shared, copy, ignore=left_out)
        barrier("copied")
        yield copy
