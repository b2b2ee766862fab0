"""A table of a catalogue: what every format gives, and several files of one table one after the other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from input_pipeline.folder_or_zip import shown
from siglip_jax.errors import UserError

_NAMES = 12  # columns told
FORMATS = ("tsv", "csv", "jsonl", "parquet")
Values = dict[str, Any]  # of one row: text, or, from jsonl and parquet, a list; from parquet also bytes and structs
Row = tuple[Values, str]  # and what is wrong with the row's text, "" for nothing


class Table(Protocol):
    """One table.

    Attributes:
      name: of the file; error messages begin with it.
      columns: names, in the file's order.
      pictures: those of them that hold bytes.
      count: rows.
      sha256: of the file; of a parquet with bytes inside, which may be very large, of its footer and size.
    """

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> list[str]: ...
    @property
    def pictures(self) -> frozenset[str]: ...
    @property
    def count(self) -> int: ...
    @property
    def sha256(self) -> str: ...

    def rows(self, start: int = 0, *, pictures: bool = True) -> Iterator[Row]:
        """The rows from number `start` on; without the columns of bytes where `pictures` is False."""


def check_names(columns: list[str], name: str) -> None:
    known: set[str] = set()
    for number, column in enumerate(columns, 1):
        if not column.strip():
            raise UserError(f"{name}: column {number} has no name; give every column a name")
        if "\0" in column:
            raise UserError(f"{name}: column {number} has a NUL byte in its name; save the table as UTF-8")
        if column in known:
            raise UserError(f"{name}: two columns are named {shown(column)}; rename one")
        known.add(column)


def told(names: Sequence[str]) -> str:
    """Names of columns as messages have them."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(map(shown, names[:_NAMES])) + more


def is_utf8(text: str) -> bool:
    """Whether text can be stored: no surrogates, which stand for bytes that were not UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mend_text(text: str) -> str:
    """Text in which bytes that are not UTF-8 stand as surrogates, with the replacement mark for each of them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


@dataclasses.dataclass(frozen=True)
class ChainedTable:
    """Tables of the same columns one after the other."""

    tables: list[Table]

    def __post_init__(self) -> None:
        first = self.tables[0]
        for table in self.tables[1:]:
            if not table.name.lower().endswith(".jsonl") and (
                sorted(table.columns) != sorted(first.columns) or table.pictures != first.pictures
            ):
                raise UserError(
                    f"{table.name}: columns are {told(table.columns)}; expected those of {first.name}, "
                    f"{told(first.columns)}: build files of other columns apart"
                )

    @property
    def name(self) -> str:
        return f"{self.tables[0].name} ... {self.tables[-1].name}"

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for table in self.tables for name in table.columns))

    @property
    def pictures(self) -> frozenset[str]:
        return self.tables[0].pictures

    @property
    def count(self) -> int:
        return sum(table.count for table in self.tables)

    @property
    def sha256(self) -> str:
        return hashlib.sha256("".join(table.sha256 for table in self.tables).encode()).hexdigest()

    def rows(self, start: int = 0, *, pictures: bool = True) -> Iterator[Row]:
        for table in self.tables:
            if start < table.count:
                absent = dict.fromkeys(set(self.columns) - set(table.columns), "")  # keys of other jsonl files
                for values, problem in table.rows(start, pictures=pictures):
                    yield {**values, **absent} if absent else values, problem
            start = max(0, start - table.count)
