"""Search over fewer bytes: int8, PCA or truncation find candidates, whose scores are those of the full vectors.

What is read for a query lies in memory, a quarter or a tenth of the full vectors; these stay in their file, of which a
few rows are read. What that loses is measured as recall.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.embeddings import reduction
from eval.embeddings.reduction import Reduction, Spec
from eval.search.index import VECTORS, Index, npy_array, npy_bytes
from eval.search.scans import Scan, best_rescored
from siglip_jax.errors import UserError

CODES, SCALES = "codes.npy", "scales.npy"
CANDIDATES = 4  # scored in full for each neighbour that is asked for
_LEAST_CANDIDATES = 40
_FITTED_ON = 20_000  # items that a PCA is fitted on
_BLOCK = 1 << 16


class ReducedIndex(Index):
    """Args:
    codes: of each item, float32 [n, width] of unit norm, or int8.
    scales: float32 [n], what makes int8 codes unit vectors; None for float32.
    reduction: of queries, where their width is reduced; None where not.
    vectors: float32 [n, dimension], unit norm.
    """

    backend = "reduced"

    def __init__(
        self,
        codes: np.ndarray,
        scales: np.ndarray | None,
        reduction: Reduction | None,
        vectors: np.ndarray,
        ids: Sequence[str],
        *,
        options: Mapping[str, Any],
        measured: Mapping[str, Any],
    ):
        super().__init__(ids, vectors.shape[1], options, measured)
        self._unit, self._codes, self._scales, self._reduction = vectors, codes, scales, reduction
        self._scan = Scan(codes, scales)

    @property
    def bytes_in_memory(self) -> int:
        """Of what is read for every query."""
        return self._codes.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        return np.array(self._unit[rows])

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rough = queries if self._reduction is None else self._reduction(queries)
        count = min(len(self), max(self.options["candidates"] * k, _LEAST_CANDIDATES))
        return best_rescored(self._unit, queries, self._scan.best(rough, count)[0], k=k)

    def _files(self) -> dict[str, bytes]:
        files = {VECTORS: npy_bytes(self._unit), CODES: npy_bytes(self._codes)}
        if self._scales is not None:
            files[SCALES] = npy_bytes(self._scales)
        if self._reduction is not None:
            with tempfile.TemporaryDirectory() as folder:
                reduction.save(folder, self._reduction)
                for name in (reduction.MANIFEST, reduction.ARRAYS):
                    with open(os.path.join(folder, name), "rb") as file:
                        files[name] = file.read()
        return files


def build(
    vectors: np.ndarray, ids: Sequence[str], *, reduce: str = "int8", candidates: int = CANDIDATES
) -> ReducedIndex:
    """Builds it from unit vectors; called by `eval.search.build_index`, which checks and normalises.

    Args:
      vectors: float32 [n, dimension], unit norm.
      reduce: "int8", "pca:WIDTH" or "truncate:WIDTH", the last two with "+int8" as well.
      candidates: scored in full precision for each neighbour that is asked for, at least 40 in all.

    Raises:
      UserError: no such reduction, a width that the vectors have not, candidates below 1.
    """
    spec = Spec.parse(reduce)
    if candidates < 1:
        raise UserError(f"candidates={candidates}: expected at least 1 for each neighbour")
    fitted = None
    if spec.width:
        some = np.random.default_rng(0).permutation(len(vectors))[:_FITTED_ON]
        fitted = reduction.fit(
            Spec(spec.kind, spec.width, False), vectors[np.sort(some)], fitted_on="items of the index"
        )
    codes = np.empty((len(vectors), spec.width or vectors.shape[1]), np.int8 if spec.int8 else np.float32)
    scales = np.empty(len(vectors), np.float32) if spec.int8 else None
    for lo in range(0, len(vectors), _BLOCK):
        block = vectors[lo : lo + _BLOCK]
        short = block if fitted is None else fitted(block)
        if scales is None:
            codes[lo : lo + _BLOCK] = short
        else:
            codes[lo : lo + _BLOCK] = whole = reduction.quantise(short)
            scales[lo : lo + _BLOCK] = 1 / np.linalg.norm(whole.astype(np.float32), axis=1)
    options = {"reduce": str(spec), "candidates": candidates}
    return ReducedIndex(codes, scales, fitted, vectors, ids, options=options, measured={})


def load(contents: Mapping[str, Any], ids: Sequence[str], manifest: Mapping[str, Any]) -> ReducedIndex:
    """Reads it from the files of a saved index (already checked against their sums); codes are copied into memory."""
    spec, shape = Spec.parse(manifest["options"]["reduce"]), (len(ids), manifest["dimension"])
    vectors, codes = npy_array(contents[VECTORS]), np.array(npy_array(contents[CODES]))
    scales = np.array(npy_array(contents[SCALES])) if spec.int8 else None
    if vectors.shape != shape or codes.shape != (len(ids), spec.width or shape[1]):
        raise UserError(f"search index: vectors {vectors.shape} and codes {codes.shape} for {shape}; build it again")
    fitted = None
    if spec.width:
        with tempfile.TemporaryDirectory() as folder:
            for name in (reduction.MANIFEST, reduction.ARRAYS):
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(contents[name])
            fitted = reduction.load(folder)
    return ReducedIndex(codes, scales, fitted, vectors, ids, options=manifest["options"], measured=manifest["measured"])
