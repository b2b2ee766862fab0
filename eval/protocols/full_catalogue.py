"""The protocols over logs. Each names itself, and no table has rows of two.

* logged-list re-ranking: the list that was shown, in the order of each row; what the old ranker did not show is not
  asked about.
* full-catalogue retrieval, logged queries: the query item against all items live then; what nobody could tap, since it
  was not shown, counts as not relevant.
* leave-one-out and time split, user profiles (`eval.protocols.user_profiles`): a user's earlier items against all items
  not yet seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from eval.logs import Live, Queries
from eval.metrics import has_ties, rank_metrics
from eval.metrics.ranking import has_uncut, max_cutoff, report_name, select_top
from eval.protocols.exposure import Exposure, Propensity
from eval.protocols.user_profiles import History
from eval.rankers import Row, VectorRow
from eval.search import Index, build_index
from eval.search.recall import check_found, only_found, recall_of_allowed, search_allowed
from siglip_jax.errors import UserError

LOGGED_LISTS = "logged-list re-ranking"
RETRIEVAL = "full-catalogue retrieval, logged queries"
LEAVE_ONE_OUT = "leave-one-out, user profiles against the catalogue"
TIME_SPLIT = "time split, user profiles against the catalogue"
LOGGED_ORDER = "logged order"
_BLOCK = 1 << 21  # candidates scored at once
_UNCUT_DEPTH = 100  # how far an approximate index is asked where a metric has no cutoff


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is computed of each ranking; as for `eval.metrics.ranking.rank_metrics`."""

    metrics: Sequence[str]
    gain: str = "exponential"
    ties: str = "expected"
    relevant_from: float = 1
    max_grade: float | None = None

    def of(self, scores: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        return rank_metrics(
            scores,
            labels,
            mask,
            metrics=self.metrics,
            gain=self.gain,
            ties=self.ties,
            relevant_from=self.relevant_from,
            max_grade=self.max_grade,
        )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One row of the comparison over q queries.

    Attributes:
      metrics: {report name: float64 [q]}, NaN where the query has nothing relevant.
      tied: bool [q], equal scores within or across the deepest cutoff.
      index_recall: float64 [q], share of the exact best that an approximate index found; None if exact.
      exposure: see `eval.protocols.exposure.Exposure.result`; None where not computed.
    """

    metrics: dict[str, np.ndarray]
    tied: np.ndarray
    index_recall: np.ndarray | None = None
    exposure: dict[str, Any] | None = None


class Sink(Protocol):
    """Takes each block of rankings, to write them as TREC runs, say."""

    def __call__(self, row: str, queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> None:
        """queries int64 [b]; candidates int64 [b, k], -1 where none; scores real [b, k]."""


def rerank_lists(
    queries: Queries,
    rows: Sequence[Row],
    *,
    measures: Measures,
    propensity: Propensity | None = None,
    sink: Sink | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Ranked]:
    """Protocol "logged-list re-ranking": {row name: Ranked}, "logged order" first where the log has positions.

    A list that misses the position of any item has no logged order (NaN).

    Args:
      queries: candidates are rows of the catalogue.
      propensity: for the position-weighted column, None to leave it out.
      progress: called with (queries done, q).
    """
    _check_names(rows, LOGGED_ORDER)
    placed = bool((queries.positions >= 0).any())
    names = [*([LOGGED_ORDER] if placed else []), *(row.name for row in rows)]
    collected = {name: _Collected(len(queries), measures) for name in names}
    exposures = {name: Exposure(propensity, measures.metrics, measures.ties) for name in names if propensity}
    for lo, hi in _blocks(queries.lengths):
        candidates, gains, positions = queries.padded(lo, hi)
        mask = candidates >= 0
        at = np.arange(lo, hi)
        for name, row in ((LOGGED_ORDER, None), *((row.name, row) for row in rows)):
            if name not in collected:
                continue
            if row is None:
                scores = np.where(mask, -positions.astype(np.float32), np.float32(-np.inf))
                unplaced = np.asarray((mask & (positions < 0)).any(axis=1))
            else:
                scores, unplaced = row.scores(queries.items[lo:hi], candidates), np.zeros(hi - lo, bool)
            collected[name].take(at, scores, gains, mask, undefined=unplaced)
            if propensity:
                known = np.where(unplaced[:, None], -1, positions)
                exposures[name].add(scores, gains, known, mask)
            if sink is not None:
                sink(name, at, np.where(unplaced[:, None], -1, candidates), scores)
        if progress is not None:
            progress(hi, len(queries))
    results = {name: exposures[name].result() if propensity else None for name in names}
    return {name: collected[name].ranked(exposure=results[name]) for name in names}


def rank_live(
    queries: Queries,
    rows: Sequence[Row],
    *,
    live: Live,
    measures: Measures,
    history: History | None = None,
    sink: Sink | None = None,
    sink_depth: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Ranked]:
    """The protocols against the whole catalogue: {row name: Ranked}, exact.

    Candidates of a query are the items live at its time, without the query item itself or, with a history, without
    what the user has seen. Its gains must be of such items: see `reachable`.

    Args:
      queries: candidates are rows of the catalogue; only those with a gain matter.
      history: of each query, where queries are users; a profile's score of an item is the mean over the profile.
      sink_depth: how many of the best each ranking hands to `sink`.
    """
    _check_names(rows)
    n = len(live.since)
    collected = {row.name: _Collected(len(queries), measures) for row in rows}
    step = max(1, _BLOCK // max(1, n))
    for lo in range(0, len(queries), step):
        at = np.arange(lo, min(lo + step, len(queries)))
        labels, mask = dense_labels(queries, at, n), allowed(queries, at, live, history)
        for row in rows:
            scores = query_scores(row, queries, at, history, n)
            collected[row.name].take(at, scores, labels, mask)
            if sink is not None:
                best = select_top(np.where(mask, scores, np.float32(-np.inf)), min(sink_depth, n))
                sink(row.name, at, np.where(best.values > -np.inf, best.columns, -1), best.values)
        if progress is not None:
            progress(int(at[-1]) + 1, len(queries))
    return {row.name: collected[row.name].ranked() for row in rows}


def rank_live_indexed(
    queries: Queries,
    row: VectorRow,
    *,
    live: Live,
    measures: Measures,
    options: Mapping[str, Any],
    history: History | None = None,
    index: Index | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ranked:
    """As `rank_live`, by an approximate index over all items; what it does not return counts as not retrieved.

    The index knows nothing of times: it is asked for more until enough of what it returns is allowed. Metrics without
    a cutoff look at the first 100.

    Args:
      options: of `eval.search.index_builder.build_index` for ScaNN.
      index: built from the row's vectors already.

    Raises:
      UserError: the index returned what is no neighbour (`eval.search.recall.check_found`), ScaNN is not installed.
    """
    n = len(live.since)
    if index is None:
        index = build_index(row.vectors(), [str(i) for i in range(n)], backend="scann", **options)
    deepest = min(n, max(1, max_cutoff(measures.metrics)))
    depth = min(n, max(deepest, _UNCUT_DEPTH if has_uncut(measures.metrics) else 0))
    collected, recall = _Collected(len(queries), measures), np.empty(len(queries))
    step = max(1, _BLOCK // max(1, n))
    for lo in range(0, len(queries), step):
        at = np.arange(lo, min(lo + step, len(queries)))
        labels, mask = dense_labels(queries, at, n), allowed(queries, at, live, history)
        exact = query_scores(row, queries, at, history, n)
        asked = row.scorer.rows(queries.items[at]) if history is None else history.profiles(row.scorer, at)
        rows, scores = search_allowed(index, asked, mask, k=depth)
        # A profile's exact score is the mean of cosines, the index's the cosine to the mean: scaled by its norm.
        scale = None if history is None else history.norms(row.scorer, at)
        check_found(rows, scores if scale is None else scores * scale[:, None], exact)
        recall[at] = recall_of_allowed(rows, np.where(mask, exact, -np.inf), k=deepest)
        collected.take(at, only_found(rows, scores, n), labels, mask)
        if progress is not None:
            progress(int(at[-1]) + 1, len(queries))
    return collected.ranked(index_recall=recall)


def reachable(queries: Queries, live: Live, history: History | None = None) -> Queries:
    """Without the gains that no ranking could earn, since the item is not among the candidates; counted."""
    alive = live.pairs(queries.candidates, queries.times[queries.owner])
    queries = queries.drop(~alive, reason="not live at query time")
    if history is not None and len(queries.candidates):
        queries = queries.drop(history.has_seen(queries.owner, queries.candidates), reason="seen before")
    return queries


def allowed(queries: Queries, at: np.ndarray, live: Live, history: History | None) -> np.ndarray:
    """Who is a candidate: bool [b, n]."""
    mask = live.at(queries.times[at])
    asked = np.flatnonzero(queries.items[at] >= 0)
    mask[asked, queries.items[at][asked]] = False
    if history is not None:
        for place, query in enumerate(at):
            mask[place, history.seen_of(query)] = False
    return mask


def dense_labels(queries: Queries, at: np.ndarray, n: int) -> np.ndarray:
    """Gains of all items: float32 [b, n]; `at` is a run of queries."""
    labels = np.zeros((len(at), n), np.float32)
    part = slice(queries.starts[at[0]], queries.starts[at[-1] + 1])
    labels[np.repeat(np.arange(len(at)), queries.lengths[at]), queries.candidates[part]] = queries.gains[part]
    return labels


def query_scores(row: Row, queries: Queries, at: np.ndarray, history: History | None, n: int) -> np.ndarray:
    """float32 [b, n], of query items or profiles."""
    return row.scores(queries.items[at]) if history is None else history.scores(row, at, n=n)


class _Collected:
    def __init__(self, queries: int, measures: Measures):
        self._measures, self._tied = measures, np.zeros(queries, bool)
        self._values = {name: np.full(queries, np.nan) for name in measures.metrics}
        self._deepest = max(1, max_cutoff(measures.metrics))

    def take(
        self,
        at: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray,
        *,
        undefined: np.ndarray | None = None,
    ) -> None:
        tied = has_ties(scores, mask, k=self._deepest)
        for name, values in self._measures.of(scores, labels, mask).items():
            self._values[name][at] = values if undefined is None else np.where(undefined, np.nan, values)
        self._tied[at] = tied if undefined is None else tied & ~undefined

    def ranked(self, **more: Any) -> Ranked:
        named = {report_name(name, gain=self._measures.gain): values for name, values in self._values.items()}
        return Ranked(named, self._tied, **more)


def _blocks(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of queries whose padded lists have about _BLOCK places."""
    lo = longest = 0
    for i, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if i > lo and longest * (i + 1 - lo) > _BLOCK:
            yield lo, i
            lo, longest = i, length
    if lo < len(lengths):
        yield lo, len(lengths)


def _check_names(rows: Sequence[Row], *taken: str) -> None:
    names = [*taken, *(row.name for row in rows)]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two rows are named {repeated!r}: give each a name of its own")
