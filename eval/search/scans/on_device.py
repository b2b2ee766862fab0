"""A scan on a device of JAX: the items lie in its memory, and no more than a tile of products does.

As `siglip-jax bench gpu` measures it, with the merge of a tile's best into those so far.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TILE = 1 << 24  # products held at once
_QUERIES_AT_ONCE = 1024


class ScanOnDevice:
    """Args: as of `Scan`; device: of JAX, any."""

    def __init__(self, items: np.ndarray, scales: np.ndarray | None, *, device: Any):
        self._device = device
        self._items = jax.device_put(items, device)
        self._scales = None if scales is None else jax.device_put(scales, device)

    def best(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Scan.best`; batches are filled up to a power of two, so that few sizes are compiled."""
        rows, values = np.empty((len(queries), count), np.int64), np.empty((len(queries), count), np.float32)
        for lo in range(0, len(queries), _QUERIES_AT_ONCE):
            asked = queries[lo : lo + _QUERIES_AT_ONCE]
            size = 1 << (len(asked) - 1).bit_length()
            tile = min(len(self._items), max(count, _TILE // size))
            padded = jax.device_put(np.pad(asked, ((0, size - len(asked)), (0, 0))), self._device)
            found = _best(padded, self._items, self._scales, count=count, tile=tile)
            values[lo : lo + len(asked)], rows[lo : lo + len(asked)] = (
                np.asarray(part)[: len(asked)] for part in found
            )
        return rows, values


@functools.partial(jax.jit, static_argnames=("count", "tile"))
def _best(queries: Any, items: Any, scales: Any, *, count: int, tile: int) -> tuple[Any, Any]:
    """(products float32, rows int32), each [q, count]; `tile` at least `count`, at most the items."""
    n = len(items)
    starts = jnp.arange(0, n, tile, dtype=jnp.int32)

    def one(best: tuple[Any, Any], start: Any) -> tuple[tuple[Any, Any], None]:
        first = jnp.minimum(start, n - tile)  # the last tile begins earlier; what was seen before does not count
        part = jax.lax.dynamic_slice_in_dim(items, first, tile).astype(jnp.float32)
        products = jnp.matmul(queries, part.T, precision=jax.lax.Precision.HIGHEST)
        if scales is not None:
            products *= jax.lax.dynamic_slice_in_dim(scales, first, tile)
        products = jnp.where(first + jnp.arange(tile) >= start, products, -jnp.inf)
        values, columns = jax.lax.top_k(products, count)
        values, rows = (jnp.concatenate(pair, axis=1) for pair in zip(best, (values, columns + first), strict=True))
        values, places = jax.lax.top_k(values, count)
        return (values, jnp.take_along_axis(rows, places, axis=1)), None

    shape = (len(queries), count)
    none = jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)
    return jax.lax.scan(one, none, starts)[0]
