"""The comparison over interaction logs: rows over one catalogue and a log in, per-query figures and the report out."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from eval.checks import check_queries
from eval.comparison import log_notes
from eval.comparison.by_attributes import LISTED, relevance_attributes
from eval.comparison.choose_rankers import Rows
from eval.comparison.comparison_table import compare_rows
from eval.comparison.conclusions import beyond_table, conclude
from eval.comparison.dimension_ladder import measure_ladder
from eval.comparison.index_columns import index_columns
from eval.logs import LogFormat, read_log
from eval.logs.live_items import live_items
from eval.logs.log_times import iso
from eval.logs.queries import heavy_users
from eval.metrics.metric_names import max_cutoff, needs_max_grade
from eval.protocols import Measures, Ranked, rank_live, rerank_lists, user_profiles
from eval.protocols.exposure import Propensity
from eval.protocols.first_lists import FirstLists, Several
from eval.protocols.full_catalogue import allowed, rank_live_indexed, reachable
from eval.protocols.measures import Sink
from eval.protocols.prepare_queries import PROTOCOLS, Window, prepare, query_slicings, rows_of_log
from eval.rankers import VectorRanker
from eval.report.example_queries import largest_changes
from eval.report.log_examples import log_examples
from eval.report.trec import TrecWriter, query_names
from eval.statistics import Slicing, measure_slices
from input_pipeline.progress import progress
from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured of q queries, for the report, for slices and for whoever wants to look.

    Attributes:
      report: as `eval.report.report_page` takes it.
      metrics: {row: {metric: float64 [q]}}.
      tied: {row: bool [q]}.
      clusters: [q], the users, whom the bootstrap draws.
      queries: {column: [q]}: query_id, list_id, user_id, time (ISO), query_item ("" where it is a profile),
        query_item_row (-1 then), candidates (how many), relevant (how many).
    """

    report: dict[str, Any]
    metrics: dict[str, dict[str, np.ndarray]]
    tied: dict[str, np.ndarray]
    clusters: np.ndarray
    queries: dict[str, np.ndarray]


def rank_logs(
    logs: Sequence[str],
    *,
    protocol: str,
    compared: Rows,
    config: ml_collections.ConfigDict,
    form: LogFormat,
    title: str,
    window: Window | None = None,
    leaked: Mapping[str, str] | None = None,
    leaked_by: str = "id, picture or title",
    leakage: str = "refuse",
    scann: Mapping[str, Any] | None = None,
    allow_low_recall: bool = False,
    slicings: Sequence[Slicing] = (),
    changes: int = 6,
    trec: str = "",
    trec_depth: int = 1000,
    provenance: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Comparison:
    """Ranks with every row under one protocol.

    Args:
      logs: files or folders.
      protocol: a key of PROTOCOLS.
      compared: the rows and the catalogue.
      window: of the log.
      leaked: items that training saw, see `in_training`; None where nobody looked.
      leaked_by: what of the items was looked for there, in words.
      leakage: "refuse" such items, or "drop" them as queries and candidates.
      scann: options of the ScaNN column, None to leave it out.
      slicings: of the catalogue's items, by which queries are sliced that have a query item.
      allow_low_recall: show the ScaNN column though its recall is under 0.98.
      trec: folder for TREC files, "" for none.

    Raises:
      UserError: whatever makes the numbers not mean what they say.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
    items, new = compared.catalogue, compared.new
    options, window = config.evaluation, (window or Window()).checked()
    if leaked and leakage != "drop":
        shown = ", ".join(f"{item!r} ({why})" for item, why in list(leaked.items())[:10])
        raise UserError(
            f"{len(leaked)} evaluation items are in the training split by id, picture or title: {shown}"
            f"{', ...' if len(leaked) > 10 else ''}; leave them out with --leakage=drop"
        )
    worth = form.gains()
    measures = Measures(
        tuple(options.metrics), options.gain, "expected", options.relevant_from, max_grade=max(worth.values())
    )
    deepest = max(1, max_cutoff(measures.metrics))
    propensity = Propensity(options.propensity_power, options.propensity_clip)
    n = len(items.ids)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(read_log(logs, items=items.ids, form=form))
        live = live_items(items.columns, items.ids, live_from=options.live_from, live_until=options.live_until, log=log)
        kept = ~np.isin(np.asarray(items.ids), np.asarray(list(leaked or ()), str))
        live = dataclasses.replace(live, until=np.where(kept, live.until, live.since))  # never, where it is leaked
        prepared = prepare(log, protocol, options, window, kept)
        queries, history = prepared.queries, prepared.history
        if protocol != "logged_lists":
            queries = reachable(queries, live, history)
        of_log = rows_of_log(compared.of_log, prepared.counted, n)
        absent = [name for name in compared.of_log if name not in of_log]
        random = {name: row for name, row in compared.rows.items() if name == "random"}
        rows = {**random, **of_log, **compared.rows}
        against = compared.against if compared.against in rows else [name for name in rows if name != new][-1]
        names = log.user_names()[queries.users]
        if history is not None:
            queries = dataclasses.replace(queries, ids=names)
        called = query_names(queries)
        check_queries(called)
        first = FirstLists(len(queries), k=LISTED)
        sinks: list[tuple[Sink, int]] = [] if protocol == "logged_lists" else [(first, LISTED)]
        if trec:
            writer = TrecWriter(trec, queries, names=called, items=items.ids, protocol=PROTOCOLS[protocol])
            # Of a list that was shown a run has every item.
            sinks.append((stack.enter_context(writer), sys.maxsize if protocol == "logged_lists" else trec_depth))
        sink = Several(*sinks) if sinks else None
        watch = _Watch(PROTOCOLS[protocol], len(queries))
        if protocol == "logged_lists":
            ranked = rerank_lists(
                queries, list(rows.values()), measures=measures, propensity=propensity, sink=sink, progress=watch
            )
        else:
            ranked = rank_live(
                queries,
                list(rows.values()),
                live=live,
                measures=measures,
                history=history,
                sink=sink,
                sink_depth=LISTED if sink is None else sink.depth,
                progress=watch,
            )
        watch.close()
        approximate: dict[str, Ranked] = {}
        if scann is not None and protocol != "logged_lists":
            for row in rows.values():
                if isinstance(row, VectorRanker):
                    approximate[row.name] = rank_live_indexed(
                        queries, row, live=live, measures=measures, options=scann, history=history
                    )
        heavy = heavy_users(log)
        counts = dict(log.counts)

    if protocol == "logged_lists":
        sizes = queries.lengths
    else:
        step = max(1, (1 << 22) // n)
        blocks = (np.arange(lo, min(lo + step, len(queries))) for lo in range(0, len(queries), step))
        sizes = np.concatenate([allowed(queries, at, live, history).sum(axis=1) for at in blocks])
    relevant = np.bincount(queries.owner[queries.gains > 0], minlength=len(queries))
    per_row = {name: result.metrics for name, result in ranked.items()}
    tied = {name: result.tied for name, result in ranked.items()}
    others = [name for name in reversed(list(ranked)) if name not in (new, against)]
    others = [against, *sorted(others, key=lambda name: name.startswith(f"{new}, "))]  # its own reductions last
    table = compare_rows(
        per_row, pairs=[(new, other) for other in others], clusters=queries.users, tied=tied, seed=seed
    )
    said = conclude(table, per_row, new=new, against=against, clusters=queries.users, seed=seed)
    indexed = index_columns(ranked, approximate, allow_low_recall=allow_low_recall, clusters=queries.users, seed=seed)
    primary = table["metrics"][0]
    left_out = table["rows"][0]["metrics"][primary]["left_out"]
    if protocol == "logged_lists":  # the logged order may lack more
        left_out = int((relevant == 0).sum())

    notes = [
        *log_notes.of_log(counts, protocol, since=window.since, until=window.until, training=prepared.training),
        *log_notes.of_queries(queries, sizes, relevant, live=live, protocol=protocol),
        log_notes.of_leakage(leaked, by=leaked_by),
        *log_notes.of_absent(absent),
    ]
    warnings = [
        *items.warnings(),
        *log_notes.of_simulated(queries),
        *log_notes.of_heavy(queries, heavy),
        *log_notes.of_refused(indexed.refused, k=deepest),
    ]
    exposure = {name: result.exposure for name, result in ranked.items() if result.exposure}
    if protocol == "logged_lists":
        notes += log_notes.of_exposure(exposure, measures.metrics[0], propensity)
    users_means = {name: _mean_over_users(values[primary], queries.users) for name, values in per_row.items()}
    notes.append(log_notes.of_users(primary, users_means))

    def primary_of(vectors: np.ndarray) -> np.ndarray:
        row = VectorRanker("", vectors)
        if protocol == "logged_lists":
            return rerank_lists(queries, [row], measures=measures)[""].metrics[primary]
        return rank_live(queries, [row], live=live, measures=measures, history=history)[""].metrics[primary]

    clusters = {"clusters": queries.users, "seed": seed}
    ladders = [
        measure_ladder(
            compared.vectors[name], rungs, primary_of, row=name, metric=primary, full=per_row[name][primary],
            options=clusters,
        )
        for name, rungs in compared.ladders.items()
    ]  # fmt: skip
    beyond = None
    if first.lists:
        beyond = beyond_table(
            first.lists,
            items=n,
            k=LISTED,
            attributes={name: items.columns[name] for name in relevance_attributes(config) if name in items.columns},
            popularity=None if prepared.counted is None else user_profiles.popularity(*prepared.counted, n),
            clusters=queries.users,
            seed=seed,
        )
    values = {name: per_row[name][primary] for name in (against, new)}
    slicings = query_slicings(slicings, queries, live, prepared.counted, n)
    sliced = None
    if slicings:
        sliced = measure_slices(slicings, values[new], values[against], clusters=queries.users)
        sliced |= {"new": new, "base": against, "metric": primary}
    gains, losses = (
        log_examples(
            found, queries, {name: rows[name] for name in values if name in rows}, values,
            ids=items.ids, titles=items.titles, live=None if protocol == "logged_lists" else live,
        )
        for found in largest_changes(values[new], values[against], groups=queries.users, count=changes, seed=seed)
    )  # fmt: skip
    report = {
        "title": title,
        "protocol": PROTOCOLS[protocol],
        "gain": options.gain,
        "relevance": [],
        "actions": worth,
        "relevant_from": options.relevant_from,
        "max_grade": measures.max_grade if needs_max_grade(measures.metrics) else None,
        "queries": len(queries) - left_out,
        "items": n,
        "list_length": {"min": sizes.min(), "median": np.median(sizes), "mean": sizes.mean(), "max": sizes.max()},
        "users": len(np.unique(queries.users)),
        "left_out": left_out,
        "primary_metric": primary,
        **said,
        "new": new,
        "against": against,
        "resampled": "users",
        "rows": [
            {
                "name": row["name"],
                "exact": row["metrics"],
                **indexed.of(row["name"], k=deepest),
                "tie_rate": row["tie_rate"],
                "bytes_per_item": compared.bytes_per_item.get(row["name"]),
                "mean_over_users": {primary: users_means[row["name"]]},
            }
            for row in table["rows"]
        ],
        "differences": table["differences"],
        "ladders": ladders,
        "slices": sliced,
        "beyond": beyond,
        "loss_curve": [],
        "gains": gains,
        "losses": losses,
        "grid": [],
        "warnings": warnings,
        "missing": items.missing,
        "notes": notes,
        "log": {
            **counts,
            "queries_left_out": dict(queries.left_out),
            "candidates_dropped": {reason: dict(what) for reason, what in queries.dropped.items()},
            "list_length": log_notes.five_numbers(sizes),
            "heavy_users": heavy,
            "live": live.rule,
            "leaked": None if leaked is None else len(leaked),
        },
        "exposure": exposure,
        "provenance": {
            "bootstrap": {"samples": table["samples"], "clusters": "user", "confidence": table["confidence"]},
            "ScaNN": dict(scann) if scann is not None and protocol != "logged_lists" else "not run",
            "ties": "expected value over the orders of equal scores",
            **(provenance or {}),
        },
    }
    ids = np.asarray([*items.ids, ""], object)
    columns = {
        "query_id": queries.ids,
        "list_id": queries.list_ids,
        "user_id": names,
        "time": np.array([iso(time) for time in queries.times], object),
        "query_item": ids[queries.items],  # -1 is the last, ""
        "query_item_row": queries.items,
        "candidates": sizes,
        "relevant": relevant,
    }
    return Comparison(report, per_row, tied, queries.users, columns)


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


def _mean_over_users(values: np.ndarray, users: np.ndarray) -> float:
    known = ~np.isnan(values)
    _, code = np.unique(users[known], return_inverse=True)
    return float((np.bincount(code, values[known]) / np.bincount(code)).mean()) if known.any() else float("nan")
