"""Both towers on batches of a training run: parameters and rows as the mesh spreads them, embeddings whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.training.parallel.sharding import to_devices
from siglip_jax.training.param_rules import Params
from siglip_jax.training.step import Batch

ENCODED = ("image", "text", "group")


def make_encoder(
    module: nn.Module, *, to_float: Callable[[jax.Array], jax.Array], mesh: Mesh
) -> Callable[[Params, Batch], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(params, batch) -> (image float32 [n, d], text float32 [n, d], group int32 [n]), unit norm, on every process.

    The batch holds this process's rows of a global one, as a training batch does; the result is the global one in the
    order of the processes. Compiled once for a size of batch, since the parameters are an argument.

    Args:
      module: a `TwoTowers`.
      to_float: see `step.make_train_step`.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=whole)
    def encode(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        outputs: Any = module.apply({"params": params}, to_float(batch["image"]), batch["text"])
        return outputs[0], outputs[1], batch["group"]

    def encoded(params: Params, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, text, group = encode(params, to_devices({key: batch[key] for key in ENCODED}, mesh))
        return np.asarray(image), np.asarray(text), np.asarray(group)

    return encoded
