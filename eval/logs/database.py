"""The database that a log is read into; DuckDB, which works on disk where its memory ends."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from siglip_jax.errors import UserError

MEMORY = "2GB"  # beyond, it works on disk
Unreadable = duckdb.Error  # its words are for those who write SQL: `file_damage` has others


class Database:
    """SQL over tables that live until `close`. A context manager.

    Every method raises a UserError where memory or disk end, and `Unreadable` on a file that cannot be read.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="siglip-jax-log-")
        self._sql = duckdb.connect(
            ":memory:",  # what does not fit goes to temp_directory; a database file took half as long again
            config={
                "memory_limit": MEMORY,
                "temp_directory": self._folder.name,
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
            },
        )
        self.execute("set enable_progress_bar = false; set TimeZone = 'UTC'")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._sql.close()
        self._folder.cleanup()

    def execute(self, query: str, parameters: Any = None) -> duckdb.DuckDBPyConnection:
        """Its `fetchall` gives the rows."""
        with self._limits():
            return self._sql.execute(query, parameters)

    def arrays(self, query: str, parameters: Sequence[Any] = ()) -> list[np.ndarray]:
        """The columns of a query as numpy arrays; text as objects."""
        with self._limits():
            found = self._sql.sql(query, params=list(parameters)).to_arrow_table()
        return [column.to_numpy() for column in found.columns]

    def one(self, query: str, parameters: Any = None) -> tuple[Any, ...]:
        """The only row of a query."""
        (found,) = self.execute(query, parameters).fetchall()  # all, or the connection would stay busy
        return found

    def counts(self, query: str) -> dict[Any, Any]:
        """{first: second} of the rows of a query of two columns."""
        return dict(self.execute(query).fetchall())

    @contextlib.contextmanager
    def table(self, name: str, columns: Mapping[str, Any]) -> Iterator[None]:
        """Within it, `name` is a table of these columns."""
        self._sql.register(name, pa.table(dict(columns)))
        try:
            yield
        finally:
            self._sql.unregister(name)

    @contextlib.contextmanager
    def _limits(self) -> Iterator[None]:
        try:
            yield
        except duckdb.OutOfMemoryException as error:
            raise UserError(
                f"the log does not fit into {MEMORY} of memory and the disk of {self._folder.name}; give TMPDIR a "
                "folder with more room, or read fewer files"
            ) from error


def quoted(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"
