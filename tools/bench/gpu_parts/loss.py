"""The sigmoid loss with its gradients: time and memory by batch, dtype and tile, beside its products; its error."""

from __future__ import annotations

import functools
import statistics
import types
from collections.abc import Callable, Iterator
from typing import Any

from tools.bench.gpu_parts.budget import PartBudget, Row, device_memory, median_seconds, reason

TITLE = "Sigmoid loss, forward and backward"
TILES = (1024, 2048, 4096, 8192, 16384)
DTYPES = ("bfloat16", "float32")
FLOOR, OURS, DENSE = "three plain matmuls", "sigmoid_loss", "dense formula under jit"


def rows(budget: PartBudget) -> Iterator[Row]:
    sizes = budget.choose((32_768, 65_536, 262_144), (64, 128))
    tiles = budget.choose(TILES, (16, 32))
    dim = budget.choose(768, 16)
    ceilings = {}
    for dtype in DTYPES:
        row = ceiling(budget.choose(8192, 128), dtype)
        ceilings[dtype] = row["TFLOP/s"]
        yield row
    best, rates, floors = {}, {}, {}
    for dtype in DTYPES:
        by_tile = {}
        for tile in tiles:
            row = of_tile(sizes[0], dim, dtype, tile)
            by_tile[tile] = row.get("TFLOP/s", 0.0)
            yield {"table": "Tiles"} | row | shares(row, ceiling=ceilings[dtype])
        best[dtype] = max(by_tile, key=lambda tile: by_tile[tile])
        rates[dtype] = by_tile[best[dtype]] or 1.0
        yield {"table": "Tiles", "what": "best tile", "dtype": dtype, "tile": best[dtype]}
    for batch in sizes:
        for dtype in DTYPES:
            seconds = flops_of(batch, dim) / (1e12 * rates[dtype])
            if 4 * seconds > budget.left:
                yield {"what": OURS, "rows": batch, "dtype": dtype, "error": "no time left"}
                continue
            for row in of_batch(batch, dim, dtype, best[dtype], long=seconds > 1):
                if row["what"] == FLOOR and "ms" in row:
                    floors[dtype] = row["TFLOP/s"]
                yield row | shares(row, ceiling=ceilings[dtype], floor=floors.get(dtype))
        if batch == sizes[0]:
            yield from accuracy(budget.choose(4096, 64), dim)


def flops_of(batch: int, dim: int) -> float:
    """FLOPs of the three products."""
    return 6.0 * batch * batch * dim


def shares(row: Row, *, ceiling: float, floor: float | None = None) -> Row:
    if "TFLOP/s" not in row:
        return {}
    more = {"% of ceiling": 100 * row["TFLOP/s"] / ceiling}
    return more | ({"% of floor": 100 * row["TFLOP/s"] / floor} if floor else {})


def ceiling(size: int, dtype: str) -> Row:
    """One square product of random numbers: what the card gives on this day, float32 as float32."""
    import jax

    a, b = jax.random.normal(jax.random.key(0), (2, size, size), dtype)
    product = jax.jit(lambda a, b: jax.lax.dot(a, b, precision=_precision(dtype)))
    seconds = median_seconds(lambda: jax.block_until_ready(product(a, b)), repetitions=9)
    return {
        "what": f"ceiling: a product of {size} x {size}",
        "dtype": dtype,
        "ms": seconds * 1e3,
        "TFLOP/s": 2 * size**3 / seconds / 1e12,
    }


def _precision(dtype: str) -> Any:
    import jax

    return jax.lax.Precision.HIGHEST if dtype == "float32" else None


def embeddings(batch: int, dim: int, dtype: str) -> list[Any]:
    from tools.bench import loss

    return loss.embeddings(types.SimpleNamespace(batch=batch, dim=dim, dtype=dtype))  # type: ignore[arg-type]


def with_gradients(tile: int | None) -> Callable[..., Any]:
    import jax

    from siglip_jax.losses import sigmoid_loss

    return jax.value_and_grad(functools.partial(sigmoid_loss, tile=tile), argnums=(0, 1, 2, 3))


def plain_products(x: Any, y: Any, t: Any, b: Any) -> tuple[Any, Any]:
    """What the loss multiplies, on logits kept whole."""
    import jax

    product = functools.partial(jax.numpy.matmul, precision=_precision(x.dtype.name))
    logits = product(x, y.T)
    return product(logits, y), product(logits.T, x)


def compiled_run(function: Callable[..., Any], arrays: list[Any]) -> tuple[Callable[[], Any], float]:
    """(a run of the compiled program, MiB of its arguments, results and temporary memory)."""
    import jax

    from siglip_jax.analysis.hlo import memory

    compiled = jax.jit(function).lower(*arrays).compile()
    size = sum(memory(compiled).values()) / 2**20
    return lambda: jax.block_until_ready(compiled(*arrays)), size


def of_tile(batch: int, dim: int, dtype: str, tile: int) -> Row:
    row: Row = {"what": OURS, "rows": batch, "dtype": dtype, "tile": tile}
    try:
        run, size = compiled_run(with_gradients(tile), embeddings(batch, dim, dtype))
        seconds = median_seconds(run, repetitions=3)
    except Exception as error:
        return row | {"error": reason(error)}
    return row | {"ms": seconds * 1e3, "TFLOP/s": flops_of(batch, dim) / seconds / 1e12, "MiB": size}


def of_batch(batch: int, dim: int, dtype: str, tile: int, *, long: bool) -> Iterator[Row]:
    """The products, ours with the library's tile and with the best, and the dense formula where it fits; in turn.

    With `long` only ours with the best tile, twice.
    """
    import jax

    from siglip_jax.losses.reference import dense_sigmoid_loss
    from tools.bench import measuring

    arrays = embeddings(batch, dim, dtype)
    functions: dict[str, Callable[..., Any]] = {}
    matrix, limit = 4.0 * batch * batch, device_memory() or float("inf")
    if not long and 2 * matrix < 0.9 * limit:
        functions[FLOOR] = plain_products
    if not long:
        functions[OURS] = with_gradients(None)
    functions[f"{OURS}, best tile"] = with_gradients(tile)
    if not long and 3 * matrix < 0.9 * limit:
        functions[DENSE] = jax.value_and_grad(dense_sigmoid_loss, argnums=(0, 1, 2, 3))
    runs, sizes, failed = {}, {}, {}
    for name, function in functions.items():
        try:
            run, sizes[name] = compiled_run(function, arrays)
            if not long:
                run()  # memory may run out here as well
            runs[name] = run
        except Exception as error:
            failed[name] = reason(error)
    seconds = measuring.interleaved(runs, repetitions=2 if long else 5)
    for name in functions:
        row: Row = {"what": name, "rows": batch, "dtype": dtype}
        if name == f"{OURS}, best tile":
            row["tile"] = tile
        if name in seconds:
            median = statistics.median(seconds[name])
            figures = {"ms": median * 1e3, "TFLOP/s": flops_of(batch, dim) / median / 1e12, "MiB": sizes[name]}
            yield row | figures
        else:
            yield row | {"error": failed[name]}


def accuracy(batch: int, dim: int) -> Iterator[Row]:
    """max |found - exact| / max |exact| at exp(t) = 112, against float64 of the same inputs."""
    import jax
    import numpy as np

    from siglip_jax.losses.reference import dense_sigmoid_loss

    for dtype in DTYPES:
        arrays = embeddings(batch, dim, dtype)
        exact = exact_gradients(*(np.asarray(a).astype(np.float64) for a in arrays))
        dense = jax.value_and_grad(dense_sigmoid_loss, argnums=(0, 1, 2, 3))
        for name, function in ((OURS, with_gradients(None)), (DENSE, dense)):
            value, gradients = jax.jit(function)(*arrays)
            found = [np.asarray(a).astype(np.float64) for a in (value, *gradients)]
            errors = [float(np.max(np.abs(a - e)) / np.max(np.abs(e))) for a, e in zip(found, exact, strict=True)]
            columns = ("loss", "x", "y", "t", "b")
            row: Row = {"table": "Largest error over largest value, exp(t) = 112", "what": name, "rows": batch}
            yield row | {"dtype": dtype, **dict(zip(columns, errors, strict=True))}


def exact_gradients(x: Any, y: Any, t: Any, b: Any) -> list[Any]:
    """[loss, gradients of x, y, t, b] in float64."""
    import numpy as np

    n, scale = len(x), np.exp(t)
    logits = scale * (x @ y.T) + b
    signs = 2 * np.eye(n) - 1
    by_logit = -signs * np.exp(-np.logaddexp(0, signs * logits)) / n
    loss = np.sum(np.logaddexp(0, -signs * logits)) / n
    return [loss, scale * by_logit @ y, scale * by_logit.T @ x, np.sum(by_logit * (logits - b)), np.sum(by_logit)]
