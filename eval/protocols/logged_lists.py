"""Protocol "logged-list re-ranking": the list that was shown, in the order of each ranker.

What the old ranker did not show is not asked about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np

from eval.logs import Queries
from eval.metrics.topk import select_top
from eval.protocols.exposure import Exposure, Propensity
from eval.protocols.measures import BLOCK, Collected, Measures, Ranked, Sink, check_ranker_names
from eval.protocols.off_policy.chance_lists import chance_lists
from eval.protocols.protocol import Progress, RankingProtocol
from eval.rankers import Ranker

LOGGED_LISTS = "logged-list re-ranking"
LOGGED_ORDER = "logged order"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedLists(RankingProtocol):
    """Ranks each shown list; "logged order" is a ranker more, and the first, where the log has positions.

    A list that misses the position of any item has no logged order (NaN).

    Attributes:
      queries: candidates are rows of the catalogue.
      propensity: for the position-weighted means (`Ranked.exposure`); None to leave them out, and with them what each
        ranker would have earned (`Ranked.off_policy`).
    """

    queries: Queries
    measures: Measures
    propensity: Propensity | None = None
    name = LOGGED_LISTS
    whole_catalogue: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def query_items(self) -> np.ndarray:
        return self.queries.items

    def candidate_counts(self) -> np.ndarray:
        return self.queries.lengths

    def rank(
        self,
        rankers: Sequence[Ranker],
        *,
        sink: Sink | None = None,
        sink_depth: int = 1000,
        progress: Progress | None = None,
    ) -> dict[str, Ranked]:
        """See `RankingProtocol`; a sink is given each list whole, as it was shown, with the scores."""
        check_ranker_names(rankers, LOGGED_ORDER)
        asked: dict[str, Ranker | None] = {ranker.name: ranker for ranker in rankers}
        if (self.queries.positions >= 0).any():
            asked = {LOGGED_ORDER: None, **asked}
        collected = {name: Collected(len(self), self.measures) for name in asked}
        exposures = {
            name: Exposure(self.propensity, self.measures.metrics, self.measures.ties)
            for name in asked
            if self.propensity
        }
        chance = chance_lists(self.queries)[0] if self.propensity else None
        for lo, hi in _blocks(self.queries.lengths):
            at, (candidates, gains, positions) = np.arange(lo, hi), self.queries.padded(lo, hi)
            mask = candidates >= 0
            for name, ranker in asked.items():
                unplaced = np.zeros(hi - lo, bool)
                if ranker is None:
                    scores = np.where(mask, -positions.astype(np.float32), np.float32(-np.inf))
                    unplaced = np.asarray((mask & (positions < 0)).any(axis=1))
                else:
                    scores = ranker.scores(self.queries.items[lo:hi], candidates)
                collected[name].take(at, scores, gains, mask, undefined=unplaced)
                if name in exposures:
                    exposures[name].add(scores, gains, np.where(unplaced[:, None], -1, positions), mask)
                if chance:
                    chance.take(name, lo, hi, scores)
                if sink is not None:
                    sink(name, at, np.where(unplaced[:, None], -1, candidates), scores)
            if progress is not None:
                progress(hi, len(self))
        weighted = {name: exposure.result() for name, exposure in exposures.items()}
        earned = chance.results(depth=self.measures.primary_depth, as_shown=LOGGED_ORDER) if chance else {}
        return {
            name: gathered.ranked(exposure=weighted.get(name), off_policy=earned.get(name))
            for name, gathered in collected.items()
        }

    def metrics_of(self, ranker: Ranker) -> dict[str, np.ndarray]:
        """See `RankingProtocol`."""
        return dataclasses.replace(self, propensity=None).rank([ranker])[ranker.name].metrics

    def first_results(self, query: int, ranker: Ranker, *, depth: int) -> list[tuple[int, float]]:
        """See `RankingProtocol`."""
        candidates, gains, _ = self.queries.padded(query, query + 1)
        best = select_top(ranker.scores(self.queries.items[query : query + 1], candidates), min(depth, gains.shape[1]))
        return [(int(candidates[0, place]), float(gains[0, place])) for place in best.columns[0]]


def _blocks(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of queries whose padded lists have about BLOCK places."""
    lo = longest = 0
    for i, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if i > lo and longest * (i + 1 - lo) > BLOCK:
            yield lo, i
            lo, longest = i, length
    if lo < len(lengths):
        yield lo, len(lengths)
