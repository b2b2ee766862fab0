"""A teacher's vectors as vectors of the model's own dimension, fitted once before the first step. No JAX.

Cosines between teacher vectors are what a student can learn, so they are what is kept. The best vectors of d numbers in
that sense are projections on the first d right singular vectors of the matrix of all (Eckart and Young); it is not
centred, since a mean taken off would change every cosine. The squared singular values are the eigenvalues of a sum of
d_t x d_t products, so the vectors are read in blocks and need not fit into memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from siglip_jax.errors import UserError

BLOCK = 1 << 22  # float64 numbers held at once
Take = Callable[[np.ndarray], np.ndarray]  # int64 [n] -> real [n, d_t]


@dataclasses.dataclass(frozen=True)
class TeacherVectors:
    """A teacher for a model.

    Attributes:
      vectors: float32 [count, width], unit norm.
      dimension: of the teacher's own vectors.
      kept: share of their squared length that is left in `vectors`, before those are made unit vectors: 1 where no
        number was left out.
    """

    vectors: np.ndarray
    dimension: int
    kept: float

    def __str__(self) -> str:
        width = self.vectors.shape[1]
        if self.dimension > width:
            return f"{len(self.vectors)} vectors of {self.dimension} numbers, {width} of them kept ({self.kept:.1%})"
        zeros = f", {width - self.dimension} zeros added" if self.dimension < width else ""
        return f"{len(self.vectors)} vectors of {self.dimension} numbers{zeros}"


def teacher_vectors(take: Take, count: int, *, width: int, name: str = "teacher") -> TeacherVectors:
    """The teacher's vectors of the training rows, with `width` numbers each.

    Longer ones are projected on their first `width` right singular vectors, each with its largest number positive, so
    that a run finds the same again; shorter ones get zeros. Each vector is a unit vector before and after.

    Args:
      take: gives any of the rows 0 ... count - 1.
      width: of the model's embeddings.
      name: of the teacher, for errors.

    Raises:
      UserError: no rows; a vector that is not finite, or zero, or of which nothing is left.
    """
    if not count:
        raise UserError(f"{name}: no vector of any training row; expected those of the training split, under its ids")
    dimension = take(np.arange(1)).shape[1]
    basis, kept = np.eye(dimension, width), 1.0
    if dimension > width:
        products = np.zeros((dimension, dimension))
        for _, block in _blocks(take, count):
            unit = _unit(block, name)
            products += unit.T @ unit
        values, directions = np.linalg.eigh(products)
        basis = directions[:, ::-1][:, :width]
        basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(width)])
        kept = float(values[::-1][:width].sum() / values.sum())
    vectors = np.empty((count, width), np.float32)
    for first, block in _blocks(take, count):
        vectors[first : first + len(block)] = _unit(_unit(block, name) @ basis, name, least=1e-6)
    return TeacherVectors(vectors, dimension, kept)


def _blocks(take: Take, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first row, rows [n, d_t]) of stretches of all rows."""
    step = max(1, BLOCK // take(np.arange(1)).shape[1])
    for first in range(0, count, step):
        yield first, take(np.arange(first, min(first + step, count)))


def _unit(block: np.ndarray, name: str, *, least: float = 0.0) -> np.ndarray:
    """float64 [n, d] of norm 1; a UserError where a row is not finite, or no longer than `least`."""
    block = np.asarray(block, np.float64)
    norm = np.linalg.norm(block, axis=1, keepdims=True)
    if bad := int(np.sum(~(np.isfinite(norm) & (norm > least)))):
        what = "point away from all that was kept" if least else "are zero or not finite"
        raise UserError(f"{name}: {bad} of {len(block)} vectors {what}; leave these items out, or embed them again")
    return block / norm
