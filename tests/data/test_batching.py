"""Batches: a pure function of step, on any number of hosts, from memory or from disk."""

import itertools
import time

import numpy as np
import pytest

from genaug.data import Data, batches, load, pipeline, split
from genaug.data import dataset as dataset_module
from genaug.types import LabelSpec, UserError


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return Data(source="digits", directory=str(tmp_path_factory.mktemp("digits")))


@pytest.fixture(scope="module")
def digits(config):
    return load(config)


@pytest.fixture(scope="module")
def train(digits, config):
    return split(digits, config).train


def same(a, b):
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def test_a_batch_has_the_shapes_of_the_spec(digits, train):
    batch = pipeline(digits, train, batch_size=32, seed=0)[3]
    for key, leaf in digits.spec.items():
        assert batch[key].shape == (32, *leaf.shape)
        assert batch[key].dtype == leaf.dtype
    assert isinstance(digits.spec["label"], LabelSpec)
    assert digits.spec["label"].num_classes == 10


def test_an_epoch_holds_every_index_once_in_an_order_of_its_own(digits):
    indices = np.arange(100, 164)
    ds = pipeline(digits, indices, batch_size=16, seed=0)
    epochs = [np.concatenate([ds[4 * e + i]["image"] for i in range(4)]) for e in range(2)]
    expected = sorted(image.tobytes() for image in digits.arrays(indices)["image"])
    for epoch in epochs:
        assert sorted(image.tobytes() for image in epoch) == expected
    assert not (epochs[0] == epochs[1]).all()
    assert not same(ds[0], pipeline(digits, indices, batch_size=16, seed=1)[0])


@pytest.mark.parametrize("hosts", [2, 4])
def test_the_global_batch_does_not_depend_on_the_hosts(digits, train, hosts):
    options = {"batch_size": 32, "seed": 5, "balance": 0.5}
    whole = pipeline(digits, train[:70], **options)
    blocks = np.arange(32).reshape(hosts, -1)
    shares = [pipeline(digits, train[:70], **options, rows=block) for block in blocks]
    for step in (0, 1, 2, 3, 1000):
        parts = [ds[step] for ds in shares]
        joined = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        assert same(joined, whole[step])


@pytest.mark.parametrize("start", [0, 1, 17, 123])
def test_resuming_equals_not_having_stopped(digits, train, start):
    ds = pipeline(digits, train, batch_size=64, seed=0)
    uninterrupted = list(batches(ds, 0, 130))
    resumed = list(batches(ds, start, 130))
    assert len(resumed) == 130 - start
    assert all(map(same, resumed, uninterrupted[start:]))
    assert same(next(batches(ds, start)), ds[start])


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_class_shares_follow_the_balance(digits, config, balance):
    by_class = [np.flatnonzero(digits.labels == c)[:n] for c, n in ((0, 160), (1, 40), (2, 7))]
    indices = np.concatenate(by_class)
    ds = pipeline(digits, indices, batch_size=64, seed=0, balance=balance)
    drawn = np.concatenate([b["label"] for b in batches(ds, 0, 300)])
    share = np.bincount(drawn, minlength=3) / len(drawn)
    expected = np.array([160, 40, 7]) ** (1 - balance)
    np.testing.assert_allclose(share[:3], expected / expected.sum(), atol=0.01)


def test_from_disk_as_from_memory(digits, config, train, monkeypatch):
    assert digits._decoded is not None  # decided before the limit changes
    monkeypatch.setattr(dataset_module, "IN_MEMORY_BYTES", 0)
    large = load(config)
    assert large._decoded is None
    options = {"batch_size": 16, "seed": 3, "balance": 0.3}
    a, b = pipeline(large, train, **options), pipeline(digits, train, **options)
    assert all(same(x, y) for x, y in zip(batches(a, 0, 20), batches(b, 0, 20), strict=True))


@pytest.mark.parametrize("ahead", [8, 30])
def test_as_many_batches_as_asked_are_read_before_they_are_wanted(digits, train, ahead):
    read = []
    ds = pipeline(digits, train, batch_size=8, seed=0).map(lambda batch: read.append(0) or batch)
    stream = batches(ds, ahead=ahead)
    next(stream)
    until = time.monotonic() + 20
    while len(read) < ahead and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    stream.close()
    assert ahead <= len(read) <= ahead + 4  # one is taken, and each thread holds one


def test_stopping_early_leaves_no_thread_behind(digits, train):
    stream = batches(pipeline(digits, train, batch_size=8, seed=0))
    assert len(list(itertools.islice(stream, 5))) == 5
    stream.close()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batch_size": 128}, "100 examples do not fill a batch of 128: choose 64 or less"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"balance": 2.0}, "balance is 2.0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_cannot_be_asked(digits, change, message):
    with pytest.raises(UserError, match=message) as caught:
        pipeline(digits, np.arange(100), **({"batch_size": 16, "seed": 0} | change))
    assert caught.value.exit_code == 2


def test_fast_enough_for_small_models(digits, train):
    ds = pipeline(digits, train, batch_size=128, seed=0)
    next(batches(ds))
    start = time.process_time()
    for _ in batches(ds, 0, 1000):
        pass
    assert time.process_time() - start < 2
