"""Which of the nearest items are shown: one of each group, no near-duplicates, some diversity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from eval.search.attribute_columns import Where
from siglip_jax.errors import UserError

POOL = 5  # diversity chooses k among so many times k
_BLOCK = 1024  # candidates whose vectors are held at once
_ROUNDING = 1e-6  # a cosine of equal float32 vectors is off by less

VectorsAt = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What an answer shows. Applied in this order: filters, score, groups, near-duplicates, diversity.

    Attributes:
      k: items.
      least: cosine from which an item is shown.
      where: filters, which must all hold: attribute -> values and ranges that are let through.
      group_by: attribute; of the items that share a value of it the best alone is shown. Items without it stay.
      collapse: cosine from which an item is a near-duplicate of a better one that is shown, and left out; None for no.
      diversity: 0 shows the nearest, 1 those that are least like each other: maximal marginal relevance (Carbonell and
        Goldstein, SIGIR 1998) with lambda = 1 - diversity, among the best POOL * k.

    Raises:
      UserError: a number out of range.
    """

    k: int = 10
    least: float = -math.inf
    where: Where = dataclasses.field(default_factory=dict)
    group_by: str | None = None
    collapse: float | None = None
    diversity: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k={self.k}: expected at least 1")
        if math.isnan(self.least):
            raise UserError(f"min_score={self.least}: expected a number")
        if not 0 <= self.diversity <= 1:
            raise UserError(f"diversity={self.diversity}: expected 0, the nearest, to 1, the least alike")
        if self.collapse is not None and not 0 < self.collapse <= 1:
            raise UserError(f"collapse={self.collapse}: expected a cosine above 0 and up to 1, such as 0.98")

    @property
    def candidates(self) -> int:
        """Items that groups and near-duplicates must leave, so that the best k of them can be chosen."""
        return self.k if self.diversity == 0 else POOL * self.k


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Places [m] in a ranking, in the order in which they are shown, and near-duplicates [m] left out for each."""

    places: np.ndarray
    alike: np.ndarray
    enough: bool  # False where a longer ranking might give other items


def choose(
    rows: np.ndarray, scores: np.ndarray, *, selection: Selection, groups: np.ndarray | None, vectors_at: VectorsAt
) -> Chosen:
    """What is shown of a ranking.

    Args:
      rows, scores: int [n], float32 [n], best first: the beginning of a ranking, already filtered.
      groups: int [item of the index], -1 for items of no group; None for no groups.
      vectors_at: rows -> unit vectors float32.
    """
    places = np.arange(len(rows)) if groups is None else first_of_groups(groups[rows])
    if selection.collapse is None:
        places, alike = places[: selection.candidates], np.zeros(min(len(places), selection.candidates), np.int64)
    else:
        kept, alike = _without_near(
            rows[places], selection.collapse - _ROUNDING, most=selection.candidates, vectors_at=vectors_at
        )
        places = places[kept]
    enough = len(places) >= selection.candidates
    if selection.diversity > 0 and len(places):
        order = _marginal_relevance(
            scores[places], vectors_at(rows[places]), k=selection.k, weight=1 - selection.diversity
        )
        places, alike = places[order], alike[order]
    return Chosen(places, alike, enough)


def first_of_groups(codes: np.ndarray) -> np.ndarray:
    """int64 [m], ascending: the first place of each code of int [n]; of a negative one every place."""
    alone = np.where(codes >= 0, codes, -1 - np.arange(len(codes)))
    return np.sort(np.unique(alone, return_index=True)[1])


def _without_near(rows: np.ndarray, least: float, *, most: int, vectors_at: VectorsAt) -> tuple[np.ndarray, np.ndarray]:
    """The first `most` places [m] that no kept one before is as near as `least` to, and how many each kept one left
    out [m], up to the last that is kept."""
    kept: list[int] = []
    alike: list[int] = []
    shown: list[np.ndarray] = []
    for begin in range(0, len(rows), _BLOCK):
        vectors = vectors_at(rows[begin : begin + _BLOCK])
        near = np.full(len(vectors), -1)  # which kept one left it out
        if shown:
            cosines = vectors @ np.stack(shown, axis=1)
            near = np.where((cosines >= least).any(axis=1), (cosines >= least).argmax(axis=1), -1)
        for place in range(len(vectors)):
            if near[place] >= 0:
                alike[near[place]] += 1
                continue
            later = near[place + 1 :]
            later[(later < 0) & (vectors[place + 1 :] @ vectors[place] >= least)] = len(kept)
            kept.append(begin + place)
            alike.append(0)
            shown.append(vectors[place])
            if len(kept) == most:
                return np.array(kept), np.array(alike)
    return np.array(kept, np.int64), np.array(alike, np.int64)


def _marginal_relevance(scores: np.ndarray, vectors: np.ndarray, *, k: int, weight: float) -> np.ndarray:
    """Places [min(k, n)] in the order chosen: each time the most weight * score - (1 - weight) * nearest chosen."""
    nearest = np.zeros(len(scores), np.float32)  # of the first choice, nothing: the best score wins
    left = np.ones(len(scores), bool)
    order: list[int] = []
    for _ in range(min(k, len(scores))):
        gain = np.where(left, weight * scores - (1 - weight) * nearest, -np.inf)
        best = int(np.argmax(gain))  # the first of equal ones, which is the nearest
        cosines = vectors @ vectors[best]
        nearest = cosines if not order else np.maximum(nearest, cosines)
        order.append(best)
        left[best] = False
    return np.array(order, np.int64)
