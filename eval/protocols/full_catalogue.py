"""The protocols over logs that ask for the best of the whole catalogue.

* full-catalogue retrieval, logged queries: the query item against all items live then; what nobody could tap, since it
  was not shown, counts as not relevant.
* leave-one-out and time split, user profiles (`eval.protocols.user_profiles`): a user's earlier items against all items
  not yet seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.logs import Live, Queries
from eval.metrics.topk import select_top
from eval.protocols.measures import BLOCK, Collected, Measures, Ranked, Sink, check_ranker_names
from eval.protocols.protocol import Progress, RankingProtocol
from eval.protocols.user_profiles import History
from eval.rankers import Ranker, VectorRanker
from eval.search import Index, build_index
from eval.search.recall import check_found, only_found, recall_of_allowed, search_allowed

RETRIEVAL = "full-catalogue retrieval, logged queries"
LEAVE_ONE_OUT = "leave-one-out, user profiles against the catalogue"
TIME_SPLIT = "time split, user profiles against the catalogue"
_COUNTED = 1 << 22  # pairs of query and item whose candidates are counted at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullCatalogue(RankingProtocol):
    """Ranks the items live at each query's time, without the query item or, with a history, what the user has seen.

    Attributes:
      name: RETRIEVAL, LEAVE_ONE_OUT or TIME_SPLIT.
      queries: candidates are rows of the catalogue; only those with a gain matter, and all must be among the items that
        are ranked: see `reachable`.
      live: of the n items of the catalogue.
      history: of each query, where queries are users; a profile's score of an item is the mean over the profile.
    """

    queries: Queries
    live: Live
    measures: Measures
    history: History | None = None
    name: str = RETRIEVAL

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def items(self) -> int:
        """n."""
        return len(self.live.since)

    @property
    def query_items(self) -> np.ndarray:
        return self.queries.items

    def candidate_counts(self) -> np.ndarray:
        return np.concatenate([self._allowed(at).sum(axis=1) for at in self._blocks(_COUNTED)])

    def rank(
        self,
        rankers: Sequence[Ranker],
        *,
        sink: Sink | None = None,
        sink_depth: int = 1000,
        progress: Progress | None = None,
    ) -> dict[str, Ranked]:
        """See `RankingProtocol`."""
        check_ranker_names(rankers)
        collected = {ranker.name: Collected(len(self), self.measures) for ranker in rankers}
        for at in self._blocks(BLOCK, progress):
            labels, mask = self._labels(at), self._allowed(at)
            for ranker in rankers:
                scores = self._scores(ranker, at)
                collected[ranker.name].take(at, scores, labels, mask)
                if sink is not None:
                    best = select_top(np.where(mask, scores, np.float32(-np.inf)), min(sink_depth, self.items))
                    sink(ranker.name, at, np.where(best.values > -np.inf, best.columns, -1), best.values)
        return {name: gathered.ranked() for name, gathered in collected.items()}

    def rank_indexed(self, ranker: VectorRanker, options: Mapping[str, Any], *, index: Index | None = None) -> Ranked:
        """See `RankingProtocol`.

        The index holds all items and knows nothing of times: it is asked for more until enough of what it returns is
        allowed. `index`: one that was built from the ranker's vectors already.
        """
        n, scorer = self.items, ranker.scorer
        if index is None:
            index = build_index(ranker.vectors(), [str(item) for item in range(n)], backend="scann", **options)
        deepest, depth = min(n, self.measures.deepest), min(n, self.measures.index_depth)
        collected, recall = Collected(len(self), self.measures), np.empty(len(self))
        for at in self._blocks(BLOCK):
            mask, exact, scale = self._allowed(at), self._scores(ranker, at), None
            if self.history is None:
                vectors = scorer.rows(self.queries.items[at])
            else:
                # A profile's exact score is the mean of cosines, the index's the cosine to the mean: scale by its norm.
                vectors, scale = self.history.profiles(scorer, at), self.history.norms(scorer, at)
            found, scores = search_allowed(index, vectors, mask, k=depth)
            check_found(found, scores if scale is None else scores * scale[:, None], exact)
            recall[at] = recall_of_allowed(found, np.where(mask, exact, -np.inf), k=deepest)
            collected.take(at, only_found(found, scores, n), self._labels(at), mask)
        return collected.ranked(index_recall=recall)

    def first_results(self, query: int, ranker: Ranker, *, depth: int) -> list[tuple[int, float]]:
        """See `RankingProtocol`; of query items, not of profiles."""
        at = np.array([query])
        gains = self._labels(at)[0]
        candidates = np.where(self._allowed(at), np.arange(self.items), -1)
        best = select_top(ranker.scores(self.queries.items[at], candidates), min(depth, self.items))
        return [
            (int(item), float(gains[item]))
            for item, score in zip(best.columns[0], best.values[0], strict=True)
            if score > -np.inf
        ]

    def _blocks(self, size: int, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """Runs of queries, int64 [b], that have about `size` pairs of query and item."""
        step = max(1, size // max(1, self.items))
        for lo in range(0, len(self), step):
            at = np.arange(lo, min(lo + step, len(self)))
            yield at
            if progress is not None:
                progress(int(at[-1]) + 1, len(self))

    def _allowed(self, at: np.ndarray) -> np.ndarray:
        """Who is a candidate: bool [b, n]."""
        mask = self.live.at(self.queries.times[at])
        asked = np.flatnonzero(self.queries.items[at] >= 0)
        mask[asked, self.queries.items[at][asked]] = False
        if self.history is not None:
            for place, query in enumerate(at):
                mask[place, self.history.seen_of(query)] = False
        return mask

    def _labels(self, at: np.ndarray) -> np.ndarray:
        """Gains of all items: float32 [b, n]; `at` is a run of queries."""
        labels = np.zeros((len(at), self.items), np.float32)
        part = slice(self.queries.starts[at[0]], self.queries.starts[at[-1] + 1])
        places = np.repeat(np.arange(len(at)), self.queries.lengths[at])
        labels[places, self.queries.candidates[part]] = self.queries.gains[part]
        return labels

    def _scores(self, ranker: Ranker, at: np.ndarray) -> np.ndarray:
        """float32 [b, n], of query items or profiles."""
        if self.history is None:
            return ranker.scores(self.queries.items[at])
        return self.history.scores(ranker, at, n=self.items)


def reachable(queries: Queries, live: Live, history: History | None = None) -> Queries:
    """Without the gains that no ranking could earn, since the item is not among the candidates; counted."""
    alive = live.pairs(queries.candidates, queries.times[queries.owner])
    queries = queries.drop(~alive, reason="not live at query time")
    if history is not None and len(queries.candidates):
        queries = queries.drop(history.has_seen(queries.owner, queries.candidates), reason="seen before")
    return queries
