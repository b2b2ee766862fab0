"""The lists of a log whose order chance had a say in, and what each ranker would have made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.logs import Queries
from eval.protocols.off_policy.estimators import ShownByChance, TargetOrder, estimate, shuffled

_OFF = 2.0  # times 1, beyond which the mean of 1 / (length * propensity) is not that of orders of a list


class ChanceLists:
    """Gathers, block by block, how each ranker orders the lists that are whole and of known probabilities.

    A list is left out where an item lacks its position or its probability, or where a place is empty since its item is
    not ranked: `usable` (bool [q]) are the others.
    """

    def __init__(self, queries: Queries):
        lengths, owner = queries.lengths, queries.owner
        place = np.arange(len(owner)) - queries.starts[:-1][owner]
        by_chance = np.zeros(len(queries), bool) if queries.randomised is None else queries.randomised
        chances = np.full(len(owner), np.nan) if queries.propensities is None else queries.propensities
        odd = (queries.positions != place) | (np.isnan(chances) & ~by_chance[owner])
        self.usable = (np.bincount(owner[odd], minlength=len(queries)) == 0) & (lengths > 0)
        self.randomised = bool(len(queries)) and bool(by_chance.all())
        self._width = int(lengths[self.usable].max(initial=0))
        self._clusters = queries.users[self.usable]
        rows, columns = np.cumsum(self.usable)[owner] - 1, place
        inside = self.usable[owner]
        shape = (int(self.usable.sum()), self._width)

        def table(values: np.ndarray, empty: float) -> np.ndarray:
            out = np.full(shape, empty, values.dtype)
            out[rows[inside], columns[inside]] = values[inside]
            return out

        known = table(np.nan_to_num(chances), 0.0)
        of_shuffle, joint_of_shuffle = shuffled(lengths[self.usable], self._width)
        chosen = by_chance[self.usable][:, None] & np.ones(shape, bool)
        propensity = np.where(chosen, of_shuffle, known)
        there = propensity > 0
        joint = np.where(chosen, joint_of_shuffle, np.where(there, np.cumprod(np.where(there, known, 1), axis=1), 0))
        self._shown = ShownByChance(
            table(queries.candidates, -1), table(queries.gains.astype(np.float64), 0.0), propensity, joint
        )
        self._orders: dict[str, list[TargetOrder]] = {}

    def __len__(self) -> int:
        return len(self._shown)

    @property
    def mean_inverse(self) -> float:
        """Mean over lists and places of 1 / (length * propensity)."""
        propensity = self._shown.propensity
        there = propensity > 0
        lengths = np.broadcast_to(there.sum(axis=1, keepdims=True), there.shape)[there]
        return float((1 / (lengths * propensity[there])).mean())

    def take(self, ranker: str, lo: int, hi: int, scores: np.ndarray) -> None:
        """scores: real [hi - lo, k] of the lists of the queries lo to hi, by place."""
        mine = self.usable[lo:hi]
        wide = np.full((int(mine.sum()), self._width), -np.inf)
        kept = min(self._width, scores.shape[1])
        wide[:, :kept] = scores[mine, :kept]
        self._orders.setdefault(ranker, []).append(TargetOrder.of(wide, wide > -np.inf))

    def results(self, *, depth: int, as_shown: str) -> dict[str, dict[str, Any]]:
        """{ranker: {"values": {estimator: float64 [q], NaN for lists left out}, "effective": {estimator: lists}}}.

        as_shown: the ranker whose lists are those that were shown: what was earned is its value.
        """
        found = {}
        for ranker, parts in self._orders.items():
            columns = zip(*((part.marginal, part.joint, part.order, part.begins) for part in parts), strict=True)
            target = TargetOrder(*map(np.concatenate, columns))
            if ranker == as_shown:
                target = TargetOrder.as_shown(self._shown)
            values, effective = estimate(self._shown, target, depth=depth, clusters=self._clusters)
            whole = {name: np.full(len(self.usable), np.nan) for name in values}
            for name, column in values.items():
                whole[name][self.usable] = column
            found[ranker] = {"values": whole, "effective": effective, "depth": depth}
        return found


def chance_lists(queries: Queries) -> tuple[ChanceLists | None, str]:
    """(the lists, or None; why there are none, "" where the log says nothing of chance).

    Whatever the probabilities of a list's orders are, 1 / (length * propensity) is 1 on average: it is far above where
    they are of more items than the list has, and far below where chance had hardly a say.
    """
    if queries.propensities is None and queries.randomised is None:
        return None, ""
    found = ChanceLists(queries)
    if not len(found):
        return None, "no list has a position and a probability for each of its items"
    mean = found.mean_inverse
    if 1 / _OFF < mean < _OFF:
        return found, ""
    why = "they are of a choice among more items than the list" if mean > 1 else "chance had hardly a say"
    said = f"1 / (length x propensity) is {mean:.3g} on average, expected 1"
    return None, f"the probabilities are not those of the orders of a list ({why}: {said})"
