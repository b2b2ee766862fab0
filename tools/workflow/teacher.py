"""The teacher of a training run: its stored vectors of the training items, as the model's batches take them."""

from __future__ import annotations

import ml_collections
import numpy as np
from etils import epath

from input_pipeline.loader.item_vectors import MISSING, ItemVectors
from siglip_jax.errors import UserError
from siglip_jax.losses.teacher import TEACHER_TERMS
from siglip_jax.training.start.teacher_vectors import teacher_vectors
from tools.workflow.item_vectors import VectorStores


def open_teacher(config: ml_collections.ConfigDict) -> VectorStores | None:
    """The store that `config.teacher` names; None where none of its terms has a weight.

    Raises:
      UserError: weights without a store, or a store that cannot be read.
    """
    weights = {name: config.teacher[name] for name in TEACHER_TERMS if config.teacher[name]}
    if not weights:
        return None
    if not config.teacher.store:
        some = ", ".join(f"config.teacher.{name}={weight}" for name, weight in weights.items())
        raise UserError(f"{some} and no config.teacher.store; name the embeddings of the training items")
    return VectorStores.open("teacher", [config.teacher.store])


def teacher_of_split(
    stores: VectorStores, *, dataset: epath.PathLike, split: str, rows: np.ndarray, width: int
) -> ItemVectors:
    """float32 unit vectors of `width` numbers, in memory, of items of a split; prints what became of the teacher's.

    Args:
      rows: int64 [n], ascending, of the split: those to train on.

    Raises:
      UserError: none of these items, or vectors without a direction.
    """
    own = stores.of_split(dataset, split)
    there = rows[own.rows[rows] != MISSING]
    found = teacher_vectors(lambda numbers: own.take(there[numbers]), len(there), width=width)
    print(f"teacher: {found}", flush=True)
    places = np.full(len(own.rows), MISSING, np.int64)
    places[there] = np.arange(len(there))
    return ItemVectors(found.vectors, places)
