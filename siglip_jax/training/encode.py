"""Both towers on batches of a training run: parameters and rows as the mesh spreads them, embeddings whole."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.training.parallel.sharding import to_devices
from siglip_jax.training.param_rules import Params

# {"image" uint8 [n, h, w, 3], Patches or features, "text" int32 [n, L], "group" int32 [n]}. What a frozen tower made of
# "image" or "text" may be in their place, see `TwoTowers.encode_batch`.
Batch = dict[str, Any]
STORED_KEYS = ("image_embedding", "image_tokens", "image_shape", "text_embedding", "text_pooled")
BATCH_KEYS = ("image", "text", "group", *STORED_KEYS)


def step_inputs(batch: Mapping[str, Any], *, more: Sequence[str] = ()) -> Batch:
    """What a step takes of a batch of the loader, which also says which rows they are; `more` keys among it."""
    return {key: batch[key] for key in (*BATCH_KEYS, *more) if key in batch}


def encode_batch(
    module: nn.Module, params: Params, batch: Batch, *, to_float: Callable[[Any], Any]
) -> tuple[jax.Array, jax.Array]:
    """Unit-norm float32 [n, d] of images and of texts."""
    if "image" in batch:
        batch = {**batch, "image": to_float(batch["image"])}
    outputs: Any = module.apply({"params": params}, batch, method="encode_batch")
    return outputs


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
        return *encode_batch(module, params, batch, to_float=to_float), batch["group"]

    def encoded(params: Params, batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, text, group = encode(params, to_devices(step_inputs(batch), mesh))
        return np.asarray(image), np.asarray(text), np.asarray(group)

    return encoded
