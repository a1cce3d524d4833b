"""Bad inputs: images, labels and texts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.errors import Case, Place
from benchmarks.errors_values import OWN

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), np.uint8)
LABELS = np.arange(60) % 3


def source(place: Place, path: Path, *more: Any) -> Sequence[Any]:
    """A run on a data set of one's own."""
    where = ("--run-dir", place.folder / "run", "--data.source", path)
    return ("run", place.experiment, *where, *OWN, *more)


def npz(path: Path, **changes: Any) -> Path:
    """Three classes of 20 images, with some arrays replaced (None: left out)."""
    arrays = {"image": IMAGES, "label": LABELS, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def folder(path: Path, names: Sequence[str] = ("cat", "dog"), n: int = 30, side: int = 8) -> Path:
    """Class folders of images that all differ."""
    for i, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for j in range(n):
            pixels = np.random.default_rng([i, j]).integers(0, 256, (side, side), np.uint8)
            Image.fromarray(pixels).save(path / name / f"{j}.png")
    return path


def arrays(wrong: str, words: tuple[str, ...], code: int = 3, /, **changes: Any) -> Case:
    """An .npz with these arrays."""
    return Case("images and labels", wrong,
                lambda p: source(p, npz(p.folder / "set.npz", **changes)), code, words)  # fmt: skip


def changed(
    wrong: str, change: Callable[[Path], object], words: tuple[str, ...], code: int = 3
) -> Case:
    """A folder of class folders in which something was changed."""

    def make(place: Place) -> Sequence[Any]:
        change(folder(place.folder / "set"))
        return source(place, place.folder / "set")

    return Case("images and labels", wrong, make, code, words)


def of_file(wrong: str, name: str, content: bytes, words: tuple[str, ...]) -> Case:
    """A file that is no data set."""

    def make(place: Place) -> Sequence[Any]:
        (place.folder / name).write_bytes(content)
        return source(place, place.folder / name)

    return Case("images and labels", wrong, make, 3, words)


def pixels(value: float) -> np.ndarray:
    """Images as floats from 0 to 1, but for one value."""
    array = IMAGES.astype(np.float32) / 255
    array[7, 0, 0, 0] = value
    return array


def _cut(root: Path) -> None:
    path = root / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:40])


def _bomb(root: Path) -> None:
    """A PNG whose header says 60,000 by 60,000 pixels."""
    body = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + body
    head = struct.pack(">I", len(body)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (root / "cat" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"\0\0\0\0IDAT")


def _colour(root: Path) -> None:
    Image.new("RGB", (8, 8), (200, 3, 3)).save(root / "cat" / "3.png")


def _link(root: Path) -> None:
    outside = root.parent / "secret.png"
    Image.new("L", (8, 8)).save(outside)
    (root / "cat" / "z.png").symlink_to(outside)


def _test_alone(place: Place) -> Sequence[Any]:
    folder(place.folder / "set" / "train")
    folder(place.folder / "set" / "test", ("cat", "dog", "eel"), 3)
    return source(place, place.folder / "set")


def _leak(place: Place) -> Sequence[Any]:
    folder(place.folder / "set" / "train")
    folder(place.folder / "set" / "test", n=3)
    return source(place, place.folder / "set")


def _empty_folder(place: Place) -> Sequence[Any]:
    (place.folder / "set").mkdir()
    return source(place, place.folder / "set")


TEXTS = Path(__file__).parents[1] / "experiments" / "pydoc_lm.py"


def texts(wrong: str, name: str, content: bytes, code: int, *words: str, more: str = "") -> Case:
    """A file of texts for the language model."""

    def make(place: Place) -> Sequence[Any]:
        path = place.folder / name
        path.write_bytes(content)
        return ("train", TEXTS, "--run-dir", place.folder / "run", "--data.source", path,
                "--data.tokenizer", "bytes", *more.split())  # fmt: skip

    return Case("texts", wrong, make, code, words)


ROWS = b"text,kind\none,a\ntwo,b\n"

CASES = [
    arrays("channels first", ("(60, 1, 8, 8)", "looks channel-first", "np.moveaxis"),
           image=np.moveaxis(IMAGES, -1, 1)),
    arrays("two channels", ("(60, 8, 8, 2)", "1, 3 or 4 channels"),
           image=np.repeat(IMAGES, 2, -1)),
    arrays("no images in the array", ("shape (0, 8, 8, 1)",), image=IMAGES[:0], label=LABELS[:0]),
    arrays("NaN pixels", ("1 values are NaN", "image 7"), image=pixels(np.nan)),
    arrays("infinite pixels", ("NaN or infinite", "image 7"), image=pixels(np.inf)),
    arrays("floats from 0 to 255", ("0 to 255", "--data.float-range"), image=pixels(255)),
    arrays("64-bit values above 255", ("int64 values from", "expected 0 to 255"),
           image=IMAGES.astype(np.int64) << 40),
    arrays("complex pixels", ("complex128",), image=IMAGES.astype(np.complex128)),
    arrays("pickled objects", ("set.npz", "pickled Python objects", "save plain numeric"),
           image=np.array([{}, None], object), label=np.arange(2)),
    arrays("labels above the number of classes", ("label[3] is 3", "0 to 2"),
           label=np.arange(60) % 4, class_names=np.array(["a", "b", "c"])),
    arrays("label -1", ("label[0] is -1",), label=LABELS - 1),
    arrays("labels from 1", ("labels run from 1 to 3", "1-based"), label=LABELS + 1),
    arrays("labels as floats", ("labels are float64", "integers from 0"), label=LABELS / 1.0),
    arrays("labels as one-hot rows", ("(60, 3)", "not one-hot"), label=np.eye(3)[LABELS]),
    arrays("a label that is no class", ("label 'c' is not in class_names ['a', 'b']",),
           label=np.array(["a", "b", "c"])[LABELS], class_names=np.array(["a", "b"])),
    arrays("another number of labels", ("60 image but 59 label",), label=LABELS[:59]),
    arrays("no labels, for the comparison", ("the class image alone", "genaug train"), label=None),
    arrays("one class, for the comparison", ("the class 0 alone",), label=0 * LABELS),
    arrays("arrays of other names", ("has the arrays picture", "image/label"),
           picture=IMAGES, image=None, label=None),
    Case("images and labels", "fewer images than a batch",
         lambda p: source(p, npz(p.folder / "s.npz"), "--train.batch-size", "64"), 2,
         ("train.batch-size is 64", "only 36 training examples", "use a smaller")),
    of_file("a damaged .npz", "x.npz", b"PK\3\4", ("cannot read", "x.npz")),
    of_file("a file of another kind", "x.csv", b"no", ("not an .npz",)),
    changed("an image file that was cut off", _cut, ("3.png", "--data.skip-bad")),
    changed("a picture of 3.6 gigapixels in a small file", _bomb, ("3.png", "pixels")),
    changed("gray and colour mixed", _colour, ("3.png", "--data.channels 1 or --data.channels 3")),
    changed("two sizes", lambda root: folder(root / "cat" / "large", ("x",), 1, 9),
            ("60 of 8x8", "1 of 9x9", "--data.image-size 8")),
    changed("a link out of the folder", _link, ("z.png", "symbolic link that leaves")),
    changed("a class without images", lambda root: (root / "eel").mkdir(),
            ("'eel'", "add some or remove the folder")),
    changed("two spellings of a class", lambda root: folder(root, ("CAT",)),
            ("'CAT'", "'cat'", "differ only in spelling")),
    Case("images and labels", "a class in test/ alone", _test_alone, 3,
         ("'eel'", "must have training images")),
    Case("images and labels", "test images that are training images", _leak, 3,
         ("6 of 6 test images are also training images", "remove them")),
    Case("images and labels", "an empty folder", _empty_folder, 3, ("no class folders",
                                                                    "subfolder")),
    texts("not UTF-8", "a.txt", b"caf\xe9\n", 3, "byte 0xe9 at offset 3 (line 1)", "iconv"),
    texts("UTF-16", "a.txt", "text".encode("utf-16"), 3, "is UTF-16", "iconv"),
    texts("an empty file", "a.txt", b"", 3, "the text is empty", "--data.skip-bad"),
    texts("a CSV without that column", "a.csv", ROWS, 3, "no column 'txt'", "did you mean 'text'",
          more="--data.text-column txt"),
    texts("a column twice", "a.csv", b"text,text\na,b\n", 3, "2 columns 'text'", "rename"),
    texts("a row with more fields", "a.csv", ROWS + b"x,a,b\n", 3, "row 3 (to line 4) has 3"),
    texts("a quote that does not end", "a.csv", b'text\n"x\nz\n', 3, "a.csv, line 3", "quotes"),
    texts("a line that is no JSON", "a.jsonl", b'{"text": "x"}\n{no}\n', 3, "line 2 is not JSON"),
    texts("a number for a text", "a.jsonl", b'{"text": 3}\n', 3, "line 1: 'text' is int"),
    texts("a lone surrogate", "a.jsonl", b'{"text": "x\\ud800"}\n', 3, "is no Unicode"),
    texts("longer than the context", "a.jsonl", b'{"text": "%s"}\n' % (b"x" * 400), 3,
          "--data.too-long",
          more="--data.packing whole --data.holdout texts --data.valid-fraction 0"),
    texts("classes asked for where there are none", "a.txt", b"one two\n", 2, "--data.conditional",
          "--data.label-column", more="--data.conditional"),
    texts("too few to hold any out", "a.txt", b"one two\n", 3, "1 text(s), too few",
          more="--data.holdout texts"),
    texts("a tokenizer that is no file", "a.txt", b"one two\n", 2, "--data.tokenizer is 'bpee'",
          more="--data.tokenizer bpee"),
    texts("a tokenizer that is none", "a.json", b"{}", 3, "a.json", "not a tokenizer.json",
          more="--data.source pydoc_topics --data.tokenizer a.json"),
]  # fmt: skip
