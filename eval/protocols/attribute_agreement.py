"""Protocol "full-catalogue retrieval, attribute agreement": every item is a query against all the others.

Relevance comes from the catalogue's own attributes (`eval.protocols.relevance`). Exact scores are the headline; the
same vectors through ScaNN are a row of their own, since an approximate index moves the metric by more than a better
encoder does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from eval.metrics import has_ties, mean_metrics, rank_metrics
from eval.metrics.ranking import has_uncut, max_cutoff, report_name, select_top
from eval.rankers import Row, VectorRow
from eval.search import build_index
from eval.search.index_builder import BACKENDS, recall_of, without_self
from eval.search.recall import check_found, only_found
from eval.statistics import bootstrap_columns, difference_columns
from eval.statistics.bootstrap import Interval
from siglip_jax.errors import UserError

DEFAULT_METRICS = ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10")
_UNCUT_DEPTH = 100


class Relevance(Protocol):
    """Graded relevance of n items for each other; `eval.protocols.relevance.AttributeRelevance` is one."""

    def __len__(self) -> int: ...

    def labels(self, query_rows: slice | np.ndarray) -> np.ndarray:
        """Labels >= 0 of all items for the query items: [query, n]."""


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
    ranker: np.ndarray | Row,
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
    row: Row = VectorRow("", ranker) if isinstance(ranker, np.ndarray) else ranker
    if not metrics:
        raise UserError('no metric to rank by: expected at least one, such as "nDCG@5"')
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: known are {', '.join(BACKENDS)}")
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
        if not isinstance(row, VectorRow):
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


def compare_rows(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    clusters: np.ndarray | None = None,
    tied: Mapping[str, np.ndarray] | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The comparison table: means with intervals per row, paired differences per pair; JSON values only (NaN is None).

    Args:
        rows: {row name: {metric: float64 [query]}}, all with the same metrics over the same queries.
        pairs: (a, b) row names to report a - b for, the new one first.
        clusters: [query] cluster to resample by (title group, user); None resamples queries.
        tied: {row name: bool [query]} for the tie rate, where known.
        samples, confidence, seed: of the bootstrap and the sign-flip test.

    Returns:
        {"queries", "clusters", "samples", "confidence", "seed", "metrics": [name],
         "rows": [{"name", "tie_rate", "metrics": {name: {"mean", "low", "high", "queries", "left_out",
            "effective_clusters", "standard_error"}}}],
         "differences": [{"a", "b", "metric", "p", "relative", and what a metric of a row has}]}, one per pair and
        metric; "relative" is the mean of a - b over the mean of b on the queries both have.

    Raises:
        UserError: no row, no metric, rows of other metrics or lengths, an unknown row in `pairs` or `tied`.
    """
    if not rows:
        raise UserError("nothing to compare: expected at least one row of metrics")
    first, reference = next(iter(rows.items()))
    names = list(reference)
    if not names:
        raise UserError(f"row {first!r} has no metric: expected at least one to compare")
    queries = len(next(iter(reference.values()), ()))
    for row, values in rows.items():
        if list(values) != names or any(np.shape(column) != (queries,) for column in values.values()):
            raise UserError(f"rows {first!r} and {row!r} differ in metrics or queries: compare results of one run")
    for row in [*(row for pair in pairs for row in pair), *(tied or {})]:
        if row not in rows:
            raise UserError(f"unknown row {row!r}: rows are {', '.join(rows)}")

    options = {"clusters": clusters, "samples": samples, "confidence": confidence, "seed": seed}
    table = {row: np.stack([values[name] for name in names], axis=1) for row, values in rows.items()}
    intervals = iter(bootstrap_columns(np.concatenate(list(table.values()), axis=1), **options))  # type: ignore[arg-type]
    out: dict[str, Any] = {
        "queries": queries,
        "clusters": queries if clusters is None else len(np.unique(clusters)),
        "samples": samples,
        "confidence": confidence,
        "seed": seed,
        "metrics": names,
        "rows": [
            {
                "name": row,
                "tie_rate": float(np.mean(tied[row])) if tied is not None and row in tied else None,
                "metrics": {name: _plain(next(intervals)) for name in names},
            }
            for row in table
        ],
        "differences": [],
    }
    if pairs:
        columns = np.concatenate([table[a] - table[b] for a, b in pairs], axis=1)
        differences = iter(difference_columns(columns, **options))  # type: ignore[arg-type]
        for a, b in pairs:
            both = {name: np.where(np.isnan(rows[a][name]), np.nan, rows[b][name]) for name in names}
            for name, against in mean_metrics(both).items():
                difference = next(differences)
                relative = difference.mean / against["mean"] if against["mean"] else float("nan")
                cell = {"a": a, "b": b, "metric": name, **_plain(difference), "relative": _number(relative)}
                out["differences"].append(cell)
    return out


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


def _plain(interval: Interval) -> dict[str, Any]:
    """JSON values of an interval; "clusters" is said once for the table."""
    return {key: _number(value) for key, value in vars(interval).items() if key != "clusters"}


def _number(value: float) -> float | int | None:
    return None if np.isnan(value) else value
