"""Exact nearest neighbours on the device: every score in float32, the best ten of each query."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from tools.bench.gpu_parts.budget import PartBudget, Row, median_seconds, reason

TITLE = "Exact search on the device"
K = 10
CHECKED = 32  # queries that are searched in float64 as well


def rows(budget: PartBudget) -> Iterator[Row]:
    import jax

    items, dim = budget.choose((1_000_000, 768), (2000, 16))
    chunk = budget.choose(50_000, 500)
    vectors, everyone = (
        _unit(jax.random.normal(jax.random.key(seed), (count, dim))) for seed, count in ((0, items), (1, 1024))
    )
    for dtype in ("float32", "bfloat16"):
        stored = vectors.astype(dtype)
        for count in (1, 64, 1024):
            row: Row = {"what": f"top {K} of {items:,} x {dim}", "dtype": dtype, "queries": count}
            try:
                queries = everyone[:count].astype(dtype)
                run = jax.jit(functools.partial(nearest, k=K, chunk=chunk))
                seconds = median_seconds(lambda: jax.block_until_ready(run(queries, stored)))  # noqa: B023
            except Exception as error:
                yield row | {"error": reason(error)}
                continue
            yield row | {"ms": seconds * 1e3, "queries/s": count / seconds}
            if count == 64:
                found = run(queries[:CHECKED], stored)[1]
                yield row | {"queries": CHECKED, "equal to float64, %": 100 * agreement(found, queries, stored)}


def _unit(x: Any) -> Any:
    import jax.numpy as jnp

    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def nearest(queries: Any, vectors: Any, *, k: int, chunk: int) -> tuple[Any, Any]:
    """(scores float32 [q, k], rows int32 [q, k]), best first, from a chunk of the items at a time.

    Args:
      queries: [q, d].
      vectors: [n, d]; n a multiple of `chunk`.
    """
    import jax
    import jax.numpy as jnp

    def one(best: tuple[Any, Any], start: Any) -> tuple[tuple[Any, Any], None]:
        part = jax.lax.dynamic_slice_in_dim(vectors, start, chunk)
        precision = jax.lax.Precision.HIGHEST if vectors.dtype == jnp.float32 else None
        scores = jnp.matmul(queries, part.T, precision=precision, preferred_element_type=jnp.float32)
        scores, rows = jax.lax.top_k(scores, k)
        scores, rows = (jnp.concatenate(pair, axis=1) for pair in zip(best, (scores, rows + start), strict=True))
        scores, places = jax.lax.top_k(scores, k)
        return (scores, jnp.take_along_axis(rows, places, axis=1)), None

    shape = (len(queries), k)
    start = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
    best, _ = jax.lax.scan(one, start, jnp.arange(0, len(vectors), chunk, dtype=jnp.int32))
    return best


def agreement(found: Any, queries: Any, vectors: Any) -> float:
    """The share of the float64 search's rows that were found."""
    import numpy as np

    found = np.asarray(found)
    queries = np.asarray(queries[: len(found)]).astype(np.float64)
    vectors = np.asarray(vectors)
    parts = np.array_split(np.arange(len(vectors)), max(1, len(vectors) // 50_000))
    scores = np.concatenate([queries @ vectors[part].astype(np.float64).T for part in parts], axis=1)
    exact = np.argpartition(-scores, found.shape[1], axis=1)[:, : found.shape[1]]
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, exact, strict=True)]))
