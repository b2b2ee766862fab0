"""Work on numpy blocks in a few threads: numpy lets go of the interpreter lock in its loops."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_THREADS = 8
A = TypeVar("A")
B = TypeVar("B")


def in_threads(work: Callable[[A], B], items: Sequence[A]) -> Iterator[B]:
    """The results in the order of the items; of several errors, that of the first item."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(max(1, min(len(items), cores, MAX_THREADS))) as pool:
        yield from pool.map(work, items)
