"""The commands.

Exit codes: 0 done · 2 a mistake in the command, config or run folder · 3 data missing or bad ·
4 training cannot go on · 5 other processes did not come · 130 stopped by Ctrl-C · 143 stopped by
SIGTERM, as of a machine that is taken away. After the last three the same command goes on.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from genaug.arguments import parsed, without_supervision

if TYPE_CHECKING:
    from rich.console import Console

# Nothing heavier than argparse is imported at the top: --help answers at once.


def program() -> int:
    """`main` as a process of its own.

    The command is over then and its exit code is settled: what this process is told while Python
    takes itself down, which with JAX is most of a second, has nothing left to save or to change.
    """
    try:
        return main()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options, rest = parsed(arguments)
    options.arguments = arguments
    from genaug.types import UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        commands = {
            "run": _run,
            "train": _run,
            "sample": _sample,
            "export": _export,
            "evaluate": _evaluate,
            "bench": _bench,
            "plan": _plan,
            "profile": _profile,
            "launch": _launch,
            "report": _report,
            "verify": _verify,
            "data": _data,
            "tokenizer": _tokenizer,
            "doctor": _doctor,
        }
        return commands[options.command](options, rest)
    except UserError as error:
        from genaug.logs import plain

        print(f"genaug: {plain(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_REFUSES or error.filename is None:
            raise
        from genaug.logs import plain

        words = f"{error.filename}: {error.strerror}"
        print(f"genaug: {plain(words)}: {DISK_REFUSES[error.errno]}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngenaug: stopped; the same command goes on from here.", file=sys.stderr)
        return 130


ELSEWHERE = "name another file or folder"
DISK_REFUSES = {
    errno.ENOTDIR: ELSEWHERE,
    errno.EISDIR: ELSEWHERE,
    errno.EEXIST: ELSEWHERE,
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.EACCES: "give access to it, or name another",
    errno.EPERM: "give access to it, or name another",
    errno.EROFS: "give write access, or name another",
    errno.ENOSPC: "make room, or name another",
    errno.EDQUOT: "make room, or name another",
    errno.EIO: "look after the disk, or name another",
}
"""What mends a file that cannot be read or written, wherever that comes up."""


def _start(options: argparse.Namespace) -> Console:
    """The devices, before JAX starts; the console."""
    from genaug.compile_cache import NAME, keep_private
    from genaug.devices import keep_freed_memory, use_cpu_cores_as_devices
    from genaug.logs import make_console

    keep_private(os.environ.get(NAME))
    use_cpu_cores_as_devices()
    keep_freed_memory()
    return make_console(options.quiet)


@contextmanager
def _started(options: argparse.Namespace) -> Iterator[Console]:
    """`_start`, for a command that several processes may run: the first speaks."""
    from genaug import processes
    from genaug.logs import make_console

    console = _start(options)
    meeting = processes.Meeting(
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
        timeout_s=options.join_timeout,
    )
    if not options.distributed and meeting == processes.Meeting(timeout_s=meeting.timeout_s):
        yield console
        return
    with processes.joined(meeting):
        yield console if processes.is_first() else make_console(quiet=True)


def _run(options: argparse.Namespace, fields: list[str]) -> int:
    if options.supervise:
        return _supervised(options)
    with _started(options) as console, _stoppable():
        from genaug.run_command import run

        run(options, fields, console)
    return 0


def _supervised(options: argparse.Namespace) -> int:
    from genaug.supervise import Patience, supervise
    from genaug.types import UserError

    if options.run_dir is None:
        raise UserError("--supervise looks at what the run writes: name its folder, --run-dir DIR.")
    if not options.stall_after > 0:
        raise UserError(f"--stall-after is {options.stall_after}; it must be above 0.")
    command = [sys.executable, "-m", "genaug.cli", *without_supervision(options.arguments)]
    return supervise(command, options.run_dir, Patience(stall_s=options.stall_after))


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C end what runs in the body, with exit codes of their own."""
    from genaug import signals

    with signals.heeded(interruptible=True) as told:
        try:
            yield
        except KeyboardInterrupt:
            if not told.received:
                raise
            print("\ngenaug: stopped; the same command goes on from here.", file=sys.stderr)
            sys.exit(128 + told.received)


def _sample(options: argparse.Namespace, conditions: list[str]) -> int:
    with _started(options) as console, _stoppable():
        from genaug.sample_command import sample

        console.print(f"{sample(options, conditions, console)}")
    return 0


def _export(options: argparse.Namespace, _: list[str]) -> int:
    console = _start(options)
    from genaug.export import export

    console.print(export(options.source, options.out, options.card))
    return 0


def _evaluate(options: argparse.Namespace, _: list[str]) -> int:
    console = _start(options)
    from genaug.evaluate_command import changes, evaluate
    from genaug.evaluation.results import to_json
    from genaug.files import write_json
    from genaug.table import audit_remarks, audit_table

    results = evaluate(options)
    moved = changes(results, options.against) if options.against else None
    console.print(audit_table(results, moved))
    for remark in audit_remarks(results):
        console.print(f"! {remark}")
    if options.json:
        write_json(options.json, to_json(results))
    return 0


def _bench(options: argparse.Namespace, _: list[str]) -> int:
    console = _start(options)
    from genaug.bench import bench

    for text in bench(options):
        console.print(text)
    return 0


def _plan(options: argparse.Namespace, fields: list[str]) -> int:
    from genaug.logs import make_console
    from genaug.plan_command import plan

    console = make_console(options.quiet)
    for text in plan(options, fields):
        console.print(text)
    return 0


def _profile(options: argparse.Namespace, fields: list[str]) -> int:
    console = _start(options)
    from genaug.profiling import profile_command

    for text in profile_command(options, fields):
        console.print(text)
    return 0


def _launch(options: argparse.Namespace, fields: list[str]) -> int:
    from genaug.launch.command import launch

    return launch(options, fields)


def _report(options: argparse.Namespace, _: list[str]) -> int:
    from genaug import report, report_grid
    from genaug.files import read_json

    results = options.run / "results.json"
    of_grid = results.is_file() and "cells" in read_json(results)
    print((report_grid if of_grid else report).write_report(options.run))
    return 0


def _verify(options: argparse.Namespace, _: list[str]) -> int:
    console = _start(options)
    from genaug.logs import plain
    from genaug.types import DataError
    from genaug.verify import verify

    found = verify(options.run)
    for one in found:
        console.print(f"{plain(one.what)}: {'damaged' if one.faults else 'as it was written'}")
    for one in found:
        for fault in one.faults:
            print(plain(f"{one.what}: {fault}"), file=sys.stderr)
    return DataError.exit_code if any(one.faults for one in found) else 0


def _data(options: argparse.Namespace, _: list[str]) -> int:
    from genaug.data.listing import listed

    print(listed())
    return 0


def _tokenizer(options: argparse.Namespace, _: list[str]) -> int:
    from genaug.data.text import TextData
    from genaug.data.text_dataset import train_tokenizer

    data = TextData(
        source=options.source, text_column=options.text_column, separator=options.separator
    )
    made = train_tokenizer(data, options.vocab_size, options.out)
    print(f"{made.num_text} ids in {options.out}; use it as --data.tokenizer {options.out}")
    return 0


def _doctor(options: argparse.Namespace, _: list[str]) -> int:
    with _started(options) as console:
        from genaug.doctor import doctor

        console.print(doctor(options.run_dir))
    return 0


if __name__ == "__main__":
    sys.exit(program())
