"""The comparison over interaction logs: what shoppers did tells what is relevant."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from eval.comparison import log_notes
from eval.comparison.by_attributes import relevance_attributes
from eval.comparison.choose_rankers import RankersToCompare
from eval.comparison.index_columns import SearchOptions
from eval.comparison.log_task import LogTask
from eval.comparison.protocol_result import ProtocolResult, QuerySet, ReportParts, own_where_missing, run_protocol
from eval.logs import Queries
from eval.logs.log_times import iso
from eval.protocols import LoggedLists
from eval.protocols.measures import Sink
from eval.protocols.off_policy.chance_lists import chance_lists
from eval.protocols.query_slices import by_period, query_slicings
from eval.report.trec import TrecWriter
from eval.statistics import Slicing


@dataclasses.dataclass(frozen=True)
class TrecFiles:
    """A folder for TREC files, and how many results of each ranking they hold; a list that was shown is whole."""

    folder: str
    depth: int = 1000


def rank_over_logs(
    task: LogTask,
    compared: RankersToCompare,
    *,
    config: ml_collections.ConfigDict,
    search: SearchOptions | None = None,
    slicings: Sequence[Slicing] = (),
    cluster: Sequence[str] = (),
    trec: TrecFiles | None = None,
) -> ProtocolResult:
    """Ranks with every ranker under the protocol of the task.

    Args:
      compared: with the rankers that the log tells of, see `RankersToCompare.with_rankers_of_log`.
      config: `config.evaluation` names the attributes that the variety of lists is measured by.
      slicings: of the items, by which queries are sliced that have a query item.
      cluster: see `QuerySet.clustered_by`.
      trec: where to write the rankings; None for nowhere.

    Raises:
      UserError: TREC files that cannot be written, an index that returns what is no neighbour.
    """
    protocol, queries, items = task.protocol, task.queries, compared.items
    # Columns that --cluster names are read as segments are; slices by what depends on each other would say nothing.
    segments = {name: values for name, values in queries.segments.items() if name not in cluster}
    sliced = dataclasses.replace(queries, segments=segments)
    query_set = QuerySet(
        clusters=_clusters(queries),
        columns=_columns(task, items.ids),
        slicings=query_slicings(slicings, sliced, task.live, task.counted, first_seen=task.first_seen),
        trend=by_period(queries.times),
    ).clustered_by(cluster)
    with contextlib.ExitStack() as stack:
        sinks: list[tuple[Sink, int]] = []
        if trec:
            writer = TrecWriter(trec.folder, queries, names=task.query_names, items=items.ids, protocol=protocol.name)
            depth = trec.depth if protocol.whole_catalogue else sys.maxsize
            sinks.append((stack.enter_context(writer), depth))
        result = run_protocol(protocol, compared.rankers.values(), query_set, search=search, sinks=sinks)
    return dataclasses.replace(
        result,
        attributes={name: items.columns[name] for name in relevance_attributes(config) if name in items.columns},
        popularity=None if task.counted is None else task.counted.popularity(len(items.ids)),
        parts=_parts(task, compared, result),
    )


def _clusters(queries: Queries) -> dict[str, np.ndarray]:
    """Queries of one user, and queries for one item where items are asked for, are no independent evidence."""
    items = {"query_item": own_where_missing(queries.items)} if (queries.items >= 0).any() else {}
    return {"user": queries.users, **items}


def _columns(task: LogTask, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """What is known of each query."""
    queries = task.queries
    return {
        **queries.segments,
        "query_id": queries.ids,
        "list_id": queries.list_ids,
        "user_id": task.users,
        "time": np.array([iso(time) for time in queries.times], object),
        "query_item": np.asarray([*ids, ""], object)[queries.items],  # -1 is the last, ""
        "query_item_row": queries.items,
        "candidates": task.protocol.candidate_counts(),
        "relevant": np.bincount(queries.owner[queries.gains > 0], minlength=len(queries)),
    }


def _parts(task: LogTask, compared: RankersToCompare, result: ProtocolResult) -> ReportParts:
    primary, users = task.protocol.measures.primary, task.queries.users
    means = {name: _mean_over_users(values, users) for name, values in result.values.items()}
    exposure = {name: ranked.exposure for name, ranked in result.exact.items() if ranked.exposure}
    return ReportParts(
        head=_head(task, result, items=len(compared.items.ids)),
        tail={
            "warnings": [
                *compared.items.warnings(),
                *log_notes.of_simulated(task.queries),
                *log_notes.of_heavy(task.queries, task.heavy),
            ],
            "missing": compared.items.missing,
            "notes": [
                *_notes(task, compared, result),
                *_exposure_notes(task, exposure),
                log_notes.of_users(primary, means),
            ],
            "row_notes": log_notes.of_logged_order(list(result.exact), randomised=_all_random(task)),
            "log": _log(task, sizes=result.queries.columns["candidates"]),
            "exposure": exposure,
        },
        of_ranker={name: {"mean_over_users": {primary: mean}} for name, mean in means.items()},
    )


def _head(task: LogTask, result: ProtocolResult, *, items: int) -> dict[str, Any]:
    measures, sizes = task.protocol.measures, result.queries.columns["candidates"]
    left_out = result.unanswerable
    if not task.protocol.whole_catalogue:  # the logged order may lack more
        left_out = int((result.queries.columns["relevant"] == 0).sum())
    return {
        "relevance": [],
        "actions": task.gains,
        "relevant_from": measures.relevant_from,
        "max_grade": measures.needed_max_grade,
        "queries": len(task.queries) - left_out,
        "items": items,
        "list_length": {"min": sizes.min(), "median": np.median(sizes), "mean": sizes.mean(), "max": sizes.max()},
        "users": len(np.unique(task.queries.users)),
        "left_out": left_out,
    }


def _notes(task: LogTask, compared: RankersToCompare, result: ProtocolResult) -> list[str]:
    """Every count that a reader needs to judge the numbers, as sentences."""
    columns, window = result.queries.columns, task.window
    absent = [name for name in compared.of_log if name not in compared.rankers]
    return [
        *log_notes.of_log(task.counts, task.key, since=window.since, until=window.until, training=task.training),
        *log_notes.of_queries(
            task.queries, columns["candidates"], columns["relevant"], live=task.live, protocol=task.key
        ),
        log_notes.of_leakage(task.leaked.found, by=task.leaked.by),
        *log_notes.of_absent(absent),
    ]


def _exposure_notes(task: LogTask, exposure: Mapping[str, dict[str, Any]]) -> list[str]:
    """Only where lists were shown are there positions to weigh by."""
    protocol = task.protocol
    if not isinstance(protocol, LoggedLists) or protocol.propensity is None:
        return []
    _, why_not = chance_lists(task.queries)
    return [
        *log_notes.of_exposure(exposure, protocol.measures.metrics[0], protocol.propensity),
        *log_notes.of_chance(why_not),
    ]


def _log(task: LogTask, *, sizes: np.ndarray) -> dict[str, Any]:
    """The report's counts of the log; sizes: [q], of the candidates."""
    return {
        **task.counts,
        "queries_left_out": dict(task.queries.left_out),
        "candidates_dropped": {reason: dict(counts) for reason, counts in task.queries.dropped.items()},
        "list_length": log_notes.five_numbers(sizes),
        "heavy_users": task.heavy,
        "live": task.live.rule,
        "leaked": None if task.leaked.found is None else len(task.leaked.found),
    }


def _all_random(task: LogTask) -> bool:
    """Whether chance put every list in its order."""
    randomised = task.queries.randomised
    return randomised is not None and bool(randomised.all())


def _mean_over_users(values: np.ndarray, users: np.ndarray) -> float:
    """Mean over users of each one's mean over queries; values: float64 [q], NaN where there is none."""
    known = ~np.isnan(values)
    _, code = np.unique(users[known], return_inverse=True)
    return float((np.bincount(code, values[known]) / np.bincount(code)).mean()) if known.any() else float("nan")
