"""Progress of long work: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
LOG_SECONDS = 5.0


def progress(
    items: Iterable[T], *, total: int | None, label: str, unit: str = "rows", step: int = 1, show: bool = True
) -> Iterator[T]:
    """Yields `items`, each worth `step` of `total`, telling stderr how many are done, the rate and the time left.

    A `total` of None is one that only the end will tell.
    """
    if not show:
        yield from items
    elif sys.stderr.isatty():
        import tqdm

        with tqdm.tqdm(total=total, desc=label, unit=f" {unit}") as bar:
            for item in items:
                yield item
                bar.update(step if total is None else min(step, total - bar.n))
    else:
        start = shown = time.monotonic()
        for number, item in enumerate(items, 1):
            yield item
            done = number * step if total is None else min(number * step, total)
            now = time.monotonic()
            if now - shown >= LOG_SECONDS or (done == total and shown != start):
                rate = done / (now - start)
                place = f"{done}" if total is None else f"{done}/{total}"
                left = "" if total is None else f", {(total - done) / rate:.0f} s left"
                print(f"{label}: {place} {unit}, {rate:.0f} {unit}/s{left}", file=sys.stderr, flush=True)
                shown = now
