"""What is wrong with a file of rows that could not be read, in words that name the line."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

MAX_LINE = 2_000_000  # bytes; DuckDB reads no longer ones
_SHOWN = 60


def describe_damage(file: pathlib.Path, suffix: str, *, delimiter: str = ",", quote: str = '"', fields: int = 0) -> str:
    """Such as "line 3 has 2 fields; expected 5".

    Args:
      delimiter, quote, fields: of text; quote is "" where there is none, fields 0 where that is not known.
    """
    try:
        if suffix == "parquet":
            return _parquet(file)
        return _json(file) if suffix == "jsonl" else _delimited(file, delimiter, quote, fields)
    except OSError as error:
        return f"it cannot be read ({error.strerror}); copy it again"


def _parquet(file: pathlib.Path) -> str:
    try:
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                parquet.read_row_group(group)
    except (pa.ArrowException, OSError, ValueError):
        return "it is no Parquet file, or not a whole one; copy it again"
    return "a column of it holds what is no text, number or time; write that column as text"


def _lines(file: pathlib.Path) -> Iterator[tuple[int, str]]:
    """(number, line); stops at the first that is too long or not UTF-8, which is a _BadLine."""
    with file.open("rb") as content:
        for number, line in enumerate(content, 1):
            if len(line) > MAX_LINE:
                raise _BadLine(f"line {number} is longer than {MAX_LINE:,} bytes; expected a line for each event")
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise _BadLine(f"line {number} is not UTF-8; save the file as UTF-8") from None


class _BadLine(Exception):
    pass


def _json(file: pathlib.Path) -> str:
    try:
        for number, line in _lines(file):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number} is no JSON object: {line.strip()[:_SHOWN]!r}; fix the line"
            except (ValueError, RecursionError):
                return f"line {number} is not JSON: {line.strip()[:_SHOWN]!r}; fix the line"
    except _BadLine as bad:
        return str(bad)
    return "it is no JSON lines; write one JSON object on each line"


def _delimited(file: pathlib.Path, delimiter: str, quote: str, fields: int) -> str:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for each, line in _lines(file):
            number = each
            yield line

    quoting = {"quotechar": quote, "strict": True} if quote else {"quoting": csv.QUOTE_NONE, "quotechar": None}
    try:
        for row in csv.reader(lines(), delimiter=delimiter, **quoting):
            if row and fields and len(row) != fields:
                return f"line {number} has {len(row)} fields; expected {fields}: fix the line"
    except _BadLine as bad:
        return str(bad)
    except csv.Error:
        return f"line {number}: a quote is opened and not closed, or stands within a field; fix the line"
    return "a quote in it is opened and not closed, or lines end in different ways; save it again"
