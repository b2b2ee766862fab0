"""Protocol "full-catalogue retrieval, attribute agreement": every item is a query against all the others.

Relevance comes from the catalogue's own attributes (`eval.protocols.relevance`). Exact scores are the headline; the
same vectors through ScaNN are a row of their own, since an approximate index moves the metric by more than a better
encoder does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics import has_ties, rank_metrics, report_name
from eval.metrics.metric_names import has_uncut, max_cutoff
from eval.metrics.topk import select_top
from eval.protocols.relevance import Relevance
from eval.rankers import Ranker, VectorRanker
from eval.search import build_index
from eval.search.index_builder import BACKENDS
from eval.search.recall import check_found, only_found, recall_of, without_self
from siglip_jax.errors import UserError, check_choice

DEFAULT_METRICS = ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10")
_UNCUT_DEPTH = 100


@dataclass(frozen=True)
class Shown:
    """Neighbours kept for people to look at."""

    queries: np.ndarray  # int64 [shown], item rows
    rows: np.ndarray  # int64 [shown, depth], nearest first, the query itself left out; -1 where none
    scores: np.ndarray  # float32 [shown, depth], cosine
    labels: np.ndarray  # [shown, depth], relevance of each neighbour


@dataclass(frozen=True)
class CatalogueRanking:
    """One row of the comparison: one embedding, one backend."""

    metrics: dict[str, np.ndarray]  # {report name: float64 [n]}, NaN where the item has nothing relevant
    tied: np.ndarray  # bool [n], equal scores within or across the deepest cutoff
    index_recall: (
        np.ndarray | None
    )  # float64 [n], share of the exact neighbours an approximate index found; None if exact
    shown: Shown


def rank_catalogue(
    ranker: np.ndarray | Ranker,
    relevance: Relevance,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    gain: str = "exponential",
    ties: str = "expected",
    relevant_from: float = 1,
    max_grade: float | None = None,
    backend: str = "exact",
    index_options: Mapping[str, Any] | None = None,
    show: Sequence[int] = (),
    show_depth: int = 5,
    chunk: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> CatalogueRanking:
    """Ranks the whole catalogue for each of its items by cosine, the item itself left out, and measures each ranking.

    Items with byte-equal vectors (relisted pictures) score exactly equal, so the tie rule applies to them. With an
    approximate backend what the index does not return counts as not retrieved: ideal DCG and recall still know all
    relevant items. MRR, MAP and whatever else has no @k then look no further than the first 100 neighbours.

    Args:
      ranker: a row of the comparison over n >= 2 items, or its vectors, real [n, dimension], any norm but 0.
      relevance: of the same n items in the same order.
      metrics, gain, ties, relevant_from, max_grade: as for `eval.metrics.ranking.rank_metrics`; the names in the
      result are
          `report_name`'s (nDCG_exp@5 under the exponential gain).
      backend: "exact", or "scann" with `index_options` (mode, leaves, leaves_to_search, reorder).
      show: item rows whose first `show_depth` neighbours to return.
      chunk: queries scored at once; memory is about 30 bytes * chunk * n beside the vectors.
      progress: called with (queries done, n) after each chunk.

    Raises:
      UserError: sizes that differ, a NaN, infinite or zero vector, no metric, unknown options, ScaNN wanted and not
          installed.
    """
    n = len(relevance)
    if n < 2:
        raise UserError(f"{n} items: ranking them for each other needs 2 or more")
    if isinstance(ranker, np.ndarray) and (ranker.ndim != 2 or len(ranker) != n):
        raise UserError(f"vectors {list(ranker.shape)} for {n} items: expected [{n}, d]")
    row: Ranker = VectorRanker("", ranker) if isinstance(ranker, np.ndarray) else ranker
    if not metrics:
        raise UserError('no metric to rank by: expected at least one, such as "nDCG@5"')
    check_choice("backend", backend, BACKENDS)
    if chunk < 1 or show_depth < 1:
        raise UserError(f"chunk={chunk}, show_depth={show_depth}: expected at least 1")
    shown = np.asarray(show, np.int64)
    if shown.size and not (shown.min() >= 0 and shown.max() < n):
        raise UserError(f"rows to show {shown.tolist()}: expected rows from 0 to {n - 1}")
    if backend == "exact" and index_options:
        raise UserError(f"index option {next(iter(index_options))!r}: the exact backend takes none")

    deepest = min(max(1, max_cutoff(metrics)), n - 1)
    index = scorer = None
    if backend != "exact":
        if not isinstance(row, VectorRanker):
            raise UserError(f"row {row.name!r} has no vectors to index: rank it with the exact backend")
        scorer = row.scorer
        index = build_index(row.vectors(), [str(row) for row in range(n)], backend=backend, **(index_options or {}))
    depth = min(n - 1, max(deepest, show_depth, _UNCUT_DEPTH if has_uncut(metrics) else 0))

    per_query = {name: np.empty(n) for name in metrics}
    tied, recall = np.empty(n, bool), np.empty(n)
    kept = _Keeper(shown, show_depth)
    for lo in range(0, n, chunk):
        rows = np.arange(lo, min(lo + chunk, n))
        own = (np.arange(len(rows)), rows)
        scores = row.scores(rows)
        if scores.shape != (len(rows), n):
            raise UserError(f"row {row.name!r} scores {scores.shape[1]} items: expected the {n} of the relevance")
        scores[own] = -np.inf
        labels = np.array(relevance.labels(slice(lo, lo + len(rows))))
        labels[own] = 0
        if index is not None and scorer is not None:
            found = without_self(index.search(scorer.rows(rows), k=depth + 1), rows)
            check_found(found.rows, found.scores, scores)
            recall[rows] = recall_of(found, scorer, rows, k=deepest, scores=scores)
            scores = only_found(found.rows, found.scores, n)
        for name, values in rank_metrics(
            scores,
            labels,
            metrics=metrics,
            ties=ties,
            gain=gain,
            relevant_from=relevant_from,
            max_grade=max_grade,
        ).items():
            per_query[name][rows] = values
        tied[rows] = has_ties(scores, k=deepest)
        kept.take(rows, scores, labels)
        if progress is not None:
            progress(len(rows) + lo, n)
    named = {report_name(name, gain=gain): values for name, values in per_query.items()}
    return CatalogueRanking(named, tied, None if index is None else recall, kept.shown())


class _Keeper:
    """Collects the neighbours of the rows to show while chunks pass by."""

    def __init__(self, show: np.ndarray, depth: int):
        self._show, self._depth = show, depth
        self._rows = np.full((len(show), depth), -1, np.int64)
        self._scores = np.full((len(show), depth), -np.inf, np.float32)
        self._labels = np.zeros((len(show), depth), np.float32)

    def take(self, rows: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
        here = np.flatnonzero((self._show >= rows[0]) & (self._show <= rows[-1]))
        if not here.size:
            return
        at = self._show[here] - rows[0]
        k = min(self._depth, scores.shape[1])
        top = select_top(scores[at], k)
        retrieved = top.values > -np.inf
        self._rows[here, :k] = np.where(retrieved, top.columns, -1)
        self._scores[here, :k] = top.values
        self._labels[here, :k] = np.where(retrieved, np.take_along_axis(labels[at], top.columns, axis=1), 0)

    def shown(self) -> Shown:
        return Shown(self._show, self._rows, self._scores, self._labels)
