"""Bad inputs: run folders, checkpoints, sampler bundles, sampling, and sets to compare."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import Case, Place
from benchmarks.errors_data import IMAGES, npz

Change = Callable[[Path], object]


def copied(change: Change, *words: str) -> Callable[[Place], Sequence[Any]]:
    """A command about a copy of the finished run in which something was changed; RUN names it."""

    def make(place: Place) -> Sequence[Any]:
        run = Path(shutil.copytree(place.finished, place.folder / "run"))
        change(run)
        names = {"RUN": run, "EXPERIMENT": place.experiment}
        return [names.get(word, word) for word in words]

    return make


def about_run(wrong: str, change: Change, words: str, code: int, *said: str) -> Case:
    """A case of a run folder."""
    return Case("run folders", wrong, copied(change, *words.split()), code, said)


def nothing(run: Path) -> None:
    """The run as it is."""


def write(name: str, text: str) -> Change:
    """A file with this text."""
    return lambda run: (run / name).write_text(text)


def edit(name: str, **changes: Any) -> Change:
    """A JSON file with some values replaced."""

    def change(run: Path) -> None:
        value = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**value, **changes}))

    return change


def model(**changes: Any) -> Change:
    """A config.json whose model differs."""

    def change(run: Path) -> None:
        value = json.loads((run / "config.json").read_text())
        value["model"].update(changes)
        (run / "config.json").write_text(json.dumps(value))

    return change


def each_mark(run: Path, **changes: Any) -> None:
    """The marks of all checkpoints, whole, with some values replaced."""
    from genaug.checkpoint import _digest

    for path in (run / "checkpoints").glob("*.json"):
        mark = {**json.loads(path.read_text()), **changes}
        mark.pop("digest")
        path.write_text(json.dumps({**mark, "digest": _digest(mark)}))


def damage(pattern: str) -> Change:
    """One bit of the largest file in every folder that the pattern finds."""

    def change(run: Path) -> None:
        for folder in filter(Path.is_dir, run.glob(pattern)):
            files = [path for path in folder.rglob("*") if path.is_file()]
            path = max(files, key=lambda p: p.stat().st_size)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(bytes(content))

    return change


_held: list[Any] = []
"""A lock is held for as long as its file is open."""


def in_use(run: Path) -> None:
    """The folder as another run has it."""
    file = (run / ".lock").open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    file.truncate(0)
    file.write("process 4242 on here since now")
    file.flush()
    _held[:] = [file]


def sums(change: Change) -> Change:
    """A change of the bundle, with digests that agree with it."""

    def both(run: Path) -> None:
        from genaug import bundle

        change(run)
        files = {name: (run / "export" / name).read_bytes() for name in bundle.FILES}
        (run / "export" / bundle.SUMS).write_bytes(bundle.sums(files))

    return both


def drawn(words: str, code: int, *said: str) -> Case:
    """Sampling that cannot be, from the finished run."""
    make = lambda p: ("sample", p.finished, "--out", p.folder / "drawn", *words.split())  # noqa: E731
    return Case("sampling", f"`genaug sample RUN {words}`", make, code, said)


def compared(
    wrong: str, code: int, words: tuple[str, ...], /, more: str = "", **other: Any
) -> Case:
    """Two sets of three classes; `other` are the arrays of the second, none: it is the first."""

    def make(place: Place) -> Sequence[Any]:
        names = {"class_names": np.array(["a", "b", "c"])}
        real = npz(place.folder / "real.npz", **names)
        made = npz(place.folder / "made.npz", **{**names, **other}) if other else real
        return ("evaluate", real, made, *more.split())

    return Case("sets to compare", wrong, make, code, words)


FLIPPED = IMAGES ^ np.uint8(1)

CASES = [
    about_run("of another config", nothing,
              "run --from-run RUN --run-dir RUN --model.latent-dim 5 --seed 2", 2,
              "model.latent-dim: 4 -> 5; seed: 0 -> 2",
              "--from-run"),
    about_run("changed by name after the comparison", nothing,
              "run --from-run RUN --run-dir RUN --train.num-steps 40 --allow-change "
              "train.num-steps", 2, "made with another config (train.num-steps: 20 -> 40)"),
    about_run("of other data", edit("data.json", fingerprint="0"),
              "run --from-run RUN --run-dir RUN", 3, "The data of digits is not what"),
    about_run("config.json that is no JSON", write("config.json", "{"), "run --from-run RUN", 2,
              "config.json cannot be read as JSON"),
    about_run("config.json that is a list", write("config.json", "[]"), "sample RUN", 2,
              "holds no experiment"),
    about_run("config.json that would import a module", write("config.json",
              '{"type": "os:system"}'), "sample RUN", 2, "'os:system' is no dataclass of genaug"),
    about_run("config.json with a field of another genaug", model(latent_dmi=3), "sample RUN", 2,
              "CVAE has no field latent_dmi", "Did you mean latent_dim?"),
    about_run("data.json that is missing", lambda run: (run / "data.json").unlink(), "sample RUN",
              2, "data.json"),
    about_run("data.json without the spec", write("data.json", "{}"), "sample RUN", 2,
              "data.json"),
    about_run("in use by another run", in_use, "run --from-run RUN --run-dir RUN", 2,
              "Another run", "on here since now", "wait for it"),
    about_run("something that is no run", lambda run: (run / "config.json").unlink(),
              "run EXPERIMENT --run-dir RUN", 2, "is not empty and holds no run"),
    about_run("a file for a folder", nothing, "run EXPERIMENT --run-dir run/config.json", 2,
              "config.json is a file: use another --run-dir"),
    about_run("a folder below a file", nothing, "run EXPERIMENT --run-dir run/config.json/x", 2,
              "cannot be written to"),
    about_run("a name that is too long", nothing, f"run EXPERIMENT --run-dir {'x' * 300}", 2,
              "File name too long", "shorter name"),
    about_run("no results yet", lambda run: (run / "results.json").unlink(), "report RUN", 2,
              "has no results.json yet"),
    about_run("results that are damaged", write("results.json", "[1"), "report RUN", 2,
              "results.json cannot be read as JSON"),
    about_run("results of something else", write("results.json", "{}"), "report RUN", 2,
              "results.json"),
    about_run("no run folder", nothing, "sample absent", 2, "absent is no run folder"),
    about_run("no run folder to take a config from", nothing, "run --from-run run/samples", 2,
              "run/samples is no run folder"),
    about_run("nothing to verify", nothing, "verify run/samples", 2, "name a run folder"),
    about_run("no checkpoint", lambda run: shutil.rmtree(run / "checkpoints"), "sample RUN", 2,
              "has no checkpoint yet: train first"),
    about_run("checkpoints of another model", model(latent_dim=7), "sample RUN", 2,
              "was written by another model", "is float32[4] there and float32[7] here"),
    about_run("checkpoints that are all damaged", damage("checkpoints/[0-9]*"), "sample RUN",
              3, "no checkpoint that is whole", "genaug verify"),
    about_run("checkpoints of a newer genaug", lambda run: each_mark(run, format=99), "sample RUN",
              2, "is of format 99", "this genaug reads", "newer genaug"),
    about_run("a sampler with a bit flipped, verified", damage("export"), "verify RUN --quiet", 3,
              "run/export", "has been altered"),
    about_run("a sampler of which a file is missing",
              lambda run: (run / "export/weights.safetensors").unlink(), "sample run/export", 3,
              "weights.safetensors is missing: export the bundle again"),
    about_run("a sampler with a bit flipped", damage("export"), "sample run/export", 3,
              "has been altered: export the bundle again"),
    about_run("a sampler of a newer format", sums(edit("export/bundle.json", format=99)),
              "sample run/export", 3, "has format 99", "install the genaug that wrote it"),
    about_run("a sampler for another platform", sums(edit("export/bundle.json",
              platforms=["tpu"])), "sample run/export", 3, "for tpu, and JAX runs on cpu here"),
    about_run("a sampler of another JAX", sums(edit("export/bundle.json", calling_convention=1)),
              "sample run/export", 3, "calling convention 1", "genaug export"),
    about_run("a sampler whose program is none",
              sums(write("export/sampler.stablehlo", "no program")), "sample run/export", 3,
              "cannot read it"),
    about_run("export into a folder that is there", nothing, "export RUN run/samples", 2,
              "is there already: name another folder"),
    about_run("export below a file", nothing, "export RUN run/config.json/x", 2,
              "config.json", "Not a directory"),
    drawn("--n 0", 2, "--n must be at least 1"),
    drawn("--first -1", 2, "--first at least 0"),
    drawn("--class 77", 2, "no class 77", "Did you mean 7?", "0, 1, 2"),
    drawn("--temperature -1", 2, "temperature is -1", "at least 0"),
    drawn("--temperature nan", 2, "temperature is nan", "finite"),
    drawn("--temperature warm", 2, "--temperature is 'warm'", "a number"),
    drawn("--temperature", 2, "--temperature needs a value"),
    drawn("--guidance 2", 2, "no option --guidance", "reads --near-label, --temperature"),
    drawn("--temprature=2", 2, "Did you mean --temperature?"),
    drawn("--toward x.png", 2, "--toward needs --near"),
    drawn("--near absent.png", 3, "absent.png"),
    drawn("--format jsonl", 2, "--format jsonl", "draws images"),
    drawn("--format wav", 2, "--format wav", "draws images"),
    Case("sampling", "`genaug sample RUN --out` below a file",
         copied(nothing, "sample", "RUN", "--n", "2", "--out", "run/config.json/x"), 2,
         ("config.json", "Not a directory")),
    compared("the same set twice", 2, ("the same examples", "says nothing about itself")),
    compared("the training set held out", 2, ("the same examples: hold others out",),
             more="--holdout real.npz --features pixels", image=FLIPPED),
    compared("other classes", 2, ("a, b, d", "a, b, c", "same names"),
             class_names=np.array(["a", "b", "d"])),
    compared("other sizes", 2, ("(9, 9, 1)", "(8, 8, 1)", "--image-size"),
             image=np.zeros((60, 9, 9, 1), np.uint8)),
    compared("no images", 3, ("made.npz", "shape (0, 8, 8, 1)"), image=IMAGES[:0],
             label=np.arange(0)),
    compared("a set that is not there", 3, ("absent", "accepted are"), more="--holdout absent"),
    compared("Inception without its weights", 2, ("--weights",), more="--features inception",
             image=FLIPPED),
    compared("weights that are none", 2, ("real.npz is another file",), image=FLIPPED,
             more="--features inception --weights real.npz"),
]  # fmt: skip
