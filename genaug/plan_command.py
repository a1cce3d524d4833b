"""What `genaug plan` does: from options to plans, tables, JSON and the lock file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from genaug import config, parallel, plan_lock, plan_table, topologies, train
from genaug import plan as planning
from genaug.config import Experiment
from genaug.data.spec import spec_of
from genaug.export import spec_to_json
from genaug.files import write_json
from genaug.types import UserError


def plan(options: argparse.Namespace, fields: Sequence[str]) -> Iterator[str]:
    """Plan for every topology, and say what was found; texts come as they are ready."""
    if options.experiment is None:
        raise UserError("Name an experiment file: genaug plan EXPERIMENT --topology v5e-8.")
    experiment = config.override(config.load(options.experiment), list(fields))
    train.check(experiment.train)
    names = list(dict.fromkeys(options.topology or ["local"]))
    _check(options, names)
    spec = spec_of(experiment.data, num_classes=options.num_classes, vocab_size=options.vocab_size)
    experiment.model.make(spec)  # What the family refuses, it refuses at once.
    plans: list[planning.Plan] = []
    refused: list[str] = []
    num_tried = 0
    for name in names:
        variants: list[list[str]] = [[]]
        if options.search is not None:
            variants = planning.variants(experiment, _devices(name), options.search)
        num_tried += len(variants)
        for one in planning.plan(
            options.experiment,
            experiment,
            spec_to_json(spec),
            name,
            variants,
            fields=fields,
            exact=options.exact,
            sampler=not (options.no_sampler or options.search is not None),
            trips=options.loop_rounds,
        ):
            if isinstance(one, planning.Plan):
                plans.append(one)
            elif options.search is None:
                raise UserError(one)
            else:
                refused.append(one)
    yield from _say(options, experiment, plans, refused, num_tried)
    if options.json:
        write_json(options.json, [planning.to_json(one) for one in plans])
    if options.lock:
        plan_lock.write_lock(options.lock, plans)
        yield f"locked: {options.lock}"
    if options.check:
        plan_lock.check_lock(options.check, plans)
        yield f"no regression against {options.check}"


def _check(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Refuse at once what minutes of compiling would end in."""
    tpus = [topologies.find(name) for name in names if name != "local"]
    if tpus:
        planning.require_libtpu()
    least = {
        "--search": options.search,
        "--loop-rounds": options.loop_rounds,
        "--num-classes": options.num_classes,
        "--vocab-size": options.vocab_size,
    }
    for flag, value in least.items():
        if value is not None and value < 1:
            raise UserError(f"{flag} is {value}; it must be at least 1.")
    if options.search is not None and (options.lock or options.check):
        raise UserError("--lock and --check hold one plan a topology: leave --search out.")
    if options.check and not options.check.is_file():
        raise UserError(f"There is no {options.check}: write it with --lock {options.check}.")


def _devices(name: str) -> int:
    if name != "local":
        return topologies.find(name).num_devices
    import jax

    parallel.use_cpu_cores_as_devices()  # as the process that compiles does
    return jax.device_count()


def _say(
    options: argparse.Namespace,
    experiment: Experiment,
    plans: Sequence[planning.Plan],
    refused: Sequence[str],
    num_tried: int,
) -> Iterator[str]:
    if options.search is None:
        yield plan_table.plan_table(plans)
        yield from plan_table.verdicts(plans, experiment)
        return
    yield plan_table.search_table(planning.ranked(plans), num_tried)
    for line in dict.fromkeys(refused):
        yield f"not possible: {line}"
