"""How much less a lower place is looked at, measured from items that one query item was shown with at several places.

Of an item (under one query item) that was acted upon n times, shown at places k_1, k_2, ..., what is done at place k is
as likely as its examination (1 / (1 + k))^power: given that it was acted upon, where that happened is a draw among its
showings with these weights, and its relevance cancels (a conditional logit over the swaps of Joachims, Swaminathan and
Schnabel 2017, as harvested from several rankers by Agarwal, Zaitsev, Wang, Li, Najork and Joachims 2019). The power is
where that likelihood is largest. It is biased where what is shown higher suits its user better for a reason that the
query item does not tell.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from eval.logs import Queries

LEAST_SURE = 0.25  # the largest standard error of a measured power that is used
_LARGEST = 8.0
_MOST = 4_000_000  # showings that are looked at


@dataclasses.dataclass(frozen=True)
class PositionBias:
    """`power` with its standard error, of so many actions on so many items that stood at several places."""

    power: float
    error: float
    actions: int
    items: int

    @property
    def usable(self) -> bool:
        return self.error <= LEAST_SURE


def measure_position_bias(queries: Queries) -> PositionBias | None:
    """None where no item that was acted upon stood at two places for one query item."""
    known = queries.positions >= 0
    owner = queries.owner[known]
    pair = (
        queries.items[owner].astype(np.int64) * (int(queries.candidates.max(initial=0)) + 1) + queries.candidates[known]
    )
    place, acted = queries.positions[known], queries.gains[known] > 0
    if len(pair) > _MOST:  # all showings of some pairs, drawn by a hash
        drawn = (pair.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
        mine = drawn < np.uint64((_MOST << 32) // len(pair))
        pair, place, acted = pair[mine], place[mine], acted[mine]
    _, code, shown = np.unique(pair, return_inverse=True, return_counts=True)
    code = code.reshape(-1)
    first = np.full(len(shown), np.iinfo(np.int64).max)
    last = np.full(len(shown), -1, np.int64)
    np.minimum.at(first, code, place)
    np.maximum.at(last, code, place)
    actions = np.bincount(code, acted, minlength=len(shown))
    swapped = (first < last) & (actions > 0)
    mine = swapped[code]
    if not mine.any():
        return None
    _, code = np.unique(code[mine], return_inverse=True)
    depth, acted = np.log1p(place[mine]), acted[mine]
    count = np.bincount(code, acted)

    def moments(power: float) -> tuple[np.ndarray, np.ndarray]:
        """Of the log depth under the model, for each item: mean and variance."""
        weight = np.exp(-power * depth)
        total = np.bincount(code, weight)
        mean = np.bincount(code, weight * depth) / total
        return mean, np.bincount(code, weight * np.square(depth)) / total - np.square(mean)

    observed = np.bincount(code, acted * depth)
    power = 0.0
    for _ in range(50):  # concave: Newton's steps, kept in range
        mean, variance = moments(power)
        curvature = float((count * variance).sum())
        if curvature <= 0:
            return None
        step = float((count * mean - observed).sum()) / curvature
        power = min(_LARGEST, max(-_LARGEST, power + step))
        if abs(step) < 1e-9:
            break
    mean, variance = moments(power)
    score = count * mean - observed  # of each item, which are independent; its actions need not be
    error = float(np.sqrt(np.square(score).sum()) / (count * variance).sum())
    return PositionBias(power, error, int(count.sum()), len(count))
