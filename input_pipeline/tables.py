"""A table of text from the bytes of a .tsv, .csv, .jsonl or .parquet file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from siglip_jax.errors import UserError

FORMATS = ("tsv", "csv", "jsonl", "parquet")


def read_table(data: bytes, *, name: str) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; every value as text, nothing (null, NaN, absent) as "".

    A tsv has no quoting: a field is what stands between two tabs. A csv has the usual double quotes. The columns of a
    jsonl are the keys of all its lines. Empty lines are no rows.

    Args:
      data: the file's bytes; text is UTF-8, with or without a byte order mark.
      name: the file's name; its suffix tells the format, and error messages begin with it.

    Raises:
      UserError: the file cannot be parsed, a row has another number of fields than the header, or column names are
        empty or not distinct.
    """
    suffix = name.rpartition(".")[2].lower()
    if suffix == "parquet":
        columns, rows = _parquet(data, name)
    elif suffix == "jsonl":
        columns, rows = _jsonl(_text(data, name), name)
    elif suffix in ("tsv", "csv"):
        columns, rows = _lines(_text(data, name), name, suffix)
    else:
        raise UserError(f"{name}: not a table; expected one of {', '.join(f'.{f}' for f in FORMATS)}")
    return columns, rows


def _check_names(columns: list[str], name: str) -> None:
    for number, column in enumerate(columns, 1):
        if not column.strip():
            raise UserError(f"{name}: column {number} has no name; give every column a name")
        if column in columns[: number - 1]:
            raise UserError(f"{name}: two columns are named {column}; rename one")


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{name} line {line}: not UTF-8 ({error.reason}); save the table as UTF-8") from error


def _lines(text: str, name: str, suffix: str) -> tuple[list[str], list[list[str]]]:
    numbered = _csv_rows(text, name) if suffix == "csv" else _tsv_rows(text)
    _, columns = next(numbered, (0, []))
    if not columns:
        raise UserError(f"{name}: empty; expected a first line with column names")
    _check_names(columns, name)
    rows = []
    for line, row in numbered:
        if len(row) != len(columns):
            raise UserError(
                f"{name} line {line}: {len(row)} fields; expected {len(columns)} ({', '.join(columns)}); mend the line"
            )
        rows.append(row)
    return columns, rows


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(_split(text), 1):
        if line := line.removesuffix("\r"):
            yield number, line.split("\t")


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise UserError(f"{name} line {reader.line_num}: not CSV ({error}); mend the line") from error


def _split(text: str) -> list[str]:
    return text.split("\n" if "\n" in text else "\r")  # some old programs end lines with CR alone


def _jsonl(text: str, name: str) -> tuple[list[str], list[list[str]]]:
    records = []
    for number, line in enumerate(_split(text), 1):
        if not line.strip():
            continue
        try:  # numbers stay as they were written
            record = json.loads(
                line, parse_int=str, parse_float=str, parse_constant=lambda _: None, object_pairs_hook=_distinct
            )
            if not isinstance(record, dict):
                raise ValueError("expected an object")
            record = {key: _json_text(value) for key, value in record.items()}
            "".join([*record, *record.values()]).encode()  # a lone surrogate (\ud800) cannot be stored
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} line {number}: not a JSON object ({error}); mend the line") from error
        records.append(record)
    columns = list(dict.fromkeys(key for record in records for key in record))
    if not columns:
        raise UserError(f"{name}: empty; expected a JSON object with id and title on each line")
    _check_names(columns, name)
    return columns, [[record.get(column, "") for column in columns] for record in records]


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in names if names.count(key) > 1)} is given twice")
    return record


def _json_text(value) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parquet(data: bytes, name: str) -> tuple[list[str], list[list[str]]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        _check_names(pq.read_schema(pa.BufferReader(data)).names, name)
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{name}: not readable as Parquet ({str(error)[:120]})") from error
    columns = []
    for column_name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), None, column)
        try:
            columns.append([value or "" for value in column.cast(pa.string()).to_pylist()])
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(
                f"{name}: column {column_name} has type {column.type}; expected text, numbers, dates or booleans "
                "(pictures go into files, named by their path)"
            ) from error
    return table.column_names, [list(row) for row in zip(*columns, strict=True)]
