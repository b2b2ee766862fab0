"""Losses of prefixes (Matryoshka representation learning, arXiv 2205.13147): the first w numbers of every embedding,
made unit vectors again, shall do for a search by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

PairLoss = Callable[[jax.Array, jax.Array], jax.Array]  # (image [n, w], text [m, w]), unit rows -> scalar


def unit_prefix(x: jax.Array, width: int) -> jax.Array:
    """[n, d] -> [n, width]: the first numbers of each row, with norm 1 again; computed in float32, of the dtype of x.

    The norm is sqrt(sum of squares + 1e-16), so a prefix of zeros stays zeros and has a gradient.

    Raises:
      ValueError: no matrix, or a width that is not 1 to d.
    """
    if x.ndim != 2 or not 1 <= width <= x.shape[1]:
        raise ValueError(f"unit_prefix: width={width} of {x.shape}; expected [n, d] and 1 to d")
    prefix = x[:, :width].astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(jnp.square(prefix), axis=1, keepdims=True) + 1e-16)
    return (prefix / norm).astype(x.dtype)


def prefix_losses(image: jax.Array, text: jax.Array, widths: Sequence[int], loss: PairLoss) -> dict[int, jax.Array]:
    """{width: loss of both sides' unit prefixes of that width}.

    Args:
      image, text: [n, d] and [m, d], unit norm.
      widths: of the prefixes, each 1 to d.
      loss: such as `sigmoid_loss` with t, b and groups bound; it sees w numbers where the whole loss sees d, so a
        prefix costs w / d of it.
    """
    return {width: loss(unit_prefix(image, width), unit_prefix(text, width)) for width in widths}
