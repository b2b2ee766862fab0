"""Walking over a matrix of logits tile by tile, so that no more than one tile of it ever exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Rows and columns of a tile. On a CPU the three products of 1024 run at the speed of whole ones, and the tile (4 MiB of
# float32) and the slices of the accumulators that it touches stay in cache. A GPU needs larger products to occupy all
# its multiprocessors. For a TPU XLA writes a tile's products out as code: 1024 takes it four to eight times as long to
# compile (25 s instead of 6 in bfloat16, 88 instead of 11 in float32).
TILES = {"cpu": 1024, "gpu": 4096, "tpu": 512}


def over_tiles(total: int, tile: int, body: Callable[[Any, int, Any], Any], carry: Any) -> Any:
    """body(start, size, carry) -> carry for each stretch of `tile` in range(total), the shorter last one included.

    `size` is a Python integer: the remainder is a body of its own shape, so nothing is padded or computed twice.
    """
    whole, rest = divmod(total, tile)
    if whole == 1:
        carry = body(0, tile, carry)
    elif whole:
        carry = lax.fori_loop(0, whole, lambda i, c: body(i * tile, tile, c), carry)
    return body(whole * tile, rest, carry) if rest else carry


def rows(x: jax.Array, start: Any, size: int) -> jax.Array:
    """x[start : start + size]."""
    return x if size == x.shape[0] else lax.dynamic_slice_in_dim(x, start, size)


def set_rows(x: jax.Array, start: Any, new: jax.Array) -> jax.Array:
    """x with x[start : start + len(new)] replaced; in place inside a loop."""
    return new if new.shape == x.shape else lax.dynamic_update_slice_in_dim(x, new, start, 0)


def dot(a: jax.Array, b: jax.Array, *, contract: tuple[int, int]) -> jax.Array:
    """a and b contracted over one axis each, accumulated in and returned as float32.

    float32 operands are multiplied as float32: by default TPUs would round them to bfloat16 and GPUs to TF32, and
    exp(t) = 100 makes that an error in the second or third decimal of a logit. bfloat16 operands are the way to ask for
    the fast products. A precision set with `jax.default_matmul_precision` is respected.
    """
    chosen = jax.config.jax_default_matmul_precision is not None  # type: ignore[attr-defined]
    return lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=None if chosen or a.dtype != jnp.float32 else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
