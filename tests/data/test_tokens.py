"""Tokenisers: exact both ways, equal to Hugging Face's, and clear about what they cannot read."""

import json
import sys

import numpy as np
import pytest

from genaug.data.tokens import Bytes, bpe, read_tokenizer, show, train_bpe
from genaug.types import DataError, UserError

tokenizers = pytest.importorskip("tokenizers", reason='pip install "genaug[text]"')

CORPUS = [
    "The cat sat on the mat, and the hat sat on the cat.\n",
    "naïve café — 日本語の文\t42\n",
] * 20


def wild(seed, n=60):
    """Any Unicode but surrogates: control characters, marks, all planes."""
    points = np.random.default_rng(seed).integers(0, 0x110000, 4 * n)
    points = np.where(points % 3 == 0, points % 0x180, points)
    return "".join(chr(p) for p in points[(points < 0xD800) | (points > 0xDFFF)][:n])


TEXTS = [wild(seed) for seed in range(20)] + [
    "",
    "\0",
    "\r\n \n",
    "  two  spaces",
    "e\u0301é",
    "😀",
]


@pytest.fixture(scope="module")
def trained():
    return bpe(train_bpe(CORPUS, 300))


def edited(tokenizer, **changes):
    """Its tokenizer.json with parts replaced; a dotted name reaches inside."""
    content = json.loads(tokenizer.json)
    for path, value in changes.items():
        *outer, last = path.split("__")
        part = content
        for name in outer:
            part = part[name]
        part[last] = value
    return json.dumps(content)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back(trained, text):
    for tokenizer in (Bytes(), trained):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32
        assert tokenizer.decode(ids) == text
        assert tokenizer.num_bytes(ids).sum() == len(text.encode())


def test_bytes_are_bytes():
    assert Bytes().encode("aé\0").tolist() == [97, 0xC3, 0xA9, 0]
    assert Bytes().decode(np.array([97, 0xC3, 98, 255])) == "a\ufffdb\ufffd"
    assert Bytes().num_text == 256


def test_bpe_is_that_of_hugging_face(trained):
    reference = tokenizers.Tokenizer.from_str(trained.json)
    assert trained.num_text == reference.get_vocab_size()
    for text in [*CORPUS[:2], *TEXTS]:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert trained.encode(text).tolist() == ids
        assert trained.decode(np.array(ids, np.int32)) == reference.decode(ids)
    assert len(trained.encode(CORPUS[0])) < len(CORPUS[0]) / 2


def test_half_a_character_decodes_as_hugging_face_says(trained):
    reference = tokenizers.Tokenizer.from_str(trained.json)
    ids = reference.encode("😀", add_special_tokens=False).ids[:2]
    assert trained.decode(np.array(ids)) == reference.decode(ids) == "\ufffd"


def test_training_joins_the_most_frequent_pair_first():
    merged = bpe(train_bpe(["ab ab ab ab cd cd"], 258))
    # Pairs: a-b 4, space-a 3, c-d 2, space-c 2; joined, space-ab 3 is then the most frequent.
    assert merged.table[256:] == (b"ab", b" ab")
    assert bpe(train_bpe(["xy"], 1000)).num_text == 256  # no pair is seen twice


def test_training_again_gives_the_same(trained):
    assert train_bpe(CORPUS, 300) == trained.json
    assert bpe(trained.json).digest == trained.digest
    assert bpe(train_bpe(CORPUS, 290)).digest != trained.digest != Bytes().digest


def test_a_size_below_the_bytes():
    with pytest.raises(UserError, match="--vocab-size is 255"):
        train_bpe(CORPUS, 255)


@pytest.mark.parametrize("bad", [-1, 300, 10**6])
def test_ids_outside_the_vocabulary(trained, bad):
    for call in (trained.decode, trained.num_bytes):
        with pytest.raises(UserError, match=f"token id {bad} is outside.*0 to 299"):
            call(np.array([5, bad]))
    with pytest.raises(UserError, match=r"token id 256 is outside.*0 to 255"):
        Bytes().decode(np.array([256]))


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "model is WordL"),
        ({"pre_tokenizer": None}, "does not work on bytes"),
        ({"pre_tokenizer": DIGITS}, "does not work on bytes"),
        ({"normalizer": {"type": "Lowercase"}}, "it normalises text .Lowercase"),
        ({"pre_tokenizer": LEVEL | {"add_prefix_space": True}}, "puts a space before each text"),
        ({"model__dropout": 0.1}, "encodes at random"),
    ],
)
def test_tokenizers_that_lose_text_are_refused(trained, tmp_path, changes, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(edited(trained, **changes))
    with pytest.raises(DataError, match=message) as caught:
        read_tokenizer(str(path))
    assert str(path) in str(caught.value)
    assert "byte-level BPE" in str(caught.value)


def test_a_byte_without_a_token(trained):
    content = json.loads(trained.json)
    small = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    with pytest.raises(DataError, match=r"254 of the 256 bytes have no token .first: 0x00"):
        bpe(json.dumps(content | {"model": small}))


def test_a_split_that_drops_characters_is_noticed(trained):
    removing = {"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [removing, LEVEL]}
    with pytest.raises(DataError, match="changes the text 'bare'"):
        bpe(edited(trained, pre_tokenizer=steps)).encode("bare")
    steps["pretokenizers"] = [DIGITS, LEVEL]
    assert bpe(edited(trained, pre_tokenizer=steps)).decode(trained.encode("a 42")) == "a 42"


def test_special_tokens_and_limits_of_the_file_do_not_apply(trained):
    reference = tokenizers.Tokenizer.from_str(trained.json)
    reference.add_special_tokens(["<|end é|>"])
    reference.enable_truncation(4)
    reference.enable_padding(length=64)
    loaded = bpe(reference.to_str())
    assert loaded.num_text == 301
    text = "the cat<|end é|> and the mat"
    assert loaded.encode(text).tolist() == trained.encode(text).tolist()
    assert loaded.decode(np.array([300])) == "<|end é|>"
    assert loaded.num_bytes(np.array([300])).tolist() == [10]


def test_files_that_are_none(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json of Hugging Face"):
        read_tokenizer(str(path))
    with pytest.raises(
        UserError, match=r"--data\.tokenizer is 'byte'.*expected bytes, bpe:N or the"
    ):
        read_tokenizer("byte")
    assert read_tokenizer("bytes") == Bytes()


def test_without_the_package(monkeypatch, trained):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r'pip install "genaug\[text\]"'):
        bpe(trained.json)


def test_rows_are_shown_without_start_end_and_padding():
    end = 256
    tokens = np.array([[end, 72, 105, end, end], [end + 2, 72, 0xC3, 0xA9, 33]], np.int32)
    segments = np.array([[1, 1, 1, 1, 0], [-1, -1, 1, 1, 1]], np.int32)
    assert show(tokens, segments, Bytes()) == ["Hi", "Hé!"]
    segments[1, 3:] = 0
    tokens[1, 3:] = 72  # whatever stands in padding
    assert show(tokens, segments, Bytes()) == ["Hi", "H\ufffd"]
