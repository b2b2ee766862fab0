"""The pairwise sigmoid loss of SigLIP (arXiv 2303.15343, algorithm 1), exact over the global batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SAME_GROUP = ("positive", "ignore")  # what rows of equal group are to each other, off the diagonal


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
) -> jax.Array:
    """Mean over the global batch of -log sigmoid(y_ij * l_ij), summed over j, with l_ij = exp(t) <x_i, y_j> + b.

    Rows of equal title (or product) are no negatives of each other: `groups` names them.

    Args:
      image, text: [n, d], unit norm; bf16 or fp32, products accumulate in fp32.
      t, b: scalars or [1]; t is the LOG temperature.
      groups: int32 [n]; pairs of one group count as positives, or not at all off the diagonal.
      same_group: "positive" or "ignore".
      mesh: the mesh that the rows are sharded over, along `axis`; None for one device.
      axis: one mesh axis or several.

    Returns:
      float32 scalar.

    Raises:
      ValueError: shapes that do not match, an unknown `same_group`, or sharded inputs without a mesh.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"sigmoid_loss: image {image.shape} and text {text.shape}; expected two equal [n, d]")
    if groups is not None and groups.shape != image.shape[:1]:
        raise ValueError(f"sigmoid_loss: groups {groups.shape}; expected [{image.shape[0]}]")
    if same_group not in SAME_GROUP:
        raise ValueError(f"sigmoid_loss: same_group={same_group!r}; expected one of {', '.join(SAME_GROUP)}")
    if mesh is None and any(_is_sharded(x) for x in (image, text)):
        raise ValueError("sigmoid_loss: inputs are sharded over several devices; pass mesh= and axis=")

    n = image.shape[0]
    pair = jnp.arange(n)[:, None] == jnp.arange(n)[None, :]
    if mesh is not None:  # rows stay where they are; every device sees all texts
        image = jax.lax.with_sharding_constraint(image, NamedSharding(mesh, PartitionSpec(axis)))
        text = jax.lax.with_sharding_constraint(text, NamedSharding(mesh, PartitionSpec()))
    similarity = jnp.dot(image, text.T, preferred_element_type=jnp.float32)
    logits = jnp.exp(t.astype(jnp.float32)) * similarity + b.astype(jnp.float32)
    same = pair if groups is None else groups[:, None] == groups[None, :]
    positive = same if same_group == "positive" else pair
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(losses, where=positive | ~same) / n


def _is_sharded(x: jax.Array) -> bool:
    return isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and len(x.sharding.device_set) > 1
