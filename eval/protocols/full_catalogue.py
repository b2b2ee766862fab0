"""The protocols that ask for the best of the whole catalogue.

* full-catalogue retrieval, logged queries: the query item against all items live then; what nobody could tap, since it
  was not shown, counts as not relevant.
* leave-one-out and time split, user profiles (`eval.protocols.user_profiles`): a user's earlier items against all items
  not yet seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.logs import Live, Queries
from eval.metrics.metric_names import has_uncut, max_cutoff
from eval.metrics.topk import select_top
from eval.protocols.measures import BLOCK, Collected, Measures, Ranked, Sink, check_row_names
from eval.protocols.user_profiles import History
from eval.rankers import Ranker, VectorRanker
from eval.search import Index, build_index
from eval.search.recall import check_found, only_found, recall_of_allowed, search_allowed

_UNCUT_DEPTH = 100  # how far an approximate index is asked where a metric has no cutoff


def rank_live(
    queries: Queries,
    rows: Sequence[Ranker],
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
    check_row_names(rows)
    n = len(live.since)
    collected = {row.name: Collected(len(queries), measures) for row in rows}
    step = max(1, BLOCK // max(1, n))
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
    row: VectorRanker,
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
    collected, recall = Collected(len(queries), measures), np.empty(len(queries))
    step = max(1, BLOCK // max(1, n))
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


def query_scores(row: Ranker, queries: Queries, at: np.ndarray, history: History | None, n: int) -> np.ndarray:
    """float32 [b, n], of query items or profiles."""
    return row.scores(queries.items[at]) if history is None else history.scores(row, at, n=n)
