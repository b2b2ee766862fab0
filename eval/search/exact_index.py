"""Exact search: every score is computed, one query as fast as memory is read (`eval.search.scans`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.embeddings.vectors import unit_rows
from eval.search.index import VECTORS, Index, npy_bytes
from eval.search.scans import Scan, exact_best


class ExactIndex(Index):
    """Every score computed; equal scores in row order. Equal vectors score equal to the last bit, whatever the BLAS.

    Args:
      vectors: real [n, dimension], normalised here; where they are `unit`, as those of a saved index, they are float32
        and stay where they lie, such as in a memory map.
      device: of JAX; None for an accelerator, where there is one, else the CPU.
    """

    backend = "exact"

    def __init__(
        self,
        vectors: np.ndarray,
        ids: Sequence[str],
        measured: Mapping[str, Any],
        *,
        unit: bool = False,
        device: Any = None,
    ):
        super().__init__(ids, vectors.shape[1], {}, measured)
        self._unit = vectors if unit else unit_rows(vectors, what="vector", ids=ids)
        self._scan = Scan(self._unit, device=device)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return exact_best(self._scan, self._unit, queries, k=k)

    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self._unit[rows])

    def _files(self) -> dict[str, bytes]:
        return {VECTORS: npy_bytes(self._unit)}
