"""Loops over items, compiled by numba: products with one query, and the best of products that are there.

A query keeps its best in a heap, the least of them on top: most items are below it and cost one comparison. Each loop
runs without the GIL on its own part of the items, or of the queries.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from siglip_jax.preprocessing.numba_jit import compiled

_FLOATS = numba.types.Array(numba.float32, 2, "C", readonly=True)  # a writeable one is taken as well
_FLOAT_ROW = numba.types.Array(numba.float32, 1, "C", readonly=True)
_BYTES = numba.types.Array(numba.int8, 2, "C", readonly=True)
_BYTE_ROW = numba.types.Array(numba.int8, 1, "C", readonly=True)
_VALUES, _ROWS = numba.float32[::1], numba.int64[::1]
_MANY_VALUES, _MANY_ROWS = numba.float32[:, ::1], numba.int64[:, ::1]
_AT_ONCE = 64  # products that are counted where they are above the heap's least, before any is looked at alone
_ANY_ORDER = {"reassoc", "contract", "nsz"}  # of a sum, so that it goes by vectors


@compiled(numba.void(_VALUES, _ROWS, numba.float32, numba.int64))
def replace_least(values: Any, rows: Any, value: Any, row: Any) -> None:
    """Puts a value in the place of the heap's least, which is on top."""
    place, size = 0, len(values)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[place], rows[place] = values[child], rows[child]
        place = child
    values[place], rows[place] = value, row


@compiled(numba.void(_FLOATS, _FLOAT_ROW, numba.int64, numba.int64, _VALUES, _ROWS), fastmath=_ANY_ORDER)
def scan_floats(items: Any, query: Any, low: Any, high: Any, values: Any, rows: Any) -> None:
    """The best products of a query with items `low` to `high`, into a heap that begins with -inf."""
    for row in range(low, high):
        total = np.float32(0)
        for j in range(items.shape[1]):
            total += items[row, j] * query[j]
        if total > values[0]:
            replace_least(values, rows, total, row)


@compiled(numba.void(_BYTES, _FLOAT_ROW, _BYTE_ROW, numba.int64, numba.int64, _VALUES, _ROWS), fastmath=_ANY_ORDER)
def scan_bytes(items: Any, scales: Any, query: Any, low: Any, high: Any, values: Any, rows: Any) -> None:
    """The same of whole numbers, added up exactly, each row times its scale."""
    for row in range(low, high):
        total = np.int32(0)
        for j in range(items.shape[1]):
            total += np.int32(items[row, j]) * np.int32(query[j])
        value = np.float32(total) * scales[row]
        if value > values[0]:
            replace_least(values, rows, value, row)


@compiled(numba.void(_FLOATS, numba.int64, numba.int64, numba.int64, _MANY_VALUES, _MANY_ROWS))
def keep_best(products: Any, first: Any, low: Any, high: Any, values: Any, rows: Any) -> None:
    """Takes products [query, item] of queries `low` to `high` into their heaps; `first`: row of the first item."""
    for query in range(low, high):
        line, best, places = products[query], values[query], rows[query]
        whole = len(line) // _AT_ONCE * _AT_ONCE
        for begin in range(0, whole, _AT_ONCE):
            part = line[begin : begin + _AT_ONCE]
            least, above = best[0], np.int32(0)
            for column in range(_AT_ONCE):
                above += np.int32(part[column] > least)
            if above:
                for column in range(_AT_ONCE):
                    if part[column] > best[0]:
                        replace_least(best, places, part[column], first + begin + column)
        for column in range(whole, len(line)):
            if line[column] > best[0]:
                replace_least(best, places, line[column], first + column)


@compiled(numba.int64(numba.types.Array(numba.int64, 1, "C", readonly=True), numba.int64, numba.int64))
def read_through(words: Any, low: Any, high: Any) -> Any:
    """Adds words up: what reading memory alone takes."""
    total = np.int64(0)
    for place in range(np.uint64(low), np.uint64(high)):
        total += words[place]
    return total
