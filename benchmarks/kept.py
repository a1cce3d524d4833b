"""Lines of a table that separate runs measured: kept in a JSON file, each with where it is from."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from genaug.files import read_json, write_json
from genaug.types import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a line was measured by, when, with what and on what."""

    command: str
    date: str
    commit: str
    machine: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One line, as the table shows it."""

    text: str
    origin: Origin


def origin(command: str, machine: str) -> Origin:
    """Of lines that are measured now, by this commit."""
    root = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=False
        )
        return found.stdout.strip()

    # What a run writes itself is no other program.
    changed = git("status", "--porcelain", "--", "genaug", "benchmarks/*.py", "tests/evaluation")
    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return Origin(
        command=command,
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        commit=f"{commit}, changed" if changed else commit,
        machine=machine,
    )


def read(path: Path) -> dict[str, Line]:
    """The lines by their names; none where there is no file.

    Raises:
        DataError: a file of something else.
    """
    if not path.is_file():
        return {}
    try:
        return {
            name: Line(one["text"], Origin(**one["origin"]))
            for name, one in read_json(path).items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} holds no lines of a table ({error}): remove it") from error


def write(path: Path, lines: Mapping[str, Line]) -> None:
    """Keep the lines."""
    write_json(path, {name: dataclasses.asdict(line) for name, line in lines.items()})


def origins(numbered: Iterable[tuple[int, Line]]) -> Iterator[str]:
    """Where numbered lines are from: a sentence for each run."""
    runs: dict[Origin, list[int]] = {}
    for number, line in numbered:
        runs.setdefault(line.origin, []).append(number)
    for about, numbers in runs.items():
        yield (
            f"- {spans(numbers)}: `{about.command}`, {about.date}, commit {about.commit}. "
            f"{about.machine}."
        )


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers in words: "1-3, 5"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
