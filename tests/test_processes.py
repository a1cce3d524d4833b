"""Several processes on this machine, over loopback: they find what one process finds."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mesh_worker import CASES, trained
from tiny_run import subprocess_environment

from genaug import checkpoint
from genaug.files import read_json
from genaug.logs import read_metrics
from genaug.processes import ALONE, Meeting, gathered, joined, together
from genaug.types import UserError

pytest_plugins = ["tiny_run"]

WORKER = Path(__file__).with_name("mesh_worker.py")
LIMIT_S = 400


@pytest.fixture
def environment(compile_cache):
    """One device a process, programs as the tests' own."""
    return {
        **subprocess_environment(compile_cache, 1),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def start(commands, environment, tmp_path, folders=None):
    """A process for every command, each with a file for what it prints."""
    found = []
    for i, command in enumerate(commands):
        with (tmp_path / f"log_{i}").open("w") as log:
            found.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=folders[i] if folders else tmp_path,
                )
            )
    return found


def ended(processes, tmp_path):
    """Exit codes and what was printed; nothing is left running."""
    deadline = time.monotonic() + LIMIT_S
    try:
        codes = [p.wait(timeout=max(deadline - time.monotonic(), 1)) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return codes, [(tmp_path / f"log_{i}").read_text() for i in range(len(processes))]


def genaug(count, *arguments, address=None):
    """The command line of each of `count` processes."""
    where = ("--coordinator", address or free_address(), "--num-processes", count)
    command = ["-m", "genaug.cli", *arguments, *where]
    return [[*command, "--process-id", i] for i in range(count)]


@pytest.mark.parametrize("devices", [8, 2])
def test_processes_train_and_draw_as_one(devices, environment, tmp_path):
    address = free_address()
    commands = [[WORKER, tmp_path / "found.npz", address, 2, i, devices // 2] for i in range(2)]
    codes, logs = ended(start(commands, environment, tmp_path), tmp_path)
    assert codes == [0, 0], logs
    found = np.load(tmp_path / "found.npz")
    for case, (experiment, mesh) in CASES[devices].items():
        for name, array in trained(experiment, mesh).items():
            there = found[f"{case}: {name}"]
            assert there.dtype == array.dtype
            # Parameters are about 1, a loss may be 500; a byte may be rounded the other way.
            limit = 1 if "sample" in name else 1e-6 * max(1.0, float(np.max(np.abs(array))))
            assert np.max(np.abs(np.subtract(there, array, dtype=float))) <= limit, (case, name)


def test_the_main_job_in_two_processes(finished, experiment_file, environment, tmp_path):
    """The same results as in one, byte for byte; and training goes on in one or four."""
    run = tmp_path / "run"
    command = ("run", experiment_file, "--run-dir", run)
    codes, logs = ended(start(genaug(2, *command), environment, tmp_path), tmp_path)
    assert codes == [0, 0], logs
    assert (run / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert "Report" in logs[0]
    assert "Report" not in logs[1]


def test_two_processes_draw_what_one_draws(finished, run_cli, environment, tmp_path):
    """Of a run and of a bundle: a part each, in turn, and one of them writes the whole."""
    environment["GENAUG_CPU_DEVICES"] = "2"
    options = ("--n", 9000, "--seed", 3, "--out")
    assert run_cli("sample", finished, *options, tmp_path / "one.npz") == 0
    one = np.load(tmp_path / "one.npz")
    for name, source in (("run", finished), ("bundle", finished / "export")):
        out = tmp_path / f"{name}.npz"
        codes, logs = ended(
            start(genaug(2, "sample", source, *options, out), environment, tmp_path), tmp_path
        )
        assert codes == [0, 0], logs
        assert "9000 examples" in logs[0]
        two = np.load(out)
        np.testing.assert_array_equal(two["label"], one["label"])
        np.testing.assert_array_equal(two["index"], np.arange(9000))
        difference = np.abs(two["image"].astype(int) - one["image"].astype(int))
        assert difference.max() <= 1, "a byte may be rounded the other way"
        assert np.mean(difference) < 1e-3


def test_training_goes_on_in_another_number_of_processes(experiment_file, environment, tmp_path):
    def train(directory, count):
        command = ("train", experiment_file, "--run-dir", directory, "--mesh.data", "-1")
        codes, logs = ended(start(genaug(count, *command), environment, tmp_path), tmp_path)
        assert codes == [0] * count, logs
        assert checkpoint.steps(directory / "checkpoints") == [10, 20]
        return read_metrics(directory)

    run = tmp_path / "run"
    whole = train(run, 2)
    (run / "checkpoints" / "20.json").unlink()
    shutil.rmtree(run / "checkpoints" / "20")
    for count in (1, 4):
        copy = shutil.copytree(run, tmp_path / f"run_{count}")
        for one, other in zip(whole, train(copy, count), strict=True):
            assert one.keys() == other.keys()
            np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-4)


def test_hosts_that_lose_a_process_start_again_and_go_on(experiment_file, environment, tmp_path):
    run, genaug_here = tmp_path / "run", tmp_path / "genaug"
    genaug_here.write_text(f'#!/bin/sh\nexec {sys.executable} -m genaug.cli "$@"\n')
    genaug_here.chmod(0o755)
    port = free_address().rpartition(":")[2]
    command = ["-m", "genaug.cli", "launch", experiment_file, "--to", "hosts", "--apply"]
    command += ["--host", "localhost", "--host", "localhost", "--port", port, "--genaug"]
    command += [genaug_here, "--command", "train", "--run-dir", run, "--train.num-steps", 200]
    processes = start([command], {**environment, "PAUSE": "1"}, tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not (run / "checkpoints" / "10.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = re.compile(rf"--process-id 1 --run-dir {re.escape(str(run))}")
    killed = [pid for pid, words in running() if second.search(words)]
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    codes, logs = ended(processes, tmp_path)
    assert codes == [0], logs
    assert "restart 1 of" in logs[0]
    assert checkpoint.steps(run / "checkpoints") == [190, 200]
    assert [line["step"] for line in read_metrics(run) if "loss" in line] == [*range(5, 201, 5)]


def running():
    """The processes of this machine: number and command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if words.startswith(sys.executable):
                yield int(path.parent.name), words


def test_the_doctor_looks_at_all(environment, tmp_path):
    command = ("doctor", "--run-dir", tmp_path / "run")
    codes, logs = ended(start(genaug(2, *command), environment, tmp_path), tmp_path)
    assert codes == [0, 0], logs
    for line in (
        r"process 0 +\S+: 1 x cpu, ids 0",
        r"process 1 +\S+: 1 x cpu, ids \d+",
        "versions, draws   alike",
        "all-reduce        right over 2 devices",
        r"run folder        \S+run: written and read by 2 process",
    ):
        assert re.search(line, logs[0]), logs[0]
    assert not list((tmp_path / "run").iterdir())


def test_processes_with_different_configs_are_all_told(experiment_file, environment, tmp_path):
    commands = genaug(2, "train", experiment_file, "--run-dir", tmp_path / "run")
    commands[1] += ["--seed", 5]
    codes, logs = ended(start(commands, environment, tmp_path), tmp_path)
    assert codes == [2, 2], logs
    for log in logs:
        assert "Process 1 has another start than process 0 (seed: 0 -> 5)" in log
    assert not (tmp_path / "run").exists()


def test_what_one_process_lacks_all_are_told(experiment_file, environment, tmp_path):
    """The second is started where the data is not."""
    np.savez(tmp_path / "own.npz", image=np.zeros((900, 8, 8), np.uint8), label=np.arange(900) % 10)
    (tmp_path / "elsewhere").mkdir()
    command = ("train", experiment_file, "--run-dir", tmp_path / "run", "--data.source", "own.npz")
    folders = [tmp_path, tmp_path / "elsewhere"]
    codes, logs = ended(start(genaug(2, *command), environment, tmp_path, folders), tmp_path)
    assert codes == [3, 3], logs
    assert "own.npz" in logs[1]
    assert "Process 1 stopped" in logs[0]
    assert not (tmp_path / "run").exists()


def test_a_process_that_dies_takes_the_others_with_it(experiment_file, environment, tmp_path):
    run = tmp_path / "run"
    command = ("train", experiment_file, "--run-dir", run, "--train.num-steps", 200_000)
    processes = start(genaug(2, *command), environment, tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while not (run / "checkpoints" / "10.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].kill()
    codes, logs = ended(processes, tmp_path)
    assert codes[0] not in (0, 2, 3, 4, 5, 130), "what starts it again must know that it may help"
    assert checkpoint.steps(run / "checkpoints"), logs


def test_a_machine_to_be_taken_away_is_left_with_a_checkpoint(
    experiment_file, environment, tmp_path
):
    run = tmp_path / "run"
    command = ("train", experiment_file, "--run-dir", run, "--train.num-steps", 200_000)
    command = (*command, "--train.checkpoint-every", 100_000)
    processes = start(genaug(2, *command), environment, tmp_path)
    deadline = time.monotonic() + LIMIT_S
    while len(read_metrics(run)) < 10 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    codes, logs = ended(processes, tmp_path)
    assert codes == [143, 143], logs
    (step,) = checkpoint.steps(run / "checkpoints")
    assert f"update {step} is saved" in logs[0]
    assert read_metrics(run)[-1]["step"] == step


def test_a_process_that_meets_nobody_says_where_it_waited(environment, tmp_path):
    address = free_address()
    alone = genaug(2, "doctor", "--join-timeout", 2, address=address)
    for command in alone:
        codes, logs = ended(start([command], environment, tmp_path), tmp_path)
        assert codes == [ALONE], logs
        assert f"waited 2 s for the other processes at {address}" in logs[0]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"coordinator": "a:1"}, "--num-processes and --process-id say together"),
        ({"num_processes": 2, "process_id": 0}, "say together"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "'a': write HOST:PORT"),
        ({"coordinator": "a:b", "num_processes": 2, "process_id": 0}, "write HOST:PORT"),
        ({"coordinator": "a:70000", "num_processes": 2, "process_id": 0}, "write HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process-id is 2 of 2"),
        ({"coordinator": "a:1", "num_processes": 0, "process_id": 0}, "--process-id is 0 of 0"),
        ({"timeout_s": 0}, "--join-timeout is 0"),
    ],
)
def test_meetings_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message), joined(Meeting(**fields)):
        pass


def test_a_process_by_itself_agrees_with_itself():
    assert gathered("hello") == ["hello"]
    assert together(lambda: 3) == 3
    with pytest.raises(UserError, match=r"^no$"):
        together(lambda: (_ for _ in ()).throw(UserError("no")))


def test_the_environment_counts_processes(finished):
    assert read_json(finished / "environment.json")["processes"] == 1
