"""How fast genaug is, against its peers and against the machine.

    pip install -e ".[bench,twin]" && python -m benchmarks --quick
    python -m benchmarks --compare benchmarks/history/A.json benchmarks/history/B.json

Every run is kept as a JSON file in `--history`; `--write` puts its table into RESULTS.md and draws
its ratios (throughput.svg); `--table A --write` does so for a run that was kept. `--compare` says
which ratios have changed by more than 10 % and beyond their noise. What a row is and what its ratio
means stands in the table itself; the peers need the extras, and a peer that is not there is a row
that says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import history
from genaug.devices import keep_freed_memory, use_cpu_cores_as_devices
from genaug.types import UserError

RESULTS = Path(__file__).with_name("RESULTS.md")
HISTORY = Path(__file__).with_name("history")
ROUNDS, QUICK_ROUNDS = 11, 5
PARTS = ("training", "generation", "study", "generators", "inputs", "starts")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    made.add_argument("--quick", action="store_true", help="fewer cases and rounds: 10 minutes")
    made.add_argument("--only", action="append", metavar="NAME",
                      help=f"a part ({', '.join(PARTS)}) or a case; more than once")  # fmt: skip
    made.add_argument("--rounds", type=int,
                      help=f"of every race (default {ROUNDS}, quick {QUICK_ROUNDS})")  # fmt: skip
    made.add_argument("--history", type=Path, default=HISTORY, metavar="DIR",
                      help=f"where runs are kept (default {HISTORY.name}/ here)")  # fmt: skip
    made.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and its picture")
    made.add_argument("--note", default="", help="a sentence for the table, of this run")
    made.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"),
                      help="two runs that were kept: which ratios changed")  # fmt: skip
    made.add_argument("--table", type=Path, metavar="A",
                      help="the table of a run that was kept; nothing is run")  # fmt: skip
    return made


def chosen(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    """The names to run; UserError for one that there is none of."""
    if not only:
        return list(names)
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: there are {', '.join(names)}.")
    return [name for name in names if name in only]


def measured(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run what was chosen; `say` gets every line as soon as it is known."""
    from benchmarks import around, generation, machine, race, training
    from benchmarks import throughput_table as tables

    cases = [*training.cases(options.quick), *generation.cases(options.quick)]
    names = [*PARTS, *(case.name for case in cases)]
    wanted = chosen(names, options.only)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks", *(["--quick"] if options.quick else []),
                             *(f"--only {name}" for name in options.only or [])]),
        "note": options.note,
        "rounds": rounds,
        "machine": machine.fingerprint(),
        "limits": machine.limits(),
        "cases": [],
    }  # fmt: skip
    for case in cases:
        if case.part in wanted or case.name in wanted:
            results["cases"].append(race.run(case, rounds))
            for line in list(tables.races(results["cases"][-1:]))[2:-1]:
                say(line)
    again = machine.limits()  # Others may have been at work: what was seen once is possible.
    results["limits"] = {k: max(v, again[k]) for k, v in results["limits"].items()}
    for part, of in (
        ("generators", generation.throughput),
        ("inputs", around.inputs),
        ("starts", around.starts),
    ):
        if part in wanted:
            results[part] = []
            for row in of(options.quick):
                results[part].append(row)
                say(f"{part}: {row}")
    return results


def main() -> None:
    """Measure, keep, print, and write on request; or compare."""
    made = parser()
    options = made.parse_args()
    if options.rounds is not None and options.rounds < 2:
        made.error("--rounds must be at least 2: one has no spread")
    try:
        if options.compare:
            print("\n".join(history.compare(*map(history.read, options.compare))))
            return
        if options.table:
            results = history.read(options.table)
        else:
            use_cpu_cores_as_devices()
            keep_freed_memory()
            results = measured(options, lambda line: print(line, flush=True))
            print(f"kept: {history.write(options.history, results)}")
    except UserError as error:
        made.error(str(error))
    from benchmarks.throughput_plot import picture
    from benchmarks.throughput_table import PICTURE, document

    text = "\n".join(document(results)).rstrip() + "\n"
    print(f"\n{text}")
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")
        RESULTS.with_name(PICTURE).write_text(picture(results), encoding="utf-8")


if __name__ == "__main__":
    main()
