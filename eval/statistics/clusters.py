"""Which queries depend on each other, in one way or in several: one user's, those of one query item.

A mean over queries that share users *and* query items has less evidence than either grouping alone says. On a
marketplace query items are Zipf-distributed, so a thousand users may weigh as twenty query items.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from siglip_jax.errors import UserError

QUERIES = "query"  # what stands alone where nothing is named


@dataclass(frozen=True, eq=False)
class Grouping:
    """One grouping of the queries: by a way, or by several ways at once.

    Attributes:
      sign: with which sums over it are added up, +1 or -1 (inclusion and exclusion).
      codes: int64 [query], 0 to groups - 1; None where every query is a group of its own.
      groups: how many.
    """

    sign: int
    codes: np.ndarray | None
    groups: int

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Of values [query], by group: float64 [groups]."""
        if self.codes is None:
            return np.asarray(values, np.float64)
        return np.bincount(self.codes, values, minlength=self.groups)


@dataclass(frozen=True, eq=False)
class Clusters:
    """The ways in which queries depend on each other.

    Attributes:
      names: of the ways, such as ("user", "query_item").
      parts: of every set of ways, the ways alone first, all of them together last.
      queries: how many there are.
    """

    names: tuple[str, ...]
    parts: tuple[Grouping, ...]
    queries: int
    _codes: tuple[np.ndarray, ...] = field(repr=False)  # int64 [query] of each way

    @classmethod
    def of(cls, given: ClustersLike, queries: int) -> Clusters:
        """From None (each query stands alone), one array [query], or {way: array [query]}; text and numbers alike.

        Raises:
          UserError: an array of another length, no way, or more than three.
        """
        if isinstance(given, Clusters):
            if given.queries != queries:
                raise UserError(f"clusters of {given.queries} queries for {queries}: expected one per query")
            return given
        ways = given if isinstance(given, Mapping) else {QUERIES: np.arange(queries) if given is None else given}
        if not 1 <= len(ways) <= 3:
            raise UserError(f"clusters in {len(ways)} ways ({', '.join(ways)}): expected one to three")
        codes = []
        for name, values in ways.items():
            values = np.asarray(values)
            if values.shape != (queries,):
                raise UserError(
                    f"clusters {name!r} of shape {values.shape} for {queries} queries: expected one per query"
                )
            codes.append(np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64))
        return cls._from_codes(tuple(map(str, ways)), tuple(codes), queries)

    @classmethod
    def _from_codes(cls, names: tuple[str, ...], codes: tuple[np.ndarray, ...], queries: int) -> Clusters:
        parts = []
        for size in range(1, len(codes) + 1):
            for chosen in itertools.combinations(codes, size):
                joint = chosen[0]
                for other in chosen[1:]:
                    joint = joint * (int(other.max(initial=0)) + 1) + other
                    joint = np.unique(joint, return_inverse=True)[1].reshape(-1)
                groups = int(joint.max(initial=-1)) + 1
                parts.append(Grouping(1 if size % 2 else -1, None if groups == queries else joint, groups))
        return cls(names, tuple(parts), queries, codes)

    @property
    def ways(self) -> tuple[Grouping, ...]:
        """The parts of one way each, in the order of `names`."""
        return self.parts[: len(self.names)]

    def take(self, queries: np.ndarray) -> Clusters:
        """Of some queries alone: bool or int [query]."""
        codes = tuple(np.unique(each[queries], return_inverse=True)[1].reshape(-1) for each in self._codes)
        return self._from_codes(self.names, codes, len(codes[0]))

    def effective(self, counted: np.ndarray | None = None) -> dict[str, float]:
        """{way: effective clusters} of the queries where `counted` (bool [query]) is true; of all for None."""
        counted = np.ones(self.queries) if counted is None else counted
        return {name: effective_number(part.sums(counted)) for name, part in zip(self.names, self.ways, strict=True)}


ClustersLike = Clusters | np.ndarray | Mapping[str, np.ndarray] | None


def effective_number(sizes: np.ndarray) -> float:
    """(sum n)^2 / sum n^2 over cluster sizes n: falls where few clusters hold most queries. 0 of none."""
    squares = float(np.square(sizes, dtype=np.float64).sum())
    return float(sizes.sum()) ** 2 / squares if squares else 0.0
