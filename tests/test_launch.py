"""What starts experiments elsewhere: texts read by their own readers, and scripts run for real.

`gcloud`, `kubectl`, `sbatch`, `srun`, `ssh` and `genaug` itself are played by small scripts that
write down what they are told; everything between them is what a cluster would run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genaug import cli, plan, topologies
from genaug.devices import Mesh, check_elsewhere
from genaug.launch import Launch, block, delimiter, pod, render, yaml
from genaug.launch.command import plan_lines
from genaug.types import UserError

EXPERIMENT = """
import dataclasses

from tiny_run import tiny

from genaug.devices import Mesh


def config():
    return dataclasses.replace(tiny(), mesh=Mesh())
"""
GKE = (
    "--to",
    "gke",
    "--topology",
    "v5e-8",
    "--run-dir",
    "gs://bucket/runs/one",
    "--image",
    "a/b:1",
)
VM = ("--to", "tpu-vm", "--topology", "v5e-8", "--run-dir", "gs://bucket/runs/one", "--zone", "z-a")
SLURM = ("--to", "slurm", "--nodes", "2", "--run-dir", "/shared/one")
HOSTS = ("--to", "hosts", "--host", "me@a.b", "--host", "c", "--run-dir", "/shared/one")
TARGETS = {"gke": GKE, "tpu-vm": VM, "slurm": SLURM, "hosts": HOSTS}
SCRIPTS = ("tpu-vm", "slurm", "hosts")
HOSTILE = [
    "a b",
    "it's",
    '"',
    "$(touch pwned)",
    "`touch pwned`",
    "a;b",
    "\\",
    "$HOME",
    "*",
    "é😀",
    "#",
]
HOSTILE_FIELDS = ["--data.rare-classes", *HOSTILE]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my file.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture
def text(file, capsys):
    """`text(*options)`: what `genaug launch` prints."""

    def make(*options):
        plans = ["--no-plan"] if options[1] in ("gke", "tpu-vm") else []
        assert cli.main(["launch", file, *options, *plans]) == 0
        return capsys.readouterr().out

    return make


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder of commands that are found first, and `calls()`: what they were told."""
    folder, told = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    told.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(told))
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setenv("PAUSE", "0.1")
    monkeypatch.chdir(tmp_path)

    def add(name, body):
        path = folder / name
        # A file a call, as two may come at once; their names are in order of time.
        write = f'printf "%q " {name} "$@" >"$CALLS/$EPOCHREALTIME-$$"'
        path.write_text(f"#!/usr/bin/env bash\n{write}\n{body}\n")
        path.chmod(0o755)

    def calls(name):
        words = [bash_words(path.read_text()) for path in sorted(told.iterdir())]
        return [one[1:] for one in words if one[0] == name]

    machine.add, machine.calls = add, calls
    return machine


def bash_words(line):
    """What `printf %q` wrote, read by the shell that wrote it."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def run(script, tmp_path, **changes):
    path = tmp_path / "launch script.sh"
    path.write_text(script)
    return subprocess.run(
        ["bash", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **changes},
        cwd=tmp_path,
    )


# --- the texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", SCRIPTS)
def test_scripts_are_what_bash_and_shellcheck_accept(text, target):
    script = text(*TARGETS[target], *HOSTILE_FIELDS)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert script.startswith("#!/usr/bin/env bash\n")
    assert all(line == line.rstrip() for line in script.splitlines())
    if shutil.which("shellcheck"):  # it has a word for hostile ones, and it is right
        script = text(*TARGETS[target])
        done = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True)
        assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_is_there():
    if not shutil.which("shellcheck"):
        pytest.skip("scripts were not given to shellcheck: it is not installed")


EXIT_CODES = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
COUNT = {"type": "integer", "minimum": 1}


def thing(required, **others):
    """An object's schema: what it must have, and what it may have besides; nothing else."""
    return {
        "type": "object",
        "properties": {**required, **others},
        "required": list(required),
        "additionalProperties": False,
    }


def several(item):
    return {"type": "array", "items": item, "minItems": 1}


POD = thing(
    {
        "restartPolicy": {"const": "Never"},  # a podFailurePolicy allows no other
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        "tolerations": several(thing({"key": {"type": "string"}, "operator": {"const": "Exists"}})),
        "containers": several(
            thing(
                {
                    "name": NAME,
                    "image": {"type": "string"},
                    "command": several({"type": "string"}),
                    "workingDir": {"type": "string"},
                    "env": several(
                        thing({"name": {"type": "string"}, "value": {"type": "string"}})
                    ),
                    "resources": thing({"limits": thing({"google.com/tpu": COUNT})}),
                    "volumeMounts": several(
                        thing({"name": NAME, "mountPath": {"type": "string", "pattern": "^/"}})
                    ),
                }
            )
        ),
        "volumes": several(
            thing(
                {"name": NAME},
                configMap=thing({"name": NAME}),
                csi=thing(
                    {
                        "driver": {"type": "string"},
                        "volumeAttributes": {
                            "type": "object",
                            "additionalProperties": {"type": "string"},
                        },
                    }
                ),
            )
        ),
    },
    serviceAccountName=NAME,
)
JOB = thing(
    {
        "parallelism": COUNT,
        "completions": COUNT,
        "completionMode": {"enum": ["Indexed", "NonIndexed"]},
        "backoffLimit": {"type": "integer", "minimum": 0},
        "podFailurePolicy": thing(
            {
                "rules": several(
                    thing(
                        {
                            "action": {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
                            "onExitCodes": thing(
                                {"operator": {"enum": ["In", "NotIn"]}, "values": EXIT_CODES},
                                containerName=NAME,
                            ),
                        }
                    )
                )
            }
        ),
        "template": thing({"metadata": {"type": "object"}, "spec": POD}),
    }
)
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
JOBSET = thing(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": thing(
            {
                "name": NAME,
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            labels={"type": "object", "additionalProperties": {"type": "string"}},
        ),
        "spec": thing(
            {
                "failurePolicy": thing(
                    {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "rules": several(
                            thing(
                                {
                                    "name": {"type": "string"},
                                    "action": {"enum": ACTIONS},
                                    "onJobFailureReasons": several(
                                        {"enum": ["PodFailurePolicy", "BackoffLimitExceeded"]}
                                    ),
                                }
                            )
                        ),
                    }
                ),
                "replicatedJobs": several(
                    thing({"name": NAME, "replicas": COUNT, "template": thing({"spec": JOB})})
                ),
            }
        ),
    }
)
"""What genaug uses of JobSet's CRD (kubernetes-sigs/jobset, v1alpha2), of a Job and of a Pod,
written from them by hand, with nothing else allowed: a misspelt field is refused."""


def documents(text):
    load = pytest.importorskip("yaml").safe_load_all
    config_map, jobset = load(text)
    pytest.importorskip("jsonschema").Draft202012Validator(JOBSET).validate(jobset)
    return config_map, jobset


@pytest.mark.parametrize(
    "topology, slices, hosts, chips, label, shape",
    [
        ("v5e-1", 1, 1, 1, "tpu-v5-lite-podslice", "1x1"),
        ("v5e-8", 1, 1, 8, "tpu-v5-lite-podslice", "2x4"),
        ("2xv5e-16", 2, 4, 4, "tpu-v5-lite-podslice", "4x4"),
        ("v5p-16", 1, 2, 4, "tpu-v5p-slice", "2x2x2"),
        ("v6e-256", 1, 64, 4, "tpu-v6e-slice", "16x16"),
        ("tpu7x-16", 1, 2, 4, "tpu7x", "2x2x2"),
    ],
)
def test_a_jobset_asks_for_the_machines_of_a_topology(
    text, topology, slices, hosts, chips, label, shape
):
    options = [topology if word == "v5e-8" else word for word in GKE]
    _, jobset = documents(text(*options, "--train.batch-size", "512", "--spot"))
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": label,
        "cloud.google.com/gke-tpu-topology": shape,
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}


def test_a_jobset_runs_the_experiment_and_gives_up_only_on_mistakes(text):
    config_map, jobset = documents(
        text(*GKE, "--max-restarts", "3", "--service-account", "sa", "--queue", "q", "--seed", "7")
    )
    assert config_map["data"] == {"experiment.py": EXPERIMENT}
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2, 3, 4])
    (container,) = spec["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    run = ["genaug", "run", "/etc/genaug/experiment.py", "--distributed"]
    assert container["command"] == [*run, "--run-dir", "/mnt/genaug/runs/one", "--seed", "7"]
    cache = {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/mnt/genaug/runs/compile_cache"}
    assert cache in container["env"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in spec["template"]["spec"]["volumes"]}
    assert set(mounts) == set(volumes)
    assert volumes["bucket"]["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "q"}
    assert spec["template"]["spec"]["serviceAccountName"] == "sa"


def test_hostile_words_reach_a_container_as_they_are(text):
    _, jobset = documents(text(*GKE, "--install", "x $(y)", *HOSTILE_FIELDS))
    template = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    words = [expanded(word) for word in template["spec"]["containers"][0]["command"]]
    assert words[-len(HOSTILE_FIELDS) :] == HOSTILE_FIELDS
    assert words[:4] == ["bash", "-c", 'python3 -m pip install -q "$0" && exec "$@"', "x $(y)"]


def expanded(word):
    """What Kubernetes makes of a word: $(NAME) is a variable's value, $$ is $."""
    return re.sub(r"\$\$|\$\(([\w.-]+)\)", lambda m: "$" if m[0] == "$$" else "VALUE", word)


def test_files_of_any_text_are_yaml_and_here_documents():
    load = pytest.importorskip("yaml").safe_load
    for text in ("a\n", "\n  a\n\n b: '|'\n", "a\tb\n", "# \u2028\x7f é😀\ufeff\n", "  ---\n...\n"):
        assert load(f"key:\n  file: {block(text, 4)}\nnext: 1\n") == {
            "key": {"file": text},
            "next": 1,
        }
        assert delimiter(text) == "EXPERIMENT"
    assert load(yaml(HOSTILE)) == HOSTILE
    assert pod(["$(HOME)"]) == ["$$(HOME)"]
    assert delimiter("x\nEXPERIMENT\nEXPERIMENT_\n") == "EXPERIMENT__"


@pytest.mark.parametrize("target", TARGETS)
def test_the_comment_has_the_command_that_renders_the_same(text, target):
    options = (
        *TARGETS[target],
        "--max-restarts",
        "2",
        "--seed",
        "3",
        "--data.rare-classes",
        "it's",
    )
    made = text(*options)
    (line,) = [line for line in made.splitlines() if line.startswith("#   genaug launch ")]
    words = shlex.split(line[1:])
    again = [word for word in words[3:] if word != "--no-plan"]
    assert text(*again) == made


def test_a_plan_is_told_and_one_that_does_not_fit_is_not_applied(file, capsys, monkeypatch):
    from test_plan import made

    big = plan.Program(flops=1.0, needs=(20.0 * 2**30, 15.75 * 2**30))
    plans = [made(), made(step=big)]
    monkeypatch.setattr(plan, "require_libtpu", lambda: None)
    monkeypatch.setattr(plan, "plan", lambda *_, **__: [plans[0]])
    assert cli.main(["launch", file, *GKE]) == 0
    told = capsys.readouterr().out.splitlines()[4:6]
    assert told == [
        "# Plan, compiled for v5e-8 and not measured: 1 GiB of 16 GiB of a chip's memory; "
        "an update of 80",
        "# takes 10 ms at least, bound by network: an MFU of 10.0 % at most.",
    ]
    assert plan_lines(plans[1]) == [
        "Plan, compiled for v5e-8 and not measured: 20 GiB of 15.8 GiB of a chip's memory: "
        "IT DOES NOT FIT (genaug plan says what to change)."
    ]
    plans.pop(0)
    assert cli.main(["launch", file, *GKE, "--apply"]) == 2
    assert "does not fit" in capsys.readouterr().err


def test_without_the_compiler_the_comment_says_how_to_plan(file, capsys, monkeypatch):
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    assert cli.main(["launch", file, *VM, "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "# No plan was made: The TPU compiler is not installed" in out
    assert f"#   genaug plan {shlex.quote(file)} --topology v5e-8 --seed 3\n" in out


@pytest.mark.parametrize(
    "options, message",
    [
        (("--to", "gkee"), "must be one of gke, tpu-vm, slurm, hosts. Did you mean gke?"),
        ((), "must be one of gke"),
        ((*GKE[:2], *GKE[4:]), "--to gke needs --topology"),
        ((*GKE[:3], "v9-8", *GKE[4:]), "no topology 'v9-8'"),
        (GKE[:6], "needs --image"),
        (VM[:6], "needs --zone"),
        ((*VM[:3], "tpu7x-8", *VM[4:]), "is not sold as Cloud TPU VMs"),
        ((*VM[:3], "v5p:4x4x12", *VM[4:]), "is not sold as Cloud TPU VMs"),
        ((*GKE[:3], "v5e:3x3", *GKE[4:]), "9 are no multiple"),
        ((*GKE, "--zone", "a"), "--zone is for --to tpu-vm; --to gke takes --topology, --spot"),
        ((*SLURM, "--spot"), "--spot is for --to gke and tpu-vm; --to slurm takes --nodes"),
        ((*HOSTS, "--nodes", "2"), "--nodes is for --to slurm; --to hosts takes --host"),
        ((*GKE, "--run-dir", "runs/one"), "share no disk, but a bucket"),
        ((*GKE, "--run-dir", "gs://bucket"), "share no disk, but a bucket"),
        ((*GKE, "--run-dir", "gs://bucket/../a"), "share no disk, but a bucket"),
        ((*SLURM, "--run-dir", "gs://bucket/a"), "under which all hosts have it mounted"),
        ((*SLURM, "--run-dir", "runs/one"), "is another folder on every host"),
        ((*HOSTS, "--run-dir", "runs/one"), "is another folder on every host"),
        (HOSTS[:6], "--run-dir is missing"),
        (("--to", "hosts", "--run-dir", "/a"), "needs --host"),
        ((*HOSTS, "--host=-oProxyCommand=x"), "is no host's name"),
        ((*HOSTS, "--host", "a b"), "is no host's name"),
        (("--to", "hosts", "--host", "localhost", *HOSTS[2:]), "the others look for it"),
        ((*HOSTS, "--port", "0"), "--port is 0"),
        ((*HOSTS, "--max-restarts", "-1"), "--max-restarts is -1"),
        ((*GKE, "--name", "My_Job"), "a job's name has lowercase letters"),
        ((*GKE, "--name", "a" * 41), "40 characters at most"),
        ((*GKE, "--name", "a-"), "does not end with a dash"),
        ((*SLURM, "--partition", "a\n#SBATCH --x"), "a line's end"),
        ((*SLURM, "--partition", "a b"), "--partition 'a b'"),
        ((*GKE, "--data.rare-classes", "a\nb"), "a line's end"),
        ((*GKE, "--model.latent-dmi", "3"), "Did you mean --model.latent-dim?"),
        ((*GKE, "--train.batch-size", "30"), "30 is not divisible by the 8 devices"),
        ((*GKE[:3], "2xv5e-8", *GKE[4:], "--mesh.fsdp", "16"), "2 slices lie along it"),
        ((*SLURM, "--gpus-per-node", "3"), "64 is not divisible by the 6 devices"),
    ],
)
def test_mistakes_are_refused_before_anything_is_rendered(file, options, message, capsys):
    plans = ["--no-plan"] if options[1:2] in (("gke",), ("tpu-vm",)) else []
    assert cli.main(["launch", file, *options, *plans]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_an_experiment_is_needed_and_a_small_one(tmp_path, file, capsys):
    assert cli.main(["launch", *GKE]) == 2
    assert "Name an experiment file" in capsys.readouterr().err
    assert cli.main(["launch", str(tmp_path / "none.py"), *GKE]) == 2
    assert "There is no experiment file" in capsys.readouterr().err
    Path(file).write_text(EXPERIMENT.replace("Mesh()", 'Mesh(), name="a\\nrm -rf b"'))
    assert cli.main(["launch", file, *GKE]) == 2
    assert "Its name has a line's end" in capsys.readouterr().err
    Path(file).write_text(EXPERIMENT + "#" * 70_000)
    assert cli.main(["launch", file, *GKE]) == 2
    assert "more than 65536 bytes" in capsys.readouterr().err


def test_what_plans_and_what_launches_agree_on_hosts_and_devices():
    for chip in topologies.CHIPS.values():
        for name in topologies.sold(chip):
            place = topologies.find(name)
            assert place.hosts * place.chips_a_host * chip.devices == place.num_devices
    check_elsewhere(Mesh(fsdp=4), 16, 2, "it", 32, 2)
    with pytest.raises(UserError, match="use all devices of its 2 slices"):
        check_elsewhere(Mesh(data=2), 16, 2, "it", 32, 1)


# --- hosts, for real -----------------------------------------------------------------------------

FAKE_GENAUG = """
id=
while (($#)); do [[ $1 == --process-id ]] && id=$2; shift; done
echo "$JAX_COMPILATION_CACHE_DIR" >"$STATE/cache$id"
echo "$PWD" >"$STATE/pwd$id"
"""
# Process 1 dies by a signal the first time; process 0 waits for it, as a peer in a collective does.
PEER_WAITS = """
((id)) || { echo $$ >"$STATE/waiting"; exec sleep 1000; }
until [[ -s $STATE/waiting ]]; do sleep 0.05; done
"""
CRASH = f"""
if [[ ! -e $STATE/crashed ]]; then
  {PEER_WAITS}
  touch "$STATE/crashed"; kill -9 $$
fi
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def two(text, tmp_path):
    """`two(*options)`: the script for two processes on this machine."""
    runs = str(tmp_path / "shared" / "runs")
    base = ("--to", "hosts", "--host", "localhost", "--host", "localhost", "--run-dir", runs)
    return lambda *options: text(*base, *options)


def test_two_processes_get_their_numbers_the_experiment_and_hostile_words(two, tmp_path, machine):
    machine.add("genaug", FAKE_GENAUG.replace("while", 'cp "$2" "$STATE/seen.py"\nwhile'))
    done = run(two("--port", "1234", *HOSTILE_FIELDS), tmp_path)
    assert done.returncode == 0, done.stderr
    calls = sorted(machine.calls("genaug"), key=lambda words: words[7])
    for process, words in enumerate(calls):
        run_dir = str(tmp_path / "shared" / "runs")
        expected = ["--coordinator", "localhost:1234", "--num-processes", "2"]
        expected += ["--process-id", str(process), "--run-dir", run_dir]
        assert words[2:] == [*expected, *HOSTILE_FIELDS]
        cache = (tmp_path / f"cache{process}").read_text()
        assert cache == f"{tmp_path}/shared/compile_cache\n"
        assert (tmp_path / f"pwd{process}").read_text() == f"{tmp_path}\n"
        assert not Path(words[1]).exists()  # nothing is left behind
    assert len(calls) == 2
    assert (tmp_path / "seen.py").read_text() == EXPERIMENT
    assert not (tmp_path / "pwned").exists()


def test_a_crash_stops_the_peer_and_starts_both_again(two, tmp_path, machine):
    machine.add("genaug", FAKE_GENAUG + CRASH)
    done = run(two(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(machine.calls("genaug")) == 4
    assert "process 1 on localhost ended with 137" in done.stderr
    assert "restart 1 of 10" in done.stderr
    assert not alive(int((tmp_path / "waiting").read_text()))


def test_a_peer_that_does_not_listen_is_killed(two, tmp_path, machine):
    """So do JAX's processes in a collective: jax.distributed takes SIGTERM for a warning."""
    machine.add("genaug", FAKE_GENAUG + CRASH.replace("echo $$", "trap '' TERM; echo $$"))
    began = time.monotonic()
    assert run(two(), tmp_path, GRACE="0.5").returncode == 0
    assert time.monotonic() - began < 15
    assert not alive(int((tmp_path / "waiting").read_text()))


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_mistake_stops_everything_with_its_code(two, tmp_path, machine, code):
    machine.add("genaug", f"{FAKE_GENAUG}{PEER_WAITS}\nexit {code}")
    done = run(two(), tmp_path)
    assert done.returncode == code
    assert len(machine.calls("genaug")) == 2
    assert not alive(int((tmp_path / "waiting").read_text()))
    assert "restart" not in done.stderr


def test_a_mistake_counts_though_its_peer_ended_first(two, tmp_path, machine):
    """The peer dies of the lost connection, and before the mistaken one has ended."""
    ready = "until [[ -e $STATE/ready ]]; do sleep 0.05; done; exit 134"
    late = 'trap "exit 3" TERM; touch "$STATE/ready"; sleep 1000 & wait'
    machine.add("genaug", f"{FAKE_GENAUG}\nif ((id)); then {ready}; fi\n{late}")
    assert run(two(), tmp_path).returncode == 3


def test_restarts_are_bounded(two, tmp_path, machine):
    machine.add("genaug", "exit 1")
    done = run(two("--max-restarts", "2"), tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("launch: restart") == 2
    assert done.stderr.count("ended with 1\n") >= 3, "a round is ended by its own process alone"
    assert "no restart is left" in done.stderr


@pytest.mark.parametrize("signal, code", [("INT", 130), ("TERM", 143), ("KILL", -9)])
def test_nothing_runs_on_when_the_launcher_ends(two, tmp_path, machine, signal, code):
    machine.add("genaug", f'{FAKE_GENAUG}\necho $$ >"$STATE/pid$id"; exec sleep 1000')
    path = tmp_path / "launch.sh"
    path.write_text(two())
    # Tests that run in the background ignore Ctrl-C, and so would what they start.
    heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    begin = [sys.executable, "-c", heard + "os.execvp('bash', ['bash', sys.argv[1]])", str(path)]
    with subprocess.Popen(begin, cwd=tmp_path) as process:
        try:
            pids = [tmp_path / f"pid{i}" for i in range(2)]
            wait_for(lambda: all(one.exists() and one.read_text() for one in pids))
            subprocess.run(["kill", f"-{signal}", str(process.pid)], check=True)
            assert process.wait(timeout=30) == code
        finally:
            process.kill()
    wait_for(lambda: not any(alive(int(one.read_text())) for one in pids))


def wait_for(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_other_hosts_are_reached_by_ssh(text, tmp_path, machine):
    machine.add("genaug", FAKE_GENAUG)
    machine.add("ssh", 'while [[ $1 == -o ]]; do shift 2; done; shift; exec sh -c "$1"')
    options = ("--to", "hosts", "--host", "me@first", "--host", "second", "--host", "localhost")
    done = run(text(*options, "--run-dir", "/shared/one"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(words[-2] for words in machine.calls("ssh")) == ["me@first", "second"]
    coordinators = [words[words.index("--coordinator") + 1] for words in machine.calls("genaug")]
    assert coordinators == ["first:8476"] * 3


# --- SLURM, TPU VMs and what is applied -----------------------------------------------------------

# Two tasks, of which the first says what happens; the other is killed, and srun returns its 137.
SRUN = """
while [[ $1 == --* ]]; do shift; done
"$@"; code=$?
((code)) && exit 137
exit 0
"""


@pytest.fixture
def slurm(text, tmp_path, machine):
    machine.add("srun", SRUN)
    machine.add("scontrol", "")
    script = text("--to", "slurm", "--run-dir", str(tmp_path / "runs" / "one"), "--nodes", "2")
    return lambda **changes: run(script, tmp_path, SLURM_JOB_ID="7", **changes)


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_slurm_does_not_run_a_mistake_again(slurm, machine, tmp_path, code):
    machine.add("genaug", f"exit {code}")
    assert slurm().returncode == code
    assert machine.calls("scontrol") == []
    assert not list(tmp_path.glob("runs/one.launch/mistake*"))


def test_slurm_requeues_what_crashed_but_not_for_ever(slurm, machine, tmp_path):
    machine.add("genaug", FAKE_GENAUG + "exit 1")
    assert slurm().returncode == 0
    assert machine.calls("scontrol") == [["requeue", "7"]]
    assert slurm(SLURM_RESTART_COUNT="10").returncode == 137
    assert len(machine.calls("scontrol")) == 1
    (words, _) = machine.calls("genaug")
    assert Path(words[1]).read_text() == EXPERIMENT
    assert words[2:] == ["--distributed", "--run-dir", str(tmp_path / "runs" / "one")]


def test_slurms_own_options(text):
    script = text(
        *SLURM, "--gpus-per-node", "4", "--partition", "p", "--account", "a", "--time", "1:0"
    )
    found = re.findall(r"^#SBATCH --(.*)$", script.partition("\nset -u")[0], flags=re.MULTILINE)
    assert found == [
        *("job-name=tiny", "nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=p"),
        *("account=a", "time=1:0", "requeue", "open-mode=append", "output=tiny-%j.log"),
    ]


# Google Cloud in one machine: the state of the queued resource is a file, and ssh runs here.
GCLOUD = """
case "$*" in
  *"queued-resources describe"*)
    [[ -e $STATE/queued ]] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
    cat "$STATE/queued" ;;
  *"queued-resources create"*) echo ACTIVE >"$STATE/queued" ;;
  *"queued-resources delete"*) rm -f "$STATE/queued" ;;
  *"tpu-vm ssh"*"--command=true"*) ;;
  *"tpu-vm ssh"*)
    for word in "$@"; do [[ $word == --command=* ]] && sh -c "${word#--command=}"; done ;;
  *"storage rm"*) rm -rf "$BUCKET/runs/one.launch/ends" ;;
  *"storage cat"*) cat "$BUCKET"/runs/one.launch/ends/* ;;
esac
"""


@pytest.fixture
def tpu(text, tmp_path, machine):
    """The script for one machine, whose bucket is a folder and whose installing is a fake."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    machine.add("gcloud", GCLOUD)
    for name in ("gcsfuse", "sudo", "mountpoint"):
        machine.add(name, "exit 0")
    machine.add("python3", 'mkdir -p "$HOME/genaug/bin"; cp "$STATE/bin/genaug" "$HOME/genaug/bin"')

    def start(**changes):
        script = text(*VM, "--spot", "--max-restarts", "2").replace("/mnt/genaug", str(bucket))
        home = {"HOME": str(tmp_path / "home"), "BUCKET": str(bucket), "USER": "me"}
        (tmp_path / "home").mkdir(exist_ok=True)
        return run(script, tmp_path, **home, **changes)

    return start


def test_tpu_vms_are_made_used_and_deleted(tpu, tmp_path, machine):
    machine.add("genaug", FAKE_GENAUG + "echo trained")
    done = tpu()
    assert done.returncode == 0, done.stderr
    calls = [" ".join(words) for words in machine.calls("gcloud")]
    (create,) = [words for words in calls if "queued-resources create" in words]
    assert "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite" in create
    assert create.endswith("--node-id=tiny --spot")
    assert "queued-resources delete tiny" in calls[-1]
    (words,) = machine.calls("genaug")
    run_dir = str(tmp_path / "bucket" / "runs" / "one")
    assert words == ["run", f"{tmp_path}/home/tiny.py", "--distributed", "--run-dir", run_dir]
    assert Path(words[1]).read_text() == EXPERIMENT
    (log,) = tmp_path.glob("bucket/runs/one.launch/logs/*.log")
    assert log.read_text() == "trained\n"


def test_a_preempted_tpu_is_asked_for_again(tpu, tmp_path, machine):
    """The machine is taken away while it works."""
    machine.add(
        "genaug",
        '[[ -e $STATE/once ]] && exit 0\ntouch "$STATE/once"; echo SUSPENDED >"$STATE/queued"; '
        "exec sleep 1000",
    )
    done = tpu()
    assert done.returncode == 0, done.stderr
    calls = [" ".join(words) for words in machine.calls("gcloud")]
    assert sum("queued-resources create" in words for words in calls) == 2
    assert "the machines are gone" in done.stderr


def test_a_crash_on_a_tpu_is_mended_there_and_a_mistake_ends_it(tpu, tmp_path, machine):
    machine.add("genaug", '[[ -e $STATE/once ]] && exit 3\ntouch "$STATE/once"; exit 134')
    assert tpu().returncode == 3
    assert len(machine.calls("genaug")) == 2
    calls = [" ".join(words) for words in machine.calls("gcloud")]
    assert sum("queued-resources create" in words for words in calls) == 1
    assert "delete" in calls[-1]


def test_slices_are_nodes(text):
    script = text(*VM[:3], "2xv5e-16", *VM[4:], "--project", "p")
    for words in (
        "nodes=(tiny-0 tiny-1)",
        "num_hosts=8 ",
        "where=(--project=p --zone=z-a --quiet)",
        '--node-count=2 --node-prefix="$name"\n',
    ):
        assert words in script


@pytest.mark.parametrize(
    "target, tool", [("gke", "kubectl"), ("slurm", "sbatch"), ("hosts", "ssh")]
)
def test_apply_runs_what_is_written(file, target, tool, tmp_path, machine, capfd):
    machine.add(
        tool, 'for word in "$@"; do [[ -f $word ]] && cp "$word" "$STATE/seen"; done; exit 5'
    )
    plans = ["--no-plan"] if target == "gke" else []
    out = tmp_path / "it.txt"
    options = [*TARGETS[target], "--max-restarts", "0", "--apply", "--out", str(out), *plans]
    assert cli.main(["launch", file, *options]) == 5
    said = capfd.readouterr().err
    if target == "hosts":
        assert f"running: bash {out}" in said
        assert len(machine.calls("ssh")) == 2
    else:
        assert f"running: {shlex.join([tool, *machine.calls(tool)[0]])}" in said
        assert (tmp_path / "seen").read_text() == out.read_text()


@pytest.mark.parametrize(
    "target, tool",
    [("gke", "kubectl"), ("tpu-vm", "gcloud"), ("slurm", "sbatch"), ("hosts", "ssh")],
)
def test_a_tool_that_is_missing_is_named(file, target, tool, tmp_path, monkeypatch, capsys):
    which = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == tool else which(name) or name)
    plans = ["--no-plan"] if target in ("gke", "tpu-vm") else []
    assert cli.main(["launch", file, *TARGETS[target], "--apply", *plans]) == 2
    assert f"--apply needs {tool}" in capsys.readouterr().err


# --- the examples ---------------------------------------------------------------------------------

EXAMPLES = sorted((Path(__file__).parents[1] / "experiments" / "launch").glob("*.*"))


def no_plan(text):
    """A text less what its comment says of a plan, which only the TPU compiler can tell."""
    return re.sub(r"\n# (?:Plan, compiled|No plan was made).*?(?=\n#\n)", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_what_their_commands_render(path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    held = path.read_text(encoding="utf-8")
    (line,) = re.findall(r"^#   genaug (launch .*)$", held, flags=re.MULTILINE)
    assert cli.main(shlex.split(line)) == 0
    assert no_plan(capsys.readouterr().out) == no_plan(held)


def test_there_is_an_example_of_every_target():
    texts = [path.read_text(encoding="utf-8") for path in EXAMPLES]
    for target in TARGETS:
        assert any(f" --to {target} " in text for text in texts)


def test_a_launch_is_rendered_alone():
    made = Launch(
        target="hosts",
        name="one",
        source="x = 1\n",
        command="train",
        fields=(),
        run_dir="/shared/one",
        header=("one",),
        hosts=("a",),
        port=1,
    )
    assert 'genaug train "$folder/one.py" --coordinator a:1' in render(made)
