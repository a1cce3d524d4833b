"""The results of `python -m benchmarks` as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import race

PICTURE = "throughput.svg"
TITLES = {
    "training": "Training",
    "generation": "Generators",
    "study": "The downstream study",
}
WAITED = 0.02  # of the time, batches are waited for less than this
WARM_S = 3.0  # the first update takes at most this, with the cache of compiled programs


def line(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A whole table, and an empty line."""
    yield line(head)
    yield f"|{'---|' * len(head)}"
    yield from map(line, rows)
    yield ""


def rate(value: float) -> str:
    """A number a second, in three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def document(results: Mapping[str, Any]) -> Iterator[str]:
    """The page, line by line: machine, races, limits, throughput, input, start, profiles."""
    machine, limits = results["machine"], results.get("limits")
    yield "# Throughput"
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"`{results['command']}`: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['system']}; {versions}; float32."
    )
    if results.get("note"):
        yield ""
        yield results["note"]
    if limits:
        yield ""
        yield (
            f"At most, measured: {limits['flops'] / 1e9:.0f} GFLOP/s of float32 matrix products, "
            f"{limits['bandwidth'] / 1e9:.1f} GB/s of copies."
        )
    yield ""
    yield (
        f"Ratio: a peer's time / genaug's, {results['rounds']} interleaved rounds in one process, "
        "median (min to max); above 1, genaug is faster. Beside it the ratio of the fastest calls "
        "of both, which other work on the machine disturbs least. Each peer does the same work: "
        "of a model, a twin with the same weights and noise, whose results differ by at most what "
        "stands here (relative; of text, the share of other tokens); one with a net of its own "
        "says how large both are, and has no difference. PyTorch has the faster of one thread and "
        "all, genaug of one device and one per core (a quick run gives the U-Net and the larger LM "
        "one per core untried); of several forms of a peer the fastest counts. The process keeps "
        "freed memory, as `genaug` does: peers gain by it as well."
    )
    yield ""
    yield f"![The ratios of every peer, with their spread]({PICTURE})"
    yield ""
    for part, title in TITLES.items():
        records = [record for record in results["cases"] if record["part"] == part]
        if records:
            yield f"## {title}"
            yield ""
            yield from races(records)
    if limits and (trained := [r for r in results["cases"] if r.get("flops")]):
        yield "## Against the limit of the machine"
        yield ""
        yield from against_limits(trained, limits)
    yield from _rest(results)
    if limits:
        yield from _profiles([r for r in results["cases"] if short_of(r, limits)])


def races(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for every arm of every race, those that were lost or not run among them."""
    head = ("what", "peer", "peer / genaug (min to max)", "of the fastest", "must", "held",
            "difference", "genaug/s", "peer/s", "remarks")  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for record in records:
        if "failed" in record:
            rows.append((record["title"], *[""] * 4, "**no**", *[""] * 3, record["failed"]))
            continue
        own = record["work"] / statistics.median(record["arms"][race.OURS]["seconds"])
        for name, arm in record["arms"].items():
            if name == race.OURS:
                continue
            peer = name.split(",")[0]
            must = record["must"].get(peer)
            counts = race.best(record, peer) == name
            wanted = f"{must:g}" if must is not None and (counts or "failed" in arm) else ""
            difference = f"{arm['difference']:.0e}" if "difference" in arm else ""
            unit = f"{rate(own)} {record['unit']}"
            if "failed" in arm:
                rows.append((record["title"], name, "", "", wanted, "", difference, unit, "",
                             f"not measured: {arm['failed']}"))  # fmt: skip
                continue
            ratios = race.ratios(record, name)
            middle = statistics.median(ratios)
            judged = held(middle >= must) if wanted and must is not None else ""
            threads = f"{arm['threads']} thread(s)" if "threads" in arm else ""
            rows.append(
                (
                    record["title"],
                    name,
                    f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    f"{min(arm['seconds']) / min(record['arms'][race.OURS]['seconds']):.2f}",
                    wanted,
                    judged,
                    difference,
                    unit,
                    rate(record["work"] / statistics.median(arm["seconds"])),
                    "; ".join(
                        filter(None, (threads, arm.get("remark"), record["remark"] * counts))
                    ),
                )
            )
    return table(head, rows)


def against_limits(
    records: Sequence[Mapping[str, Any]], limits: Mapping[str, float]
) -> Iterator[str]:
    """FLOP/s and bytes/s of genaug's programs, as shares of what was measured."""
    head = ("what", "GFLOP an update or call", "GFLOP/s (quartiles)", "of the peak", "must", "held",
            "GB/s of memory", "of the bandwidth")  # fmt: skip
    rows = []
    for record in records:
        seconds = [s / record["steps"] for s in record["arms"][race.OURS]["seconds"]]
        speed = [record["flops"] / one / 1e9 for one in seconds]
        low, middle, high = statistics.quantiles(speed, n=4, method="inclusive")
        share, must = of_peak(record, limits), record.get("of_peak")
        moved = record["bytes"] / statistics.median(seconds)
        rows.append(
            (
                record["title"],
                f"{record['flops'] / 1e9:.3g}",
                f"{middle:.1f} ({low:.1f} to {high:.1f})",
                f"{100 * share:.0f} %",
                f"{100 * must:.0f} %" if must else "",
                held(share >= must) if must else "",
                f"{moved / 1e9:.1f}" if moved else "",
                f"{100 * moved / limits['bandwidth']:.0f} %" if moved else "",
            )
        )
    yield from table(head, rows)
    yield (
        "Operations are those of matrix products and convolutions as genaug computes them (a "
        "multiply-add is two), bytes those that its compiled program says it moves, caches or not: "
        "an upper bound, which may exceed what memory gives. The limits are the best of two "
        "moments, before the races and after: a share above 100 % says that other work had the "
        "machine then."
    )
    yield ""


def _rest(results: Mapping[str, Any]) -> Iterator[str]:
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if found := results.get("generators"):
        yield "## Generators by themselves"
        yield ""
        head = ("what", "batch", "devices", "a second", "ms a call (min to max)", "first call, s",
                "peak memory, MiB")  # fmt: skip
        rows = []
        for one in found:
            ms = sorted(1000 * s for s in one["seconds"])
            middle = statistics.median(ms)
            rows.append(
                (
                    one["title"],
                    str(one["batch"]),
                    str(one["devices"]),
                    f"{rate(1000 * one['units'] / middle)} {one['unit']}",
                    f"{middle:.3g} ({ms[0]:.3g} to {ms[-1]:.3g})",
                    f"{one['first_s']:.2f}",
                    f"{one['peak_bytes'] / 2**20:,.0f}",
                )
            )
        yield from table(head, rows)
        yield "Memory is all that the process holds, with what the races left in it."
        yield ""
    if found := results.get("inputs"):
        yield "## The input pipeline, batches of 64 from ArrayRecord"
        yield ""
        head = ("training", "batches/s, alone", "updates/s", "of the time, waited for batches",
                "must", "held")  # fmt: skip
        rows = [
            (
                *(one["title"], rate(one["batches_s"]), rate(one["updates_s"])),
                *(f"{100 * one['waited']:.1f} %", f"below {100 * WAITED:.0f} %"),
                held(one["waited"] < WAITED),
            )
            for one in found
        ]
        yield from table(head, rows)
    if found := results.get("starts"):
        yield "## Time to the first update, s"
        yield ""
        head = ("what", "cold", "with the cache of compiled programs", "must", "held",
                "of that, tracing by JAX", "of that, reading the programs",
                "whole process, cold", "whole process, cached")  # fmt: skip
        names = ("warm_traced_s", "warm_read_s", "cold_process_s", "warm_process_s")
        rows = [
            (
                *(one["title"], f"{one['cold_s']:.1f}", f"{one['warm_s']:.1f}"),
                *(f"at most {WARM_S:g}", held(one["warm_s"] <= WARM_S)),
                *(f"{one[name]:.1f}" for name in names),
            )
            for one in found
        ]
        yield from table(head, rows)


def _profiles(short: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where the time goes of what is slower than wanted."""
    if short:
        yield "## Why some are short"
        yield ""
        yield (
            "genaug's calls traced, after the races: a device's milliseconds, the mean over the "
            "devices that the remarks name, and the bytes that its program moves."
        )
        yield ""
    for record in short:
        yield f"### {record['title']}"
        yield ""
        yield "```"
        yield record["profile"]
        yield "```"
        yield ""


def held(good: bool) -> str:
    """Whether what is wanted was reached, as the tables say it."""
    return "yes" if good else "**no**"


def of_peak(record: Mapping[str, Any], limits: Mapping[str, float]) -> float:
    """The share of the machine's matrix products a second that genaug's call makes."""
    seconds = statistics.median(record["arms"][race.OURS]["seconds"]) / record["steps"]
    return float(record["flops"] / seconds / limits["flops"])


def short_of(record: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """The peers whose wanted ratio was not reached, and the peak if its share was not."""
    missed = []
    for peer, must in record["must"].items():
        name = race.best(record, peer)
        if name and statistics.median(race.ratios(record, name)) < must:
            missed.append(peer)
    wanted = record.get("of_peak")
    if wanted and record.get("flops") and of_peak(record, limits) < wanted:
        missed.append("the peak")
    return missed
