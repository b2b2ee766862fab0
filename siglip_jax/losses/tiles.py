"""Walking over a matrix of logits tile by tile, so that no more than one tile of it ever exists.

A tile function is what a loss does with one tile: a pure function of a `Tile`, which returns its `Results`.
`over_matrix` calls it on every tile and merges what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

# Rows and columns of a tile. On a CPU the three products of 1024 run at the speed of whole ones, and the tile (4 MiB of
# float32) and the slices of the accumulators that it touches stay in cache. A GPU needs larger products to occupy all
# its multiprocessors; 2048 is chosen for memory: the tile (16 MiB, and 8 of bfloat16 errors) fits into the second-level
# cache of an H100 (50 MiB). For a TPU XLA writes a tile's products out as code: 1024 takes it four to eight times as
# long to compile (25 s instead of 6 in bfloat16, 88 instead of 11 in float32).
TILES = {"cpu": 1024, "gpu": 2048, "tpu": 512}

Side = TypeVar("Side")  # a tree of arrays [rows, ...]: all that a loss knows about the rows of one side


class Tile(NamedTuple, Generic[Side]):
    """Some rows of the matrix of logits and some of its columns.

    Attributes:
      rows: of the r images, a tree of [r, ...].
      columns: of the c texts, a tree of [c, ...].
      row_index: int32 [r], the places of the rows in the global batch.
      column_index: int32 [c].
    """

    rows: Side
    columns: Side
    row_index: jax.Array
    column_index: jax.Array

    def pairs(self) -> jax.Array:
        """bool [r, c]: the row and the column are of one place in the global batch."""
        return self.row_index[:, None] == self.column_index[None, :]


class Results(NamedTuple):
    """What is known after one tile, or after several when it is merged; each a tree of arrays, or None for nothing.

    Attributes:
      rows: about each row, [r, ...].
      columns: about each column, [c, ...].
      total: about all pairs together, scalars.
    """

    rows: Any = None
    columns: Any = None
    total: Any = None


TileFunction = Callable[[Tile[Any]], Results]


class Finish(NamedTuple):
    """What becomes of the results about some rows once every column was met, so that they need not wait for the others.

    Attributes:
      start: of the tile of these rows and all columns: the results about the rows before the first column.
      final: (rows, results about them) -> what is kept of them, a tree of [r, ...].
    """

    start: Callable[[Tile[Any]], Any]
    final: Callable[[Any, Any], Any]


class Merge(NamedTuple):
    """How two results about the same rows, columns or pairs become one, element by element.

    Attributes:
      join: associative and commutative.
      identity: join(identity, x) is x.
    """

    join: Callable[[jax.Array, jax.Array], jax.Array]
    identity: float

    def trees(self, a: Any, b: Any) -> Any:
        return jax.tree.map(self.join, a, b)

    def nothing(self, function: TileFunction, tile: Tile[Any]) -> Results:
        """The results of no tile at all, in the shapes of function(tile), which is not run."""
        return jax.tree.map(lambda x: jnp.full(x.shape, self.identity, x.dtype), jax.eval_shape(function, tile))


ADD = Merge(jnp.add, 0.0)
LOG_ADD = Merge(jnp.logaddexp, -jnp.inf)  # of logarithms of sums


def tile_of(rows: Side, columns: Side, *, first: tuple[Any, Any] = (0, 0)) -> Tile[Side]:
    """The tile of these rows and columns, of which the first have the places `first` in the global batch."""
    row_index, column_index = (
        start + jnp.arange(count(side), dtype=jnp.int32) for start, side in zip(first, (rows, columns), strict=True)
    )
    return Tile(rows, columns, row_index, column_index)


def over_matrix(
    function: TileFunction,
    matrix_rows: Any,
    matrix_columns: Any,
    results: Results,
    *,
    first: tuple[Any, Any],
    tile: int,
    merge: Merge,
    finish: Finish | None = None,
) -> Results:
    """`results` merged with function(tile) of every tile, stripe by stripe.

    Args:
      function: called on tiles of up to [tile, tile].
      matrix_rows, matrix_columns: both sides, trees of [n, ...] and [m, ...].
      results: so far, about all of them.
      first: places of the first row and the first column in the global batch.
      tile: rows and columns of a tile; what remains at the edges is a smaller one.
      merge: of the results.
      finish: of the results about the rows of a stripe, of which `results.rows` then are the final ones; only one
        stripe at a time is unfinished.
    """

    def stripe(row: Any, height: int, results: Results) -> Results:
        stripe_rows = rows(matrix_rows, row, height)

        def one(column: Any, width: int, results: Results) -> Results:
            place = (first[0] + row, first[1] + column)
            found = function(tile_of(stripe_rows, rows(matrix_columns, column, width), first=place))
            about_columns = merge.trees(rows(results.columns, column, width), found.columns)
            return Results(
                rows=merge.trees(results.rows, found.rows),
                columns=set_rows(results.columns, column, about_columns),
                total=merge.trees(results.total, found.total),
            )

        if finish is None:
            start = rows(results.rows, row, height)
        else:
            start = finish.start(tile_of(stripe_rows, matrix_columns))
        about_stripe = over_tiles(count(matrix_columns), tile, one, results._replace(rows=start))
        about_rows = about_stripe.rows if finish is None else finish.final(stripe_rows, about_stripe.rows)
        return about_stripe._replace(rows=set_rows(results.rows, row, about_rows))

    return over_tiles(count(matrix_rows), tile, stripe, results)


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


def count(tree: Any) -> int:
    """How many rows the arrays of a tree have."""
    return len(jax.tree.leaves(tree)[0])


def rows(tree: Any, start: Any, size: int) -> Any:
    """x[start : start + size] of each array x in a tree."""
    return jax.tree.map(lambda x: x if size == len(x) else lax.dynamic_slice_in_dim(x, start, size), tree)


def set_rows(tree: Any, start: Any, new: Any) -> Any:
    """Each array x of a tree with x[start : start + len(new)] replaced; in place inside a loop."""

    def one(x: jax.Array, new: jax.Array) -> jax.Array:
        return new if new.shape == x.shape else lax.dynamic_update_slice_in_dim(x, new, start, 0)

    return jax.tree.map(one, tree, new)


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
