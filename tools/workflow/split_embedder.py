"""Both towers' embeddings of the evaluation split while a model trains, on any mesh and any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh

from input_pipeline.dataset import open_split
from input_pipeline.loader import iterate_split
from input_pipeline.loader.item_vectors import ItemVectors, complete_rows
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.training.encode import ENCODED, make_encoder
from siglip_jax.training.parallel.sharding import make_mesh

ROWS = 256  # of a process, embedded at a time


def split_embedder(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    dataset: epath.PathLike,
    features: Mapping[str, ItemVectors] | None = None,
) -> Callable[[Any], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """params -> (image [n, d], text [n, d], title group [n]) of the evaluation split in its order, on every process.

    Args:
      features: of an adapter; rows that lack one are left out.
    """
    mesh, split = make_mesh(config.mesh), config.evaluation.split
    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UserError("train: the model has no known preprocessing; save it with preprocessing= first")
    rows, processes = np.arange(len(open_split(dataset, split))), jax.process_count()
    if features:
        rows = complete_rows(features)
    count = len(rows)
    share = math.ceil(count / processes)  # a process's rows are a stretch; the last one's may be short or none
    begin = min(count, jax.process_index() * share)
    mine = rows[begin : begin + share]
    size = _divisible(min(ROWS, share), mesh, processes)
    encode = make_encoder(model.module, to_float=preprocessing.to_float, mesh=mesh)
    kept: list[dict[str, Any]] = []

    def batches() -> Iterable[dict[str, Any]]:
        if kept:
            return kept
        made = iterate_split(
            dataset, split=split, preprocessing=preprocessing, batch_size=size, rows=mine, features=features
        )
        read = _equal_batches(made, size=size, count=math.ceil(share / size))
        if not config.data.cache:
            return read
        kept.extend(read)
        return kept

    def embed(params: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs = zip(*(encode(params, batch) for batch in batches()), strict=True)
        return tuple(_in_order(list(arrays), processes, share)[:count] for arrays in outputs)  # type: ignore[return-value]

    return embed


def _divisible(rows: int, mesh: Mesh, processes: int) -> int:
    """Rows of a process, rounded up so that a global batch divides over the mesh."""
    shards = max(1, mesh.shape["data"] * mesh.shape["fsdp"] // processes)
    return math.ceil(rows / shards) * shards


def _equal_batches(batches: Iterable[dict[str, Any]], *, size: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` batches of `size` rows, short ones filled up by repeating their last row: all processes step alike."""
    last = None
    for batch in batches:
        last = {key: batch[key] for key in ENCODED}
        missing = size - len(last["group"])
        last = jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]), last)  # noqa: B023
        count -= 1
        yield last
    for _ in range(count):
        if last is None:
            raise UserError("evaluation: fewer rows in the split than processes; use a larger split")
        yield last


def _in_order(batches: list[np.ndarray], processes: int, share: int) -> np.ndarray:
    """Global batches, each one block of rows a process -> the rows of process 0, then those of process 1, ..."""
    by_process = np.stack([batch.reshape(processes, -1, *batch.shape[1:]) for batch in batches], axis=1)
    rows = by_process.reshape(processes, -1, *by_process.shape[3:])[:, :share]
    return rows.reshape(-1, *rows.shape[2:])
