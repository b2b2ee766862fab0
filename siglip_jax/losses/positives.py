"""Which pairs of the sigmoid loss are positives, and how much each pair weighs.

Each text has a weight v, 1 unless given. A negative weighs v_j. A positive weighs v_j too, or with "mean"

  v_j (1 / k_i + 1 / k_j) / 2

where k_i counts the texts of weight above 0 that fit image i, and k_j the images that text j fits. So half of a
positive comes from the image's side, where k_i texts share 1, and half from the text's. Row by row under one grouping
k_i = k_j = k, and each positive weighs 1 / k.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from siglip_jax.losses.exchange import Walk, over_pairs
from siglip_jax.losses.tiles import Results, Tile

# What rows of equal group are to each other, off the diagonal; "mean" is "positive" with k positives weighing 1 / k,
# "negative" is as if there were no groups.
SAME_GROUP = ("positive", "mean", "ignore", "negative")


class Labels(NamedTuple):
    """What is known of the rows beside their embeddings; None for what is not.

    Attributes:
      groups: int32 [n], of the images.
      text_groups: int32 [m]; an image and a text of one group fit.
      text_weights: float32 [m], not negative.
    """

    groups: jax.Array | None = None
    text_groups: jax.Array | None = None
    text_weights: jax.Array | None = None


class GroupedRows(NamedTuple):
    """The rows of one side.

    Attributes:
      vectors: [n, d], float32 or bfloat16.
      group: int32 [n], or None where every row is a group of its own.
      share: float32 [n], 1 / 2k, what the row adds to the weight of each of its positives; None where those weigh 1.
      weight: float32 [n], of all pairs of the row, for texts; None where all weigh 1.
    """

    vectors: jax.Array
    group: jax.Array | None = None
    share: jax.Array | None = None
    weight: jax.Array | None = None


def sides(walk: Walk, same_group: str, x: jax.Array, y: jax.Array, labels: Labels) -> tuple[GroupedRows, GroupedRows]:
    """This device's images [n, d] and texts [m, d] with all that a tile asks of them; inside `Layout.shard_map`."""
    groups, text_groups, weights = labels
    shares: tuple[Any, Any] = (None, None)
    if same_group == "mean" and groups is not None and text_groups is not None:
        counted = jnp.ones_like(text_groups) if weights is None else (weights > 0).astype(jnp.int32)
        # A device's rows and the columns of a hop are one tile here. Counts below 2^24 are exact in float32.
        at_once = dataclasses.replace(walk, tile=max(len(x), len(y) * walk.layout.devices), wire_dtype="float32")
        found = over_pairs(counts_of_tile, groups, (text_groups, counted), walk=at_once)
        shares = (0.5 / jnp.maximum(found.rows, 1), 0.5 / jnp.maximum(found.columns, 1))
    return GroupedRows(x, groups, shares[0]), GroupedRows(y, text_groups, shares[1], weights)


def counts_of_tile(tile: Tile[Any]) -> Results:
    """How often each row and each column meets its group, by sorting: O(r + c) memory, whatever the compiler fuses.

    Args:
      tile: rows are groups, int32 [r]; columns are groups, int32 [c], and whether each counts, int32 [c], 1 or 0.

    Returns:
      rows: int32 [r], columns of its group that count; columns: int32 [c], rows of its group.
    """
    column_group, counted = tile.columns
    return Results(
        rows=_count(tile.rows, column_group, counted),
        columns=_count(column_group, tile.rows, jnp.ones_like(tile.rows)),
    )


def _count(groups: jax.Array, others: jax.Array, counted: jax.Array) -> jax.Array:
    """For each of `groups` the sum of `counted` over its equals in `others`."""
    order = jnp.argsort(others)
    before = jnp.concatenate([jnp.zeros_like(counted[:1]), jnp.cumsum(counted[order])])
    first, last = (jnp.searchsorted(others[order], groups, side=side, method="sort") for side in ("left", "right"))
    return before[last] - before[first]


def matches(tile: Tile[GroupedRows], same_group: str) -> tuple[jax.Array, jax.Array | None]:
    """(is a positive, bool [r, c]; weight of each pair, float32 [r, c] or [1, c], or None where all weigh 1)."""
    rows, columns = tile.rows, tile.columns
    weight = None if columns.weight is None else columns.weight[None, :]
    if rows.group is None or columns.group is None or same_group == "negative":
        return tile.pairs(), weight
    same = rows.group[:, None] == columns.group[None, :]
    if same_group == "ignore":
        counts = tile.pairs() | ~same
        return tile.pairs(), jnp.where(counts, 1.0 if weight is None else weight, 0.0)
    if rows.share is None or columns.share is None:
        return same, weight
    weights = jnp.where(same, rows.share[:, None] + columns.share[None, :], 1.0)
    return same, weights if weight is None else weights * weight
