"""What a comparison compares: rows that score items for query items. Every protocol asks all its rows the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from eval.embeddings.vectors import Scorer
from siglip_jax.errors import UserError, check_choice

SIMILARITIES = ("cosine", "dot")
_BLOCK = 1 << 23  # numbers gathered at once for lists of candidates


class Ranker(Protocol):
    """One line of the table: an encoder, or a baseline that knows no picture at all.

    Items are named by their row in the catalogue. A row may be asked in blocks of any size: the score of a query and an
    item depends on nothing else, and items that are equal to the row score equal to the last bit.
    """

    name: str

    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """How well each candidate suits each query item; higher is better.

        Args:
          queries: int64 [q], item rows.
          candidates: int64 [q, k], item rows, -1 where a list is shorter; None for the whole catalogue, the query item
            itself included.

        Returns:
          float32 [q, k] or [q, n], a fresh array; -inf where a candidate is -1.
        """


class VectorRanker:
    """Cosine between the vectors of query and candidate, or their inner product (similarity "dot")."""

    def __init__(self, name: str, vectors: np.ndarray, *, ids: Sequence[str] | None = None, similarity: str = "cosine"):
        """vectors: real [n, dimension], any norm but 0. UserError names, by `ids`, a NaN, infinite or zero one."""
        check_choice("similarity", similarity, SIMILARITIES)
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or not vectors.size:
            raise UserError(f"row {name!r}: vectors of shape {list(vectors.shape)}; expected [n, dimension], not empty")
        self.name = name
        self.similarity = similarity
        self.scorer = Scorer(vectors, ids=ids, unit=similarity == "cosine")

    def vectors(self) -> np.ndarray:
        """float32 [n, dimension], unit vectors for cosines: what an index would hold."""
        return self.scorer.vectors()

    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """See `Ranker`."""
        asked = self.scorer.rows(queries)
        if candidates is None:
            return self.scorer.scores(asked)
        out = np.full(candidates.shape, -np.inf, np.float32)
        step = max(1, _BLOCK // max(1, candidates.shape[1] * asked.shape[1]))
        for lo in range(0, len(out), step):
            listed = candidates[lo : lo + step]
            exists = listed >= 0
            found = self.scorer.rows(np.where(exists, listed, 0))
            # einsum adds up each pair by itself in one order, where a matrix product would round equal items apart.
            product = np.einsum("qd,qkd->qk", asked[lo : lo + step], found)
            np.copyto(out[lo : lo + step], product, where=exists)
        return out
