"""Sums along the ranking for many queries at once, whatever the number of queries to the last bit.

Blocks of narrow rankings are column-major: a position of all queries lies together, so that numpy adds thousands of
queries with vector instructions where a sum along short rows would start anew for each. Rankings of more than `LOOPED`
positions stay row by row.
"""

import numpy as np

LOOPED = 256


def by_position(values: np.ndarray) -> np.ndarray:
    """The same [row, position], laid out as this module likes it."""
    return np.asfortranarray(values) if values.shape[1] <= LOOPED else np.ascontiguousarray(values)


def counts(mask: np.ndarray) -> np.ndarray:
    """How many are True in each row: int32 [row]."""
    return mask.sum(axis=1, dtype=np.int32)


def total(values: np.ndarray, k: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Sum over the first k positions of values [row, position], each times its weight [position]: float64 [row]."""
    if k > LOOPED:
        first = values[:, :k]
        return (first if weights is None else first * weights[:k]).sum(axis=1)
    out = np.zeros(len(values))
    for i in range(k):
        out += values[:, i] if weights is None else values[:, i] * weights[i]
    return out


def accumulate(ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
    """`ufunc.accumulate` along the positions."""
    if values.shape[1] > LOOPED:
        return ufunc.accumulate(values, axis=1)
    out = values.copy(order="K")
    for i in range(1, values.shape[1]):
        ufunc(out[:, i - 1], values[:, i], out=out[:, i])
    return out
