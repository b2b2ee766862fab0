"""The losses as their papers write them, over the whole matrix of logits: what the tiled ones are measured against."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dense_sigmoid_loss(
    image: jax.Array,
    text: jax.Array,
    t: jax.Array,
    b: jax.Array,
    *,
    groups: jax.Array | None = None,
    text_groups: jax.Array | None = None,
    text_weights: jax.Array | None = None,
    same_group: str = "positive",
) -> jax.Array:
    """`sigmoid_loss` with all n x m logits at once, differentiated by JAX: any order, either mode, much memory.

    Arguments and result as `siglip_jax.losses.sigmoid_loss`, on one device or sharded as XLA likes.
    """
    n, m = len(image), len(text)
    if same_group == "negative":
        groups = None
    if text_groups is not None and groups is None:
        groups = jnp.arange(n)
    pair = jnp.arange(n)[:, None] == jnp.arange(m)[None, :]
    similarity = jnp.dot(image, text.T, preferred_element_type=jnp.float32)
    logits = jnp.exp(t.astype(jnp.float32)) * similarity + b.astype(jnp.float32)
    same = pair if groups is None else groups[:, None] == (groups if text_groups is None else text_groups)[None, :]
    positive = pair if same_group == "ignore" else same
    weights = jnp.ones((1, m)) if text_weights is None else text_weights[None, :]
    if same_group == "mean":
        by_image = jnp.sum(same & (weights > 0), axis=1, keepdims=True)
        by_text = jnp.sum(same, axis=0, keepdims=True)
        share = 0.5 / jnp.maximum(by_image, 1) + 0.5 / jnp.maximum(by_text, 1)
        weights = weights * jnp.where(same, share, 1)
    losses = weights * jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(losses, where=positive | ~same) / n


def dense_softmax_loss(image: jax.Array, text: jax.Array, t: jax.Array) -> jax.Array:
    """`softmax_loss` with all n x n logits at once, differentiated by JAX."""
    logits = jnp.exp(t.astype(jnp.float32)) * jnp.dot(image, text.T, preferred_element_type=jnp.float32)
    by_image, by_text = (jnp.diag(jax.nn.log_softmax(logits, axis=axis)) for axis in (1, 0))
    return -jnp.mean(by_image + by_text) / 2
