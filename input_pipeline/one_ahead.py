"""Work on one item while the next one is fetched and the last one is used."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def one_ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`function` of each item in order, called in a thread of its own.

    Two items at most are held. An error in `items` is raised after the result of the item before it, one in `function`
    in the place of its result.

    Example:
      >>> list(one_ahead(str.upper, ["a", "b"]))
      ['A', 'B']
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        waiting: concurrent.futures.Future[R] | None = None
        iterator, error = iter(items), None
        while error is None:
            try:
                following = thread.submit(function, next(iterator))
            except Exception as raised:  # StopIteration among them
                following, error = None, raised
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if not isinstance(error, StopIteration):
            raise error
