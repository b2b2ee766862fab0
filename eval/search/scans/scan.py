"""Rows of numbers that are read whole for the best of each query, on the device that does it fastest.

Measured on two cores with AVX-512: one query is a matter of memory, which the loops of `kernels` read as fast as it
goes, in four bytes a number or in one. A batch is a matter of products, where JAX takes half the time of numpy's BLAS
or less; so JAX it is, where it is there and what was asked for is worth its import. On an accelerator JAX does both.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from eval.search.scans.on_device import ScanOnDevice

ALONE = 4  # queries up to which each reads the items by itself
_SMALL = 1 << 21  # products and numbers of items up to which all lie in memory at once, in plain numpy
_TILE = 1 << 21  # products held at once: more, and the allocator asks the system for each tile anew
_ITEMS_AT_ONCE = 1 << 20  # numbers of them: JAX copies what it is given, and these stay in the cache
_QUERIES_AT_ONCE = 256
_WORTH_JAX = 1e11  # operations after which JAX is imported, if it is not yet: a second of work, as long as that takes
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")


class Scan:
    """The best products of queries with every row. Threads may share one.

    Args:
      items: float32 or int8 [n, d], C order; a memory map is read where it lies.
      scales: float32 [n], what a row of int8 is multiplied by; None for float32.
      device: a device of JAX, or "cpu" for numpy's memory; None for an accelerator of JAX, where there is one.
    """

    def __init__(self, items: np.ndarray, scales: np.ndarray | None = None, *, device: Any = None):
        self.items, self.scales = items, scales
        self._operations = 0.0  # of batches so far
        self._device = None if device == "cpu" else device if device is not None else accelerator(items.size)

    def best(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """rows int64 and products float32 [q, count], in no order; of equal products any.

        Args:
          queries: float32 [q, d]; for int8 rows their whole numbers are taken, see `whole_numbers`.
          count: 1 to n.
        """
        if self.scales is not None:
            queries = whole_numbers(queries)
        if self._device is not None:
            return self._on_device.best(queries, count)
        n = len(self.items)
        if max(len(queries) * n, self.items.size) <= _SMALL or 4 * count > n:
            return self._in_numpy(queries, count)
        values = np.full((len(queries), count), -np.inf, np.float32)
        rows = np.full((len(queries), count), -1, np.int64)
        if len(queries) <= ALONE:
            for query, row_values, row_rows in zip(queries, values, rows, strict=True):
                self._alone(query, row_values, row_rows)
        else:
            self._together(queries, values, rows)
        return rows, values

    def at_least(self, query: np.ndarray, least: float) -> np.ndarray:
        """Rows int64 whose product with a float32 query [d] is so large, ascending; by numpy, of float32 items."""
        return np.flatnonzero(self.items @ query >= least)

    def _in_numpy(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        n = len(self.items)
        rows, values = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
        step = max(1, _TILE // n)
        for lo in range(0, len(queries), step):
            products = self._products(queries[lo : lo + step], 0, n, np.matmul)
            rows[lo : lo + step] = np.argpartition(products, n - count, axis=1)[:, n - count :]
            values[lo : lo + step] = np.take_along_axis(products, rows[lo : lo + step], axis=1)
        return rows, values

    def _alone(self, query: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        """Every thread reads its part of the items; the best of their bests are put into values and rows [count]."""
        from eval.search.scans import kernels

        heaps = []

        def part(low: int, high: int) -> None:
            heap = np.full_like(values, -np.inf), np.full_like(rows, -1)
            heaps.append(heap)
            if self.scales is None:
                kernels.scan_floats(self.items, query, low, high, *heap)
            else:
                kernels.scan_bytes(self.items, self.scales, query.astype(np.int8), low, high, *heap)

        in_threads(part, len(self.items))
        found, places = (np.concatenate(each) for each in zip(*heaps, strict=True))
        best = np.argpartition(found, len(found) - len(values))[len(found) - len(values) :]
        values[:], rows[:] = found[best], places[best]

    def _together(self, queries: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        from eval.search.scans import kernels

        self._operations += 2.0 * len(queries) * self.items.size
        product = product_for(self._operations)
        for lo in range(0, len(queries), _QUERIES_AT_ONCE):
            block = slice(lo, min(lo + _QUERIES_AT_ONCE, len(queries)))
            asked = queries[block]
            width = max(1, min(_TILE // len(asked), _ITEMS_AT_ONCE // self.items.shape[1]))
            for first in range(0, len(self.items), width):
                products = self._products(asked, first, first + width, product)
                in_threads(
                    lambda low, high: kernels.keep_best(products, first, low, high, values[block], rows[block]),  # noqa: B023
                    len(asked),
                )

    def _products(
        self, queries: np.ndarray, low: int, high: int, product: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        items = self.items[low:high]
        if self.scales is None:
            return product(queries, items.T)
        return product(queries, items.astype(np.float32).T) * self.scales[low:high]

    @functools.cached_property
    def _on_device(self) -> ScanOnDevice:
        from eval.search.scans.on_device import ScanOnDevice

        return ScanOnDevice(self.items, self.scales, device=self._device)


def whole_numbers(queries: np.ndarray) -> np.ndarray:
    """Queries as the int8 rows are: float32 [q, d] of whole numbers up to 127, whose products with them are exact."""
    return np.rint(queries * (127 / np.abs(queries).max(axis=1, keepdims=True))).astype(np.float32)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(work: Callable[[int, int], None], count: int) -> None:
    """work(low, high) of parts of range(count), one for each core, at the same time."""
    parts = min(cores(), count)
    bounds = [count * part // parts for part in range(parts + 1)]
    list(_pool().map(work, bounds[:-1], bounds[1:]))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix="scan")


def accelerator(numbers: int) -> Any:
    """JAX's device beside the CPU, for so many numbers; None where there is none.

    JAX is asked where it is loaded, or where it can have one and the numbers are worth its import.
    """
    if numbers <= _SMALL or not ("jax" in sys.modules or any(map(_installed, _PLUGINS))):
        return None
    import jax

    device = jax.local_devices()[0]
    return None if device.platform == "cpu" else device


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def product_for(operations: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """float32 [q, d] times [d, n] on the CPU: JAX's, or numpy's where JAX is absent or so many operations too few."""
    if "jax" in sys.modules or (operations >= _WORTH_JAX and _installed("jax")):
        return _jax_product
    return np.matmul


def _jax_product(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    return np.asarray(_compiled_product()(queries, items.T))


@functools.cache
def _compiled_product() -> Callable[[Any, Any], Any]:
    import jax

    cpu = jax.local_devices(backend="cpu")[0]
    product = jax.jit(lambda queries, items: jax.lax.dot_general(
        queries, items, (((1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    ))  # fmt: skip

    def on_cpu(queries: Any, items: Any) -> Any:
        with jax.default_device(cpu):
            return product(queries, items)

    return on_cpu
