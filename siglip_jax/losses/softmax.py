"""The softmax loss of CLIP (arXiv 2103.00020, figure 3), tiled and exact over the global batch: for comparison.

A softmax needs the sum of its row, and of its column, before any of its gradients. So unlike the sigmoid loss it takes
two passes: one for the logarithms of the sums, one that makes every tile of logits again for the gradients: 8 n^2 d
FLOPs where the sigmoid loss takes 6, and twice round the ring.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.sharding import Mesh

from siglip_jax.losses import arguments
from siglip_jax.losses.exchange import Walk, over_pairs
from siglip_jax.losses.tiles import LOG_ADD, Results, Tile, dot

NAME = "softmax_loss"
BY_ROW = (True, True, False)  # image, text, t


def softmax_loss(
    image: jax.Array,
    text: jax.Array,
    t: jax.Array,
    *,
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = "data",
    tile: int | None = None,
    gradient_dtype: Any = "float32",
) -> jax.Array:
    """Mean over the global batch of the cross-entropies of each image's text and of each text's image, halved.

    Args:
      image, text: [n, d], unit norm; bfloat16 or float32, products accumulate in float32.
      t: scalar or [1], the LOG temperature: logits are exp(t) <x_i, y_j>.
      mesh: the mesh that the rows are sharded over, along `axis`; None for one device.
      axis: one mesh axis or several.
      tile: rows and columns of the logits made at a time; None chooses for the platform. Any size is exact.
      gradient_dtype: of the text gradients between devices, "float32" or "bfloat16".

    Returns:
      float32 scalar, equal on all devices.

    Raises:
      ValueError: as `sigmoid_loss`.
      TypeError: forward-mode or second-order differentiation.
    """
    layout = arguments.checked_layout(NAME, mesh=mesh, axis=axis, inputs=(image, text))
    image, text = arguments.checked_embeddings(NAME, image, text)
    walk = arguments.checked_walk(
        NAME, text, layout=layout, tile=tile, communication="ring", gradient_dtype=gradient_dtype
    )
    return _loss(walk, image, text, arguments.checked_scalar(NAME, "t", t))


# --- one tile ---------------------------------------------------------------------------------------------------------


class NormalisedRows(NamedTuple):
    """The rows of one side after the first pass.

    Attributes:
      vectors: [n, d], float32 or bfloat16.
      log_sum: float32 [n], the logarithm of the sum of exp(logit) over all rows of the other side.
    """

    vectors: jax.Array
    log_sum: jax.Array


def log_sums_of_tile(tile: Tile[jax.Array], scale: jax.Array) -> Results:
    """The first pass: logarithms of the sums of exp(logit), with logits scale <x_i, y_j>.

    Args:
      tile: of vectors, [r, d] and [c, d].

    Returns:
      rows: float32 [r], of each row over the columns of the tile; columns: [c], of each column over its rows.
    """
    logits = scale * dot(tile.rows, tile.columns, contract=(1, 1))
    return Results(rows=logsumexp(logits, axis=1), columns=logsumexp(logits, axis=0))


def gradients_of_tile(tile: Tile[NormalisedRows], scale: jax.Array) -> Results:
    """The second pass: derivatives of the two cross-entropies, with e_ij the sum of both by the logit.

    Returns:
      rows: float32 [r, d], sum over j of e_ij y_j: the gradient of x_i over `scale`.
      columns: [c, d], sum over i of e_ij x_i.
    """
    (x, row_log_sum), (y, column_log_sum) = tile.rows, tile.columns
    logits = scale * dot(x, y, contract=(1, 1))
    errors = jnp.exp(logits - row_log_sum[:, None])
    errors += jnp.exp(logits - column_log_sum[None, :])
    errors -= jnp.where(tile.pairs(), 2, 0)
    errors = errors.astype(x.dtype)
    return Results(rows=dot(errors, y, contract=(1, 0)), columns=dot(errors, x, contract=(0, 0)))


# --- one device -------------------------------------------------------------------------------------------------------


def _local_value(walk: Walk, x: jax.Array, y: jax.Array, t: jax.Array) -> jax.Array:
    """The loss of the global batch, from this device's rows."""
    return _local_first_pass(walk, x, y, jnp.exp(t))[0]


def _local_gradients(walk: Walk, x: jax.Array, y: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
    """The loss and the gradients of this device's rows."""
    layout, scale = walk.layout, jnp.exp(t)
    loss, row_log_sum, column_log_sum = _local_first_pass(walk, x, y, scale)
    rows, columns = NormalisedRows(x, row_log_sum), NormalisedRows(y, column_log_sum)
    found = over_pairs(functools.partial(gradients_of_tile, scale=scale), rows, columns, walk=walk)
    to_gradient = scale / (2 * len(x) * layout.devices)
    dx, dy = found.rows * to_gradient, found.columns * to_gradient
    return loss, dx, dy, layout.total(jnp.sum(x.astype(jnp.float32) * dx))  # as in the sigmoid loss


def _local_first_pass(
    walk: Walk, x: jax.Array, y: jax.Array, scale: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(loss, log sums of this device's rows, of its columns)."""
    layout = walk.layout
    unrounded = dataclasses.replace(walk, wire_dtype="float32")
    found = over_pairs(functools.partial(log_sums_of_tile, scale=scale), x, y, walk=unrounded, merge=LOG_ADD)
    pair = scale * jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=1)
    loss = layout.total(jnp.sum((found.rows + found.columns) / 2 - pair)) / (len(x) * layout.devices)
    return loss, found.rows, found.columns


# --- differentiation --------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(walk: Walk, image: jax.Array, text: jax.Array, t: jax.Array) -> jax.Array:
    local = functools.partial(_local_value, walk)
    return walk.layout.shard_map(local, by_row=BY_ROW, out_by_row=False)(image, text, t)


def _forward(walk: Walk, image: jax.Array, text: jax.Array, t: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    loss, *gradients = _loss_and_gradients(walk, image, text, t)
    return loss, tuple(gradients)


def _backward(walk: Walk, gradients: tuple[jax.Array, ...], cotangent: jax.Array) -> tuple[jax.Array, ...]:
    image, text, t = (cotangent * gradient for gradient in gradients)
    return image.astype(walk.dtype), text.astype(walk.dtype), t


_loss.defvjp(_forward, _backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_gradients(walk: Walk, image: jax.Array, text: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
    """(loss, gradients of image, text, t) in float32, for a cotangent of 1."""
    local = functools.partial(_local_gradients, walk)
    return walk.layout.shard_map(local, by_row=BY_ROW, out_by_row=(False, True, True, False))(image, text, t)


@_loss_and_gradients.defjvp
def _no_second_derivative(walk: Walk, primals: Any, tangents: Any) -> NoReturn:
    raise TypeError(
        f"{NAME} has first derivatives in reverse mode only; for second ones use reference.dense_softmax_loss"
    )
