"""Inner products of sparse rows: what title and co-occurrence rows score by."""

import numpy as np
import scipy.sparse

_PAIRS = 1 << 15  # of rows, multiplied at once


def row_products(
    weights: scipy.sparse.csr_array, queries: np.ndarray, candidates: np.ndarray | None = None
) -> np.ndarray:
    """Products of rows of weights [n, column], added up in float64, as `eval.rankers.ranker.Ranker.scores` has them.

    Args:
      queries: int [q] rows; candidates: int [q, k] rows, -1 where none, or None for all.

    Returns:
      float32 [q, k], -inf where there is no candidate, or [q, n].
    """
    asked = weights[queries]
    if candidates is None:
        return (asked @ weights.T).toarray().astype(np.float32)
    out = np.full(candidates.shape, -np.inf, np.float32)
    query, place = np.nonzero(candidates >= 0)
    for lo in range(0, len(query), _PAIRS):
        q, p = query[lo : lo + _PAIRS], place[lo : lo + _PAIRS]
        out[q, p] = asked[q].multiply(weights[candidates[q, p]]).sum(axis=1)
    return out
