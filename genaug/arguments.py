"""The commands' options. Nothing heavier than argparse is imported: --help answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genaug import __version__

EPILOG = (
    "Exit codes: 0 done, 2 a mistake in the command, config or run folder, 3 data missing or bad, "
    "4 training cannot go on, 5 other processes did not come, 130 stopped by Ctrl-C, 143 stopped "
    "by SIGTERM, as of a machine that is taken away. After the last three the same command goes on."
)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="genaug",
        description="Train a generative model on a small or unbalanced dataset, draw synthetic "
        "examples, and measure whether they help.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"genaug {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, **options: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name, help=text, description=text, epilog=EPILOG, allow_abbrev=False, **options
        )
        made.add_argument("--quiet", action="store_true", help="print errors only")
        return made

    for name, text in (
        ("run", "the main job: train, draw, filter, compare with the baselines, audit, report"),
        ("train", "train an experiment's generator only"),
    ):  # EXPERIMENT, a Python file with config(), is taken off the rest: fields have values too
        sub = command(
            name,
            text,
            usage=f"genaug {name} EXPERIMENT [--run-dir DIR] [--FIELD VALUE ...]\n"
            f"       genaug {name} EXPERIMENT --help     every field of the experiment\n"
            f"       genaug {name} --from-run DIR        the config of an earlier run",
        )
        sub.add_argument("--run-dir", type=Path, help="where results go (default: runs/NAME)")
        sub.add_argument("--from-run", type=Path, help="take the config of this run folder")
        sub.add_argument("--allow-change", action="append", default=[], metavar="FIELD",
                         help="go on though this has changed, as train.num-steps")  # fmt: skip
        sub.add_argument("--supervise", action="store_true",
                         help="start it again when it dies or stalls; needs --run-dir")  # fmt: skip
        sub.add_argument("--stall-after", type=float, default=1800, metavar="SECONDS",
                         help="of a supervised run that writes nothing (default 1800)")  # fmt: skip
        _process_options(sub)
    _sample_options(command("sample", "draw any number of samples from a run or a sampler bundle"))
    export = command("export", "write the sampler of a run as a bundle, or a bundle for this JAX")
    export.add_argument("source", type=Path, help="a run folder or a sampler bundle")
    export.add_argument("out", type=Path, help="a new folder")
    export.add_argument("--card", action="store_true",
                        help="also a README.md (data, licence, measured gain, known failures), "
                        "config.json and samples.png, as model hubs read them")  # fmt: skip
    evaluate = command("evaluate", "compare a synthetic set with a real one")
    evaluate.add_argument(
        "real", help="a folder of images or of class folders, an .npz or a prepared dataset"
    )
    evaluate.add_argument("synthetic", help="the same kinds, a run or a sampler bundle")
    evaluate.add_argument(
        "--holdout", help="real data the generator never saw (default: half of REAL)"
    )
    evaluate.add_argument("--image-size", type=int, help="bring images to this side first")
    evaluate.add_argument("--channels", type=int, choices=(1, 3), help="gray or RGB")
    evaluate.add_argument(
        "--features",
        choices=("classifier", "efflite0", "inception", "pixels"),
        help="what sees the images (default: a classifier trained on REAL if it has classes, else "
        "efflite0)",
    )
    evaluate.add_argument("--weights", type=Path, help="the file of Inception's weights")
    evaluate.add_argument(
        "--convention",
        choices=("torch-fidelity", "pytorch-fid", "clean"),
        default="torch-fidelity",
        help="how images enter Inception; values of two conventions do not compare",
    )
    evaluate.add_argument(
        "--all",
        action="store_true",
        help="also FD at infinite n, Gaussian MMD, clipped density and coverage, MiFID and the "
        "classifier (Inception) score; longer, the more features there are",
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of every subsample")
    evaluate.add_argument("--json", type=Path, help="write the numbers here too")
    evaluate.add_argument(
        "--against", type=Path, help="numbers of another set, written by --json: how they moved"
    )
    bench = command("bench", "how fast a run's model or a sampler bundle draws")
    bench.add_argument("sampler", type=Path, help="a run folder or a sampler bundle")
    bench.add_argument("--batch-size", type=int, action="append", metavar="N",
                       help="rows a call; more than once (default: 1, 16, 64 and 256)")  # fmt: skip
    bench.add_argument("--rounds", type=int, default=5, help="timed calls of each (default 5)")
    bench.add_argument("--json", type=Path, help="write all figures here too")
    _plan_options(
        command(
            "plan",
            "what an experiment needs and could reach on machines that are not here",
            usage="genaug plan EXPERIMENT [--topology NAME ...] [--FIELD VALUE ...]",
        )
    )
    profile = command(
        "profile",
        "where the time of an experiment's training update goes, by kind of operation",
        usage="genaug profile EXPERIMENT [--FIELD VALUE ...]",
    )
    profile.add_argument("--num-classes", type=int, help="of data that is not here")
    profile.add_argument("--vocab-size", type=int, help="of a tokenizer that is not here")
    profile.add_argument("--json", type=Path, help="write all figures here too")
    _launch_options(
        command(
            "launch",
            "what starts an experiment on a TPU pod, a SLURM cluster or several hosts",
            usage="genaug launch EXPERIMENT --to gke|tpu-vm|slurm|hosts --run-dir DIR [--FIELD "
            "VALUE ...]",
        )
    )
    report = command("report", "write a run's report.html again")
    report.add_argument("run", type=Path, help="a run folder")
    verify = command("verify", "whether what a run left is as it was written")
    verify.add_argument("run", type=Path, help="a run folder")
    verify.epilog = (
        "Checkpoints (every file, every array), export/ and synthetic/; no model is built and "
        "nothing is changed. Exit code 3 and a line for every fault. " + EPILOG
    )
    data = command("data", "which datasets are here, and how to get what is not")
    data.add_argument("what", choices=("list",))
    tokenizer = command("tokenizer", "train a byte-level BPE on a set of texts")
    tokenizer.add_argument("source", help="pydoc_topics, fortunes, a .txt .jsonl .csv, a folder")
    tokenizer.add_argument("--vocab-size", type=int, default=4096, help="ids (default 4096)")
    tokenizer.add_argument("--out", type=Path, default=Path("tokenizer.json"), help="a new file")
    tokenizer.add_argument("--text-column", default="text", help="of a .jsonl or .csv")
    tokenizer.add_argument("--separator", help="line between the texts of a .txt")
    doctor = command("doctor", "versions, devices, extras and data found")
    doctor.add_argument("--run-dir", type=Path, help="try to write here, each process its part")
    _process_options(doctor)
    return top


def _sample_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run", type=Path, help="a run folder or a sampler bundle")
    sub.add_argument("--class", dest="class_name", help="class name (default: all, in turn)")
    sub.add_argument("--n", type=int, default=100, help="how many samples (default 100)")
    sub.add_argument(
        "--format",
        choices=("folder", "wav", "jsonl", "npz", "arrayrecord"),
        help="PNGs or sounds in class folders, JSON lines, arrays, or a dataset for TFDS and "
        "--data.source (default: by --out's ending, else folder, wav or jsonl)",
    )
    sub.add_argument("--out", type=Path, help="a new folder or file (default: drawn, in the run)")
    sub.add_argument("--seed", type=int, default=0, help="another seed, other samples")
    sub.add_argument("--first", type=int, default=0, help="address of the first sample")
    _process_options(sub)
    sub.epilog = (
        "What the model's sampler reads is an option too: --temperature 0.8, --guidance 2, "
        "--near IMAGE [--toward IMAGE]. One that it does not read is answered with those it does. "
        "A drawing that was stopped goes on with the same command. " + EPILOG
    )


def _process_options(sub: argparse.ArgumentParser) -> None:
    """One run by several processes, each started with the same command."""
    sub.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes: Cloud TPU, GKE or SLURM says which",
    )
    sub.add_argument("--coordinator", metavar="HOST:PORT",
                     help="the same where no cluster says it: where process 0 listens")  # fmt: skip
    sub.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    sub.add_argument("--process-id", type=int, metavar="I", help="which this one is, from 0")
    sub.add_argument("--join-timeout", type=int, default=300, metavar="SECONDS",
                     help="how long to wait for the others (default 300)")  # fmt: skip


def _plan_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--topology",
        action="append",
        help="v5e-8, v5p-128, 2xv5e-256, v5e:16x16, local; more than once (default: local)",
    )
    sub.add_argument("--search", type=int, nargs="?", const=6, metavar="N",
                     help="compile at most N (default 6) meshes, batches, remats and parts; rank "
                     "what fits")  # fmt: skip
    sub.add_argument("--limit", type=int, default=1800, metavar="SECONDS",
                     help="stop a compiler that takes longer (default 1800)")  # fmt: skip
    sub.add_argument("--exact", action="store_true", help="compile as a TPU would: much slower")
    sub.add_argument("--no-sampler", action="store_true", help="plan for the train step alone")
    sub.add_argument("--loop-rounds", type=int, default=1, metavar="N",
                     help="what a loop whose length is data counts (default 1)")  # fmt: skip
    sub.add_argument("--num-classes", type=int, help="of data that is not here")
    sub.add_argument("--vocab-size", type=int, help="ids of text, of a tokenizer that is not here")
    sub.add_argument("--json", type=Path, help="write all figures here too")
    sub.add_argument("--lock", type=Path, help="write the static figures here")
    sub.add_argument("--check", type=Path, help="fail if a figure exceeds this lock file's")
    sub.epilog = "--topology for TPUs needs their compiler, but no TPU. " + EPILOG


def _launch_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--to", metavar="TARGET", help="gke, tpu-vm, slurm or hosts")
    sub.add_argument("--command", dest="command_there", choices=("run", "train"), default="run",
                     help="what the machines do (default: run)")  # fmt: skip
    sub.add_argument("--run-dir", help="gs://BUCKET/FOLDER (gke, tpu-vm), or a shared path")
    sub.add_argument("--name", help="of the job (default: the experiment's)")
    sub.add_argument("--max-restarts", type=int, help="after preemptions and crashes (default 10)")
    sub.add_argument("--apply", action="store_true", help="run it, rather than print it")
    sub.add_argument("--out", type=Path, help="write it here, rather than print it")
    cloud = sub.add_argument_group("gke and tpu-vm")
    cloud.add_argument("--topology", help="v5e-8, v5p-128, 2xv5e-256, as of genaug plan")
    cloud.add_argument("--spot", action="store_true", help="cheaper machines that are preempted")
    cloud.add_argument("--install", help="for pip: 'genaug[tpu,text] @ https://...' (gke: none)")
    cloud.add_argument("--no-plan", action="store_true", help="compile nothing for the comment")
    cloud.add_argument("--num-classes", type=int, help="of data that is not here, to plan")
    cloud.add_argument("--vocab-size", type=int, help="of a tokenizer that is not here, to plan")
    gke = sub.add_argument_group("gke")
    gke.add_argument("--image", help="the container")
    gke.add_argument("--queue", help="Kueue's, as of a cluster made by xpk")
    gke.add_argument("--service-account", help="of the pods: it may write to the bucket")
    vm = sub.add_argument_group("tpu-vm")
    vm.add_argument("--project", help="of Google Cloud (default: gcloud's)")
    vm.add_argument("--zone", help="where the machines are")
    slurm = sub.add_argument_group("slurm")
    slurm.add_argument("--nodes", type=int, help="machines (default 1)")
    slurm.add_argument("--gpus-per-node", type=int, help="a process each (default: no GPUs)")
    slurm.add_argument("--partition", help="of the cluster")
    slurm.add_argument("--account", help="that pays")
    slurm.add_argument("--time", help="the limit, as 2-00:00:00")
    hosts = sub.add_argument_group("hosts")
    hosts.add_argument("--host", action="append", help="user@machine or localhost, a process each")
    hosts.add_argument("--port", type=int, help="of the first host (default 8476)")
    own = sub.add_argument_group("slurm and hosts")
    own.add_argument("--genaug", metavar="PATH", help="the command there (default: genaug)")


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the command, and the rest: an experiment's fields, its --help among them."""
    top = parser()
    names = _commands(top)
    if arguments[:1] and not arguments[0].startswith("-") and arguments[0] not in names:
        near = _nearest(arguments[0], list(names))
        top.error(f"there is no command {arguments[0]}.{near} Commands: {', '.join(names)}")
    is_job = arguments[:1] in (["run"], ["train"], ["plan"], ["profile"], ["launch"])
    wants_fields = is_job and any(not a.startswith("-") for a in arguments[1:2])
    if wants_fields and any(a in ("-h", "--help") for a in arguments):
        kept = [a for a in arguments if a not in ("-h", "--help")]
        options, rest = top.parse_known_args(kept)
        options, rest = _with_experiment(options, rest)
        return options, [*rest, "--help"]
    options, rest = top.parse_known_args(arguments)
    if rest and not is_job and options.command != "sample":
        known = options_of(options.command)
        near = next((_nearest(one, known) for one in rest if one.startswith("-")), "")
        names[options.command].error(f"unrecognized arguments: {' '.join(rest)}.{near}")
    return _with_experiment(options, rest)


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by name."""
    (found,) = (a.choices for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found)


def options_of(command: str) -> list[str]:
    """The options that a command takes."""
    return [name for name in _commands(parser())[command]._option_string_actions if name[2:]]


def _nearest(name: str, known: list[str]) -> str:
    """` Did you mean X?` for the known name that is most like a mistyped one, or nothing."""
    import difflib

    close = difflib.get_close_matches(name.partition("=")[0], known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def _with_experiment(
    options: argparse.Namespace, rest: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The experiment is what stands before the first field: `run EXPERIMENT --FIELD VALUE`."""
    named = rest[:1] if rest and not rest[0].startswith("-") else []
    options.experiment = named[0] if named else None
    return options, rest[len(named) :]


def without_supervision(arguments: list[str]) -> list[str]:
    """The same command, of a run that is supervised."""
    kept, skip = [], False
    for one in arguments:
        if skip or one == "--supervise" or one.startswith("--stall-after="):
            skip = False
        elif one == "--stall-after":
            skip = True
        else:
            kept.append(one)
    return kept
