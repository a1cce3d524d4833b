"""The options of `genaug launch`: which belongs to what is launched on, and how they are typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import get_args

from genaug.config import nearest_name
from genaug.launch import Target
from genaug.types import UserError

IN_A_CLOUD = ("gke", "tpu-vm")
ON_ONES_OWN = ("slurm", "hosts")
FLAGS: dict[str, tuple[str, ...]] = {
    "topology": IN_A_CLOUD,
    "spot": IN_A_CLOUD,
    "install": IN_A_CLOUD,
    "no_plan": IN_A_CLOUD,
    "num_classes": IN_A_CLOUD,
    "vocab_size": IN_A_CLOUD,
    "image": ("gke",),
    "queue": ("gke",),
    "service_account": ("gke",),
    "project": ("tpu-vm",),
    "zone": ("tpu-vm",),
    "nodes": ("slurm",),
    "gpus_per_node": ("slurm",),
    "partition": ("slurm",),
    "account": ("slurm",),
    "time": ("slurm",),
    "host": ("hosts",),
    "port": ("hosts",),
    "genaug": ON_ONES_OWN,
}
"""Which options go with what is launched on."""
COMMON = ("command_there", "run_dir", "name", "max_restarts")


def target_of(options: argparse.Namespace) -> Target:
    """What is launched on; refuses options of something else."""
    known = get_args(Target)
    if options.to not in known:
        near = nearest_name(options.to, list(known)) if options.to else ""
        raise UserError(f"--to must be one of {', '.join(known)}.{near}")
    target: Target = options.to
    for name, targets in FLAGS.items():
        if target not in targets and _is_given(getattr(options, name)):
            own = ", ".join(flag(other) for other, of in FLAGS.items() if target in of)
            raise UserError(
                f"{flag(name)} is for --to {' and '.join(targets)}; --to {target} takes {own}."
            )
    return target


def _is_given(value: object) -> bool:
    return value is not None and value is not False  # 0 is


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--command" if name == "command_there" else f"--{name.replace('_', '-')}"


def words(options: argparse.Namespace, fields: Sequence[str]) -> list[str]:
    """The command that renders the same again."""
    found = ["genaug", "launch", options.experiment, "--to", options.to]
    for name in (*COMMON, *FLAGS):
        value = getattr(options, name)
        if not _is_given(value) or (name, value) == ("command_there", "run"):
            continue
        for one in value if isinstance(value, list) else [value]:
            found += [flag(name)] if one is True else [flag(name), str(one)]
    return [*found, *fields]
