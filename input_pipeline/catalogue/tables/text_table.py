"""The rows of a .tsv, .csv or .jsonl file, read bit by bit.

Opening a table reads its text through once, so that a malformed line near the end is told before hours of work on
pictures, and then keeps nothing of it but the names of the columns and the number of rows.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import IO, Any

from input_pipeline.catalogue.tables.table import Row, check_names, is_utf8, mend_text, told
from input_pipeline.catalogue.tables.text_options import TextOptions, encoding_of, other_separator
from input_pipeline.folder_or_zip import ZIP_ERRORS
from siglip_jax.errors import UserError

MAX_LINE = 2**24  # characters; a longer line is no row of a catalogue, and would be held in memory


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table of lines; `read` gives its rows from the beginning."""

    name: str
    columns: list[str]
    count: int
    sha256: str
    read: Callable[[], Iterator[Row]] = dataclasses.field(repr=False)
    pictures: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()  # what was assumed of the file

    def rows(self, start: int = 0, *, pictures: bool = True) -> Iterator[Row]:
        rows = self.read()
        for _ in zip(range(start), rows, strict=False):
            pass
        return rows


# --- tsv and csv ------------------------------------------------------------------------------------------------------


def open_delimited(
    open_file: Callable[[], IO[bytes]], name: str, suffix: str, sha256: str, options: TextOptions
) -> TextTable:
    """A tsv or csv; see `open_table`."""
    text, notes = _text_file(open_file, name, options)
    split: Callable[[], Iterator[tuple[int, list[str]]]]
    if options.separator and (suffix, options.separator) != ("tsv", "\t"):
        split = functools.partial(_csv_rows, text, options.separator)
    elif suffix == "csv" or _other_sign(text, "\t"):
        sign = _other_sign(text, "," if suffix == "csv" else "\t")
        split = functools.partial(_csv_rows, text, sign or ",")
        if sign:
            notes.append(f"{name}: read with {sign!r} between its fields; --separator says otherwise")
    elif _is_quoted(text):
        split = functools.partial(_unquoted_tsv_rows, text)
        notes.append(f"{name}: quotes round its fields are taken off, as spreadsheets write them")
    else:
        split = functools.partial(_tsv_rows, text)
    _, columns = next(split(), (0, []))
    if any(not is_utf8(column) for column in columns):
        raise UserError(text.undecoded(1))
    if not columns:
        raise UserError(f"{name}: empty; expected a first line with column names")
    check_names(columns, name)

    def read() -> Iterator[Row]:
        numbered = split()
        next(numbered)
        for line, row in numbered:
            if len(row) != len(columns):
                given = f"{len(row)} fields; expected {len(columns)} ({told(columns)})"
                raise UserError(f"{name} line {line}: {given}; fix the line, or give --separator")
            if all(map(is_utf8, row)):
                yield dict(zip(columns, row, strict=True)), ""
            else:
                yield dict(zip(columns, map(mend_text, row), strict=True)), text.undecoded(line)

    return TextTable(name, columns, sum(1 for _ in read()), sha256, read, notes=tuple(notes))


def _other_sign(text: TextFile, usual: str) -> str:
    """What stands between the names of the first line where the usual sign does not; "" where there is nothing."""
    _, first = next(_csv_rows(text, ",") if usual == "," else _tsv_rows(text), (0, []))
    return other_separator(first)


def _tsv_rows(text: TextFile) -> Iterator[tuple[int, list[str]]]:
    for number, line in text.lines():
        if line:
            yield number, line.split("\t")


_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def _is_quoted(text: TextFile) -> bool:
    """Whether some fields are quoted as in a csv: all of the header, or one with quotes doubled, and none otherwise."""
    proof = False
    for number, (_, row) in enumerate(_tsv_rows(text)):
        starting = [field for field in row if field.startswith('"')]
        if not all(_QUOTED.fullmatch(field) for field in starting):
            return False
        proof = proof or any('""' in field[1:-1] for field in starting) or (not number and starting == row)
    return proof


def _unquoted_tsv_rows(text: TextFile) -> Iterator[tuple[int, list[str]]]:
    for number, row in _tsv_rows(text):
        yield number, [field[1:-1].replace('""', '"') if _QUOTED.fullmatch(field) else field for field in row]


def _csv_rows(text: TextFile, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(text.raw_lines(), strict=True, delimiter=delimiter)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{text.name} line {reader.line_num}: not CSV ({error}); fix the line") from error


# --- jsonl ------------------------------------------------------------------------------------------------------------


def open_jsonl(open_file: Callable[[], IO[bytes]], name: str, sha256: str, options: TextOptions) -> TextTable:
    """JSON objects, one a line; see `open_table`."""
    text, notes = _text_file(open_file, name, options)

    def records() -> Iterator[Row]:
        for number, line in text.lines():
            if line.strip():
                yield _record(line, text, number)

    columns: dict[str, None] = {}
    count = 0
    for record, _ in records():
        columns.update(dict.fromkeys(record))
        count += 1
    if not columns:
        raise UserError(f"{name}: empty; expected a JSON object with id and title on each line")
    names = list(columns)
    check_names(names, name)

    def read() -> Iterator[Row]:
        return (({column: record.get(column, "") for column in names}, problem) for record, problem in records())

    return TextTable(name, names, count, sha256, read, notes=tuple(notes))


def _record(line: str, text: TextFile, number: int) -> Row:
    problem = ""
    if not is_utf8(line):
        line, problem = mend_text(line), text.undecoded(number)
    try:  # numbers stay as they were written
        record = json.loads(
            line, parse_int=str, parse_float=str, parse_constant=lambda _: None, object_pairs_hook=_distinct
        )
        if not isinstance(record, dict):
            raise ValueError("expected an object")
        record = {key: _json_value(value) for key, value in record.items()}
        json.dumps(record, ensure_ascii=False).encode()  # a lone surrogate (\ud800) cannot be stored
    except (ValueError, RecursionError) as error:
        raise UserError(f"{text.name} line {number}: not a JSON object ({error}); fix the line") from error
    return record, problem


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)} is given twice")
    return record


def _json_value(value: Any) -> Any:
    if value is None:
        return ""
    return value if isinstance(value, (str, list)) else json.dumps(value, ensure_ascii=False)


# --- lines ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TextFile:
    """The lines of a file, as often as they are asked for; bytes that are not of its encoding become surrogates."""

    open_file: Callable[[], IO[bytes]] = dataclasses.field(repr=False)
    name: str
    encoding: str

    def lines(self) -> Iterator[tuple[int, str]]:
        """(number, line without its end)."""
        with self.open_file() as file:
            buffered = file if hasattr(file, "peek") else io.BufferedReader(file)  # type: ignore[type-var]
            # Some old programs end lines with CR alone; where there are line feeds, a CR within a line is part of it.
            newline = "\n" if b"\n" in (start := buffered.peek(2**16)) or b"\r" not in start else "\r"
            for number, line in enumerate(self._bounded(buffered, newline), 1):
                yield number, line.removesuffix(newline).removesuffix("\r")

    def raw_lines(self) -> Iterator[str]:
        """Lines with whatever ends them, as the csv module wants them."""
        with self.open_file() as file:
            yield from self._bounded(file, "")

    def undecoded(self, line: int) -> str:
        """What is wrong with a line that holds surrogates."""
        if self.encoding == "utf-8-sig":
            where = f"{self.name} line {line}"
            return f"{where}: not UTF-8; save the table as UTF-8, or name its encoding, as in --encoding=cp1252"
        return f"{self.name} line {line}: not {self.encoding}; give the table's own --encoding"

    def _bounded(self, file: IO[bytes], newline: str) -> Iterator[str]:
        number = 0
        try:
            with io.TextIOWrapper(file, encoding=self.encoding, errors="surrogateescape", newline=newline) as text:
                while line := text.readline(MAX_LINE + 1):
                    number += 1
                    if len(line) > MAX_LINE:
                        told = f"longer than {MAX_LINE} letters; expected a line for each item"
                        raise UserError(f"{self.name} line {number}: {told}")
                    yield line
        except UserError:
            raise
        except UnicodeError as error:  # UTF-16 cut in the middle of a letter, for one
            raise UserError(self.undecoded(number + 1)) from error
        except ZIP_ERRORS as error:  # a damaged member of a zip raises while it is read
            told = f"the table cannot be read after line {number} ({error}); copy it again"
            raise UserError(f"{self.name}: {told}") from error


def _text_file(open_file: Callable[[], IO[bytes]], name: str, options: TextOptions) -> tuple[TextFile, list[str]]:
    """The file, and what was assumed of it."""
    with open_file() as file:
        encoding, note = encoding_of(file, options)
    return TextFile(open_file, name, encoding), [f"{name}: {note}"] if note else []
