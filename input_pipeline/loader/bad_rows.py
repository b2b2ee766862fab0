"""Rows whose picture cannot be used while reading: found, named, replaced in training, and counted against a budget.

A dataset was checked when it was built, so these come later: a disk that rots, a copy cut short, another decoder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.augment.row_random import Purpose, draws
from input_pipeline.dataset import Split
from input_pipeline.dataset.reader import READ_ROWS
from siglip_jax.errors import UserError

ATTEMPTS = 16  # rows drawn to replace one, before it is said that there is no good one
IDS_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row of a split that gives no example.

    Attributes:
      row, id: which; the id is "" where the record itself cannot be read.
      reason: a short phrase.
    """

    row: int
    id: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}{f', id {self.id}' if self.id else ''}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Replacement:
    """A bad row and the good one that is in the batch instead."""

    bad: BadRow
    stand_in: int

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.bad), "stand_in": self.stand_in}


def read_record(rows: Split, number: int) -> dict[str, Any] | BadRow:
    """The record of a row, or what is wrong with it.

    Raises:
      UserError: nothing can be read of the file that the row is in.
    """
    try:
        return rows[number]
    except Exception:  # damaged bytes raise many types
        return BadRow(number, "", f"damaged record ({rows.why_unreadable(number)})")


def read_records(rows: Split, numbers: Sequence[int]) -> list[dict[str, Any] | BadRow]:
    """As `read_record`, of many rows at once, which is faster."""
    try:
        return list(rows.__getitems__(numbers))
    except Exception:  # now find out which
        return [read_record(rows, number) for number in numbers]


def readable_titles(rows: Split, numbers: np.ndarray) -> Iterator[str]:
    """The titles of these rows, int64 [n], in their order, without those of records that are damaged.

    Raises:
      UserError: a file of which nothing can be read.
    """
    for start in range(0, len(numbers), READ_ROWS):
        records = read_records(rows, numbers[start : start + READ_ROWS].tolist())
        yield from (record["title"] for record in records if not isinstance(record, BadRow))


def stand_ins(rows: np.ndarray, *, count: int, attempt: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [b]: for each bad row the one to try instead, drawn for (seed, epoch, row, attempt) from all `count`."""
    drawn = draws(rows, seed=seed, epoch=epoch, purpose=Purpose.STAND_IN + attempt)
    return (drawn % np.uint64(count)).astype(np.int64)


@dataclasses.dataclass
class Budget:
    """Counts replaced rows, and stops a run that has too many.

    A process may replace `fraction` of its share of the rows in each started epoch, all epochs together.
    So one process alone never stops for a split that has no more bad rows than that; and where any are allowed, one is.

    Attributes:
      fraction: of the rows.
      share: rows of this process in an epoch.
      processes: how many share the rows.
      before: replaced before this process started, by all processes.
      here: replaced by this process since.
    """

    fraction: float
    share: float
    processes: int
    before: int = 0
    here: int = 0
    _shown: dict[str, None] = dataclasses.field(default_factory=dict)

    def add(self, replaced: Sequence[Replacement], *, epochs: int) -> None:
        """Counts rows of a batch, in the last of so many epochs.

        Raises:
          UserError: they are too many; names some of them.
        """
        self.here += len(replaced)
        for each in replaced:
            if len(self._shown) <= IDS_SHOWN:
                self._shown[str(each.bad)] = None
        count = self.here + self.before / self.processes
        if not replaced or count <= math.ceil(self.fraction * self.share * epochs):
            return
        shown = list(self._shown)[:IDS_SHOWN]
        more = "; and more" if len(self._shown) > IDS_SHOWN else ""
        said = f"{count:.0f} row{'s' * (count > 1)} could not be used in {epochs} epoch{'s' * (epochs > 1)}"
        raise UserError(
            f"{said} of {self.share:.0f}, more than max_bad_fraction={self.fraction} allows "
            f"({'; '.join(shown)}{more}); fix the dataset, or give a larger fraction"
        )
