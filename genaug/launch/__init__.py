"""What starts an experiment on many machines, as text: `render(launch)`.

A template a kind of machine (`gke.yaml.j2`, `tpu-vm.sh.j2`, `slurm.sh.j2`, `hosts.sh.j2`) is what
an operator reads. All of them run the same command on every machine, go on after a preemption by
running it again, and stop at once at an exit code that says that running it again mends nothing.

What comes from the command line enters a shell through the filter `sh` and YAML through `yaml`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2

from genaug.topologies import Topology

Target = Literal["gke", "tpu-vm", "slurm", "hosts"]
TEMPLATES: dict[Target, str] = {
    "gke": "gke.yaml.j2",
    "tpu-vm": "tpu-vm.sh.j2",
    "slurm": "slurm.sh.j2",
    "hosts": "hosts.sh.j2",
}
MISTAKES = (2, 3, 4)
"""Exit codes that running again does not mend (`genaug.cli`)."""
BUCKET = "/mnt/genaug"
"""Where machines in a cloud see the bucket of the run folder."""


class Cloud(NamedTuple):
    """What Google Cloud calls a chip.

    gke:     the label of its nodes.
    vm:      a slice of Cloud TPU VMs, less its number; None where only GKE has them.
    runtime: the software that such a VM starts with.
    """

    gke: str
    vm: str | None = None
    runtime: str = ""


CLOUD = {
    "v4": Cloud("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base"),
    "v5e": Cloud("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": Cloud("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5"),
    "v6e": Cloud("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
    "tpu7x": Cloud("tpu7x"),
}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """An experiment, what to do with it, and where.

    source:   the text of the experiment's file, which is written down on every machine.
    fields:   the `--FIELD VALUE`s of the command line.
    run_dir:  a gs:// address or a path that all machines share.
    header:   lines of the comment at the top.
    install:  what pip installs first, if anything.
    genaug:   the command on machines where it is installed.
    """

    target: Target
    name: str
    source: str
    command: str
    fields: tuple[str, ...]
    run_dir: str
    header: tuple[str, ...]
    max_restarts: int = 10
    topology: Topology | None = None
    spot: bool = False
    install: str | None = None
    image: str = ""
    queue: str | None = None
    service_account: str | None = None
    project: str | None = None
    zone: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    hosts: tuple[str, ...] = ()
    port: int = 0
    genaug: str = "genaug"

    @property
    def bucket(self) -> str:
        """The bucket of a run folder in one."""
        return self.run_dir.removeprefix("gs://").split("/")[0]

    @property
    def run_path(self) -> str:
        """The run folder as a machine sees it."""
        if not self.run_dir.startswith("gs://"):
            return self.run_dir
        return f"{BUCKET}/{self.run_dir.removeprefix('gs://').partition('/')[2]}"

    @property
    def cache(self) -> str:
        """Compiled programs, beside the run folder: restarts and other runs need not compile."""
        return str(Path(self.run_path).parent / "compile_cache")


def render(launch: Launch) -> str:
    """The text that starts it: a shell script, or YAML for Kubernetes."""
    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        comment_start_string="<#",  # {# is the length of an array in a shell
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(sh=sh, yaml=yaml, pod=pod, block=block)
    more = {"launch": launch, "mistakes": MISTAKES, "delimiter": delimiter(launch.source)}
    return jinja.get_template(TEMPLATES[launch.target]).render(**more, **_machine(launch))


def _machine(launch: Launch) -> dict[str, Any]:
    """What only one kind of machine has."""
    if launch.target == "hosts":
        first = launch.hosts[0].rpartition("@")[2]
        return {"coordinator": f"{first}:{launch.port}"}
    if launch.topology is None:
        return {}
    cloud, place = CLOUD[launch.topology.chip.name], launch.topology
    nodes = [launch.name]
    if place.num_slices > 1:
        nodes = [f"{launch.name}-{i}" for i in range(place.num_slices)]
    run = ["genaug", launch.command, "/etc/genaug/experiment.py", "--distributed"]
    words = [*run, "--run-dir", launch.run_path, *launch.fields]
    if launch.install:
        script = 'python3 -m pip install -q "$0" && exec "$@"'
        words = ["bash", "-c", script, launch.install, *words]
    return {
        "place": place,
        "num_hosts": place.hosts * place.num_slices,
        "cloud": cloud,
        "accelerator": f"{cloud.vm}-{place.chips * place.chip.cores}",
        "nodes": nodes,
        "where": [f"--project={launch.project}"] * bool(launch.project) + [f"--zone={launch.zone}"],
        "words": words,
        "bucket": BUCKET,
    }


def sh(value: str | Sequence[str]) -> str:
    """One word of a shell, or several."""
    return shlex.quote(value) if isinstance(value, str) else shlex.join(value)


# What a reader of YAML takes for a line's end, refuses, or joins to a character of another.
_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


def yaml(value: object) -> str:
    """A value in YAML, of which JSON is a part."""
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def pod(words: Sequence[str]) -> list[str]:
    """Words of a container's command: Kubernetes replaces $(NAME) in them, and $$ by $."""
    return [word.replace("$", "$$") for word in words]


def block(text: str, indent: int) -> str:
    """A text that ends with a line's end, in YAML: as lines where they can be read."""
    if _NOT_IN_YAML.search(text) or re.search(r"[\x00-\x09\x0b-\x1f]", text):
        return yaml(text)
    lines = (" " * indent + line if line else "" for line in text.rstrip("\n").split("\n"))
    return "\n".join(["|2", *lines])


def delimiter(text: str) -> str:
    """A word that ends a here-document of this text, since it is nowhere in it."""
    found = "EXPERIMENT"
    while found in text:
        found += "_"
    return found
