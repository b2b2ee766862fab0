"""Batches whose towers do not fit at once, exactly: GradCache (arXiv 2101.06983, section 3).

The contrastive loss couples all rows of a batch, so accumulating the gradients of small batches computes another loss.
But it couples them through their embeddings alone: embed every micro-batch and forget the activations, take the loss
and its gradients by the embeddings once over the whole batch, then run each micro-batch again and pull its embeddings'
gradients back into the parameters. Costs one more forward pass of the towers, and memory for the activations of one
micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.training.param_rules import Params

Encode = Callable[[Params, Any, jax.Array | None], Any]  # (parameters, batch, key) -> embeddings
Loss = Callable[[Params, Any, Any], Any]  # (parameters, embeddings, batch) -> scalar, or (scalar, anything)


def value_and_grad_in_microbatches(
    encode: Encode,
    loss: Loss,
    *,
    microbatch: int,
    has_aux: bool = False,
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] = "data",
) -> Callable[..., tuple[Any, Params]]:
    """`jax.value_and_grad` of loss(params, encode(params, batch, key), batch), the towers run in micro-batches.

    Args:
      encode: (params, rows of a batch, key) -> a tree of [rows, ...] embeddings; no row may depend on another.
      loss: (params, embeddings, batch) -> scalar, over the whole batch. What it takes from `params` itself, such as the
        temperature and the bias, gets its gradient once, however many micro-batches there are.
      microbatch: rows of a micro-batch on one device; divides the rows that a device has.
      has_aux: as of `jax.value_and_grad`: `loss` returns (scalar, aux), which then is in the place of the loss.
      mesh, axis: how the rows of a batch are sharded; each device cuts its own rows, nothing moves between devices.

    Returns:
      (params, batch, key=None) -> (loss, gradients of params). Micro-batch i is given `jax.random.fold_in(key, i)` both
      times it runs, so dropout repeats; without a key, None.

    Raises:
      ValueError: `microbatch` does not divide the rows of a device.
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)

    def value_and_grad(params: Params, batch: Any, key: jax.Array | None = None) -> tuple[Any, Params]:
        rows = jax.tree.leaves(batch)[0].shape[0]
        cut = _Cut(rows=rows, microbatch=microbatch, mesh=mesh, axes=axes)
        if cut.count == 1:  # nothing is gained by a second forward pass
            only = None if key is None else jax.random.fold_in(key, 0)
            whole = jax.value_and_grad(lambda p: loss(p, encode(p, batch, only), batch), has_aux=has_aux)
            return whole(params)
        pieces = jax.tree.map(cut.apart, batch)
        numbers = jnp.arange(cut.count)

        def run(params: Params, piece: Any, number: jax.Array) -> Any:
            return encode(params, piece, None if key is None else jax.random.fold_in(key, number))

        def embed(_: None, numbered: tuple[Any, jax.Array]) -> tuple[None, Any]:
            piece, number = numbered
            return None, run(params, piece, number)

        def pull_back(total: Params, numbered: tuple[Any, jax.Array, Any]) -> tuple[Params, None]:
            piece, number, by_embedding = numbered
            _, vjp = jax.vjp(lambda params: run(params, piece, number), params)
            return jax.tree.map(jnp.add, total, vjp(by_embedding)[0]), None

        _, embedded = lax.scan(embed, None, (pieces, numbers))
        embeddings = jax.tree.map(cut.together, embedded)
        over_batch = jax.value_and_grad(loss, argnums=(0, 1), has_aux=has_aux)
        value, (by_params, by_embeddings) = over_batch(params, embeddings, batch)
        by_embeddings = jax.tree.map(cut.apart, by_embeddings)
        gradients, _ = lax.scan(pull_back, by_params, (pieces, numbers, by_embeddings))
        return value, gradients

    return value_and_grad


class _Cut:
    """[rows, ...] <-> [count, rows / count, ...], each micro-batch spread over the devices as the batch is."""

    def __init__(self, *, rows: int, microbatch: int, mesh: Mesh | None, axes: tuple[str, ...]):
        self.mesh, self.axes, self.microbatch = mesh, axes, microbatch
        self.devices = 1 if mesh is None else math.prod(mesh.shape[name] for name in axes)
        if rows % self.devices or microbatch < 1 or rows // self.devices % microbatch:
            raise ValueError(
                f"microbatch={microbatch}; expected a divisor of a device's rows ({rows} over {self.devices} devices)"
            )
        self.count = rows // self.devices // microbatch

    def apart(self, x: jax.Array) -> jax.Array:
        # A device holds a stretch of the rows, so the micro axis must be cut inside that stretch: cut from the front,
        # as a plain reshape does, whole micro-batches would move to other devices.
        x = x.reshape(self.devices, self.count, self.microbatch, *x.shape[1:])
        x = self._spread(self._spread(x, 0).swapaxes(0, 1), 1)
        return self._spread(x.reshape(self.count, self.devices * self.microbatch, *x.shape[3:]), 1)

    def together(self, x: jax.Array) -> jax.Array:
        x = self._spread(x.reshape(self.count, self.devices, self.microbatch, *x.shape[2:]), 1)
        x = self._spread(x.swapaxes(0, 1), 0)
        return self._spread(x.reshape(self.devices * self.count * self.microbatch, *x.shape[3:]), 0)

    def _spread(self, x: jax.Array, axis: int) -> jax.Array:
        if self.mesh is None:
            return x
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*[None] * axis, self.axes)))
