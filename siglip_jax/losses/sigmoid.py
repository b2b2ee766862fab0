"""The pairwise sigmoid loss of SigLIP (arXiv 2303.15343, algorithm 1), exact over the global batch, in one pass.

d loss / d logit_ij = (sigmoid(logit_ij) - [i matches j]) / n needs that logit alone. So the gradients are made beside
the loss, tile by tile, and the backward pass only multiplies them by its cotangent: 3 products (6 n^2 d FLOPs), memory
for the gradients and one tile, whatever n is. Left to autodiff, a loop over tiles keeps every tile of logits.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax.losses import arguments
from siglip_jax.losses.exchange import Layout, choose_communication, gather, ring
from siglip_jax.losses.tiles import dot, over_tiles, rows, set_rows

SAME_GROUP = ("positive", "ignore")  # what rows of equal group are to each other, off the diagonal
NAME = "sigmoid_loss"


def sigmoid_loss(
    image: jax.Array,
    text: jax.Array,
    t: jax.Array,
    b: jax.Array,
    *,
    groups: jax.Array | None = None,
    same_group: str = "positive",
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = "data",
    tile: int | None = None,
    communication: str = "auto",
    gradient_dtype: Any = "float32",
) -> jax.Array:
    """Mean over the global batch of -log sigmoid(y_ij * l_ij), summed over j, with l_ij = exp(t) <x_i, y_j> + b.

    Rows of equal title (or product) are no negatives of each other: `groups` names them. Logits, t and b are float32
    whatever the inputs are, and exp(t) is not clamped. Reverse-mode differentiable once, in image, text, t and b, from
    any number of devices; forward mode and second derivatives raise (`reference.dense_sigmoid_loss` has both).

    Args:
      image, text: [n, d], unit norm; bfloat16 or float32, products accumulate in float32. float32 is multiplied as
        float32 on every platform (see `tiles.dot`).
      t, b: scalars or [1]; t is the LOG temperature.
      groups: int32 [n]; pairs of one group count as positives, or not at all off the diagonal.
      same_group: "positive" or "ignore".
      mesh: the mesh that the rows are sharded over, along `axis`; None for one device.
      axis: one mesh axis or several.
      tile: rows and columns of the logits made at a time; None chooses for the platform. Any size is exact.
      communication: "ring" sends the texts and their gradients once round, memory does not grow with the devices;
        "gather" collects all texts and reduce-scatters the gradients; "auto" gathers where that takes up to 32 MiB.
      gradient_dtype: of the text gradients between devices, "float32" or "bfloat16" (half the bytes, rounded each hop).

    Returns:
      float32 scalar, equal on all devices.

    Raises:
      ValueError: shapes or dtypes that do not match, an unknown choice, rows that do not divide over the devices, or
        sharded inputs without a mesh.
      TypeError: forward-mode or second-order differentiation.
    """
    layout = arguments.checked_layout(NAME, mesh=mesh, axis=axis, inputs=(image, text))
    image, text = arguments.checked_embeddings(NAME, image, text)
    arguments.checked_choice(NAME, "same_group", same_group, SAME_GROUP)
    communication, wire = arguments.checked_communication(NAME, communication, gradient_dtype)
    (batch, dim), itemsize = image.shape, image.dtype.itemsize
    plan = _Plan(
        layout=layout,
        dtype=image.dtype.name,
        same_group=same_group,
        tile=arguments.checked_tile(NAME, tile, layout),
        communication=choose_communication(
            communication, batch=batch, dim=dim, itemsize=itemsize, devices=layout.devices
        ),
        wire=wire,
    )
    return _loss(
        plan,
        image,
        text,
        arguments.checked_scalar(NAME, "t", t),
        arguments.checked_scalar(NAME, "b", b),
        arguments.checked_groups(NAME, groups, batch),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything about a call that is not an array."""

    layout: Layout
    dtype: str
    same_group: str
    tile: int
    communication: str
    wire: str


# --- differentiation --------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(plan: _Plan, image, text, t, b, groups) -> jax.Array:
    local = functools.partial(_local_pass, plan, with_gradients=False)
    (loss,) = plan.layout.shard_map(local, by_row=(True, True, False, False, True), out_by_row=(False,))(
        image, text, t, b, groups
    )
    return loss


def _forward(plan: _Plan, image, text, t, b, groups):
    loss, *gradients = _one_pass(plan, image, text, t, b, groups)
    return loss, gradients


def _backward(plan: _Plan, gradients, cotangent):
    image, text, t, b = (cotangent * gradient for gradient in gradients)
    return image.astype(plan.dtype), text.astype(plan.dtype), t, b, None


_loss.defvjp(_forward, _backward)


# The gradients are an answer, not a formula to differentiate again: a loop left to autodiff would keep every tile.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _one_pass(plan: _Plan, image, text, t, b, groups):
    """(loss, gradients of image, text, t, b) in float32, for a cotangent of 1."""
    local = functools.partial(_local_pass, plan, with_gradients=True)
    return plan.layout.shard_map(
        local, by_row=(True, True, False, False, True), out_by_row=(False, True, True, False, False)
    )(image, text, t, b, groups)


@_one_pass.defjvp
def _no_second_derivative(plan, primals, tangents):
    raise TypeError(
        f"{NAME} has first derivatives in reverse mode only; for second ones use reference.dense_sigmoid_loss"
    )


# --- one device -------------------------------------------------------------------------------------------------------


def _local_pass(plan: _Plan, x, y, t, b, groups, *, with_gradients: bool):
    """This device's rows against everyone's. Sums are divided by the global batch at the end, so that the errors
    sigmoid(l) - [match], at most 1, keep their precision in bfloat16."""
    layout, n = plan.layout, x.shape[0]
    scale, batch = jnp.exp(t), n * layout.devices
    mine = jnp.arange(n, dtype=jnp.int32) + layout.position() * n
    about_rows = {"index": mine} | ({} if groups is None else {"group": groups})
    zeros = layout.vary(jnp.zeros(x.shape, jnp.float32)) if with_gradients else None
    sums = layout.vary((jnp.zeros(()), jnp.zeros(())))  # losses, errors

    def visit(there, shard, home):
        """Rows of another device (or, gathered, of all) -> (their gradient, home)."""
        their_rows = there["y"].shape[0]
        about_columns = {"index": jnp.arange(their_rows, dtype=jnp.int32) + shard * n}
        if groups is not None:
            about_columns["group"] = there["group"]
        dy = layout.vary(jnp.zeros(there["y"].shape, jnp.float32)) if with_gradients else None

        def stripe(start, size, carry):
            dx, dy, sums = carry
            x_tile = rows(x, start, size)
            about_tile = {name: rows(value, start, size) for name, value in about_rows.items()}

            def tile(column, width, carry):
                dx_tile, dy, sums = carry
                y_tile = rows(there["y"], column, width)
                matches = _matches(
                    about_tile,
                    {name: rows(value, column, width) for name, value in about_columns.items()},
                    plan.same_group,
                )
                logits = scale * dot(x_tile, y_tile, contract=(1, 1)) + b
                losses, errors = _pointwise(logits, *matches, with_errors=with_gradients)
                if not with_gradients:
                    return dx_tile, dy, (sums[0] + jnp.sum(losses), sums[1])
                sums = (sums[0] + jnp.sum(losses), sums[1] + jnp.sum(errors))
                errors = errors.astype(plan.dtype)
                dx_tile = dx_tile + dot(errors, y_tile, contract=(1, 0))
                dy_tile = rows(dy, column, width) + dot(errors, x_tile, contract=(0, 0))
                return dx_tile, set_rows(dy, column, dy_tile), sums

            dx_tile = rows(dx, start, size) if with_gradients else None
            dx_tile, dy, sums = over_tiles(their_rows, plan.tile, tile, (dx_tile, dy, sums))
            return (set_rows(dx, start, dx_tile) if with_gradients else None), dy, sums

        dx, sums = home
        dx, dy, sums = over_tiles(n, plan.tile, stripe, (dx, dy, sums))
        return ([dy] if with_gradients else []), (dx, sums)

    exchange = gather if plan.communication == "gather" else ring
    wire_dtype = None if plan.wire == "float32" else plan.wire
    travelling = {"y": y} | ({} if groups is None else {"group": groups})
    dy, (dx, (loss, error)) = exchange(visit, travelling, (zeros, sums), layout=layout, wire_dtype=wire_dtype)
    loss = layout.total(loss) / batch
    if not with_gradients:
        return (loss,)
    dx, dy = dx * (scale / batch), dy[0] * (scale / batch)
    # d loss / d t = sum_ij error_ij exp(t) <x_i, y_j> / batch = sum_i <x_i, dx_i>: no second sum over the tiles.
    return loss, dx, dy, layout.total(jnp.sum(x.astype(jnp.float32) * dx)), layout.total(error) / batch


def _matches(mine: dict, theirs: dict, same_group: str):
    """(is a positive, counts or None for all), each [rows, columns]."""

    def equal(name):
        return mine[name][:, None] == theirs[name][None, :]

    if "group" not in mine:
        return equal("index"), None
    if same_group == "positive":
        return equal("group"), None
    return equal("index"), equal("index") | ~equal("group")


def _pointwise(logits, positive, counts, *, with_errors: bool):
    """Each pair's loss and its derivative by the logit, from one exponential.

    With u = -l for a positive and l for a negative: softplus(u) = max(u, 0) + log1p(exp(-|u|)) and -+sigmoid(u), finite
    and without cancellation for every l.
    """
    u = jnp.where(positive, -logits, logits)
    small = jnp.exp(-jnp.abs(u))
    losses = jnp.maximum(u, 0) + jnp.log1p(small)
    losses = losses if counts is None else jnp.where(counts, losses, 0)
    if not with_errors:
        return losses, None
    errors = jnp.where(u >= 0, 1, small) / (1 + small)
    errors = jnp.where(positive, -errors, errors)
    return losses, errors if counts is None else jnp.where(counts, errors, 0)
