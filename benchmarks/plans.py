"""The plan of every experiment's full preset on machines of 8 to 512 chips, as a table.

    python -m benchmarks.plans [--write] [--experiment NAME] [--topology NAME] [--seconds N]

Each row is one `genaug plan` of the train step, compiled by libtpu; nothing is run. A batch that
the chips cannot share is planned at the next multiple of them, and the row says so: the preset's
own would be refused. Rows are kept as JSON in the cache (`--cache`, by default in genaug's data
folder), so that a stopped run goes on; `--again` makes them anew, after a change of a program.
`--seconds` starts none later; `--write` puts all rows that there are into PLANS.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.scaling import EXPERIMENTS, RESULTS, experiment, spec_of
from genaug import config, plan, topologies
from genaug.bundle import spec_to_json
from genaug.files import read_json, write_json
from genaug.plan_table import gib, seconds
from genaug.types import UserError

PLANS = RESULTS.with_name("PLANS.md")
NAMES = (
    *("gpt2", "folder_dit", "cifar10_ddpm", "cifar10_dcgan", "mnist_ddpm", "mnist_dcgan"),
    *("mnist_cvae", "mnist_rare", "mnist_vae", "pydoc_lm"),
)
TOPOLOGIES = (
    *("v5e-256", "v5e-64", "v5e-8", "2xv5e-256", "v4-16", "v4-128", "v4-512", "v5p-16"),
    *("v5p-128", "v5p-512", "v6e-8", "v6e-64", "v6e-256"),
)


def _libtpu() -> str:
    try:
        return metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        return "absent"


def row_of(name: str, topology: str) -> dict[str, Any]:
    """One plan, or why there is none."""
    devices = topologies.find(topology).num_devices
    asked = experiment(name).train.batch_size
    batch = -(-asked // devices) * devices
    fields = [] if batch == asked else ["--train.batch-size", str(batch)]
    file = str(EXPERIMENTS / f"{name}.py")
    preset = config.override(config.load(file), fields)
    (one,) = plan.plan(
        file, preset, spec_to_json(spec_of(name)), topology, fields=fields, sampler=False
    )
    if isinstance(one, str):
        return {"error": one, "batch": batch, "asked": asked}
    return {**plan.to_json(one), "batch": batch, "asked": asked}


def line_of(name: str, topology: str, row: dict[str, Any]) -> str:
    """A row as the table has it."""
    batch = str(row["batch"]) + (f" (of {row['asked']})" if row["batch"] != row["asked"] else "")
    start = f"| {name} | {topology} | {batch} |"
    if "error" in row:
        return f"{start} {row['error']} | | | | | |"
    memory = f"{gib(row['peak'])} of {gib(row['available'])}"
    if not row["fits"]:
        return f"{start} **no**: {memory} | | | | | |"
    kinds = ", ".join(
        f"{sum(c['times'] for c in row['step']['collectives'] if c['kind'] == kind):g} {kind}"
        for kind in sorted({c["kind"] for c in row["step"]["collectives"]})
    )
    return (
        f"{start} {memory} | {row['step']['hbm_bytes'] / 1e9:.3g} | {kinds} | "
        f"{seconds(row['step_seconds'])} | {row['bound']} | {100 * row['mfu']:.1f} |"
    )


def header(num_rows: int, missing: Sequence[str]) -> list[str]:
    """The table's beginning. missing: rows that are not in it."""
    absent = f" Not planned yet: {', '.join(missing)}." if missing else ""
    return [
        "# Plans",
        "",
        f"`python -m benchmarks.plans --write`: {num_rows} of {num_rows + len(missing)} rows, "
        f"compiled on {os.cpu_count()} cores ({platform.machine()}) by libtpu {_libtpu()}, jax "
        f"{metadata.version('jax')}, at the least effort. Nothing was run on a TPU: the figures "
        "are properties of compiled programs, and a step takes longer than its bound. Each is the "
        "preset as it is, data parallel; `(of N)`: the chips cannot share the preset's batch of N. "
        "`mnist_rare_ddpm` and `mnist_rare_quick` train `mnist_ddpm`'s net in its batches; the "
        f"shapes of `image_folder` and `spoken_digits` are those of their data.{absent}",
        "",
        "| experiment | machine | batch | peak memory | traffic, GB | collectives | step, at least "
        "| bound by | MFU, at most, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]


def main() -> None:
    """Plan what the cache lacks, print, and write on request."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--write", action="store_true", help="write PLANS.md")
    arguments.add_argument("--experiment", action="append", help="by default all")
    arguments.add_argument("--topology", action="append", help="by default all")
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="start none after")
    arguments.add_argument("--again", action="store_true", help="make rows that are there too")
    home = Path(os.environ.get("GENAUG_DATA_DIR", "~/.cache/genaug")).expanduser()
    arguments.add_argument("--cache", type=Path, default=home / "plans")
    options = arguments.parse_args()
    began, lines, missing = time.monotonic(), [], []
    for name in options.experiment or NAMES:
        for topology in options.topology or TOPOLOGIES:
            path = options.cache / f"{name}-{topology}-{_libtpu()}.json"
            if (options.again or not path.is_file()) and time.monotonic() - began < options.seconds:
                try:
                    row = row_of(name, topology)
                except UserError as error:
                    print(f"{name} on {topology} was not planned: {error}", flush=True)
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, row)
            if path.is_file():
                lines.append(line_of(name, topology, read_json(path)))
                print(lines[-1], flush=True)
            else:
                missing.append(f"{name} on {topology}")
    if options.write:
        text = [*header(len(lines), missing), *lines]
        PLANS.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
