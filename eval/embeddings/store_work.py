"""What each shard of a store is made of: vectors that are new, and those of the store that is updated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from eval.embeddings.entries import Entries, joined_inputs, mean_vectors
from eval.embeddings.pictures import has_picture_rows, picture_row_id
from eval.embeddings.sharded_writer import EmbeddingPlan
from eval.embeddings.store_shards import ShardRows
from eval.embeddings.stored_rows import StoredRows


@dataclasses.dataclass(frozen=True)
class EmbeddedRows:
    """Vectors of some rows of a split.

    Attributes:
      rows: int64 [n]; a row is there several times where an item has further pictures, the first one first.
      ids: of the items.
      vectors: float32 [n, dimension].
      inputs: what each was made of, as of `ShardRows`.
    """

    rows: np.ndarray
    ids: Sequence[str]
    vectors: np.ndarray
    inputs: Sequence[bytes | None]


@dataclasses.dataclass(frozen=True)
class StoreWork:
    """A pass that fills a store.

    Attributes:
      kept: int64 [entries], the row of `stored` that an entry takes its vector from; -1 of one that is embedded.
      kept_rows: int64 [entries], how many rows from there on are its own: 1, but for items with a row for each picture.
    """

    plan: EmbeddingPlan
    entries: Entries
    stored: StoredRows | None
    kept: np.ndarray
    kept_rows: np.ndarray

    def new(self, number: int) -> np.ndarray:
        """Rows of the split to embed for a shard."""
        span = self.plan.shards()[number]
        return self.entries.rows(np.flatnonzero(self.kept[span.start : span.stop] < 0) + span.start)

    def shard(self, number: int, embedded: Sequence[EmbeddedRows]) -> ShardRows | None:
        """The rows of a shard in their order, those that are kept among them; None where all were skipped.

        Args:
          embedded: of `new`.
        """
        parts: list[ShardRows] = []
        places: list[np.ndarray] = []
        if embedded:
            entry_of = self.entries.of_rows(np.concatenate([each.rows for each in embedded]))
            order = np.argsort(entry_of, kind="stable")
            ids = [item for each in embedded for item in each.ids]
            inputs = [made_of for each in embedded for made_of in each.inputs]
            ids, inputs, entry_of = [ids[k] for k in order], [inputs[k] for k in order], entry_of[order]
            vectors = np.concatenate([each.vectors for each in embedded])[order]
            starts = np.flatnonzero(np.diff(entry_of, prepend=-1))
            if has_picture_rows(self.plan.manifest):
                pictures = np.arange(len(ids)) - np.repeat(starts, np.diff([*starts, len(ids)])) + 1
                ids = [picture_row_id(item, number) for item, number in zip(ids, pictures.tolist(), strict=True)]
            elif "pool" in self.plan.manifest:
                ids, entry_of = [ids[k] for k in starts], entry_of[starts]
                vectors, inputs = mean_vectors(vectors, starts, ids=ids), joined_inputs(inputs, starts)
            parts.append(ShardRows.of(ids, vectors, dtype=self.plan.dtype, inputs=inputs))
            places.append(entry_of)
        span = self.plan.shards()[number]
        reused = np.flatnonzero(self.kept[span.start : span.stop] >= 0) + span.start
        if len(reused):
            assert self.stored is not None
            each = self.kept_rows[reused]
            within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
            parts.append(self.stored.take(np.repeat(self.kept[reused], each) + within))
            places.append(np.repeat(reused, each))
        return ShardRows.joined(parts).at(np.argsort(np.concatenate(places), kind="stable")) if parts else None
