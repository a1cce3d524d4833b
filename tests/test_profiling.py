"""`genaug profile`: kinds of operations, their bytes and their times."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genaug import hlo, profiling
from genaug.hlo_text import parse
from genaug.types import LabelSpec, TokenSpec

pytest_plugins = ["tiny_run"]


def compiled_text(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def kinds(text):
    program, _ = parse(text)
    return {
        profiling.kind_of(one, program)
        for computation in program.values()
        for one in computation.instructions.values()
        if one.opcode == "fusion" or one.opcode in ("dot", "convolution", "transpose", "copy")
    }


def test_instructions_add_up_to_the_program_and_loops_count_as_often_as_they_run():
    x = jnp.ones((64, 64))
    loop = compiled_text(lambda x: jax.lax.fori_loop(0, 5, lambda i, y: jnp.sin(y @ x), x), x)
    found = hlo.by_instruction(loop)
    assert sum(found.values()) == pytest.approx(hlo.measure(loop).hbm_bytes)
    once = compiled_text(lambda x: jax.lax.fori_loop(0, 1, lambda i, y: jnp.sin(y @ x), x), x)
    assert max(found.values()) > 4 * max(hlo.by_instruction(once).values())


def test_a_fusion_is_of_the_kind_of_the_dearest_thing_in_it():
    x = jnp.ones((32, 48))
    assert "matrix products" in kinds(compiled_text(lambda x: jnp.tanh(x.T @ x), x))
    assert "sums and norms" in kinds(compiled_text(lambda x: jnp.sum(x * x, axis=1), x))
    assert kinds(compiled_text(lambda x: jnp.sin(x) + 1, x)) == {"elementwise"}
    assert kinds(compiled_text(lambda x: jnp.copy(x.T), x)) <= {"copies and transposes"}


def test_made_up_data_holds_what_a_dataset_could():
    whole = jax.ShapeDtypeStruct((4,), np.dtype(np.int32))
    spec = {"label": LabelSpec(3), "tokens": TokenSpec(4, 7), "segments": whole}
    found = profiling.made_up(spec, 2, 50)
    assert set(np.unique(found["label"])) == {0, 1, 2}
    assert set(np.unique(found["tokens"])) == set(range(7))
    assert found["segments"].shape == (2, 50, 4)
    assert (found["segments"] == 1).all()


def test_an_experiment_is_profiled(run_cli, experiment_file, tmp_path, capsys):
    path = tmp_path / "profile.json"
    assert run_cli("profile", experiment_file, "--json", path, "--train.batch-size", "32") == 0
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert (found["batch"], found["devices"]) == (32, 2)
    assert found["bytes"]["matrix products"] > 0
    assert found["seconds"]["matrix products"] > 0
    # A perceptron of 64 pixels, 10 classes, 32 hidden and 4 latent units, forward and backward.
    forward = 2 * 32 * (74 * 32 + 32 * 8 + 14 * 32 + 32 * 64)
    assert 2 * forward < found["flops"] <= 3 * forward * 1.2
    assert "matrix products" in printed
    assert "An update of 32 on 2 device(s)" in printed
    assert f"After {found['updates']} updates on made-up data: " in " ".join(printed.split())
    assert np.isfinite(found["metrics"]["loss"])


def test_an_experiment_must_be_named(run_cli, capsys):
    assert run_cli("profile") == 2
    assert "Name an experiment file" in capsys.readouterr().err
