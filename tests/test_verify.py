"""genaug verify: what is as it was written passes, and every damage is named; nothing changes."""

import re

import pytest
from tiny_run import files as names_of

from genaug import bundle, runs, verify
from genaug.types import UserError

pytest_plugins = ["tiny_run"]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def test_a_finished_run_is_as_it_was_written(finished, run_cli, monkeypatch, capsys):
    def never(*arguments, **options):
        raise AssertionError("a model was built")

    monkeypatch.setattr(runs, "open_run", never)
    monkeypatch.setattr("genaug.models.cvae.CVAE.make", never)
    before = names_of(finished)
    assert run_cli("verify", finished) == 0
    said = capsys.readouterr()
    assert said.out.count("as it was written") == 4  # two checkpoints, the bundle, the set
    assert said.err == ""
    assert names_of(finished) == before


def _array(run):
    (path,) = (run / "checkpoints" / "20" / "state" / "ocdbt.process_0" / "d").iterdir()
    flip(path)


def _weights(run):
    flip(run / "export" / "weights.safetensors")


def _weights_with_their_digest(run):
    """As if a tool had changed both."""
    _weights(run)
    files = {name: (run / "export" / name).read_bytes() for name in bundle.FILES}
    (run / "export" / bundle.SUMS).write_bytes(bundle.sums(files))


def _record(run):
    (path,) = (run / "synthetic").glob("*array_record*")
    flip(path)


def _fingerprint(run):
    path = run / "synthetic" / "metadata.json"
    path.write_text(path.read_text().replace('fingerprint": "', 'fingerprint": "0'))


DAMAGES = {
    _array: r"checkpoints/20: array \S+ has changed since it was written",
    _weights: r"export: weights.safetensors has been altered",
    _weights_with_their_digest: r"export: the weights are not those that bundle.json names",
    _record: r"synthetic: (cannot be read|a record has changed since it was written)",
    _fingerprint: r"synthetic: a record has changed since it was written",
    lambda run: (run / "checkpoints" / "20.json").write_text("{}"): r"20.json is not as it was",
    lambda run: (run / "export" / "bundle.json").unlink(): r"export: bundle.json is missing",
    lambda run: (run / "synthetic" / "features.json").unlink(): r"synthetic: cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_damage_is_named_with_exit_code_3(finished_copy, run_cli, capsys, damage):
    damage(finished_copy)
    before = {name: (finished_copy / name).read_bytes() for name in names_of(finished_copy)}
    assert run_cli("verify", finished_copy, "--quiet") == 3
    said = capsys.readouterr()
    assert re.search(DAMAGES[damage], said.err), said.err
    assert {name: (finished_copy / name).read_bytes() for name in before} == before


def test_a_run_of_splits_is_looked_at_split_by_split(finished, finished_copy, tmp_path):
    run = tmp_path / "run"
    (run / "split_0").parent.mkdir()
    finished_copy.rename(run / "split_0")
    _array(run / "split_0")
    faulty = [one.what for one in verify.verify(run) if one.faults]
    assert faulty == [str(run / "split_0" / "checkpoints" / "20")]


def test_what_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="name a run folder"):
            verify.verify(folder)
