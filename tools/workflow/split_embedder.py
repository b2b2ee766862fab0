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
from siglip_jax.training.encode import make_encoder, step_inputs
from siglip_jax.training.parallel.sharding import make_mesh
from siglip_jax.training.start.frozen_parts import frozen_parts, make_storer

ROWS = 256  # of a process, embedded at a time
KEPT = ("image_embedding", "text_embedding", "text_pooled")  # one vector a row; an image's tokens would be hundreds


def split_embedder(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    dataset: epath.PathLike,
    features: Mapping[str, ItemVectors] | None = None,
) -> Callable[[Any], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """params -> (image [n, d], text [n, d], title group [n]) of the evaluation split in its order, on every process.

    What `config.optimizer` freezes is the same in all `params`, so a frozen tower runs in the first evaluation alone,
    and is given its own output in the others; `config.data.cache_frozen="off"` runs it in each.

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
    parts = [
        part
        for part in frozen_parts(config, model.params, architecture=model.architecture)
        if part.key in KEPT and config.data.cache_frozen != "off"
    ]
    store = make_storer(model.module, keys=[part.key for part in parts], to_float=preprocessing.to_float, mesh=mesh)
    stored = {part.source for part in parts}
    kept: list[dict[str, Any]] = []
    outputs: list[dict[str, np.ndarray]] = []  # of frozen towers, a batch each

    def without_frozen(params: Any, number: int, batch: dict[str, Any]) -> dict[str, Any]:
        if number == len(outputs):
            outputs.append(store(params, {source: batch[source] for source in stored}))
        return {key: value for key, value in batch.items() if key not in stored} | outputs[number]

    def batches(params: Any) -> Iterable[dict[str, Any]]:
        if kept:
            return kept
        made = iterate_split(
            dataset, split=split, preprocessing=preprocessing, batch_size=size, rows=mine, features=features
        )
        read = _equal_batches(made, size=size, count=math.ceil(share / size))
        if stored:
            read = (without_frozen(params, number, batch) for number, batch in enumerate(read))
        if not config.data.cache and "image" not in stored:  # titles are small, pictures are not
            return read
        kept.extend(read)
        return kept

    def embed(params: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs = zip(*(encode(params, batch) for batch in batches(params)), strict=True)
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
        last = step_inputs(batch)
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
