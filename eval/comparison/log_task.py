"""What one protocol asks of an interaction log, read from it once; the log is closed afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from eval.checks import check_queries
from eval.comparison.items import Items
from eval.comparison.training_items import LeakedItems
from eval.logs import Live, Log, LogFormat, Queries, read_log
from eval.logs.live_items import live_items
from eval.logs.queries import heavy_users
from eval.protocols import FullCatalogue, LoggedLists, Measures
from eval.protocols.exposure import Propensity
from eval.protocols.full_catalogue import reachable
from eval.protocols.position_bias import measure_position_bias
from eval.protocols.prepare_queries import PROTOCOLS, CountedPairs, Prepared, Window, prepare, rankers_of_log
from eval.rankers import Ranker
from eval.report.trec import query_names
from siglip_jax.errors import check_choice

MEASURED = -1.0  # a config's propensity_power that leaves it to the log


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSource:
    """Where events come from: files or folders, how to read them, and which times count."""

    paths: Sequence[str]
    form: LogFormat
    window: Window


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LogTask:
    """One protocol over one log.

    Attributes:
      key: of the protocol in PROTOCOLS.
      protocol: with its queries.
      live: when each item was live.
      counted: what rankers may learn from, None where there is nothing; `training` says it in words.
      gains: {action: gain}.
      users: objects [q], the user_id of each query.
      first_seen: int64 [users of the log], microseconds since 1970 of each one's first event.
      heavy: {user_id: events} of users far above the others.
      counts: of the log, see `eval.logs.Log`.
      window: of the log, checked.
      leaked: items that training saw; they are no candidates and no queries.
    """

    key: str
    protocol: LoggedLists | FullCatalogue
    live: Live
    counted: CountedPairs | None
    training: str
    gains: Mapping[str, float]
    users: np.ndarray
    first_seen: np.ndarray
    heavy: Mapping[str, int]
    counts: Mapping[str, Any]
    window: Window
    leaked: LeakedItems

    @property
    def queries(self) -> Queries:
        return self.protocol.queries

    @property
    def query_names(self) -> list[str]:
        """What each query is called in TREC files."""
        return query_names(self.queries)

    def rankers(self, names: Sequence[str]) -> dict[str, Ranker]:
        """{name: ranker} of those that the log can tell of."""
        return rankers_of_log(names, self.counted, len(self.live.since))


def read_log_task(
    source: LogSource, key: str, *, config: ml_collections.ConfigDict, items: Items, leaked: LeakedItems
) -> LogTask:
    """Reads the log and makes the queries of a protocol.

    Args:
      key: of the protocol in PROTOCOLS.
      config: `config.evaluation` decides metrics, gains and what a query is.

    Raises:
      UserError: whatever makes the numbers not mean what they say.
    """
    check_choice("protocol", key, PROTOCOLS)
    options, window = config.evaluation, source.window.checked()
    leaked.check()
    kept = ~np.isin(np.asarray(items.ids), np.asarray(list(leaked.found or ()), str))
    with read_log(source.paths, items=items.ids, form=source.form) as log:
        live = _live_items(log, items, options, kept)
        prepared = prepare(log, key, options, window, kept)
        if key != "logged_lists":
            queries = reachable(prepared.queries, live, prepared.history)
            prepared = dataclasses.replace(prepared, queries=queries)
        users = log.user_names()[prepared.queries.users]
        (first_seen,) = log.sql.arrays("select min(time) from events group by user order by user")
        heavy, counts = heavy_users(log), dict(log.counts)
    if prepared.history is not None:
        prepared = dataclasses.replace(prepared, queries=dataclasses.replace(prepared.queries, ids=users))
    task = LogTask(
        key=key,
        protocol=_protocol(key, prepared, live, options, gains=source.form.gains()),
        live=live,
        counted=prepared.counted,
        training=prepared.training,
        gains=source.form.gains(),
        users=users,
        first_seen=first_seen.astype(np.int64),
        heavy=heavy,
        counts=counts,
        window=window,
        leaked=leaked,
    )
    check_queries(task.query_names)
    return task


def _live_items(log: Log, items: Items, options: Any, kept: np.ndarray) -> Live:
    live = live_items(items.columns, items.ids, live_from=options.live_from, live_until=options.live_until, log=log)
    return dataclasses.replace(live, until=np.where(kept, live.until, live.since))  # never, where it is leaked


def _protocol(
    key: str, prepared: Prepared, live: Live, options: Any, *, gains: Mapping[str, float]
) -> LoggedLists | FullCatalogue:
    """gains: of the actions."""
    measures = Measures(
        tuple(options.metrics), options.gain, relevant_from=options.log_relevant_from, max_grade=max(gains.values())
    )
    if key == "logged_lists":
        propensity = _propensity(prepared.queries, options)
        return LoggedLists(queries=prepared.queries, measures=measures, propensity=propensity)
    return FullCatalogue(
        name=PROTOCOLS[key], queries=prepared.queries, live=live, measures=measures, history=prepared.history
    )


def _propensity(queries: Queries, options: Any) -> Propensity:
    """As the config gives it; measured where it does not and the log allows; else assumed."""
    clip = options.propensity_clip
    if options.propensity_power != MEASURED:
        return Propensity(options.propensity_power, clip, "given")
    bias = measure_position_bias(queries)
    if bias is None or not bias.usable:
        few = "" if bias is None else f", as {bias.actions:,} actions on items seen at several places tell too little"
        return Propensity(1.0, clip, f"assumed{few}")
    return Propensity(
        max(0.0, bias.power),
        clip,
        f"measured, ± {1.96 * bias.error:.2f}, from {bias.actions:,} actions on {bias.items:,} items that one "
        "query item was shown with at several places",
    )
