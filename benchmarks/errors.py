"""The catalogue of errors: bad inputs, each given to genaug and its answer looked at.

    python -m benchmarks.errors [--only WORD] [--write]

An input is answered when the exit code is the one that is wanted, one line names the thing and says
what mends it, no stack of calls is shown, and every file is as it was. `--write` puts what was said
into ERRORS.md. Most are given to the command line in this process, the rest to one of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import jax

ROOT = Path(__file__).parents[1]
EXPERIMENT = Path(__file__).with_name("reliability_run.py")
RESULTS = Path(__file__).with_name("ERRORS.md")
ABOUT = """# What genaug says to a bad input

Written by `python -m benchmarks.errors --write`: every input below was given to the program, and
this is what it printed, with paths shortened. {good} of {all} were answered with the exit code that
is wanted and one line, without a stack of calls, and with nothing written.
"""
LONGEST = 400
"""Characters of a message that the table shows."""
HEAD = "| what is wrong | exit code | what genaug says |\n|---|---|---|"


class Place(NamedTuple):
    """Where a bad input is made: a folder of its own, and what it may copy from."""

    folder: Path
    experiment: Path = EXPERIMENT
    finished: Path = Path("finished")  # a run that went to its end


class Case(NamedTuple):
    """A bad input, and what is to be answered.

    about: the part of the catalogue.
    wrong: what is wrong, in words.
    make:  makes it, and returns the arguments of `genaug`.
    words: that stand in the answer.
    environment: what is set beside; such a case, or one that is `fresh`, gets its own process.
    """

    about: str
    wrong: str
    make: Callable[[Place], Sequence[Any]]
    code: int
    words: tuple[str, ...]
    environment: Mapping[str, str] = MappingProxyType({})
    fresh: bool = False


class Answer(NamedTuple):
    """What the program did: exit code, what it said, and which files are not as they were."""

    code: int
    said: str
    changed: tuple[str, ...]


def ask(case: Case, place: Place) -> Answer:
    """Make the bad input, give it to genaug, look around."""
    words = [str(one) for one in case.make(place)]
    before = _contents(place.folder)
    run = _in_a_process if case.fresh or case.environment else _here
    code, said = run(words, place, case.environment)
    after = _contents(place.folder)
    changed = sorted(n for n in {*before, *after} if before.get(n) != after.get(n))
    return Answer(code, said, tuple(changed))


def _here(words: list[str], place: Place, environment: Mapping[str, str]) -> tuple[int, str]:
    from genaug import cli

    error = io.StringIO()
    with (
        contextlib.chdir(place.folder),
        contextlib.redirect_stderr(error),
        contextlib.redirect_stdout(io.StringIO()),
        # JAX has been started, so its devices are there already.
        mock.patch("genaug.devices.use_cpu_cores_as_devices", return_value=None),
    ):
        try:
            code = cli.main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except Exception:
            code = 1
            traceback.print_exc()
    return code, error.getvalue()


def _in_a_process(
    words: list[str], place: Place, environment: Mapping[str, str]
) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "genaug.cli", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment},
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stderr


def _contents(folder: Path) -> dict[str, str]:
    """Every file by its digest and every folder, but for what Python compiles."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        name = str(path.relative_to(folder))
        plain = path.is_file() and name != "run/.lock"  # who had it last says nothing
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else ""
    return found


def lines(said: str) -> list[str]:
    """What was said, without argparse's usage."""
    return [line for line in said.splitlines() if line.strip() and not re.match("usage:| ", line)]


def failings(case: Case, answer: Answer) -> list[str]:
    """What of an answer is not as it is to be; nothing if all is."""
    said = lines(answer.said)
    missing = [word for word in case.words if word not in answer.said]
    return [
        *([f"exit code {answer.code}, not {case.code}"] if answer.code != case.code else []),
        *(["a stack of calls"] if "Traceback" in answer.said else []),
        *([f"{len(said)} lines"] if len(said) != 1 else []),
        *([f"does not say {missing}"] if missing else []),
        *([f"written: {', '.join(answer.changed[:5])}"] if answer.changed else []),
    ]


@contextlib.contextmanager
def finished_run() -> Iterator[Path]:
    """A run that went to its end, in seconds; its cache of data is that of the cases."""
    with tempfile.TemporaryDirectory() as name:
        short = ("--train.num-steps", "20", "--train.evaluate-every", "20")
        with mock.patch.dict(os.environ, {"GENAUG_DATA_DIR": f"{name}/data"}):
            words = ["run", str(EXPERIMENT), "--run-dir", f"{name}/run", "--quiet", *short]
            code, said = _here(words, Place(Path(name)), {})
            if code:
                raise RuntimeError(said)
            yield Path(name, "run")


def asked(cases: Sequence[Case]) -> Iterator[tuple[Case, Answer, list[str]]]:
    """Every case in a folder of its own: its answer, paths shortened, and what of it fails."""
    with finished_run() as finished, tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "here"
        for case in cases:
            folder.mkdir()
            answer = ask(case, Place(folder, EXPERIMENT, finished))
            failed = failings(case, answer)
            said = answer.said
            for long, short in ((folder, ""), (finished, "finished"), (ROOT, "")):
                said = said.replace(f"{long}/", f"{short}/" if short else "")
                said = said.replace(str(long), short or ".")
            yield case, answer._replace(said=said), failed
            shutil.rmtree(folder)


def row(case: Case, answer: Answer, failed: list[str]) -> str:
    """A line of the table."""
    said = " ".join(lines(answer.said)).replace("|", "\\|").replace("<", "&lt;")
    said = said if len(said) <= LONGEST else said[:LONGEST] + " ..."
    shown = said + (f" **{'; '.join(failed)}**" if failed else "")
    return f"| {case.wrong} | {answer.code} | {shown} |"


def all_cases() -> list[Case]:
    """The catalogue."""
    from benchmarks import errors_data, errors_runs, errors_sounds, errors_values

    return [
        *errors_values.CASES,
        *errors_data.CASES,
        *errors_sounds.CASES,
        *errors_runs.CASES,
    ]


def main(arguments: list[str] | None = None) -> int:
    """Ask, print, and write; 1 if an answer is not as it is to be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", metavar="WORD", help="cases that this is a part of")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    jax.config.update("jax_num_cpu_devices", 8)
    cases = [c for c in all_cases() if options.only in f"{c.about}: {c.wrong}"]
    table: list[str] = []
    about, bad = "", 0
    for case, answer, failed in asked(cases):
        if case.about != about:
            about = case.about
            table += ["", f"## {about[:1].upper()}{about[1:]}", "", *HEAD.splitlines()]
        table.append(row(case, answer, failed))
        bad += bool(failed)
        print(table[-1], flush=True)
        if any("stack" in one or "lines" in one for one in failed):
            print(answer.said)
    print(f"{len(cases) - bad} of {len(cases)} answered")
    if options.write:
        about = ABOUT.format(good=len(cases) - bad, all=len(cases))
        RESULTS.write_text("\n".join([about.rstrip(), *table, ""]))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
