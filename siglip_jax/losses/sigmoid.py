"""The pairwise sigmoid loss of SigLIP (arXiv 2303.15343, algorithm 1), exact over the global batch, in one pass.

d loss / d logit_ij = (sigmoid(logit_ij) - [i matches j]) / n needs that logit alone. So the gradients are made beside
the loss, tile by tile, and the backward pass only multiplies them by its cotangent: 3 products (6 n^2 d FLOPs), memory
for the gradients and one tile, whatever n is. Left to autodiff, a loop over tiles keeps every tile of logits.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax.losses import arguments
from siglip_jax.losses.exchange import Walk, over_pairs
from siglip_jax.losses.positives import SAME_GROUP, GroupedRows, Labels, matches, sides
from siglip_jax.losses.tiles import Results, Tile, dot

NAME = "sigmoid_loss"
BY_ROW = (True, True, False, False, True)  # image, text, t, b, labels


def sigmoid_loss(
    image: jax.Array,
    text: jax.Array,
    t: jax.Array,
    b: jax.Array,
    *,
    groups: jax.Array | None = None,
    text_groups: jax.Array | None = None,
    text_weights: jax.Array | None = None,
    same_group: str = "positive",
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = "data",
    tile: int | None = None,
    communication: str = "auto",
    gradient_dtype: Any = "float32",
) -> jax.Array:
    """Mean over the images of the global batch of -w_ij log sigmoid(y_ij l_ij), summed over the texts j, with l_ij =
    exp(t) <x_i, y_j> + b.

    Rows of equal title (or product) need not be negatives of each other: `groups` names them. An image may have several
    texts, or none, where `text_groups` says whose each text is. Logits, t and b are float32
    whatever the inputs are, and exp(t) is not clamped. Reverse-mode differentiable once, in image, text, t and b, from
    any number of devices; forward mode and second derivatives raise (`reference.dense_sigmoid_loss` has both).

    Args:
      image, text: [n, d] and [m, d], unit norm, m = n without `text_groups`; bfloat16 or float32, products accumulate
        in float32. float32 is multiplied as float32 on every platform (see `tiles.dot`).
      t, b: scalars or [1]; t is the LOG temperature.
      groups: int32 [n]; pairs of one group count as positives, or not at all off the diagonal.
      text_groups: int32 [m], for texts that are not row by row those of the images: an image and a text of one group
        are a positive, all others are negatives. Without `groups`, image i of the global batch is group i.
      text_weights: float32 [m], at least 0, a factor of all pairs of each text; 1 where absent. No gradient. A text of
        weight 0 is as if it were not there.
      same_group: what pairs of one group are. "positive" counts each fully. "mean" weighs a positive (1 / k_i +
        1 / k_j) / 2, with k_i texts of the image's group and k_j images of the text's: 1 / k row by row.
        "ignore" leaves them out off the diagonal and "negative" is as without groups, so neither with `text_groups`,
        which have no diagonal.
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
    image, text = arguments.checked_embeddings(NAME, image, text, paired=text_groups is None)
    arguments.checked_choice(NAME, "same_group", same_group, SAME_GROUP)
    if text_groups is not None and same_group in ("ignore", "negative"):
        raise ValueError(f"{NAME}: same_group={same_group!r} with text_groups; expected positive or mean")
    if text_groups is not None and groups is None:
        groups = jnp.arange(len(image), dtype=jnp.int32)
    labels = Labels(
        arguments.checked_groups(NAME, "groups", groups, len(image)),
        arguments.checked_groups(NAME, "text_groups", groups if text_groups is None else text_groups, len(text)),
        arguments.checked_weights(NAME, "text_weights", text_weights, len(text)),
    )
    walk = arguments.checked_walk(
        NAME, text, layout=layout, tile=tile, communication=communication, gradient_dtype=gradient_dtype
    )
    return _loss(
        walk,
        same_group,
        image,
        text,
        arguments.checked_scalar(NAME, "t", t),
        arguments.checked_scalar(NAME, "b", b),
        labels,
    )


# --- one tile ---------------------------------------------------------------------------------------------------------


def value_of_tile(tile: Tile[GroupedRows], scale: jax.Array, b: jax.Array, *, same_group: str) -> Results:
    """The loss of a tile of r rows and c columns, whose logits are scale <x_i, y_j> + b.

    Returns:
      total: float32 scalar, the sum of the losses of the pairs.
    """
    losses, _ = losses_and_errors(_logits(tile, scale, b), *matches(tile, same_group))
    return Results(total=jnp.sum(losses))


def gradients_of_tile(tile: Tile[GroupedRows], scale: jax.Array, b: jax.Array, *, same_group: str) -> Results:
    """The loss of a tile and its derivatives, all float32, with e_ij the derivative by the logit.

    Returns:
      rows: [r, d], sum over j of e_ij y_j: the gradient of x_i over `scale`.
      columns: [c, d], sum over i of e_ij x_i.
      total: (sum of the losses, sum of e_ij), two scalars.
    """
    x, y = tile.rows.vectors, tile.columns.vectors
    losses, errors = losses_and_errors(_logits(tile, scale, b), *matches(tile, same_group))
    total = (jnp.sum(losses), jnp.sum(errors))
    errors = errors.astype(x.dtype)
    return Results(
        rows=dot(errors, y, contract=(1, 0)),
        columns=dot(errors, x, contract=(0, 0)),
        total=total,
    )


def losses_and_errors(logits: jax.Array, positive: jax.Array, weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Each pair's loss and its derivative by the logit, from one exponential, both times the pair's weight.

    With u = -l for a positive and l for a negative: softplus(u) = max(u, 0) + log1p(exp(-|u|)) and -+sigmoid(u), finite
    and without cancellation for every l.

    Args:
      logits: float32 [r, c].
      positive: bool [r, c].
      weight: float32, [r, c] or [1, c]; None for 1.

    Returns:
      Two float32 [r, c].
    """
    u = jnp.where(positive, -logits, logits)
    small = jnp.exp(-jnp.abs(u))
    losses = jnp.maximum(u, 0) + jnp.log1p(small)
    errors = jnp.where(u >= 0, 1, small) / (1 + small)
    errors = jnp.where(positive, -errors, errors)
    return (losses, errors) if weight is None else (weight * losses, weight * errors)


def _logits(tile: Tile[GroupedRows], scale: jax.Array, b: jax.Array) -> jax.Array:
    return scale * dot(tile.rows.vectors, tile.columns.vectors, contract=(1, 1)) + b


# --- one device -------------------------------------------------------------------------------------------------------


def _local_value(
    walk: Walk, same_group: str, x: jax.Array, y: jax.Array, t: jax.Array, b: jax.Array, labels: Labels
) -> jax.Array:
    """The loss of the global batch, from this device's rows."""
    layout = walk.layout
    function = functools.partial(value_of_tile, scale=jnp.exp(t), b=b, same_group=same_group)
    found = over_pairs(function, *sides(walk, same_group, x, y, labels), walk=walk)
    return layout.total(found.total) / (len(x) * layout.devices)


def _local_gradients(
    walk: Walk, same_group: str, x: jax.Array, y: jax.Array, t: jax.Array, b: jax.Array, labels: Labels
) -> tuple[jax.Array, ...]:
    """The loss and the gradients of this device's rows. Sums are divided by the global batch at the end, so that the
    errors sigmoid(l) - [match], at most 1, keep their precision in bfloat16."""
    layout = walk.layout
    scale, batch = jnp.exp(t), len(x) * layout.devices

    def final(rows: GroupedRows, summed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The gradient of each row in the dtype it leaves in, and its share of that of t: d loss / d t = sum_ij
        error_ij exp(t) <x_i, y_j> / batch = sum_i <x_i, dx_i>, so no second sum over the tiles."""
        gradient = summed * (scale / batch)
        return gradient.astype(walk.dtype), jnp.sum(rows.vectors.astype(jnp.float32) * gradient, axis=1)

    function = functools.partial(gradients_of_tile, scale=scale, b=b, same_group=same_group)
    found = over_pairs(function, *sides(walk, same_group, x, y, labels), walk=walk, final=final)
    loss, error = found.total
    dx, dt = found.rows
    dy = (found.columns * (scale / batch)).astype(walk.dtype)
    return layout.total(loss) / batch, dx, dy, layout.total(jnp.sum(dt)), layout.total(error) / batch


# --- differentiation --------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    walk: Walk, same_group: str, image: jax.Array, text: jax.Array, t: jax.Array, b: jax.Array, labels: Labels
) -> jax.Array:
    local = functools.partial(_local_value, walk, same_group)
    return walk.layout.shard_map(local, by_row=BY_ROW, out_by_row=False)(image, text, t, b, labels)


def _forward(walk: Walk, same_group: str, *inputs: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    loss, *gradients = _loss_and_gradients(walk, same_group, *inputs)
    return loss, tuple(gradients)


def _backward(
    walk: Walk, same_group: str, gradients: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    image, text, t, b = ((cotangent * gradient).astype(gradient.dtype) for gradient in gradients)
    return image, text, t, b, None


_loss.defvjp(_forward, _backward)


# The gradients are an answer, not a formula to differentiate again: a loop left to autodiff would keep every tile.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _loss_and_gradients(
    walk: Walk, same_group: str, image: jax.Array, text: jax.Array, t: jax.Array, b: jax.Array, labels: Labels
) -> tuple[jax.Array, ...]:
    """(loss, gradients of image, text, t, b) for a cotangent of 1; those of image and text in `walk.dtype`."""
    local = functools.partial(_local_gradients, walk, same_group)
    by_row = (False, True, True, False, False)
    return walk.layout.shard_map(local, by_row=BY_ROW, out_by_row=by_row)(image, text, t, b, labels)


@_loss_and_gradients.defjvp
def _no_second_derivative(walk: Walk, same_group: str, primals: Any, tangents: Any) -> NoReturn:
    raise TypeError(
        f"{NAME} has first derivatives in reverse mode only; for second ones use reference.dense_sigmoid_loss"
    )
