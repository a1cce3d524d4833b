"""The texts of one file: .txt, .jsonl or .csv. What is wrong with one is said, not raised.

Each reader yields a `Found` for a good text and a DataError in the place of a bad one, which the
caller raises or logs; it raises what leaves the rest of the file without meaning.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from genaug.data.text import TextData
from genaug.types import DataError

SUFFIXES = (".txt", ".jsonl", ".csv")
_BOM = b"\xef\xbb\xbf"
_LONGEST_FIELD = 2**31 - 1


class Found(NamedTuple):
    """A text as its file has it; `name` says where that is."""

    name: str
    text: bytes
    label: str | None = None


def read_file(
    path: Path, name: str, config: TextData, label: str | None = None
) -> Iterator[Found | DataError]:
    """The texts of a file, named after `name`; `label` is the class of those in a .txt."""
    try:
        data = path.read_bytes()
    except OSError as error:
        yield DataError(f"cannot read {path}: {error.strerror or error}")
        return
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        yield DataError(
            f"{path} is UTF-16, not UTF-8: convert it, e.g. iconv -f UTF-16 -t UTF-8, or leave "
            "such files out with --data.skip-bad"
        )
    elif path.suffix.lower() == ".jsonl":
        yield from _jsonl(path, data, name, config)
    elif path.suffix.lower() == ".csv":
        yield from _csv(path, data, name, config)
    elif config.separator is None:
        yield text_at(path, data, _begin(data), len(data), name, label)
    else:
        for number, (start, stop) in enumerate(between(data, config.separator), 1):
            yield text_at(path, data, start, stop, f"{name} {number}", label)


def _begin(data: bytes) -> int:
    return len(_BOM) if data.startswith(_BOM) else 0


def between(data: bytes, separator: str) -> Iterator[tuple[int, int]]:
    """Where each text between separator lines starts and stops; nothing after a last one."""
    start = _begin(data)
    line = re.compile(rb"^" + re.escape(separator.encode()) + rb"\r?(?:\n|\Z)", re.MULTILINE)
    for match in line.finditer(data, start):
        yield start, match.start()
        start = match.end()
    if start < len(data):
        yield start, len(data)


def text_at(
    path: Path, data: bytes, start: int, stop: int, name: str, label: str | None
) -> Found | DataError:
    """The text in `data[start:stop]`, if it is one."""
    if fault := _not_utf8(path, data, start, stop):
        return fault
    if not data[start:stop].strip():
        return _empty(f"{path}, line {_line(data, start)}")
    return Found(name, data[start:stop], label)


def _empty(where: str) -> DataError:
    return DataError(
        f"{where}: the text is empty; remove it, or leave such texts out with --data.skip-bad"
    )


def _line(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


def _not_utf8(path: Path, data: bytes, start: int, stop: int) -> DataError | None:
    try:
        data[start:stop].decode()
    except UnicodeDecodeError as error:
        at = start + error.start
        return DataError(
            f"{path} is not UTF-8: byte 0x{data[at]:02x} at offset {at} (line {_line(data, at)}); "
            "convert it, e.g. iconv -f WINDOWS-1252 -t UTF-8, or leave such texts out with "
            "--data.skip-bad"
        )
    return None


def _jsonl(path: Path, data: bytes, name: str, config: TextData) -> Iterator[Found | DataError]:
    """One JSON object a line. Lines end with a line feed alone: U+2028 may stand in a text."""
    start = _begin(data)
    for number, row in enumerate(data[start:].split(b"\n"), 1):
        stop = start + len(row)
        if row.strip():
            yield _json_row(path, data, (start, stop), number, name, config)
        start = stop + 1


def _json_row(
    path: Path, data: bytes, span: tuple[int, int], number: int, name: str, config: TextData
) -> Found | DataError:
    where = f"{path}, line {number}"
    if fault := _not_utf8(path, data, *span):
        return fault
    try:
        record = json.loads(data[slice(*span)])
    except (ValueError, RecursionError) as error:
        return DataError(f"{where} is not JSON: {error}")
    if not isinstance(record, dict):
        return DataError(f"{where} is {type(record).__name__}; expected an object {{...}}")
    for column in (config.text_column, config.label_column):
        if column is not None and column not in record:
            return _no_column(f"{where} has no field", column, list(record))
    return _row(where, f"{name} {number}", record, config)


def _csv(path: Path, data: bytes, name: str, config: TextData) -> Iterator[Found | DataError]:
    """RFC 4180 with a header; the rows are counted from 1 below it."""
    if (fault := _not_utf8(path, data, 0, len(data))) and not config.skip_bad:
        yield fault
    text = data[_begin(data) :].decode(errors="surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        with _fields_of_any_length():
            rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}: mend the quotes") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a header line with the column names")
    header = rows[0][1]
    for column in (config.text_column, config.label_column):
        if column is not None and header.count(column) != 1:
            if column in header:
                raise DataError(f"{path} has {header.count(column)} columns {column!r}: rename one")
            raise _no_column(f"{path} has no column", column, header)
    for number, (line, row) in enumerate(rows[1:], 1):
        where = f"{path}, row {number} (to line {line})"
        if len(row) != len(header):
            yield DataError(
                f"{where} has {len(row)} fields and the header {len(header)}: is a quote missing?"
            )
        else:
            yield _row(where, f"{name} {number}", dict(zip(header, row, strict=True)), config)


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Python's reader refuses fields above 128 kB unless its module is told otherwise."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _row(where: str, name: str, record: dict[str, Any], config: TextData) -> Found | DataError:
    """The text and the class of one row of a table."""
    text, label = record[config.text_column], None
    if not isinstance(text, str):
        return DataError(
            f"{where}: {config.text_column!r} is {type(text).__name__}, not a text; mend it, or "
            "leave such rows out with --data.skip-bad"
        )
    if config.label_column is not None:
        value = record[config.label_column]
        label = str(value) if isinstance(value, str | int) else ""
        if label != label.strip() or len(label.splitlines()) != 1:
            return DataError(
                f"{where}: {config.label_column!r} is {value!r}, which names no class; expected a "
                "text without spaces around it or line breaks, or a whole number"
            )
    try:
        content = text.encode()
        (label or "").encode()
    except UnicodeEncodeError as error:
        return DataError(
            f"{where}: {error.object[error.start : error.end]!r} at character {error.start} is no "
            "Unicode; mend it, or leave such rows out with --data.skip-bad"
        )
    if not content.strip():
        return _empty(f"{where}, {config.text_column!r}")
    return Found(name, content, label)


def _no_column(problem: str, column: str, known: Sequence[str]) -> DataError:
    near = difflib.get_close_matches(column, known, n=1, cutoff=0.4)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    flag = "give it as --data.text-column or --data.label-column"
    return DataError(f"{problem} {column!r}{guess}; it has {', '.join(known) or 'none'}: {flag}")
