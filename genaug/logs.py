"""What a run says while it works: a progress bar or lines, metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from genaug.files import write_atomically

LINE_EVERY_SECONDS = 10.0
"""How often a run says where it is when its output is no terminal."""

# C0 and C1 control characters: a class name may not move the cursor or colour the screen.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """Text from data, safe to print to a terminal."""
    return _CONTROL.sub("�", text)


def plain_lines(text: str) -> str:
    """`plain`, but for its line breaks."""
    return "\n".join(plain(line) for line in text.split("\n"))


def make_console(quiet: bool = False) -> Console:
    """Where a run prints; nothing that comes from data is read as markup."""
    return Console(markup=False, emoji=False, highlight=False, quiet=quiet, soft_wrap=True)


class MetricLog:
    """metrics.jsonl and TensorBoard events, from update `start` on.

    Lines of updates from `start` on, left by a run that was stopped, are dropped first. With `due`
    what came due at `start` is done again: of that update the first line stays, training's own.
    """

    def __init__(self, directory: Path, start: int, due: bool = False):
        from tensorboardX import SummaryWriter

        self._path = directory / "metrics.jsonl"
        lines = [line for line in read_metrics(directory) if line["step"] <= start]
        if due:
            last = [line for line in lines if line["step"] == start][:1]
            lines = [line for line in lines if line["step"] < start] + last
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one update."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the events."""
        self._events.close()


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, up to one that was cut off or is damaged."""
    path = directory / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines


class Bar:
    """Progress of one stage: `advance` to a count, with a few words beside it."""

    def __init__(self, console: Console, title: str, total: int, unit: str):
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._began, self._first, self._said = time.monotonic(), 0, time.monotonic()
        self._progress: Progress | None = None
        if console.is_terminal:
            # One column of text: rich would shorten several to fit, and the figures go first.
            text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
            self._progress = Progress(BarColumn(5), text, console=console, transient=True)
            self._task = self._progress.add_task(title, total=total)
            self._progress.start()

    def start_at(self, count: int) -> None:
        """Count from here: what was done in an earlier run has no rate."""
        self._first, self._began = count, time.monotonic()
        if self._progress:
            self._progress.update(self._task, completed=count)

    def advance(self, count: int, words: str = "") -> None:
        """Say that `count` of the total are done."""
        elapsed = max(time.monotonic() - self._began, 1e-6)
        per_second = (count - self._first) / elapsed
        left = f" ETA {(self._total - count) / per_second:.0f} s" if per_second else ""
        rate = f"{per_second:.3g} {self._unit}/s{left}"
        line = f"{self._title} {count}/{self._total} {rate} {words}"
        if self._progress:
            self._progress.update(self._task, completed=count, description=line)
        elif time.monotonic() - self._said > LINE_EVERY_SECONDS:
            self._said = time.monotonic()
            self._console.print(line)

    def stop(self) -> None:
        """Take the bar off the screen."""
        if self._progress:
            self._progress.stop()


@contextmanager
def bar(console: Console, title: str, total: int, unit: str) -> Iterator[Bar]:
    """A `Bar` that is taken off the screen however the stage ends."""
    made = Bar(console, title, total, unit)
    try:
        yield made
    finally:
        made.stop()


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Keep a second run out of a run folder, for as long as this process lives."""
    import fcntl

    from genaug.types import UserError

    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / ".lock").open("a+")  # what another has written stays
    except OSError as error:
        raise UserError(
            f"{directory} cannot be written to ({error.strerror}): use another --run-dir."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            who = f" ({plain(text)})" if (text := file.read(200).strip()) else ""
            raise UserError(
                f"Another run{who} is writing to {directory}: wait for it, or use another "
                "--run-dir."
            ) from None
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {platform.node()} since {since}")
        file.flush()
        yield
