"""What `genaug launch` does: from options to a text that is printed, written or run."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genaug import config, topologies, train
from genaug import plan as planning
from genaug.bundle import spec_to_json
from genaug.config import Experiment
from genaug.data.spec import spec_of
from genaug.devices import check_elsewhere
from genaug.files import write_atomically
from genaug.launch import CLOUD, Launch, Target, render
from genaug.launch.options import COMMON, FLAGS, IN_A_CLOUD, target_of, words
from genaug.launch.options import flag as flag_of
from genaug.plan_table import gib, seconds
from genaug.topologies import Topology
from genaug.types import UserError

INSTALL = "genaug[demo,text,tpu]"
MOST_BYTES = 2**16
"""Of an experiment's file: it travels in a word of a command."""
_NOT_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def launch(options: argparse.Namespace, fields: Sequence[str]) -> int:
    """Print, write or run what starts an experiment; the exit code."""
    target = target_of(options)
    if options.experiment is None:
        raise UserError(f"Name an experiment file: genaug launch EXPERIMENT --to {target}.")
    experiment = config.override(config.load(options.experiment), list(fields))
    train.check(experiment.train)
    made = _launch(options, fields, experiment, target)
    _check_share(made, experiment)
    header, fits = _header(options, fields, experiment, made)
    text = render(dataclasses.replace(made, header=tuple(header)))
    if options.apply and not fits:
        raise UserError("The plan does not fit: see it without --apply, or launch with --no-plan.")
    if options.out:
        write_atomically(options.out, text)
    if options.apply:
        return _apply(made, text, options.out)
    print(options.out if options.out else text, end="\n" if options.out else "")
    return 0


def _launch(
    options: argparse.Namespace, fields: Sequence[str], experiment: Experiment, target: Target
) -> Launch:
    """The options, checked one by one."""
    name = options.name
    if name is None:
        name = re.sub(r"[^a-z0-9]+", "-", experiment.name.lower()).strip("-") or "genaug"
        name = name if name[0].isalpha() else f"genaug-{name}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise UserError(
            f"--name {name}: a job's name has lowercase letters, digits and dashes, starts with a "
            "letter, does not end with a dash, and has 40 characters at most."
        )
    source = Path(options.experiment).read_text(encoding="utf-8").rstrip() + "\n"
    if len(source.encode()) > MOST_BYTES:
        raise UserError(
            f"{options.experiment} has more than {MOST_BYTES} bytes: put data elsewhere."
        )
    values = {name: getattr(options, name) for name in (*FLAGS, *COMMON)}
    texts = [(flag_of(flag), value) for flag, value in values.items()]
    texts += [(field.split("=")[0], field) for field in fields]
    texts += [("The experiment's file", options.experiment), ("Its name", experiment.name)]
    for what, value in texts:
        _check_words(what, value)
    for flag, least in (("max_restarts", 0), ("nodes", 1), ("gpus_per_node", 1), ("port", 1)):
        if values[flag] is not None and values[flag] < least:
            raise UserError(f"{flag_of(flag)} is {values[flag]}; it must be at least {least}.")
    given: dict[str, Any] = {
        flag: values[flag]
        for flag in ("max_restarts", "image", "queue", "service_account", "project", "zone",
                     "nodes", "gpus_per_node", "partition", "account", "time", "genaug")
        if values[flag] is not None
    }  # fmt: skip
    made = Launch(
        target=target,
        name=name,
        source=source,
        command=options.command_there,
        fields=tuple(fields),
        run_dir=_run_dir(options, target),
        header=(),
        topology=_topology(options, target),
        spot=options.spot,
        install=options.install or (INSTALL if target == "tpu-vm" else None),
        hosts=tuple(options.host or ()),
        port=options.port or 8476,
        **given,
    )
    _check_target(made)
    return made


def _check_words(what: str, value: Any) -> None:
    """Refuse what no shell and no comment has as a part of one line."""
    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, str) and _NOT_IN_A_LINE.search(word):
            raise UserError(f"{what} has a line's end or another control character: leave it out.")


def _run_dir(options: argparse.Namespace, target: Target) -> str:
    """The run folder; one that only one machine sees is refused."""
    path = options.run_dir
    if not path:
        example = "gs://BUCKET/runs/NAME" if target in IN_A_CLOUD else "/shared/runs/NAME"
        raise UserError(f"--run-dir is missing: the folder that all machines share ({example}).")
    if target in IN_A_CLOUD:
        if not re.fullmatch(r"gs://[a-z0-9][-a-z0-9_.]+[a-z0-9](/(?!\.\.?(/|$))[^/]+)+", path):
            raise UserError(
                f"--run-dir {path}: the machines share no disk, but a bucket: gs://BUCKET/runs/NAME."
            )
        return str(path)
    alone = set(options.host or ()) == {"localhost"} or (
        target == "slurm" and options.nodes is None
    )
    if path.startswith("gs://"):
        raise UserError(f"--run-dir {path}: give the path under which all hosts have it mounted.")
    if not os.path.isabs(path) and not alone:
        raise UserError(
            f"--run-dir {path} is another folder on every host: give the absolute path of one that "
            "all of them share."
        )
    return os.path.normpath(path)


def _topology(options: argparse.Namespace, target: Target) -> Topology | None:
    if target not in IN_A_CLOUD:
        return None
    if options.topology is None:
        raise UserError(f"--to {target} needs --topology NAME. Known: {topologies.known()}.")
    place = topologies.find(options.topology)
    if place.chips % place.chips_a_host:
        raise UserError(
            f"--topology {place.name}: hosts have 4 chips; {place.chips} are no multiple."
        )
    if target == "tpu-vm" and (not place.is_sold or CLOUD[place.chip.name].vm is None):
        raise UserError(f"--topology {place.name} is not sold as Cloud TPU VMs: use --to gke.")
    return place


def _check_target(made: Launch) -> None:
    """What one kind of machine cannot do without."""
    if made.target == "gke" and not made.image:
        raise UserError(
            "--to gke needs --image NAME: a container with genaug (or Python: --install)."
        )
    if made.target == "tpu-vm" and not made.zone:
        raise UserError("--to tpu-vm needs --zone NAME: where the machines are.")
    for flag in ("partition", "account", "time"):
        value = getattr(made, flag)
        if value and not re.fullmatch(r"[\w.:,@+-]+", value):
            raise UserError(
                f"--{flag} {value!r}: letters, digits and .:,@+-_ are what SLURM reads."
            )
    if made.target == "hosts":
        _check_hosts(made)


def _check_hosts(made: Launch) -> None:
    if not made.hosts:
        raise UserError("--to hosts needs --host NAME, once a host: user@machine, or localhost.")
    if made.port > 65535:
        raise UserError(f"--port is {made.port}; it must be at most 65535.")
    for host in made.hosts:
        if not re.fullmatch(r"([\w.][\w.-]*@)?[A-Za-z0-9][\w.-]*", host):
            raise UserError(f"--host {host!r} is no host's name: give machine or user@machine.")
    if made.hosts[0] == "localhost" and set(made.hosts) != {"localhost"}:
        raise UserError(
            "--host localhost comes first, and the others look for it by that name: give the name "
            "of this machine, or put it last."
        )


def _check_share(made: Launch, experiment: Experiment) -> None:
    """Refuse a mesh or batch that the devices cannot share, where their number is known."""
    if made.topology:
        name, slices, devices = (
            made.topology.name,
            made.topology.num_slices,
            made.topology.num_devices,
        )
    elif made.gpus_per_node:
        name, slices, devices = "the job", 1, made.nodes * made.gpus_per_node
    else:
        return
    batch, parts = experiment.train.batch_size, experiment.train.accumulate
    check_elsewhere(experiment.mesh, devices, slices, name, batch, parts)


def _header(
    options: argparse.Namespace, fields: Sequence[str], experiment: Experiment, made: Launch
) -> tuple[list[str], bool]:
    """The comment at the top, and whether the experiment fits as far as that is known."""
    place = made.topology
    if place is None:
        where = _count(len(made.hosts), "host") if made.hosts else _count(made.nodes, "node")
        if made.gpus_per_node:
            where += f", {_count(made.gpus_per_node, 'GPU')} each"
        lines, fits = ["No plan was made: genaug plan knows the memory and speed of TPUs."], True
    else:
        chips, hosts = place.chips * place.num_slices, place.hosts * place.num_slices
        slices = f"{place.num_slices} slices of " if place.num_slices > 1 else ""
        shape = "x".join(map(str, place.shape))
        where = (
            f"{_count(chips, place.chip.name + ' chip')} ({slices}{shape}), {_count(hosts, 'host')}"
        )
        lines, fits = _plan(options, fields, experiment)
    command = shlex.join(words(options, fields))
    return [f"{experiment.name} on {where}. Written by", "", f"  {command}", "", *lines], fits


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number > 1 else ''}"


def _plan(
    options: argparse.Namespace, fields: Sequence[str], experiment: Experiment
) -> tuple[list[str], bool]:
    """What `genaug plan` says of it, or why it says nothing and how to ask."""
    sizes = {"num_classes": options.num_classes, "vocab_size": options.vocab_size}
    known = [w for name, n in sizes.items() if n is not None for w in (flag_of(name), str(n))]
    ask = ["genaug", "plan", options.experiment, "--topology", options.topology, *known, *fields]
    try:
        if options.no_plan:
            raise UserError("--no-plan was given")
        planning.require_libtpu()
        spec = spec_of(experiment.data, **sizes)
    except UserError as error:
        reason = str(error).split("\n")[0].rstrip(".")
        return [f"No plan was made: {reason}. To make one:", f"  {shlex.join(ask)}"], True
    (one,) = planning.plan(
        options.experiment,
        experiment,
        spec_to_json(spec),
        options.topology,
        fields=fields,
        sampler=False,
    )
    if not isinstance(one, planning.Plan):
        raise UserError(one)
    return plan_lines(one), one.fits


def plan_lines(one: planning.Plan) -> list[str]:
    """A plan in a few lines."""
    memory = f"Plan, compiled for {one.topology} and not measured: {gib(one.peak)} of "
    memory += f"{gib(one.available)} of a chip's memory"
    if not one.fits:
        return [f"{memory}: IT DOES NOT FIT (genaug plan says what to change)."]
    return [
        f"{memory}; an update of {one.batch_size}",
        f"takes {seconds(one.step_seconds)} at least, bound by {one.bound}: "
        f"an MFU of {100 * one.mfu:.1f} % at most.",
    ]


def _apply(made: Launch, text: str, out: Path | None) -> int:
    """Run it, and say what is run."""
    tools: dict[Target, list[str]] = {
        "gke": ["kubectl", "apply", "-f"],
        "tpu-vm": ["bash"],
        "slurm": ["sbatch"],
        "hosts": ["bash"],
    }
    ssh = made.target == "hosts" and set(made.hosts) != {"localhost"}
    needed = [tools[made.target][0], *["gcloud"] * (made.target == "tpu-vm"), *["ssh"] * ssh]
    for tool in needed:
        if shutil.which(tool) is None:
            raise UserError(f"--apply needs {tool}, which is not installed here: without --apply "
                            "the text is printed, to be run elsewhere.")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = out or Path(folder) / f"{made.name}.{'yaml' if made.target == 'gke' else 'sh'}"
        if out is None:
            path.write_text(text, encoding="utf-8")
        words = [*tools[made.target], str(path)]
        print(f"running: {shlex.join(words)}", file=sys.stderr, flush=True)
        with subprocess.Popen(words) as process:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue  # it was told too, and ends when all that it started has
