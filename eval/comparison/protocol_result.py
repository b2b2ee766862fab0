"""What every protocol gives: the metrics of each ranker and query, and what a report says of the queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.comparison.index_columns import SearchOptions
from eval.protocols import Ranked, RankingProtocol
from eval.protocols.first_lists import FirstLists, Several
from eval.protocols.measures import Sink
from eval.rankers import Ranker, VectorRanker
from eval.statistics import Slicing
from input_pipeline.progress import progress
from siglip_jax.errors import UserError

LISTED = 10  # first items of a ranking that coverage and variety are measured on


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class QuerySet:
    """The q queries of a protocol, for intervals, slices and whoever wants to look.

    Attributes:
      clusters: {way: [q]}, such as of "title", or of "user" and "query_item": queries of one number are no independent
        evidence. The first way also tells examples apart.
      columns: {name: [q]}, what is known of each query. Every protocol has query_id, query_item (an id, "" where the
        query is a profile), query_item_row (-1 then) and candidates (how many).
      slicings: of the queries.
      trend: of the queries by time, its labels in that order; None where they have no times.
    """

    clusters: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    slicings: Sequence[Slicing] = ()
    trend: Slicing | None = None

    def clustered_by(self, names: Sequence[str]) -> QuerySet:
        """The same with other ways, where any are named: names of `clusters` or of `columns`.

        A query without a value ("") depends on no other.

        Raises:
          UserError: no such column.
        """
        chosen: dict[str, np.ndarray] = {}
        for name in names:
            if name not in self.clusters and name not in self.columns:
                known = ", ".join(dict.fromkeys([*self.clusters, *self.columns]))
                raise UserError(f"--cluster={name}: queries have no such column; expected some of {known}")
            chosen[name] = self.clusters[name] if name in self.clusters else own_where_missing(self.columns[name])
        return dataclasses.replace(self, clusters=chosen or self.clusters)


def own_where_missing(values: np.ndarray) -> np.ndarray:
    """Codes int64 [q] of values [q]; those that are "" or -1 each get one of their own."""
    values = np.asarray(values)
    text = values.astype(str)
    codes = np.unique(text, return_inverse=True)[1].reshape(-1).astype(np.int64)
    missing = (text == "") | (text == "-1")
    codes[missing] = len(codes) + np.arange(int(missing.sum()))
    return codes


@dataclasses.dataclass(frozen=True)
class ReportParts:
    """What only the protocol knows of its report, see `eval.report.report_page`.

    Attributes:
      head: entries on what was ranked, before the comparison.
      tail: entries after it, such as the counts of a log. Head or tail has "warnings" and "missing".
      of_ranker: {ranker: more entries of its line}.
      source: where the data comes from, for the provenance.
    """

    head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tail: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_ranker: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ProtocolResult:
    """What one protocol measured of every ranker.

    Attributes:
      exact: {ranker: what it measures}, over all items.
      indexed: the same by an approximate index, of the rankers that have vectors.
      search: how that index was asked.
      first_lists: {ranker: int32 [q, LISTED]}, the first items of each ranking, -1 where there are fewer; none where
        candidates are given.
      attributes: {name: value of each item}, to measure the variety of these lists by.
      popularity: [item] interactions before the queries, to measure their novelty by; None where nothing was counted.
    """

    protocol: RankingProtocol
    queries: QuerySet
    exact: Mapping[str, Ranked]
    indexed: Mapping[str, Ranked]
    search: SearchOptions
    first_lists: Mapping[str, np.ndarray]
    attributes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    popularity: np.ndarray | None = None
    parts: ReportParts = ReportParts()

    @property
    def metrics(self) -> dict[str, dict[str, np.ndarray]]:
        """{ranker: {report name: float64 [q]}}."""
        return {name: ranked.metrics for name, ranked in self.exact.items()}

    @property
    def tied(self) -> dict[str, np.ndarray]:
        """{ranker: bool [q]}."""
        return {name: ranked.tied for name, ranked in self.exact.items()}

    @property
    def values(self) -> dict[str, np.ndarray]:
        """{ranker: float64 [q]}, of the primary metric."""
        return {name: ranked.metrics[self.protocol.measures.primary] for name, ranked in self.exact.items()}

    @property
    def unanswerable(self) -> int:
        """Queries without a value of the first ranker, since nothing is relevant."""
        return int(np.isnan(next(iter(self.values.values()))).sum())


def run_protocol(
    protocol: RankingProtocol,
    rankers: Iterable[Ranker],
    queries: QuerySet,
    *,
    search: SearchOptions | None = None,
    sinks: Sequence[tuple[Sink, int]] = (),
) -> ProtocolResult:
    """Ranks with every ranker, exactly and by an index, and keeps the first items of each ranking.

    Args:
      search: how an approximate index is asked, where the protocol has something to search; None for not at all.
      sinks: (what else takes the rankings, how many results of each).
    """
    rankers = list(rankers)
    search = SearchOptions() if search is None or not protocol.whole_catalogue else search
    first = FirstLists(len(protocol), k=LISTED)
    sink = Several(*([(first, LISTED)] if protocol.whole_catalogue else []), *sinks)
    watch = _Watch(protocol.name, len(protocol))
    exact = protocol.rank(rankers, sink=sink, sink_depth=sink.depth, progress=watch)
    watch.close()
    indexed: dict[str, Ranked] = {}
    for ranker in rankers:
        if search.scann is not None and isinstance(ranker, VectorRanker):
            ranked = protocol.rank_indexed(ranker, search.scann)
            if ranked is not None:
                indexed[ranker.name] = ranked
    return ProtocolResult(
        protocol=protocol, queries=queries, exact=exact, indexed=indexed, search=search, first_lists=first.lists
    )


class _Watch:
    """Progress of a protocol, which tells how many queries are done."""

    def __init__(self, label: str, total: int):
        self._done, self._bar = 0, iter(progress(iter(int, 1), total=total, label=label, unit="queries"))

    def __call__(self, done: int, _: int) -> None:
        while self._done < done:
            next(self._bar)
            self._done += 1

    def close(self) -> None:
        self._bar.close()  # type: ignore[attr-defined]
