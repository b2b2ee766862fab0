"""The softmax loss of CLIP (arXiv 2103.00020, figure 3), tiled and exact over the global batch: for comparison.

A softmax needs the sum of its row, and of its column, before any of its gradients. So unlike the sigmoid loss it takes
two passes: one for the logarithms of the sums, one that makes every tile of logits again for the gradients: 8 n^2 d
FLOPs where the sigmoid loss takes 6, and twice round the ring.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.sharding import Mesh

from siglip_jax.losses import arguments
from siglip_jax.losses.exchange import Layout, ring
from siglip_jax.losses.tiles import dot, over_tiles, rows, set_rows

NAME = "softmax_loss"


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
    _, wire = arguments.checked_communication(NAME, "ring", gradient_dtype)
    plan = _Plan(layout=layout, dtype=image.dtype.name, tile=arguments.checked_tile(NAME, tile, layout), wire=wire)
    return _loss(plan, image, text, arguments.checked_scalar(NAME, "t", t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    layout: Layout
    dtype: str
    tile: int
    wire: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(plan: _Plan, image, text, t):
    local = functools.partial(_local, plan, with_gradients=False)
    return plan.layout.shard_map(local, by_row=(True, True, False), out_by_row=(False,))(image, text, t)[0]


def _forward(plan: _Plan, image, text, t):
    loss, *gradients = _two_passes(plan, image, text, t)
    return loss, gradients


def _backward(plan: _Plan, gradients, cotangent):
    image, text, t = (cotangent * gradient for gradient in gradients)
    return image.astype(plan.dtype), text.astype(plan.dtype), t


_loss.defvjp(_forward, _backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _two_passes(plan: _Plan, image, text, t):
    local = functools.partial(_local, plan, with_gradients=True)
    return plan.layout.shard_map(local, by_row=(True, True, False), out_by_row=(False, True, True, False))(
        image, text, t
    )


@_two_passes.defjvp
def _no_second_derivative(plan, primals, tangents):
    raise TypeError(
        f"{NAME} has first derivatives in reverse mode only; for second ones use reference.dense_softmax_loss"
    )


# --- one device -------------------------------------------------------------------------------------------------------


def _local(plan: _Plan, x, y, t, *, with_gradients: bool):
    layout, (n, _) = plan.layout, x.shape
    scale, batch = jnp.exp(t), n * layout.devices
    logs = layout.vary(jnp.full(n, -jnp.inf))

    def visit_sums(there, shard, row_log):
        """The logarithm of the sum of exponentials of each row so far, and of each column over this device's rows."""

        def tile(at, x_tile, y_tile, row_log, column_log):
            logits = scale * dot(x_tile, y_tile, contract=(1, 1))
            row_log = jnp.logaddexp(row_log, logsumexp(logits, axis=1))
            return row_log, jnp.logaddexp(column_log, logsumexp(logits, axis=0))

        row_log, column_log = _over_both(plan.tile, tile, x, there[0], row_log, logs)
        return [column_log], row_log

    (column_log,), row_log = ring(visit_sums, [y], logs, layout=layout, merge=jnp.logaddexp)
    pair = scale * jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=1)
    loss = layout.total(jnp.sum((row_log + column_log) / 2 - pair)) / batch
    if not with_gradients:
        return (loss,)

    def visit_gradients(there, shard, dx):
        y, column_log = there
        offset = (layout.position() - shard) * n

        def tile(at, x_tile, y_tile, dx_tile, dy_tile):
            row, column = at
            logits = scale * dot(x_tile, y_tile, contract=(1, 1))
            errors = jnp.exp(logits - rows(row_log, row, len(x_tile))[:, None])
            errors += jnp.exp(logits - rows(column_log, column, len(y_tile))[None, :])
            mine = offset + row + jnp.arange(len(x_tile))
            errors -= jnp.where(mine[:, None] == column + jnp.arange(len(y_tile))[None, :], 2, 0)
            errors = errors.astype(plan.dtype)
            return dx_tile + dot(errors, y_tile, contract=(1, 0)), dy_tile + dot(errors, x_tile, contract=(0, 0))

        dx, dy = _over_both(plan.tile, tile, x, y, dx, layout.vary(jnp.zeros(y.shape, jnp.float32)))
        return [dy], dx

    wire_dtype = None if plan.wire == "float32" else plan.wire
    zeros = layout.vary(jnp.zeros(x.shape, jnp.float32))
    (dy,), dx = ring(visit_gradients, (y, column_log), zeros, layout=layout, wire_dtype=wire_dtype)
    dx, dy = dx * (scale / (2 * batch)), dy * (scale / (2 * batch))
    return loss, dx, dy, layout.total(jnp.sum(x.astype(jnp.float32) * dx))  # as in the sigmoid loss


def _over_both(tile_size: int, tile, x, y, about_x, about_y):
    """Every tile of rows of x against every tile of rows of y; tile((row, column), x, y, about_x, about_y) updates what
    is known about both, all cut to the tile."""

    def stripe(row, height, carry):
        about_x, about_y = carry
        x_tile = rows(x, row, height)

        def one(column, width, carry):
            about_x_tile, about_y = carry
            about_x_tile, about_y_tile = tile(
                (row, column), x_tile, rows(y, column, width), about_x_tile, rows(about_y, column, width)
            )
            return about_x_tile, set_rows(about_y, column, about_y_tile)

        about_x_tile, about_y = over_tiles(len(y), tile_size, one, (rows(about_x, row, height), about_y))
        return set_rows(about_x, row, about_x_tile), about_y

    return over_tiles(len(x), tile_size, stripe, (about_x, about_y))
