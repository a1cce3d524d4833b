"""`genaug doctor` in one process; of several in `test_processes`."""

import jax
import pytest

from genaug import doctor
from genaug.types import UserError

pytest_plugins = ["tiny_run"]


def test_doctor_prints_versions_devices_extras_and_data(run_cli, capsys):
    assert run_cli("doctor") == 0
    out = capsys.readouterr().out
    for words in ("genaug", "jax", f"{jax.__version__}", "python", "devices", "[demo]", "digits"):
        assert words in out


def test_doctor_names_a_missing_extra(run_cli, capsys, monkeypatch):
    monkeypatch.setattr("genaug.doctor.EXTRAS", {"demo": ("absent_package",)})
    assert run_cli("doctor") == 0
    assert 'missing absent_package: pip install "genaug[demo]"' in capsys.readouterr().out


def test_doctor_writes_to_a_run_folder_and_leaves_nothing(run_cli, capsys, tmp_path):
    assert run_cli("doctor", "--run-dir", tmp_path / "run") == 0
    assert "run: written and read by 1 process(es)" in capsys.readouterr().out
    assert not list((tmp_path / "run").iterdir())


def test_doctor_says_when_a_folder_cannot_be_written_to(run_cli, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert run_cli("doctor", "--run-dir", tmp_path / "file" / "run") == 2
    assert "cannot be written to" in capsys.readouterr().err


def test_doctor_sees_a_sum_that_is_wrong(monkeypatch):
    wrong = lambda function, mesh: lambda weights, key, rows: {"x": rows["x"]}  # noqa: E731
    monkeypatch.setattr("genaug.parallel.compile_rows", wrong)
    with pytest.raises(UserError, match=r"do not talk to each other rightly"):
        doctor._all_reduced()
