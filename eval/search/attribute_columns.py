"""Attributes of an index's items as columns, so that a filter is one look-up for each different value."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from siglip_jax.errors import UserError

Known = Mapping[str, tuple[str, dict[str, str]]]  # id -> (title, attributes)
Where = Mapping[str, Collection[str]]  # attribute -> the values and ranges ("10..50") that are let through


@dataclasses.dataclass(frozen=True)
class AttributeColumn:
    """One attribute of all items.

    Attributes:
      codes: int32 [item], the place of the item's value in `values`; -1 where it has none.
      values: the different values, in order of their first item.
    """

    name: str
    codes: np.ndarray
    values: Sequence[str]

    @functools.cached_property
    def _code_of(self) -> dict[str, int]:
        return {value: code for code, value in enumerate(self.values)}

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """float64 [value]: values read as numbers, NaN where one is none."""
        return np.array([_number(value) for value in self.values])

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """int64 [value]: items that have it."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

    def code_of(self, attributes: Mapping[str, str]) -> int:
        """Of an item's attributes; -1 where this one is not among them."""
        return self._code_of.get(attributes.get(self.name, ""), -1)

    def passing(self, entries: Iterable[str]) -> np.ndarray:
        """bool [item]: which have one of the values, or a number in one of the ranges.

        An entry that is a value of the attribute means that value, even where it looks like a range. A value that is no
        number is in no range.

        Raises:
          UserError: a range whose ends are no numbers or the wrong way round, or over an attribute without numbers.
        """
        through = np.zeros(len(self.values) + 1, bool)  # the last is for items without the attribute, whose code is -1
        for entry in entries:
            if entry in self._code_of:
                through[self._code_of[entry]] = True
            elif ".." in entry:
                low, high = self._range(entry)
                through[:-1] |= (self.numbers >= low) & (self.numbers <= high)  # false for NaN
        return through[self.codes]

    def unmatched(self, entries: Iterable[str]) -> list[str]:
        """Those that are neither a value of an item nor a range."""
        return sorted(entry for entry in entries if entry not in self._code_of and ".." not in entry)

    def _range(self, entry: str) -> tuple[float, float]:
        begin, _, end = entry.partition("..")
        low = -math.inf if not begin.strip() else _number(begin)
        high = math.inf if not end.strip() else _number(end)
        if math.isnan(low) or math.isnan(high) or (low, high) == (-math.inf, math.inf):
            raise UserError(
                f"filter {self.name}={entry}: no such value, and no range of numbers; expected one such as 10..50, "
                "..50 or 10.."
            )
        if low > high:
            raise UserError(f"filter {self.name}={entry}: nothing is in this range; give the lower end first")
        if np.isnan(self.numbers).all():
            raise UserError(f"filter {self.name}={entry}: a range, but no value of it is a number, such as "
                            f"{self.values[0]!r}; give a value")  # fmt: skip
        return low, high


class AttributeColumns:
    """The attributes of items, by name. Threads may share one.

    Args:
      ids: of the items, row by row; one that is not known has no attributes.
    """

    def __init__(self, ids: Sequence[str], known: Known):
        self._count = len(ids)
        self._columns = _columns(ids, known)

    @property
    def names(self) -> list[str]:
        return sorted(self._columns)

    def column(self, name: str, *, what: str) -> AttributeColumn:
        """An attribute; UserError, beginning with `what`, where no item has it."""
        if name not in self._columns:
            shown = ", ".join(self.names[:20]) or "none, since the dataset is not given"
            raise UserError(f"{what} {name!r}: no item has this attribute; there are {shown}")
        return self._columns[name]

    def unmatched(self, where: Where) -> dict[str, list[str]]:
        """The values of filters that no item has, such as misspelt ones, by attribute."""
        found = {name: self.column(name, what="filter on").unmatched(entries) for name, entries in where.items()}
        return {name: entries for name, entries in found.items() if entries}

    def rows_passing(self, where: Where) -> np.ndarray:
        """int32 [m]: rows that pass all the filters, ascending; UserError as `column` and `passing` raise it."""
        through = np.ones(self._count, bool)
        if not self._count:  # nothing has any attribute, and nothing passes
            return np.flatnonzero(through).astype(np.int32)
        for name, entries in where.items():
            through &= self.column(name, what="filter on").passing(entries)
        return np.flatnonzero(through).astype(np.int32)


def _columns(ids: Sequence[str], known: Known) -> dict[str, AttributeColumn]:
    codes: dict[str, np.ndarray] = {}
    values: dict[str, dict[str, int]] = {}
    for row, item in enumerate(ids):
        for name, value in known[item][1].items() if item in known else ():
            if name not in codes:
                codes[name], values[name] = np.full(len(ids), -1, np.int32), {}
            seen = values[name]
            codes[name][row] = seen.setdefault(value, len(seen))
    return {name: AttributeColumn(name, codes[name], list(values[name])) for name in codes}


def _number(text: str) -> float:
    """NaN where it is none; infinity is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
