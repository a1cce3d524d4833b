"""What `benchmarks.reliability` found, kept a row at a time, and the table of it."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.reliability_faults import Counted

RECORDS = Path(__file__).with_name("reliability.json")
HEAD = "| fault | survived means | survived | 95 % interval | of what |\n|---|---|---|---|---|"
HOW = "| fault | command, after `python -m benchmarks.reliability` | s each | date | machine |\n"
HOW += "|---|---|---|---|---|"
Z95 = 1.959964


def wilson(good: int, tried: int) -> tuple[float, float]:
    """The interval of a share (Wilson 1927), at 95 %."""
    share, spread = good / tried, Z95**2 / tried
    middle = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / tried + spread / (4 * tried)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def record(found: Counted | str, seconds: float, command: str) -> dict[str, Any]:
    """What is kept of a row: what was found (or said of the cost), and how."""
    what = {"said": found} if isinstance(found, str) else found._asdict()
    machine = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}), jax {metadata.version('jax')}, "
        f"orbax-checkpoint {metadata.version('orbax-checkpoint')}"
    )
    took = {"took_s": round(seconds, 1), "date": time.strftime("%Y-%m-%d")}
    return {**what, **took, "command": command, "machine": machine}


def read() -> dict[str, dict[str, Any]]:
    """The newest record of every row, by its name."""
    return json.loads(RECORDS.read_text()) if RECORDS.is_file() else {}


def write(records: dict[str, dict[str, Any]]) -> None:
    """Keep them; rows that are not among them stay as they were."""
    RECORDS.write_text(json.dumps({**read(), **records}, indent=1) + "\n")


def line(fault: str, means: str, found: Counted | None) -> str:
    """A row of the table."""
    if found is None:
        return f"| {fault} | {means} | not run | | |"
    digits = max(1, len(str(found.tried)) - 3)  # of many injections the interval is narrow
    low, high = (f"{100 * share:.{digits}f}" for share in wilson(found.survived, found.tried))
    count = f"{found.survived:,} of {found.tried:,}"
    shown = count if found.survived == found.tried else f"**{count}**"
    return f"| {fault} | {means} | {shown} | {low} to {high} % | {found.remark} |"


def counted(kept: dict[str, Any]) -> Counted:
    """The counts of a record."""
    return Counted(kept["survived"], kept["tried"], kept["remark"], tuple(kept["seconds"]))


def how(fault: str, kept: dict[str, Any]) -> str:
    """A row of the table of how rows were found."""
    tried = kept.get("tried")
    each = f"{kept['took_s'] / tried:.3g}" if tried and kept["took_s"] is not None else ""
    return f"| {fault} | `{kept['command']}` | {each} | {kept['date']} | {kept['machine']} |"
