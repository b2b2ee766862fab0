"""A catalogue repeated until it has as many rows as a bench wants, which notes the memory at each tenth of them."""

from __future__ import annotations

import dataclasses
import pathlib
import resource
import sys
import time
from collections.abc import Iterator

from input_pipeline.catalogue import Catalogue, Item

TENTHS = 10


@dataclasses.dataclass(frozen=True)
class Mark:
    """Rows so far, `time.perf_counter()`, MiB of resident memory now and at most."""

    rows: int
    seconds: float
    now: float
    peak: float


class RepeatedCatalogue(Catalogue):
    """The items of `catalogue` again and again, each time with other ids.

    Attributes:
      marks: one for each tenth of the rows read.
    """

    def __init__(self, catalogue: Catalogue, *, rows: int):
        self._catalogue, self._rows, self.total = catalogue, rows, rows
        self._items = [item for _, item in zip(range(rows), catalogue.items(), strict=False)]
        self.table, self.sha256, self.attribute_names = catalogue.table, catalogue.sha256, catalogue.attribute_names
        self.marks: list[Mark] = []

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        tenth = self._rows // TENTHS
        for row in range(start, self._rows):
            copy, index = divmod(row, len(self._items))
            item = self._items[index]
            yield dataclasses.replace(item, row=row, id=f"{item.id}-{copy}")
            if (row + 1) % tenth == 0:
                self.marks.append(Mark(row + 1, time.perf_counter(), *resident()))

    def read_file(self, name: str) -> bytes:
        return self._catalogue.read_file(name)


def resident() -> tuple[float, float]:
    """MiB of this process's memory now (0 where the system does not tell) and at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    pages = pathlib.Path("/proc/self/statm")
    now = int(pages.read_text().split()[1]) * resource.getpagesize() / 2**20 if pages.exists() else 0.0
    return now, peak
