"""Text sources: files as users have them, byte for byte, and what is said about the bad ones."""

import json

import pytest

from genaug.data import TextData, catalogue
from genaug.data import text_sources as sources_module
from genaug.data.text_sources import read_texts
from genaug.types import DataError

BOM = b"\xef\xbb\xbf"
LATIN = "café\n".encode("latin-1")


def fails(config, *parts):
    with pytest.raises(DataError) as caught:
        read_texts(config)
    assert caught.value.exit_code == 3
    for part in parts:
        assert str(part) in str(caught.value)
    assert "\n" not in str(caught.value)


def file(tmp_path, name, content, **fields):
    """A TextData whose source is a file with this content."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextData(source=str(path), **fields)


def skipping(config):
    return TextData(**{**vars(config), "skip_bad": True})


def test_a_text_file_is_kept_byte_for_byte(tmp_path):
    content = "\0 first\r\nsecond \u2028 third\n\n".encode()
    texts = read_texts(file(tmp_path, "a.txt", BOM + content))
    assert texts.texts == (content,)
    assert (texts.name, texts.names, texts.class_names) == ("a", ("a.txt",), ())
    assert texts.labels.tolist() == [0]


def test_texts_between_separator_lines(tmp_path):
    content = BOM + b"one\n%\ntwo % two\n%%\n\r\n%\r\nthree"
    texts = read_texts(file(tmp_path, "a.txt", content, separator="%"))
    assert texts.texts == (b"one\n", b"two % two\n%%\n\r\n", b"three")
    assert texts.names == ("a.txt 1", "a.txt 2", "a.txt 3")
    for ending in ("%", "%\n", "%\r\n"):
        again = file(tmp_path, "a.txt", content + b"\n" + ending.encode(), separator="%")
        assert read_texts(again).texts[2:] == (b"three\n",)
    dots = file(tmp_path, "a.txt", "one\nabc\n...\ntwo", separator="...")
    assert read_texts(dots).texts == (b"one\nabc\n", b"two")  # not a regular expression


def test_an_empty_text_between_separators(tmp_path):
    config = file(tmp_path, "a.txt", "one\n%\n \n%\ntwo\n", separator="%")
    fails(config, "a.txt, line 3", "empty", "--data.skip-bad")
    assert read_texts(skipping(config)).texts == (b"one\n", b"two\n")
    fails(skipping(file(tmp_path, "b.txt", "")), "no texts", "b.txt")


def test_bytes_that_are_not_utf8(tmp_path):
    config = file(tmp_path, "a.txt", BOM + b"fine\n%\n" + LATIN, separator="%")
    fails(config, "a.txt is not UTF-8: byte 0xe9 at offset 13 (line 3)", "iconv", "--data.skip-bad")
    assert read_texts(skipping(config)).texts == (b"fine\n",)
    fails(file(tmp_path, "b.txt", "text".encode("utf-16")), "b.txt is UTF-16", "iconv -f UTF-16")
    line = b'{"text": "a"}\n{"text": "' + LATIN.strip() + b'"}\n{"text": "b"}'
    config = file(tmp_path, "c.jsonl", BOM + line)
    fails(config, "byte 0xe9 at offset 30 (line 2)")
    assert read_texts(skipping(config)).texts == (b"a", b"b")
    config = file(tmp_path, "d.csv", b"text\na\n" + LATIN + b"b\n")
    fails(config, "byte 0xe9 at offset 10 (line 3)")
    assert read_texts(skipping(config)).texts == (b"a", b"b")
    config = file(tmp_path, "e.csv", b"text,kind\na,x\nb," + LATIN, label_column="kind")
    assert read_texts(skipping(config)).class_names == ("x",)


def test_jsonl(tmp_path):
    rows = [
        {"body": "ä\u2028ö\n", "kind": 7, "more": [1]},
        {"body": "\0", "kind": "b"},
        {"body": "😀", "kind": 7},
    ]
    content = BOM + b"\n\n".join(
        json.dumps(row, ensure_ascii=i > 0).encode() for i, row in enumerate(rows)
    )
    config = file(tmp_path, "a.jsonl", content, text_column="body", label_column="kind")
    texts = read_texts(config)
    assert texts.texts == tuple(row["body"].encode() for row in rows)
    assert texts.names == ("a.jsonl 1", "a.jsonl 3", "a.jsonl 5")
    assert texts.class_names == ("7", "b")
    assert texts.labels.tolist() == [0, 1, 0]
    assert read_texts(TextData(**{**vars(config), "label_column": None})).class_names == ()


@pytest.mark.parametrize(
    "line, parts",
    [
        ("{nonsense}", ["line 2 is not JSON"]),
        ("[" * 100_000, ["line 2 is not JSON"]),
        ('["x", "y"]', ["line 2 is list", "expected an object"]),
        ('{"txt": "x", "kind": "a"}', ["no field 'text'", "did you mean 'txt'", "txt, kind"]),
        ('{"text": "x"}', ["line 2 has no field 'kind'", "--data.label-column"]),
        ('{"text": 3, "kind": "a"}', ["line 2: 'text' is int"]),
        ('{"text": null, "kind": "a"}', ["line 2: 'text' is NoneType"]),
        ('{"text": " \\n", "kind": "a"}', ["line 2, 'text': the text is empty"]),
        ('{"text": "x", "kind": ""}', ["line 2: 'kind' is ''", "names no class"]),
        ('{"text": "x", "kind": " a"}', ["'kind' is ' a'"]),
        ('{"text": "x", "kind": "a\\nb"}', ["names no class"]),
        ('{"text": "x", "kind": 0.5}', ["'kind' is 0.5"]),
        ('{"text": "x\\ud800", "kind": "a"}', ["line 2: '\\ud800' at character 1 is no Unicode"]),
        ('{"text": "x", "kind": "\\ud800"}', ["is no Unicode"]),
    ],
)
def test_bad_lines_of_jsonl(tmp_path, line, parts):
    content = '{"text": "first", "kind": "a"}\n' + line + '\n{"text": "last", "kind": "a"}\n'
    config = file(tmp_path, "a.jsonl", content, label_column="kind")
    fails(config, "a.jsonl", *parts)
    assert read_texts(skipping(config)).texts == (b"first", b"last")


def test_csv(tmp_path):
    long = "x" * 200_000
    content = f'id,text,kind\r\n1,"two\r\nlines, ""quoted""",b\r\n\r\n2,{long},a\r\n3,  a b ,b\r\n'
    config = file(tmp_path, "a.csv", BOM + content.encode(), label_column="kind")
    texts = read_texts(config)
    assert texts.texts == (b'two\r\nlines, "quoted"', long.encode(), b"  a b ")
    assert texts.class_names == ("a", "b")
    assert texts.labels.tolist() == [1, 0, 1]
    assert texts.names == ("a.csv 1", "a.csv 2", "a.csv 3")


@pytest.mark.parametrize(
    "row, parts",
    [
        ("x,a,b", ["row 2 (to line 3) has 3 fields and the header 2"]),
        ("x", ["row 2 (to line 3) has 1 fields"]),
        (",a", ["row 2 (to line 3), 'text': the text is empty"]),
        ("x,", ["row 2 (to line 3): 'kind' is ''"]),
    ],
)
def test_bad_rows_of_csv(tmp_path, row, parts):
    content = f"text,kind\nfirst,a\n{row}\nlast,a\n"
    config = file(tmp_path, "a.csv", content, label_column="kind")
    fails(config, "a.csv", *parts)
    assert read_texts(skipping(config)).texts == (b"first", b"last")


def test_csv_whose_rows_cannot_be_told_apart(tmp_path):
    fails(skipping(file(tmp_path, "a.csv", 'text\n"x" y\nz\n')), "a.csv, line 2", "mend the quotes")
    fails(skipping(file(tmp_path, "a.csv", 'text\n"x\nz\n')), "a.csv, line 3", "mend the quotes")
    fails(file(tmp_path, "a.csv", ""), "a.csv is empty", "header")
    fails(file(tmp_path, "a.csv", "text\n"), "no texts in text file")
    fails(file(tmp_path, "a.csv", "text,text\na,b\n"), "2 columns 'text'", "rename")
    config = file(tmp_path, "a.csv", "text,label\na,b\n", label_column="labels")
    fails(config, "no column 'labels'", "did you mean 'label'", "text, label")


def test_class_folders_and_plain_folders(tmp_path):
    for name in ("cat/b.txt", "cat/deep/a.TXT", "dog/a.txt", "cat/.hidden.txt", "cat/notes.md"):
        file(tmp_path, f"pets/{name}", name)
    texts = read_texts(TextData(source=str(tmp_path / "pets")))
    assert texts.names == ("cat/b.txt", "cat/deep/a.TXT", "dog/a.txt")
    assert texts.labels.tolist() == [0, 0, 1]
    assert texts.class_names == ("cat", "dog")
    for name in ("b.txt", "a.txt", "c.md", ".d.txt"):
        file(tmp_path, f"plain/{name}", f"{name}\n%\nmore")
    texts = read_texts(TextData(source=str(tmp_path / "plain"), separator="%"))
    assert texts.names == ("a.txt 1", "a.txt 2", "b.txt 1", "b.txt 2")
    assert texts.class_names == ()


def test_folders_that_say_two_things(tmp_path):
    root = TextData(source=str(tmp_path / "set"))
    file(tmp_path, "set/cat/a.txt", "text")
    file(tmp_path, "set/a.txt", "text")
    fails(root, "a.txt", "beside folders (cat)")
    (tmp_path / "set" / "a.txt").unlink()
    (tmp_path / "set" / "dog").mkdir()
    fails(root, "class 'dog' has no texts")
    (tmp_path / "set" / "dog").rename(tmp_path / "set" / "CAT")
    fails(root, "'CAT'", "'cat'", "spelling")
    (tmp_path / "set" / "CAT").rmdir()
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "set" / "cat" / "z.txt").symlink_to(tmp_path / "secret.txt")
    fails(root, "z.txt", "symbolic link")
    file(tmp_path, "split/train/cat/a.txt", "text")
    file(tmp_path, "split/test/cat/a.txt", "text")
    fails(
        TextData(source=str(tmp_path / "split")), "train/ and test/", tmp_path / "split" / "train"
    )
    (tmp_path / "empty").mkdir()
    fails(TextData(source=str(tmp_path / "empty")), "no .txt file")


def test_unknown_sources(tmp_path):
    fails(TextData(source="pydoc"), "'pydoc'", "did you mean 'pydoc_topics'", "fortunes")
    fails(file(tmp_path, "a.pdf", "x"), "a.pdf is not a text file", ".jsonl")


def test_pydoc_topics_are_those_of_this_python():
    from pydoc_data.topics import topics

    texts = read_texts(TextData())
    assert dict(zip(texts.names, texts.texts, strict=True)) == {
        name: text.encode() for name, text in topics.items()
    }
    assert len(texts.texts) > 70
    assert "PSF" in texts.licence


def test_fortunes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "FORTUNES", tmp_path / "games")
    fails(TextData(source="fortunes"), "not installed", "apt install fortunes")
    for name in ("wisdom", "art"):
        file(tmp_path, f"games/{name}", f"{name} one\n%\n%\n{name} two\n%\n")
        file(tmp_path, f"games/{name}.dat", b"\0\0\xff")
        (tmp_path / "games" / f"{name}.u8").symlink_to(name)
    texts = read_texts(TextData(source="fortunes"))
    assert texts.texts == (b"art one\n", b"art two\n", b"wisdom one\n", b"wisdom two\n")
    assert texts.class_names == ("art", "wisdom")
    assert texts.labels.tolist() == [0, 0, 1, 1]
    assert "BSD" in texts.licence


def test_catalogue_names_the_texts(tmp_path, monkeypatch):
    monkeypatch.setattr("genaug.data.listing.fortune_files", list)
    entries = {entry.name: entry for entry in catalogue(str(tmp_path))}
    assert entries["pydoc_topics"].found
    assert "PSF" in entries["pydoc_topics"].licence
    assert (entries["fortunes"].found, entries["fortunes"].how) == (False, "apt install fortunes")
    monkeypatch.setattr("genaug.data.listing.fortune_files", lambda: ["art", "wisdom"])
    found = {entry.name: entry for entry in catalogue(str(tmp_path))}["fortunes"]
    assert (found.found, found.size, found.how) == (True, "2 classes", "")
