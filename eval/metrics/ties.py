"""Expectations over a random order of the equal scores, exact and in closed form or by a short recurrence.

A group of m equal scores stands behind `above` others. Precision, recall, nDCG and RBP are linear in the labels, so
every position of the group simply gets the group's mean. The others need more:

* average precision: a relevant candidate at the j-th place of the group has (j - 1)(r - 1) / (m - 1) of the group's
  other relevant ones before it (McSherry and Najork 2008, "Computing information retrieval performance measures
  efficiently in the presence of tied scores"),
* hit: hypergeometric; reciprocal rank: the first of r relevant ones, negative hypergeometric,
* ERR: with q the chances that a reader goes on (1 - R), a reader who reaches the group stops at its j-th place with
  probability E_(j-1) - E_j, where E_j is the mean over all subsets of j candidates of the product of their q: the j-th
  elementary symmetric polynomial over its number of terms. Adding candidates one by one,
  E_j <- (1 - j/m) E_j + (j/m) q E_(j-1), all terms positive.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval.metrics.cumulative import accumulate


@dataclass(frozen=True)
class TieGroups:
    """Groups of equal scores of some rankings, one after the other."""

    shape: tuple[int, int]  # of the rankings: [row, width]
    begin: np.ndarray  # int64 [group], flat position of the first member
    size: np.ndarray  # int64 [group]
    group: np.ndarray  # int64 [row * width], group of each position

    @classmethod
    def of(cls, first: np.ndarray) -> "TieGroups":
        """first: bool [row, width], True where a group begins and in column 0."""
        flat = first.ravel()
        begin = np.flatnonzero(flat)
        size = np.diff(begin, append=flat.size)
        return cls((first.shape[0], first.shape[1]), begin, size, np.repeat(np.arange(len(begin)), size))

    @cached_property
    def start(self) -> np.ndarray:
        """Position in its ranking, from 0, of each group's first member: int64 [group]."""
        return self.begin % self.shape[1]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over each group of values [row, width]: [group]."""
        return np.add.reduceat(values.ravel(), self.begin)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """The group's value at each position: [row, width]."""
        return values[self.group].reshape(self.shape)

    def means(self, values: np.ndarray) -> np.ndarray:
        return self.spread(self.sums(values) / self.size)

    def before(self, values: np.ndarray) -> np.ndarray:
        """Sum of values [row, width] over what stands above each group in its ranking: [group]."""
        through = accumulate(np.add, values)
        before = through[self.begin // self.shape[1], self.start - 1]
        return np.where(self.start > 0, before, 0.0)


def expected_hit(groups: TieGroups, relevant: np.ndarray, k: int) -> np.ndarray:
    """P(a relevant candidate among the first k): float64 [row]. relevant: 0.0 or 1.0 [row, width]."""
    last = min(k, groups.shape[1]) - 1
    at_cut = groups.group.reshape(groups.shape)[:, last]
    size, drawn = groups.size[at_cut], last + 1 - groups.start[at_cut]
    hits = groups.sums(relevant)[at_cut]
    miss = np.ones(len(size))
    for i in range(int(drawn.max(initial=0))):  # at most k factors
        miss = np.where(i < drawn, miss * np.maximum(size - hits - i, 0) / np.maximum(size - i, 1), miss)
    return np.where(groups.before(relevant)[at_cut] > 0, 1.0, 1.0 - miss)


def expected_precisions(groups: TieGroups, relevant: np.ndarray) -> np.ndarray:
    """E[relevant at a position * precision there]: float64 [row, width]; their sum over R is the average precision."""
    hits, size = groups.sums(relevant), groups.size
    place = np.broadcast_to(np.arange(groups.shape[1]), groups.shape)
    behind_first = place - groups.spread(groups.start)
    others = groups.spread((hits - 1) / np.maximum(size - 1, 1))  # of the other places, the share that is relevant
    found = groups.spread(groups.before(relevant)) + 1 + behind_first * others
    return groups.spread(hits / size) * found / (place + 1)


def expected_reciprocal_rank(
    above: np.ndarray, size: np.ndarray, hits: np.ndarray, *, k: int | None, block: int
) -> np.ndarray:
    """E[1 / rank of the first of `hits` relevant among `size` equals behind `above` others, 0 beyond rank k]: [query].

    P(first relevant is the i-th of the group) = C(size - i, hits - 1) / C(size, hits), by its recurrence over i.
    """
    base = int(above.max() + size.max()) + 1
    if base < 1 << 21:  # equal cases once
        key = (above.astype(np.int64) * base + size) * base + hits
        _, cases, back = np.unique(key, return_index=True, return_inverse=True)
    else:
        cases = back = np.arange(len(above))
    above, size, hits = (a[cases].astype(np.float64) for a in (above, size, hits))
    longest = int((size - hits).max()) + 1
    if k is not None:
        longest = min(longest, k)
    out = np.empty(len(cases))
    step = max(1, block // longest)
    for lo in range(0, len(cases), step):
        a, m, r = above[lo : lo + step, None], size[lo : lo + step, None], hits[lo : lo + step, None]
        i = np.arange(1, longest, dtype=np.float64)
        ratio = np.maximum(m - i - r + 1, 0) / np.maximum(m - i, 1)
        probability = np.concatenate([r / m, r / m * np.cumprod(ratio, axis=1)], axis=1)
        rank = a + np.arange(1, longest + 1)
        if k is not None:
            probability[rank > k] = 0
        out[lo : lo + step] = (probability / rank).sum(axis=1)
    return out[back.reshape(-1)]


def expected_stops(groups: TieGroups, stop: np.ndarray, k: int) -> np.ndarray:
    """P(a reader who reaches a position's group stops at that position): float64 [row, width], right for the first k.

    stop: [row, width], P(the candidate satisfies), R of ERR; in whatever order within a group.
    """
    depth = min(k, groups.shape[1])
    out = np.zeros(groups.shape)
    flat = stop.ravel()
    graded = np.flatnonzero(flat > 0)
    owner = groups.group[graded]
    tied = (groups.size[owner] > 1) & (groups.start[owner] < depth)
    out.reshape(-1)[graded[~tied]] = flat[graded[~tied]]
    graded, owner = graded[tied], owner[tied]
    if not graded.size:
        return out

    some, number = np.unique(owner, return_inverse=True)
    number = number.reshape(-1)
    size, reach = groups.size[some], np.minimum(groups.size[some], depth - groups.start[some])
    many = np.bincount(number)
    nth = np.arange(len(number)) - (np.cumsum(many) - many)[number]  # of the group's graded candidates
    by_turn = np.argsort(nth, kind="stable")
    turns = np.searchsorted(nth[by_turn], np.arange(int(many.max()) + 1))
    j = np.arange(int(reach.max()) + 1)
    going_on = np.ones((len(some), len(j)))  # E_j of the group's ungraded candidates, whose q is 1
    for turn, begin in enumerate(turns):
        end = turns[turn + 1] if turn + 1 < len(turns) else len(by_turn)
        one = by_turn[begin:end]
        if not one.size:
            break
        at, q = number[one], 1 - flat[graded[one]]
        members = (size - many)[at] + turn + 1
        share = np.minimum(j / members[:, None], 1)  # E_j beyond the members has no meaning and is not read
        before = going_on[at]
        after = (1 - share) * before
        after[:, 1:] += share[:, 1:] * q[:, None] * before[:, :-1]
        going_on[at] = after
    stops = going_on[:, :-1] - going_on[:, 1:]
    group, place = np.nonzero(j[:-1] < reach[:, None])
    out.reshape(-1)[groups.begin[some[group]] + place] = stops[group, place]
    return out
