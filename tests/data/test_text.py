"""Rows of tokens: every training offset, every held-out byte once, equal on any number of hosts."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from genaug.data import TextData, pipeline, train_tokenizer, windows
from genaug.data.text_dataset import cut
from genaug.data.text_store import read_prepared
from genaug.data.tokens import BPE
from genaug.types import DataError, LabelSpec, TokenSpec, UserError

END = 256
WORDS = ["né", "alpha", "βήτα", "gamma 7", "日本", "delta\n", "\0", "😀"]


def prose(seed, words):
    draw = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in draw.integers(0, len(WORDS), words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of texts from 3 to some 600 bytes."""
    root = tmp_path_factory.mktemp("text") / "kinds"
    for label, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir(parents=True)
        for i in range(8):
            text = prose(100 * label + i, 1 + 3 ** (i % 5)) + f"{label}{i}"
            (root / name / f"{i}.txt").write_text(text, encoding="utf-8", newline="")
    return root


@pytest.fixture
def config(folder):
    return TextData(source=str(folder), context=24, stride=5, valid_fraction=0.2, test_fraction=0.1)


@pytest.fixture(scope="module")
def bpe_file(folder):
    path = folder.parent / "tokenizer.json"
    pytest.importorskip("tokenizers", reason='pip install "genaug[text]"')
    train_tokenizer(TextData(source=str(folder)), 300, path)
    return str(path)


def parts_of(config):
    texts = read_prepared(config)[0]
    return texts, cut(texts, config)


def counted(row_tokens, row_segments):
    """Indices of the targets that count, by the rule as the model reads it."""
    return [
        t
        for t in range(1, len(row_tokens))
        if row_segments[t] > 0 and abs(row_segments[t]) == abs(row_segments[t - 1])
    ]


def expected_documents(config, dataset, which):
    """(start, ids before, ids to score) of each text with something in this split."""
    texts, parts = parts_of(config)
    encode = dataset.tokenizer.encode
    end = dataset.spec["tokens"].end
    for label, text in zip(texts.labels, parts, strict=True):
        if not text[which]:
            continue
        before = [int(i) for part in text[:which] for i in encode(part.decode())]
        own = encode(text[which].decode()).tolist() + ([] if any(text[which + 1 :]) else [end])
        yield (end + 1 + int(label) if config.conditional else end), before, own


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
@pytest.mark.parametrize("holdout", ["texts", "tail"])
@pytest.mark.parametrize("stride", [1, 5, 24, None])
def test_every_held_out_token_is_scored_once_after_enough_context(
    config, request, tokenizer, holdout, stride
):
    file = "bytes" if tokenizer == "bytes" else request.getfixturevalue("bpe_file")
    config = dataclasses.replace(config, holdout=holdout, stride=stride, tokenizer=file)
    dataset, splits = config.read()
    _, parts = parts_of(config)
    for which in (1, 2):
        batch = dataset.arrays(splits[which])
        padding = batch["segments"] == 0
        assert (batch["tokens"][padding] == dataset.spec["tokens"].end).all()
        rows = list(zip(batch["tokens"].tolist(), batch["segments"].tolist(), strict=True))
        scored = iter([(r, t) for r, row in enumerate(rows) for t in counted(*row)])
        for start, before, own in expected_documents(config, dataset, which):
            whole = [start, *before, *own]
            for at in range(len(whole) - len(own), len(whole)):
                r, t = next(scored)
                assert rows[r][0][: t + 1] == whole[at - t : at + 1]  # itself and all before it
                assert t >= min(at, config.context + 1 - (stride or config.context // 4))
        assert next(scored, None) is None
        assert batch["num_bytes"].sum() == sum(len(part[which]) for part in parts) > 0


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("holdout", ["texts", "tail"])
def test_training_rows_are_every_offset_of_the_training_text(config, holdout, conditional):
    config = dataclasses.replace(config, holdout=holdout, conditional=conditional)
    dataset, splits = config.read()
    stream, document = [], []
    for n, (start, _, own) in enumerate(expected_documents(config, dataset, 0)):
        stream += [start, *own]
        document += [n] * (1 + len(own))
    length = config.context + 1
    assert splits.train.tolist() == list(range(len(stream) - length + 1))
    batch = dataset.arrays(splits.train)
    text = [id_ < END for id_ in stream]
    for i in range(len(splits.train)):
        assert batch["tokens"][i].tolist() == stream[i : i + length]
        first = document[i]
        assert batch["segments"][i].tolist() == [d - first + 1 for d in document[i : i + length]]
        inner = range(i + 1, i + length)
        assert batch["num_bytes"][i] == sum(text[j] for j in inner)


def test_the_spec_is_what_rows_are(config):
    dataset, splits = dataclasses.replace(config, conditional=True).read()
    spec = dataset.spec["tokens"]
    assert isinstance(spec, TokenSpec)
    assert (spec.num_text, spec.num_classes, spec.shape) == (256, 3, (25,))
    assert not isinstance(spec, LabelSpec)
    for part in splits:
        batch = dataset.arrays(part[:7])
        assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == {
            k: (s.shape, s.dtype) for k, s in dataset.spec.items()
        }
    assert sum(map(len, splits)) == len(dataset) == len(dataset.labels)
    assert config.read()[0].spec["tokens"].vocab_size == 257


def test_starts_and_labels_name_the_class(config):
    dataset, splits = dataclasses.replace(config, conditional=True).read()
    rows = dataset.arrays(splits.valid)
    first = rows["tokens"][:, 0]
    opening = first > END
    assert opening.any()
    assert (first[opening] - END - 1 == dataset.labels[splits.valid][opening]).all()
    assert set(dataset.labels[splits.train]) == {0, 1, 2}
    assert dataset.class_names == ("ant", "bee", "cow")
    train = dataset.arrays(splits.train)["tokens"]
    at_start = train[:, 0] > END
    assert (train[at_start, 0] - END - 1 == dataset.labels[splits.train][at_start]).all()


@pytest.mark.parametrize("holdout", ["texts", "tail"])
def test_global_batches_do_not_depend_on_the_hosts(config, holdout):
    dataset, splits = dataclasses.replace(config, holdout=holdout).read()
    options = {"batch_size": 8, "seed": 3, "balance": 0.5}
    whole = pipeline(dataset, splits.train, **options)
    halves = np.arange(8).reshape(2, -1)
    shares = [pipeline(dataset, splits.train, **options, rows=rows) for rows in halves]
    for step in (0, 1, 77, 10_000):
        parts = [share[step] for share in shares]
        for key, value in whole[step].items():
            assert (np.concatenate([part[key] for part in parts]) == value).all()


def test_an_epoch_draws_every_training_row_once(config):
    dataset, splits = config.read()
    rows = splits.train[:64]
    ds = pipeline(dataset, rows, batch_size=16, seed=0)
    drawn = np.concatenate([ds[step]["tokens"] for step in range(4)])
    assert sorted(map(bytes, drawn)) == sorted(map(bytes, dataset.arrays(rows)["tokens"]))


def test_tail_parts_are_text_and_nearly_the_share_asked_for(config):
    tail = dataclasses.replace(config, holdout="tail")
    texts, parts = parts_of(tail)
    for text, part in zip(texts.texts, parts, strict=True):
        assert b"".join(part) == text
        assert all(piece.decode() is not None for piece in part)  # cut between characters
        for piece, share in ((part[2], 0.1), (part[1] + part[2], 0.3)):
            assert -1 <= len(piece) - share * len(text) <= 4


def test_equal_texts_stay_together_and_shares_are_by_class(tmp_path):
    rows = ["text,kind"] + [f"t{i % 40},{'ab'[i % 2]}" for i in range(160)]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    config = TextData(
        source=str(tmp_path / "set.csv"), label_column="kind", valid_fraction=0.2, test_fraction=0.3
    )
    texts, parts = parts_of(config)
    held = [{text[which] for text in parts} - {b""} for which in range(3)]
    assert sum(map(len, held)) == 40 == len(set.union(*held))
    for which, count in enumerate((80, 32, 48)):
        labels = texts.labels[[bool(text[which]) for text in parts]]
        assert np.bincount(labels).tolist() == [count // 2] * 2
    other = cut(texts, dataclasses.replace(config, split_seed=1))
    assert cut(texts, config) == parts != other


def whole_documents(batch):
    for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
        assert (segments >= 0).all()
        numbers = [n for n in np.unique(segments).tolist() if n]
        assert numbers == list(range(1, len(numbers) + 1))
        for n in numbers:
            yield tokens[segments == n].tolist()


def test_whole_texts_fill_rows_of_one_class(config):
    config = dataclasses.replace(
        config, packing="whole", context=700, stride=None, conditional=True, valid_fraction=0.25
    )
    dataset, splits = config.read()
    _, parts = parts_of(config)
    for which in range(3):
        batch = dataset.arrays(splits[which])
        want = [
            [END + 1 + d[0] - END - 1, *d[2]] for d in expected_documents(config, dataset, which)
        ]
        assert sorted(whole_documents(batch)) == sorted(want)
        assert batch["num_bytes"].sum() == sum(len(text[which]) for text in parts)
        for tokens, label in zip(batch["tokens"], dataset.labels[splits[which]], strict=True):
            assert set(tokens[tokens > END].tolist()) == {END + 1 + int(label)}
        assert (batch["tokens"][batch["segments"] == 0] == END).all()
    assert len(splits.train) < len([text for text in parts if text[0]])


def test_texts_longer_than_the_context(config):
    config = dataclasses.replace(config, packing="whole", context=30, stride=None)
    with pytest.raises(
        DataError, match=r"ant/\d.txt is \d+ tokens.*a row holds 31.*too-long trunc"
    ):
        config.read()
    whole = {
        tuple(own)
        for which in range(3)
        for _, _, own in expected_documents(config, config_read(config, "split"), which)
    }
    dataset = config_read(config, "truncate")
    short = sorted(whole_documents(dataset.arrays(np.arange(len(dataset)))))
    assert short == sorted([END, *own][:31] for own in whole)
    dataset = config_read(config, "split")
    pieces = list(whole_documents(dataset.arrays(np.arange(len(dataset)))))
    assert all(len(piece) <= 31 and piece[0] == END for piece in pieces)
    expected = [
        [END, *own[begin : begin + 30]] for own in whole for begin in range(0, len(own), 30)
    ]
    assert sorted(pieces) == sorted(expected)
    total = dataset.arrays(np.arange(len(dataset)))["num_bytes"].sum()
    assert total == sum(map(len, read_prepared(config)[0].texts))


def config_read(config, too_long):
    return dataclasses.replace(config, too_long=too_long).read()[0]


def test_long_streams_have_windows_further_apart_but_miss_no_token(config, monkeypatch):
    every, whole = config.read()
    monkeypatch.setattr(windows, "MOST_OFFSETS", 100)
    dataset, splits = config.read()
    step = -(-len(whole.train) // 100)
    assert 1 < step < config.context
    rows = dataset.arrays(splits.train)["tokens"]
    assert (rows == every.arrays(whole.train[::step])["tokens"]).all()
    monkeypatch.setattr(windows, "MOST_OFFSETS", 1)
    dataset, splits = config.read()
    rows = dataset.arrays(splits.train)["tokens"]
    assert (rows == every.arrays(whole.train[:: config.context])["tokens"]).all()


def test_large_token_arrays_lie_in_a_file(config, monkeypatch):
    small, splits = config.read()
    monkeypatch.setattr("genaug.data.raw.IN_MEMORY_BYTES", 0)
    large, _ = config.read()
    assert isinstance(large.tokens.base, np.memmap)
    for key, value in small.arrays(splits.train).items():
        assert (large.arrays(splits.train)[key] == value).all()


def test_texts_are_written_once_and_any_tfds_reads_them(config, tmp_path):
    config = dataclasses.replace(config, directory=str(tmp_path))
    first, _ = config.read()
    stamp = {p: p.stat().st_mtime_ns for p in first.directory.iterdir()}
    again, _ = config.read()
    assert {p: p.stat().st_mtime_ns for p in again.directory.iterdir()} == stamp
    texts = read_prepared(config)[0]
    records = list(tfds.builder_from_directory(first.directory).as_data_source("train"))
    assert [r["text"] for r in records] == list(texts.texts)
    assert [r["label"] for r in records] == [0] * 8 + [1] * 8 + [2] * 8
    assert records[0]["id"] == b"ant/0.txt"
    prepared, _ = dataclasses.replace(config, source=str(first.directory)).read()
    assert prepared.fingerprint == first.fingerprint == again.fingerprint
    assert (prepared.name, prepared.class_names) == ("kinds", ("ant", "bee", "cow"))
    assert (prepared.tokens == first.tokens).all()


def test_another_byte_is_another_fingerprint(tmp_path):
    found = set()
    for text in ("a" * 300, "a" * 299 + "b", "a" * 301):
        (tmp_path / "t.txt").write_text(text)
        config = TextData(source=str(tmp_path / "t.txt"), holdout="tail", context=8)
        found.add(config.read()[0].fingerprint)
    assert len(found) == 3


def test_damaged_prepared_texts(config, tmp_path):
    config = dataclasses.replace(config, directory=str(tmp_path))
    (shard,) = config.read()[0].directory.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    used = [i for i, byte in enumerate(content) if byte]  # the rest is the format's padding
    middle = used[len(used) // 2]
    content[middle : middle + 40] = bytes(40)
    shard.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        config.read()


def test_bpe_tokens_are_made_once_and_belong_to_their_tokenizer(
    config, bpe_file, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, tokenizer=bpe_file, directory=str(tmp_path))
    first, _ = config.read()

    def encode(self, text):
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(BPE, "encode", encode)
        again, _ = config.read()
        assert (again.tokens == first.tokens).all()
        with pytest.raises(AssertionError, match="encoded again"):
            dataclasses.replace(config, holdout="tail").read()
    (kept,) = first.directory.glob("tokens_*.npz")
    arrays = dict(np.load(kept))
    np.savez(kept, ids=arrays["ids"] + 250, stops=arrays["stops"])
    with pytest.raises(
        DataError, match=r"tokens_.*token id \d+ is outside.*the ids were made with"
    ):
        config.read()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(DataError, match=r"tokens_.*remove the file"):
        config.read()


def test_a_tokenizer_learns_from_training_text_alone(tmp_path):
    (tmp_path / "t.txt").write_text("ab " * 900 + "xyzzy " * 50)  # "xyzzy" stands in the last 10 %
    config = TextData(source=str(tmp_path / "t.txt"), holdout="tail")
    tokenizer = train_tokenizer(config, 280, tmp_path / "t.json")
    assert any(b"ab" in token for token in tokenizer.table)
    assert not any(b"xy" in token for token in tokenizer.table)
    assert (tmp_path / "t.json").read_text() == tokenizer.json
    with pytest.raises(UserError, match=r"t\.json is there already"):
        train_tokenizer(config, 280, tmp_path / "t.json")


def test_a_bpe_to_be_learned_is_that_of_the_training_text_and_is_kept(
    config, tmp_path, monkeypatch
):
    (tmp_path / "t.txt").write_text("ab " * 900 + "xyzzy " * 50)  # "xyzzy" stands in the last 10 %
    config = dataclasses.replace(
        config, source=str(tmp_path / "t.txt"), holdout="tail", directory=str(tmp_path / "data")
    )
    trained = train_tokenizer(config, 280, tmp_path / "t.json")
    learn = dataclasses.replace(config, tokenizer="bpe:280")
    first, _ = learn.read()
    assert first.tokenizer.json == trained.json
    monkeypatch.setattr("genaug.data.text_dataset.train_bpe", None)
    assert learn.read()[0].tokenizer.json == trained.json
    monkeypatch.undo()
    smaller, _ = dataclasses.replace(learn, tokenizer="bpe:257").read()
    assert smaller.tokenizer.num_text == 257
    other, _ = dataclasses.replace(learn, valid_fraction=0.3).read()  # another training text
    assert len(list(first.directory.glob("bpe_*.json"))) == 3
    assert other.fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context": 0}, "--data.context is 0"),
        ({"stride": 0}, "--data.stride is 0; expected 1 to --data.context 24"),
        ({"stride": 25}, "--data.stride is 25"),
        ({"valid_fraction": 1.0}, "--data.valid-fraction is 1.0"),
        ({"test_fraction": -0.1}, "--data.test-fraction is -0.1"),
        ({"test_fraction": 0.6, "valid_fraction": 0.4}, "leave nothing to train on"),
        ({"split_seed": -1}, "--data.split-seed is -1"),
        ({"too_long": "split"}, "--data.too-long split is for --data.packing whole"),
        ({"packing": "whole", "stride": None, "holdout": "tail"}, "--data.holdout tail cuts every"),
        ({"packing": "whole"}, "--data.stride is for --data.packing stream"),
        ({"label_column": "kind"}, "--data.label-column is for a .jsonl or .csv"),
        ({"text_column": "body"}, "--data.text-column is for a .jsonl or .csv"),
        ({"separator": "%", "source": "fortunes"}, "--data.separator is for .txt files"),
        ({"separator": "%", "source": "a.csv"}, "--data.separator is for .txt files"),
        ({"separator": "a\nb"}, "expected a line of text"),
        ({"separator": " "}, "expected a line of text"),
        ({"tokenizer": "missing.json"}, "--data.tokenizer is 'missing.json'"),
        ({"tokenizer": "bpe:many"}, "--data.tokenizer is 'bpe:many'; expected bpe:N"),
        ({"tokenizer": "bpe:255"}, "--data.tokenizer is 'bpe:255'.*256"),
        ({"conditional": True, "source": "pydoc_topics"}, "pydoc_topics has none"),
    ],
)
def test_what_cannot_be_asked(config, change, message):
    with pytest.raises(UserError, match=message) as caught:
        dataclasses.replace(config, **change).read()
    assert caught.value.exit_code == 2


def test_too_little_text(tmp_path):
    (tmp_path / "one.txt").write_text("abcdefghij" * 3)
    one = TextData(source=str(tmp_path / "one.txt"), context=8)
    with pytest.raises(
        DataError, match=r"1 text.s., too few for a valid split.*--data.holdout tail"
    ):
        one.read()
    with pytest.raises(DataError, match=r"hold 28 tokens .* a row of 41.*at most 27"):
        dataclasses.replace(one, holdout="tail", context=40).read()
    dataset, splits = dataclasses.replace(one, holdout="tail", context=27).read()
    assert [len(part) for part in splits] == [1, 1, 0]
    (tmp_path / "set.jsonl").write_text('{"text": "aaaa", "kind": "a"}\n{"text": "b", "kind": "b"}')
    two = TextData(source=str(tmp_path / "set.jsonl"), label_column="kind", valid_fraction=0.9)
    with pytest.raises(DataError, match="class 'a' has no training text"):
        two.read()
    assert dataset.class_names == ()


def test_the_config_imports_nothing_heavy():
    code = (
        "import sys; from genaug.data import TextData; TextData(); "
        "print([m for m in ('jax', 'numpy', 'grain', 'tokenizers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
