"""An index that items were added to and taken from since it was built: the base as built, its dead rows, and a delta.

The base is never changed, since an approximate searcher that is changed while it is asked may answer with wrong ids.
Rows of it that are gone are marked; what is new lies in a small exact index beside it. A change is a new object, so
whoever searches the old one is not disturbed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from eval.search import index_folder
from eval.search.exact_index import ExactIndex
from eval.search.index import Index, npy_array, npy_bytes
from siglip_jax.errors import UserError

_IDS, _VECTORS, _DEAD = "delta_ids.json", "delta_vectors.npy", "dead_rows.npy"


class LiveIndex(Index):
    """The live items: those of the base in its order, then those of the delta.

    Args:
      base: as it was built.
      dead: bool [base row], which of them are gone.
      delta: float32 [m, dimension], unit vectors; ids: m strings that no live row of the base has.
    """

    def __init__(self, base: Index, dead: np.ndarray, delta: np.ndarray, ids: Sequence[str]):
        alive = np.flatnonzero(~dead)
        super().__init__([*(base.ids[row] for row in alive), *ids], base.dimension, base.options, base.measured)
        self.backend = base.backend
        self.base, self.dead, self.delta = base, dead, delta
        self._alive = alive  # public row -> row of the base
        self._row_there = np.cumsum(~dead) - 1  # row of the base that is alive -> public row
        self._near = ExactIndex(delta, ids, {}, unit=True) if len(delta) else None

    @classmethod
    def over(cls, index: Index) -> LiveIndex:
        """An index as a live one to which nothing has happened yet; itself where it is live."""
        if isinstance(index, LiveIndex):
            return index
        live = cls(index, np.zeros(len(index), bool), np.empty((0, index.dimension), np.float32), [])
        live.missing, live.encoder = index.missing, index.encoder
        return live

    def changed(self, *, without: np.ndarray, vectors: np.ndarray, ids: Sequence[str]) -> LiveIndex:
        """The index without some rows (int64) and with unit vectors float32 [m, dimension] of other ids after them."""
        count = len(self._alive)
        dead = self.dead.copy()
        dead[self._alive[without[without < count]]] = True
        stays = np.ones(len(self.delta), bool)
        stays[without[without >= count] - count] = False
        kept = [self.ids[count + row] for row in np.flatnonzero(stays)]
        index = LiveIndex(self.base, dead, np.concatenate([self.delta[stays], vectors]), [*kept, *ids])
        index.missing, index.encoder = self.missing, self.encoder
        return index

    @property
    def is_changed(self) -> bool:
        return bool(len(self.delta) or self.dead.any())

    @property
    def bytes_in_memory(self) -> int:
        return self.base.bytes_in_memory + self.delta.nbytes

    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        count = len(self._alive)
        out = np.empty((len(rows), self.dimension), np.float32)
        old = rows < count
        out[old] = self.base.vectors_at(self._alive[rows[old]])
        out[~old] = self.delta[rows[~old] - count]
        return out

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [self._search_base(queries, min(k, len(self._alive))), self._search_delta(queries, k)]
        rows, scores = (np.concatenate(both, axis=1) for both in zip(*parts, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # the base first, so that ties are in row order
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _search_base(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Public rows and scores [query, k] of live rows; each query asks for more until it has k."""
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        most = len(self.base)
        ask = min(most, 2 * k + 8, k + int(self.dead.sum()))
        waiting = np.arange(len(queries)) if k else np.empty(0, np.int64)
        while len(waiting):
            found = self.base.search(queries[waiting], k=ask)
            good = (found.rows >= 0) & ~self.dead[np.maximum(found.rows, 0)]
            done = (good.sum(axis=1) >= k) | (found.rows < 0).any(axis=1) | (ask == most)  # a short row has no more
            first = np.argsort(~good[done], axis=1, kind="stable")[:, :k]
            kept = np.take_along_axis(good[done], first, axis=1)
            near = np.take_along_axis(found.rows[done], first, axis=1)
            rows[waiting[done]] = np.where(kept, self._row_there[near], -1)
            scores[waiting[done]] = np.where(kept, np.take_along_axis(found.scores[done], first, axis=1), -np.inf)
            waiting = waiting[~done]
            ask = min(most, 4 * ask)
        return rows, scores

    def _search_delta(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._near is None:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        found = self._near.search(queries, k=min(k, len(self.delta)))
        return found.rows + len(self._alive), found.scores

    def write_files(self, folder: epath.Path) -> dict[str, str]:
        own = {name: index_folder.write_file(folder, name, content) for name, content in self._files().items()}
        return {**self.base.write_files(folder), **own}

    def _files(self) -> dict[str, bytes]:
        """Of the delta alone; none where nothing has happened."""
        if not self.is_changed:
            return {}
        return {
            _IDS: json.dumps(self.ids[len(self._alive) :], ensure_ascii=False).encode(),
            _VECTORS: npy_bytes(self.delta),
            _DEAD: npy_bytes(np.flatnonzero(self.dead)),
        }

    def _more_of_manifest(self) -> dict[str, Any]:
        return {"delta": {"items": len(self.delta), "dead": int(self.dead.sum())}} if self.is_changed else {}

    @staticmethod
    def file_names() -> set[str]:
        return {_IDS, _VECTORS, _DEAD}

    @classmethod
    def of_files(cls, base: Index, contents: Mapping[str, Any]) -> LiveIndex:
        """What `save` wrote beside the files of the base."""
        ids = json.loads(bytes(contents[_IDS]))
        vectors, rows = npy_array(contents[_VECTORS]), npy_array(contents[_DEAD])
        outside = rows[(rows < 0) | (rows >= len(base))]
        if vectors.shape != (len(ids), base.dimension) or len(outside):
            raise UserError(
                f"{len(ids)} ids, vectors {list(vectors.shape)} and {len(outside)} dead rows of none do not belong "
                f"to {len(base)} items of dimension {base.dimension}; build the index again"
            )
        dead = np.zeros(len(base), bool)
        dead[rows] = True
        return cls(base, dead, vectors, ids)
