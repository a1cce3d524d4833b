"""What `genaug plan` does: from options to plans, tables, JSON and the lock file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

from genaug import config, plan_lock, plan_search, plan_table, topologies, train
from genaug import plan as planning
from genaug.bundle import spec_to_json
from genaug.config import Experiment
from genaug.data.spec import spec_of
from genaug.devices import use_cpu_cores_as_devices
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
    compiled = partial(
        planning.plan,
        options.experiment,
        experiment,
        spec_to_json(spec),
        fields=fields,
        exact=options.exact,
        sampler=not (options.no_sampler or options.search is not None),
        trips=options.loop_rounds,
        limit=float(options.limit),
    )
    if options.search is not None:
        plans = yield from _search(experiment, names, options.search, compiled)
    else:
        plans = [_made(one) for name in names for one in compiled(name)]
        yield plan_table.plan_table(plans)
        yield from plan_table.verdicts(plans, experiment)
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
        "--limit": options.limit,
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


def _made(plan: planning.Plan | str) -> planning.Plan:
    if isinstance(plan, str):
        raise UserError(plan)
    return plan


def _search(
    experiment: Experiment,
    names: Sequence[str],
    most: int,
    compiled: Callable[..., list[planning.Plan | str]],
) -> Generator[str, None, list[planning.Plan]]:
    """The layouts that fit, best first; says them, and returns them."""
    plans: list[planning.Plan] = []
    refused: list[str] = []
    flag, num_tried = plan_search.remat_of(experiment)[0], 0
    for name in names:
        devices, a_slice = _devices(name)

        def compile_all(
            layouts: Sequence[plan_search.Layout], name: str = name
        ) -> list[planning.Plan | str]:
            return compiled(name, [one.fields(flag) for one in layouts])

        starts = plan_search.meshes(experiment, devices, a_slice)
        tried = plan_search.search(starts, devices, most, compile_all)
        num_tried += len(tried)
        plans += [one for one in tried.values() if isinstance(one, planning.Plan)]
        refused += [one for one in tried.values() if isinstance(one, str)]
    plans = plan_search.ranked(plans)
    yield plan_table.search_table(plans, num_tried)
    for line in dict.fromkeys(refused):
        yield f"not possible: {line}"
    return plans


def _devices(name: str) -> tuple[int, int]:
    """How many devices there are, and how many to a slice."""
    if name != "local":
        found = topologies.find(name)
        return found.num_devices, found.num_devices // found.num_slices
    import jax

    use_cpu_cores_as_devices()  # as the process that compiles does
    return jax.device_count(), jax.device_count()
