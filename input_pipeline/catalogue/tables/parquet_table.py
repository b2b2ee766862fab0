"""The rows of a parquet file, a few at a time; pictures may be inside, as bytes or as Hugging Face's {bytes, path}."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from input_pipeline.catalogue.tables.table import Row, check_names
from siglip_jax.errors import UserError

TEXT_ROWS, IMAGE_ROWS = 4096, 32  # read at a time
_FOOTER_BYTES = 8  # its length and the magic number, at the end of the file
_ERRORS = (pa.ArrowException, OSError, EOFError)


class ParquetTable:
    """A parquet file as a `table.Table`."""

    def __init__(self, open_file: Callable[[], IO[bytes]], *, name: str):
        self.name, self._open_file = name, open_file
        try:
            with self._open() as file:
                parquet = pq.ParquetFile(file)
                schema, self.count = parquet.schema_arrow, parquet.metadata.num_rows
                self._group_rows = [parquet.metadata.row_group(k).num_rows for k in range(parquet.num_row_groups)]
                self.columns = schema.names
                check_names(self.columns, name)
                self.pictures = frozenset(field.name for field in schema if _holds_bytes(field.type))
                self.sha256 = _footer_sha256(file) if self.pictures else _sha256(file)
        except UserError:
            raise
        except _ERRORS as error:
            raise self._unreadable(error) from error

    def rows(self, start: int = 0, *, pictures: bool = True) -> Iterator[Row]:
        columns = [name for name in self.columns if pictures or name not in self.pictures]
        size = IMAGE_ROWS if pictures and self.pictures else TEXT_ROWS
        first = 0  # the group in which row `start` lies
        while first < len(self._group_rows) and start >= self._group_rows[first]:
            start -= self._group_rows[first]
            first += 1
        try:
            with self._open() as file:
                parquet = pq.ParquetFile(file, pre_buffer=False)  # else whole row groups of pictures are held
                groups = list(range(first, len(self._group_rows)))
                for batch in parquet.iter_batches(size, row_groups=groups, columns=columns, use_threads=False):
                    if start >= batch.num_rows:
                        start -= batch.num_rows
                        continue
                    yield from self._rows_of(batch.slice(start))
                    start = 0
        except UserError:
            raise
        except _ERRORS as error:
            raise self._unreadable(error) from error

    def _rows_of(self, batch: pa.RecordBatch) -> Iterator[Row]:
        bad: set[int] = set()
        values = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values.append(_cells(column, bad))
            except UserError:
                raise
            except (pa.ArrowException, UnicodeDecodeError, TypeError, ValueError) as error:
                raise UserError(
                    f"{self.name}: column {name} has type {column.type}; expected text, numbers, dates, booleans, "
                    "lists of these, or pictures as bytes"
                ) from error
        for number, row in enumerate(zip(*values, strict=True)):
            problem = f"{self.name}: text that is not UTF-8; write it as UTF-8" if number in bad else ""
            yield dict(zip(batch.schema.names, row, strict=True)), problem

    def _open(self) -> IO[bytes]:
        """The file, or a copy of it where it lies in a zip: a footer at the end is read first."""
        file = self._open_file()
        if isinstance(file, io.BufferedReader):  # of a local disk
            return file
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - has no name, so that nothing is left behind
        with file:
            while piece := file.read(2**20):
                copy.write(piece)
        copy.seek(0)
        return copy

    def _unreadable(self, error: BaseException) -> UserError:
        return UserError(f"{self.name}: not readable as Parquet ({' '.join(str(error).split())[:120]})")


def _holds_bytes(type_: pa.DataType) -> bool:
    """Whether values are bytes, a struct with bytes (Hugging Face's Image), or lists of either."""
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return _holds_bytes(type_.value_type)
    if pa.types.is_struct(type_):
        return any(_holds_bytes(field.type) for field in type_)
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)


def _cells(column: pa.Array, bad: set[int]) -> list[Any]:
    """Text for plain types, lists and bytes as they are; rows whose text is not UTF-8 are added to `bad`."""
    type_ = column.type
    if _holds_bytes(type_):
        return ["" if value is None else value for value in column.to_pylist()]
    if pa.types.is_nested(type_):
        return ["" if value is None else value if isinstance(value, list) else _json(value) for value in _plain(column)]
    if pa.types.is_floating(type_):
        column = pc.if_else(pc.is_nan(column), None, column)
    column = column.cast(pa.string())
    try:
        return [value or "" for value in column.to_pylist()]
    except UnicodeDecodeError:
        cells = []
        for row, value in enumerate(column.cast(pa.binary()).to_pylist()):
            text = (value or b"").decode("utf-8", "replace")
            if text.encode() != (value or b""):
                bad.add(row)
            cells.append(text)
        return cells


def _plain(column: pa.Array) -> list[Any]:
    return json.loads(_json(column.to_pylist()))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_as_written)


def _as_written(value: Any) -> str:
    """Dates, times and decimals within lists and structs."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no text")


def _sha256(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _footer_sha256(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(size - _FOOTER_BYTES)
    length = int.from_bytes(file.read(4), "little") + _FOOTER_BYTES
    file.seek(max(0, size - length))
    return hashlib.sha256(f"{size}\0".encode() + file.read(length)).hexdigest()
