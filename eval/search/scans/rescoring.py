"""Scores of candidates that depend on query and item alone, and the exact best by them.

Products of matrices round by where a column stands and by how many there are; equal pictures would not tie. So a scan
only finds candidates. Their scores are sums over one row, always in one order: equal items score equal to the last bit,
whatever device found them, whatever the batch.
"""

from __future__ import annotations

import numpy as np

from eval.search.scans.scan import Scan

SPARE = 32  # candidates beyond k, so that those which rounding may swap are among them
_NUMBERS_AT_ONCE = 1 << 22


def rescore(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Products of each query with its own rows: float32 [q, c].

    Args:
      vectors: float32 [n, d]; queries: float32 [q, d]; rows: int64 [q, c], -1 for none, whose score is -inf.
    """
    scores = np.full(rows.shape, -np.inf, np.float32)
    places = np.flatnonzero(rows.ravel() >= 0)
    asked, flat = np.divmod(places, max(1, rows.shape[1])), scores.reshape(-1)
    step = max(1, _NUMBERS_AT_ONCE // vectors.shape[1])
    for lo in range(0, len(places), step):
        block = slice(lo, lo + step)
        flat[places[block]] = (vectors[rows.ravel()[places[block]]] * queries[asked[0][block]]).sum(axis=1)
    return scores


def best_rescored(
    vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray, *, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's candidates: rows int64 and scores float32 [q, k], equal ones in row order."""
    scores = rescore(vectors, queries, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)


def exact_best(scan: Scan, vectors: np.ndarray, queries: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all items, as `best_rescored` has them.

    A scan rounds otherwise than `rescore`, by at most d / 2^23 for unit vectors. Where more items than were looked at
    lie that near to the k-th, such as many equal ones, all that do are scored.

    Args:
      scan: of the same vectors, float32 [n, d] of unit norm.
    """
    count = min(len(vectors), k + SPARE)
    candidates, rough = scan.best(queries, count)
    rows, scores = best_rescored(vectors, queries, candidates, k=k)
    if count < len(vectors):
        rounding = np.float32((vectors.shape[1] + 4) / 2**23)
        for query in np.flatnonzero(rough.min(axis=1) + rounding >= scores[:, -1]):
            near = scan.at_least(queries[query], scores[query, -1] - rounding)
            rows[query], scores[query] = (each[0] for each in best_rescored(vectors, queries[[query]], near[None], k=k))
    return rows, scores
