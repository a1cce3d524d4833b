"""Synthetic examples as a Grain source, and mixing them with real ones."""

import pickle
import threading

import grain
import numpy as np
import pytest

from genaug.data.synthetic import SyntheticSource, mix
from genaug.types import UserError

REAL = 1000


def source_of(count, block_size=16, **rest):
    """Examples whose value is a known function of their address; what was drawn is recorded."""
    drawn = []

    def draw(plan):
        drawn.append(plan["index"].tolist())
        return {"x": (plan["index"] * 3).astype(np.int32), "label": plan["label"]}

    index = np.arange(count, dtype=np.int32)
    plan = {"index": index, "label": index % 3}
    return SyntheticSource(draw, plan, block_size=block_size, **rest), drawn


@pytest.fixture
def real():
    return [{"x": np.int32(-i), "label": np.int32(i % 3)} for i in range(REAL)]


def taken(stream, count):
    return [stream[i] for i in range(count)]


def test_an_example_is_a_function_of_its_address_alone():
    source, _ = source_of(50)
    assert len(source) == 50
    for i in (0, 17, 49, -1, 3):
        assert source[i] == {"x": 3 * (i % 50), "label": i % 50 % 3}
    for i in (50, -51):
        with pytest.raises(IndexError):
            source[i]


def test_a_block_is_drawn_once_and_the_next_ahead_of_its_use():
    source, drawn = source_of(64)
    for i in range(64):
        source[i]
    assert sorted(drawn) == [list(range(k, k + 16)) for k in range(0, 64, 16)]
    source, drawn = source_of(64)
    source[0]
    source._thread.shutdown(wait=True)
    assert drawn == [list(range(16)), list(range(16, 32))]


def test_far_jumps_draw_what_they_need_alone_and_old_blocks_are_dropped():
    source, drawn = source_of(160, kept_bytes=2 * 16 * 8)
    for i in (150, 40, 100, 150):
        source[i]
    assert [block[0] for block in drawn] == [144, 32, 96, 144]


def test_threads_share_the_blocks():
    source, drawn = source_of(64)
    found = [None] * 8

    def read(thread):
        found[thread] = [int(source[i]["x"]) for i in range(64)]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[3 * i for i in range(64)]] * 8
    assert len(drawn) == 4


def test_a_part_of_a_source_draws_its_own_rows_alone():
    source, drawn = source_of(64)
    part = source[1::4]
    assert [int(part[i]["x"]) for i in range(16)] == [3 * i for i in range(1, 64, 4)]
    assert drawn == [list(range(1, 64, 4))]


def test_another_order_is_of_the_same_examples():
    source, _ = source_of(64)
    found = source.permuted(5)
    values = [int(found[i]["x"]) for i in range(64)]
    assert values != sorted(values)
    assert sorted(values) == [3 * i for i in range(64)]
    assert values == [3 * i for i in found.index]
    again = source.permuted(5)
    assert [int(again[i]["x"]) for i in range(64)] == values


def test_a_source_does_not_go_to_worker_processes():
    with pytest.raises(UserError, match="genaug sample --format arrayrecord"):
        pickle.dumps(source_of(4)[0])


def test_what_the_sampler_raises_reaches_the_reader():
    def draw(plan):
        raise UserError("no such class")

    with pytest.raises(UserError, match="no such class"):
        SyntheticSource(draw, {"index": np.arange(3)})[0]


def test_a_mixture_has_the_shares_asked_for_and_says_what_is_what(real):
    source, _ = source_of(90)
    found = taken(mix(real, source, (0.75, 0.25), seed=1), 800)
    assert sum(int(each["synthetic"]) for each in found) == 200
    for each in found:
        expected = 3 * each["source_id"] if each["synthetic"] else -each["source_id"]
        assert each["x"] == expected
        assert each["source_id"].dtype == each["synthetic"].dtype == np.int32
    ids = [int(each["source_id"]) for each in found if not each["synthetic"]]
    assert len(set(ids)) == 600, "an epoch of the real part ends before it begins again"
    assert ids != sorted(ids)
    made = [int(each["source_id"]) for each in found if each["synthetic"]]
    assert sorted(made[:90]) == list(range(90)) == sorted(made[90:180])


def test_every_host_gets_the_same_shares_and_no_other_s_examples(real):
    """A stride through a mixture of halves would give one of two hosts the real ones alone."""
    source, _ = source_of(100)
    parts = [taken(mix(real, source, seed=2, shard=h, num_shards=2), 100) for h in range(2)]
    whole = mix(real, source, seed=2)
    strided = [int(whole[i]["synthetic"]) for i in range(0, 200, 2)]
    assert len(set(strided)) == 1, "the trap that is kept out of"
    ids = []
    for part in parts:
        assert sum(int(each["synthetic"]) for each in part) == 50
        ids.append({(int(e["synthetic"]), int(e["source_id"])) for e in part})
    assert not ids[0] & ids[1]
    both = {each for each in ids[0] | ids[1] if each[0]}
    assert both == {(1, i) for i in range(100)}


def test_a_mixture_resumes_exactly(real):
    source, _ = source_of(40)
    stream = mix(real, source, (0.6, 0.4), seed=3)[:96].batch(8).to_iter_dataset()
    grain.experimental.assert_equal_output_after_checkpoint(stream)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": (1.0, 0.0)}, "two numbers above 0"),
        ({"weights": (1.0,)}, "two numbers above 0"),
        ({"shard": 2, "num_shards": 2}, "shard is 2 of 2"),
        ({"num_shards": 51, "shard": 0}, "synthetic part has 50 examples for 51 hosts"),
    ],
)
def test_mixtures_that_cannot_be_are_refused(change, message, real):
    with pytest.raises(UserError, match=message):
        mix(real, source_of(50)[0], **change)


@pytest.mark.parametrize(
    "example, message",
    [
        ({"x": np.int32(1)}, "'label' is nothing in the real .* int32"),
        ({"x": np.float32(1), "label": np.int32(0)}, r"'x' is float32\[\] in the real"),
        ({"x": np.zeros(2, np.int32), "label": np.int32(0)}, r"'x' is int32\[2\] in the real"),
        ((1, 2), "A real example is tuple"),
    ],
)
def test_real_examples_of_another_kind_are_refused(example, message):
    with pytest.raises(UserError, match=message):
        mix([example] * 9, source_of(50)[0])


def test_endless_data_must_be_cut_before_it_is_mixed(real):
    with pytest.raises(UserError, match="real part"):
        mix(grain.MapDataset.source(real).repeat(), source_of(50)[0])
