"""Unit vectors and their cosines: exactly equal for equal items, and an error for a vector without a direction."""

import hashlib
from collections.abc import Sequence

import numpy as np

from siglip_jax.errors import UserError


class Scorer:
    """Inner product of queries with a set of items, exactly equal for equal items; the cosine where all are unit.

    A matrix product may round one column otherwise than its equal twin (edge kernels of the BLAS), and relisted
    pictures would not tie. So each distinct vector is scored once.
    """

    def __init__(self, vectors: np.ndarray, *, ids: Sequence[str] | None = None, unit: bool = True):
        """vectors: real [item, dimension]; unit: to normalise them. UserError names a NaN, infinite or zero one."""
        first, self._inverse = distinct_rows(vectors)
        self._repeats = len(first) < len(vectors)
        rows = first if self._repeats else None
        if unit:
            self._rows = unit_rows(vectors, what="vector", ids=ids, rows=rows)
        else:
            check_vectors(vectors, what="vector", ids=ids)
            self._rows = np.array(vectors if rows is None else vectors[rows], np.float32)

    def vectors(self) -> np.ndarray:
        """The vectors, unit ones unless told otherwise: float32 [item, dimension]."""
        return self.rows(np.arange(len(self._inverse)))

    def rows(self, rows: np.ndarray) -> np.ndarray:
        return self._rows[self._inverse[rows]]

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """float32 [query, item], a fresh array."""
        scores = queries @ self._rows.T
        return scores[:, self._inverse] if self._repeats else scores


def distinct_rows(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that differ in their bytes: (first row of each [u], which of those each row equals [n]), both int64."""
    seen: dict[bytes, int] = {}
    first: list[int] = []
    inverse = np.empty(len(vectors), np.int64)
    for row, vector in enumerate(np.ascontiguousarray(vectors)):
        number = seen.setdefault(hashlib.blake2b(vector, digest_size=16).digest(), len(first))
        if number == len(first):
            first.append(row)
        inverse[row] = number
    return np.asarray(first, np.int64), inverse


def check_vectors(vectors: np.ndarray, *, what: str, ids: Sequence[str] | None = None) -> None:
    """Raises UserError naming the first vector that is NaN, infinite or zero."""
    if vectors.dtype.kind not in "fiu":
        raise UserError(f"{what}s have dtype {vectors.dtype}: expected real numbers")
    for problem, bad in (
        ("holds NaN or infinity", ~np.isfinite(vectors).all(axis=1)),
        ("is zero", ~vectors.any(axis=1)),
    ):
        if bad.any():
            row = int(bad.argmax())
            name = f"row {row}" if ids is None else f"id {ids[row]!r}"
            raise UserError(
                f"{what} of {name} {problem}: it has no direction, so no cosine; leave it out or embed it again"
            )


def unit_rows(
    vectors: np.ndarray, *, what: str, ids: Sequence[str] | None = None, rows: np.ndarray | None = None
) -> np.ndarray:
    """The vectors (or those `rows` names) with norm 1: float32 [n, dimension], a fresh array.

    Raises UserError naming a NaN, infinite or zero vector.

    Rows whose norm is 1 to float32 precision stay as they are, so a saved index answers as the built one does, to the
    last bit.
    """
    check_vectors(vectors, what=what, ids=ids)
    count = len(vectors) if rows is None else len(rows)
    out = np.empty((count, vectors.shape[1]), np.float32)
    step = max(1, (1 << 22) // max(1, vectors.shape[1]))
    for lo in range(0, count, step):  # float64 by blocks: tiny and huge float32 neither vanish nor overflow
        block = vectors[lo : lo + step] if rows is None else vectors[rows[lo : lo + step]]
        block = block.astype(np.float64)
        norm = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
        out[lo : lo + step] = block / np.where(np.abs(norm - 1) < 2e-7, 1, norm)
    return out
