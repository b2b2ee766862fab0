"""A catalogue repeated until it has as many rows as a bench needs, which notes the memory at each tenth of them."""

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
    """MiB of this process's memory now and at most so far; where only that is known, now is 0."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # not getrusage, whose figure a new process has from the one that started it
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(lines[name].split()[0]) / 2**10 for name in ("VmRSS", "VmHWM"))
        return now, peak
    return 0.0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
