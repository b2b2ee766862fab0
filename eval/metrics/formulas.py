"""What metrics are computed from: the labels of some queries, by column and in ranking order under the tie rule.

Each quantity is computed when a metric first asks for it, and once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eval.metrics import ties
from eval.metrics.cumulative import accumulate, by_position, counts, total
from eval.metrics.sorting import Piece
from eval.metrics.ties import TieGroups
from siglip_jax.errors import UserError

_MAX_COUNTED_LABEL = 16  # integer labels up to this are counted, not sorted, for the ideal ranking
_MAX_EXPONENT = 64


@dataclass(frozen=True)
class Rules:
    """How labels count and how equal scores are ordered; as for `eval.metrics.ranking.rank_metrics`."""

    expected: bool  # over a random order of equal scores; otherwise they stay in column order
    gain: str
    relevant_from: float
    max_grade: float | None


class Candidates:
    """A block of queries, their candidates in the order in which they came.

    Attributes:
      labels: [query, column], >= 0.
      relevant: bool [query, column], whether the label is at least `relevant_from`.
      relevant_count: int32 [query], R of the definitions; candidates that were not retrieved count.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray, rules: Rules, *, block: int):
        """scores: float [query, column], no NaN, -inf where not retrieved; block: elements to work on at once."""
        self._scores, self._rules, self._block = scores, rules, block
        self.labels = by_position(labels)
        self.relevant = self.labels >= rules.relevant_from
        self.relevant_count = counts(self.relevant)
        self._ideal: dict[int, np.ndarray] = {}

    def ideal_dcg(self, k: int | None) -> np.ndarray:
        """DCG@k of the best order, of all candidates for None; NaN where its gains are 0: float64 [query]."""
        columns = self.labels.shape[1]
        k = min(k or columns, columns)
        if k not in self._ideal:
            self._ideal[k] = _ideal_dcg(self.labels, k, self._rules.gain)
        return self._ideal[k]

    def reciprocal_rank(self, k: int | None) -> np.ndarray:
        """1 / rank of the first relevant candidate, 0 beyond rank k, under the tie rule: float64 [query]."""
        return _reciprocal_rank(
            self._scores_by_column, self.relevant, k=k, expected=self._rules.expected, block=self._block
        )

    @cached_property
    def _scores_by_column(self) -> np.ndarray:
        return by_position(self._scores)


class Ranking:
    """Some queries of a block in ranking order, down to the deepest cutoff.

    Under the rule "expected", a position within a group of equal scores holds the mean over all orders of the group. So
    a metric that is a sum over positions of `relevant` or `gain`, each times a weight, is exact with `total`; whatever
    else needs an expectation of its own (`eval.metrics.ties`).
    """

    def __init__(self, piece: Piece, candidates: Candidates, rules: Rules, *, depth: int):
        self._piece, self._candidates, self._rules, self._depth = piece, candidates, rules, depth
        self._groups = None if piece.first is None else TieGroups.of(piece.first)
        self._known_stops: tuple[int, np.ndarray] | None = None

    def cut(self, k: int | None) -> int:
        """How many positions a metric looks at: k, or all for None, and no more than there are."""
        return min(k or self._depth, self._depth)

    def total(self, values: np.ndarray, k: int | None, weights: np.ndarray | None = None) -> np.ndarray:
        """Sum over the first k positions (all for None) of values [query, position], each times its weight [position].

        Returns:
          float64 [query].
        """
        return total(values, self.cut(k), weights)

    @cached_property
    def rank(self) -> np.ndarray:
        """1, 2, ...: int [position]."""
        return np.arange(1, self._piece.labels.shape[1] + 1)

    @cached_property
    def discount(self) -> np.ndarray:
        """1 / log2(rank + 1): float64 [position]."""
        return 1 / np.log2(np.arange(2, self._depth + 2))

    @cached_property
    def relevant_count(self) -> np.ndarray:
        """R, how many candidates are relevant, and 1 where none is: int32 [query]."""
        return np.maximum(self._candidates.relevant_count[self._piece.rows], 1)

    @cached_property
    def relevant(self) -> np.ndarray:
        """P(what stands at a position is relevant): float64 [query, position]."""
        return self._expected(self._own)

    @cached_property
    def gain(self) -> np.ndarray:
        """E[gain of what stands at a position]: float64 [query, position]."""
        return self._expected(gains_of(self._piece.labels, self._rules.gain))

    def ideal_dcg(self, k: int | None) -> np.ndarray:
        """As of `Candidates`, for these queries."""
        return self._candidates.ideal_dcg(k)[self._piece.rows]

    @cached_property
    def precision_at_relevant(self) -> np.ndarray:
        """E[precision at a position where what stands there is relevant, else 0]: float64 [query, position]."""
        if self._groups is None:
            return self._own * accumulate(np.add, self._own) / self.rank
        return by_position(ties.expected_precisions(self._groups, self._own))

    def hit(self, k: int | None) -> np.ndarray:
        """P(something relevant among the first k): float64 [query]."""
        if self._groups is None:
            return (self.total(self._own, k) > 0).astype(np.float64)
        return ties.expected_hit(self._groups, self._own, self.cut(k))

    def stops(self, k: int | None) -> np.ndarray:
        """P(a reader stops at a position), right for the first k: float64 [query, position].

        A candidate satisfies with R = (2^label - 1) / 2^max_grade (Chapelle et al. 2009).
        """
        cut = self.cut(k)
        if self._known_stops is None or self._known_stops[0] < cut:
            self._known_stops = cut, _stops(self._piece.labels, self._groups, self._rules.max_grade or 0, cut)
        return self._known_stops[1]

    @cached_property
    def _own(self) -> np.ndarray:
        """1.0 where relevant, else 0.0; in one order of the equal scores."""
        return (self._piece.labels >= self._rules.relevant_from).astype(np.float64)

    def _expected(self, values: np.ndarray) -> np.ndarray:
        return values if self._groups is None else by_position(self._groups.means(values))


def _stops(labels: np.ndarray, groups: TieGroups | None, max_grade: float, k: int) -> np.ndarray:
    stop = (np.exp2(labels.astype(np.float64)) - 1) / 2.0**max_grade
    reach = np.ones_like(stop)
    reach[:, 1:] = accumulate(np.multiply, 1 - stop[:, :-1])
    if groups is None:
        return stop * reach
    begins = groups.begin // groups.shape[1], groups.start
    return by_position(groups.spread(reach[begins]) * ties.expected_stops(groups, stop, k))


def gains_of(labels: np.ndarray, gain: str) -> np.ndarray:
    """Gain of each label for nDCG: float64, a fresh array. UserError on labels too large for the exponential one."""
    values = labels.astype(np.float64)
    if gain == "linear":
        return values
    if values.max(initial=0) > _MAX_EXPONENT:
        raise UserError(
            f'label {values.max():g} with gain="exponential" (2^label - 1): grades up to {_MAX_EXPONENT} make sense, '
            'or "linear"'
        )
    return np.exp2(values) - 1


def _ideal_dcg(labels: np.ndarray, k: int, gain: str) -> np.ndarray:
    """DCG@k of the labels sorted, NaN where all are 0: float64 [row]."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    highest = labels.max(initial=0)
    if labels.dtype.kind in "iu" and highest <= _MAX_COUNTED_LABEL:
        # Every grade adds its gain over the one below to as many first positions as labels reach it.
        up_to = np.concatenate([[0.0], np.cumsum(discount)])
        gains = gains_of(np.arange(int(highest) + 1), gain)
        ideal = np.zeros(len(labels))
        for grade in range(1, int(highest) + 1):
            reached = np.minimum(counts(labels >= grade), k)
            ideal += (gains[grade] - gains[grade - 1]) * up_to[reached]
    else:
        n = labels.shape[1]
        best = -np.sort(-np.partition(labels.astype(np.float64), n - k, axis=1)[:, n - k :], axis=1)
        ideal = total(gains_of(best, gain), k, discount)
    ideal[ideal == 0] = np.nan
    return ideal


def _reciprocal_rank(
    scores: np.ndarray, relevant: np.ndarray, *, k: int | None, expected: bool, block: int
) -> np.ndarray:
    best = np.where(relevant, scores, scores.dtype.type(-np.inf)).max(axis=1)[:, None]
    above = counts(scores > best)
    equal = scores == best
    rank = above + 1.0
    size = counts(equal)
    several = np.flatnonzero(size > 1)
    if not expected and several.size:
        earlier = np.arange(scores.shape[1]) < (equal[several] & relevant[several]).argmax(axis=1)[:, None]
        rank[several] += counts(equal[several] & earlier)
    found = 1 / rank
    if k is not None:
        found[rank > k] = 0
    if expected and several.size:
        hits = counts(equal[several] & relevant[several])
        some = (hits > 0) & (hits < size[several]) & (best[several, 0] > -np.inf)
        tied, hits = several[some], hits[some]
        if tied.size:
            found[tied] = ties.expected_reciprocal_rank(above[tied], size[tied], hits, k=k, block=block)
    return np.where(best[:, 0] > -np.inf, found, 0.0)
