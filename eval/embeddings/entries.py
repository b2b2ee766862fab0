"""What becomes the rows of a store: rows of a split, one by one or several as one vector, and what each was made of.

Several vectors of one product become one as the mean of unit vectors, made a unit vector again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from eval.embeddings.vectors import unit_rows
from siglip_jax.errors import UserError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Entries:
    """Rows of a split in the order of the store.

    Attributes:
      order: int64 [n], rows of the split, those of an entry side by side.
      starts: int64 [entries + 1], where in `order` each begins, and the end.
    """

    order: np.ndarray
    starts: np.ndarray

    @classmethod
    def one_by_one(cls, rows: range) -> Entries:
        return cls(np.asarray(rows, np.int64), np.arange(len(rows) + 1))

    @classmethod
    def grouped(cls, rows: range, values: Sequence[str]) -> Entries:
        """Rows of equal values together, in the order of their first rows; "" is equal to nothing.

        Example:
          >>> found = Entries.grouped(range(5), ["a", "b", "a", "", ""])
          >>> found.order.tolist(), found.starts.tolist()
          ([0, 2, 1, 3, 4], [0, 2, 3, 4, 5])
        """
        first: dict[str, int] = {}
        leader = np.array([first.setdefault(values[row], row) if values[row] else row for row in rows], np.int64)
        order = np.argsort(leader, kind="stable")
        starts = np.flatnonzero(np.diff(leader[order], prepend=-1))
        return cls(np.asarray(rows, np.int64)[order], np.append(starts, len(order)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows(self, entries: np.ndarray) -> np.ndarray:
        """int64: the rows of the split of some entries, one entry after the other."""
        counts = self.starts[entries + 1] - self.starts[entries]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self.order[np.repeat(self.starts[entries], counts) + within]

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """int64: the entry of each row of the split."""
        places = self._by_row[np.searchsorted(self.order, rows, sorter=self._by_row)]
        return np.searchsorted(self.starts, places, side="right") - 1

    @functools.cached_property
    def _by_row(self) -> np.ndarray:
        return np.argsort(self.order, kind="stable")


def mean_vectors(vectors: np.ndarray, starts: np.ndarray, *, ids: Sequence[str]) -> np.ndarray:
    """The mean direction of each group, in float64 until the end.

    Args:
      vectors: real [n, dimension], the vectors of a group one after the other.
      starts: int64 [groups], where each group begins; from 0, ascending, none empty.
      ids: of the groups, for messages.

    Returns:
      float32 [groups, dimension], unit norm.

    Raises:
      UserError: a NaN, infinite or zero vector; vectors that cancel each other out.
    """
    unit = unit_rows(vectors, what="vector").astype(np.float64)
    means = np.add.reduceat(unit, starts, axis=0) / np.diff([*starts, len(unit)])[:, None]
    opposite = np.linalg.norm(means, axis=1) < 1e-6
    if opposite.any():
        raise UserError(
            f"the vectors of product {ids[int(opposite.argmax())]!r} cancel each other out, so their mean has no "
            "direction; leave --pool out"
        )
    return unit_rows(means, what="mean vector")


def picture_input(sha256: str) -> bytes | None:
    """What a dataset's record says of its encoded picture, as a store keeps it; None where it says nothing of use."""
    return bytes.fromhex(sha256) if _SHA256.fullmatch(sha256) else None


def vector_inputs(features: Mapping[str, np.ndarray]) -> list[bytes | None]:
    """sha256 of each row of an adapter's stored vectors, {name: float32 [n, d]}."""
    digests = [hashlib.sha256() for _ in next(iter(features.values()))]
    for name in sorted(features):
        for digest, vector in zip(digests, np.ascontiguousarray(features[name], np.float32), strict=True):
            digest.update(f"{name} {len(vector)} ".encode())
            digest.update(vector.data)
    return [digest.digest() for digest in digests]


def joined_inputs(inputs: Sequence[bytes | None], starts: np.ndarray) -> list[bytes | None]:
    """Of groups as of `mean_vectors`: a single one as it is, several as the sha256 of all; None where one is None.

    In whatever order those of a group come: their mean is the same.
    """
    if len(starts) == len(inputs):
        return list(inputs)
    joined: list[bytes | None] = []
    for low, high in zip(starts, [*starts[1:], len(inputs)], strict=True):
        some = inputs[low:high]
        known = [each for each in some if each is not None]
        if len(known) < len(some):
            joined.append(None)
        else:
            joined.append(known[0] if len(known) == 1 else hashlib.sha256(b"".join(sorted(known))).digest())
    return joined
