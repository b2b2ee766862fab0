"""The best k of many rows at once, equal scores in column order, at the cut too."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Top:
    """The k best columns of each row, ordered by (-score, column)."""

    columns: np.ndarray  # int64 [row, k]
    values: np.ndarray  # [row, k], descending
    at_least_cut: np.ndarray  # int64 [row], how many columns score at least the k-th best: above k, ties cross the cut


def select_top(scores: np.ndarray, k: int) -> Top:
    """The k best columns per row without a full sort, equal scores in column order, at the cut too.

    Args:
      scores: [row, column] floating point without NaN; k: 1 <= k <= columns.
    """
    rows, n = scores.shape
    if k < n:
        columns = np.argpartition(scores, n - k, axis=1)[:, n - k :]
        columns.sort(axis=1)
    else:
        columns = np.broadcast_to(np.arange(n), (rows, n))
    values = np.take_along_axis(scores, columns, axis=1)
    cut = values.min(axis=1)
    at_least_cut = np.count_nonzero(scores >= cut[:, None], axis=1)
    crossed = np.flatnonzero(at_least_cut > k)
    if crossed.size:  # the partition took any of the equal ones: take the first
        s, c = scores[crossed], cut[crossed, None]
        above, equal = s > c, s == c
        room = k - np.count_nonzero(above, axis=1)
        above |= equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room[:, None])
        columns[crossed] = np.nonzero(above)[1].reshape(-1, k)
        values[crossed] = np.take_along_axis(s, columns[crossed], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return Top(np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1), at_least_cut)
