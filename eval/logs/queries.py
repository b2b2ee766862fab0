"""A log's queries: what was asked when and by whom, with the items shown or acted upon and their gains.

Gain is a declared map from action to number; of several actions on one item the highest counts, or, where one is below
0 (hidden, reported), the lowest. A query belongs to the
window in which it began, with all that was done of it later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.checks import duplicates
from eval.id_causes import describe_mismatch, likely_cause
from eval.logs.log import FEW_JOINED, Log
from siglip_jax.errors import UserError, checked_on_error

QUERY_ITEMS = ("query_item_id", "query_id", "first:<action>")
GAIN = "case when min(gain) < 0 then min(gain) else max(gain) end"  # SQL, of several actions of a user on an item
_PER_QUERY = ("ids", "list_ids", "users", "times", "items", "randomised")
_PER_CANDIDATE = ("candidates", "gains", "positions", "propensities")
_LACKS = "query item not in the catalogue"


@dataclasses.dataclass(frozen=True)
class Queries:
    """q queries by time; the lists of all lie one behind the other, list i at starts[i]:starts[i + 1], by position.

    Attributes:
      ids: objects [q], query_id; with list_ids unique.
      list_ids: objects [q], "" where the log has none, or lists are not told apart.
      users: int64 [q], codes of the log.
      times: int64 [q], microseconds since 1970.
      items: int64 [q], row of the query item; -1 where the query is a user's profile.
      starts: int64 [q + 1].
      candidates: int64 [m], item codes; rows of the catalogue once `known_items` has been through.
      gains: float32 [m].
      positions: int64 [m], 0 the first; -1 where not known.
      propensities: float64 [m], with which each came to stand there, NaN where not known; None where the log has none.
      randomised: bool [q], whether chance put the list in order; None where the log does not say.
      segments: {name: objects [q]}, of `LogFormat.segments`, at the query's first event; "" for none.
      left_out: {reason: queries that were in the window and are not here}.
      dropped: {reason: {"candidates": of lists that are here, "relevant": of those, with a gain}}.
    """

    ids: np.ndarray
    list_ids: np.ndarray
    users: np.ndarray
    times: np.ndarray
    items: np.ndarray
    starts: np.ndarray
    candidates: np.ndarray
    gains: np.ndarray
    positions: np.ndarray
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    dropped: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    propensities: np.ndarray | None = None
    randomised: np.ndarray | None = None
    segments: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [q]."""
        return np.diff(self.starts)

    @property
    def owner(self) -> np.ndarray:
        """The query of each candidate: int64 [m]."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def padded(self, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lists of the queries lo to hi: candidates int64, gains float32, positions int64, each [hi - lo, longest].

        Candidates and positions are -1, gains 0, where a list is shorter.
        """
        lengths = self.lengths[lo:hi]
        there = np.arange(lengths.max(initial=0)) < lengths[:, None]
        part = slice(self.starts[lo], self.starts[hi])
        out = []
        for values, empty in ((self.candidates, -1), (self.gains, 0), (self.positions, -1)):
            padded = np.full(there.shape, empty, values.dtype)
            padded[there] = values[part]
            out.append(padded)
        return out[0], out[1], out[2]

    def keep(self, queries: np.ndarray, *, reason: str) -> Queries:
        """Those queries alone for which `queries` (bool [q]) is true; the others are counted under `reason`."""
        if queries.all():
            return self
        of = np.repeat(queries, self.lengths)
        left_out = {**self.left_out, reason: self.left_out.get(reason, 0) + int((~queries).sum())}
        starts = np.concatenate([[0], np.cumsum(self.lengths[queries])])
        per_query, per_candidate = self._chosen(_PER_QUERY, queries), self._chosen(_PER_CANDIDATE, of)
        segments = {name: values[queries] for name, values in self.segments.items()}
        return dataclasses.replace(
            self, **per_query, **per_candidate, starts=starts, left_out=left_out, segments=segments
        )

    def drop(self, candidates: np.ndarray, *, reason: str) -> Queries:
        """Without the candidates for which `candidates` (bool [m]) is true; they are counted under `reason`."""
        if not candidates.any():
            return self
        before = self.dropped.get(reason, {"candidates": 0, "relevant": 0})
        counts = {
            "candidates": before["candidates"] + int(candidates.sum()),
            "relevant": before["relevant"] + int((candidates & (self.gains > 0)).sum()),
        }
        kept = ~candidates
        lengths = np.bincount(self.owner[kept], minlength=len(self))
        return dataclasses.replace(
            self,
            **self._chosen(_PER_CANDIDATE, kept),
            starts=np.concatenate([[0], np.cumsum(lengths)]),
            dropped={**self.dropped, reason: counts},
        )

    def _chosen(self, names: tuple[str, ...], chosen: np.ndarray) -> dict[str, Any]:
        return {name: getattr(self, name)[chosen] for name in names if getattr(self, name) is not None}

    def only_items(self, kept: np.ndarray, *, reason: str) -> Queries:
        """Without the items for which `kept` (bool [code]) is false, as candidates and as query items."""
        asked = (self.items < 0) | kept[np.maximum(self.items, 0)]
        queries = self.keep(asked, reason=f"query item {reason}")
        return queries.drop(~kept[queries.candidates], reason=reason)


def read_queries(
    log: Log, *, query_item: str, lists: bool, since: int | None = None, until: int | None = None
) -> Queries:
    """The queries that began in [since, until), by time.

    Left out and counted are queries of several users or several query items, and of none or one that the catalogue
    lacks. The query item itself is dropped from its own list.

    Args:
      log: with a query_id column.
      query_item: "query_item_id", the column; "query_id", where it is an item's id; or "first:<action>", the item of
        the first event with this action: the query then begins with it, and what was before is not looked at.
      lists: each list of a query (list_id) for itself, whole, as it was shown; else the query's items with a gain.
      since, until: microseconds since 1970; None for no bound.

    Raises:
      UserError: no query_id or query item column, an action that no event has, or no query in the window.
    """
    if "query_id" not in log.columns:
        raise UserError(
            "the log has no column query_id: it serves the protocols leave_one_out and time_split; "
            "name one with --log_column=query_id=..."
        )
    first = query_item.removeprefix("first:") if query_item.startswith("first:") else None
    if first is None and query_item not in QUERY_ITEMS:
        raise UserError(
            f"config.evaluation.query_item={query_item!r}; expected {', '.join(QUERY_ITEMS)}: what the query item is"
        )
    if query_item == "query_item_id" and "query_item_id" not in log.columns:
        raise UserError(
            "the log has no column query_item_id; name it with --log_column=query_item_id=..., or say what the query "
            "item is: --config.evaluation.query_item=query_id or first:<action>"
        )
    if first is not None and first not in log.counts["actions"]:
        raise UserError(
            f"config.evaluation.query_item={query_item!r}: no event {first!r}; there are "
            f"{', '.join(log.counts['actions'])}"
        )
    if first is not None:
        chosen = f"filter (action = '{first.replace(chr(39), chr(39) * 2)}')"
        item = f"first(item order by time, position, item) {chosen}"
        start, several = f"min(time) {chosen}", "1"
    else:
        name = "query_item" if query_item == "query_item_id" else "query"
        item, start, several = f"min({name})", "min(time)", f"count(distinct {name})"
    sql = log.sql
    sql.execute(
        f"create or replace temp table asked as select query, {item} as asked, {start} as start, min(user) as user, "
        f"count(distinct user) as users, {several} as several from events group by query"
    )
    on = "asked = items.code" if first is not None else "asked = items.id"
    sql.execute(
        "create or replace temp table placed as select query, user, start, items.code as item, case "
        "when users > 1 then 'several users' when several > 1 then 'several query items' "
        "when asked is null then 'no query item' when items.code is null or items.code >= $n then $lacks end "
        f"as problem from asked left join items on {on} "
        "where start is null or (start >= $since and start < $until)",
        {"n": log.items, "lacks": _LACKS, **_bounds(since, until)},
    )
    left_out = sql.counts("select problem, count(*) from placed where problem is not null group by 1")
    unjoined = _unjoined_query_items(log) if first is None else None
    list_id = "coalesce(list, '')" if lists else "''"
    after = " and time > start" if first is not None else ""
    worth = "" if lists else f" having {GAIN} > 0"
    sql.execute(
        f"create or replace temp table entries as select query, {list_id} as list, events.item, {GAIN} as gain, "
        f"min(position) as position, max(propensity) as propensity, bool_or(randomised) as randomised, "
        f"events.item = placed.item as own from events join placed using (query) "
        f"where problem is null{after} group by query, {list_id}, events.item, own{worth}"
    )
    own = log.sql.one("select count(*), count(*) filter (gain > 0) from entries where own")
    sql.execute(
        "create or replace temp table units as select row_number() over (order by start, query, list) - 1 as unit, * "
        "from (select distinct query, list from entries) join placed using (query)"
        if lists
        else "create or replace temp table units as select row_number() over (order by start, query) - 1 as unit, "
        "'' as list, * from placed where problem is null"
    )
    ids, list_ids, users, times, items = log.sql.arrays(
        "select query, list, user, start, item from units order by unit"
    )
    unit, candidates, gains, positions, chances, by_chance = log.sql.arrays(
        "select unit, entries.item, gain, coalesce(position, -1) as position, coalesce(propensity, 'nan'::double), "
        "coalesce(randomised, false) from entries join units "
        "using (query, list) where not own order by unit, position < 0, entries.position, entries.item"
    )
    segments = _segments(log)
    for table in ("asked", "placed", "entries", "units"):
        sql.execute(f"drop table {table}")
    if not len(ids):
        said = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none in the window"
        more = f"; {unjoined.said}" if unjoined else ""
        raise UserError(f"log: no query to evaluate ({said}); events are from {log.counts['first']} to "
                        f"{log.counts['last']}{more}")  # fmt: skip
    if unjoined and unjoined.refused:
        raise UserError(
            f"log: {left_out[_LACKS]:,} of {left_out[_LACKS] + len(ids):,} queries have a query item that the "
            f"catalogue lacks; {unjoined.said}; write both alike"
        )
    lengths = np.bincount(unit, minlength=len(ids))
    dropped = {"the query item itself": {"candidates": own[0], "relevant": own[1]}} if own[0] else {}
    return Queries(
        ids,
        list_ids,
        users.astype(np.int64),
        times.astype(np.int64),
        items.astype(np.int64),
        np.concatenate([[0], np.cumsum(lengths)]),
        candidates.astype(np.int64),
        gains.astype(np.float32),
        positions.astype(np.int64),
        dict(sorted(left_out.items())),
        dropped,
        propensities=chances.astype(np.float64) if "propensity" in log.columns else None,
        randomised=np.bincount(unit, by_chance, minlength=len(ids)) > 0 if "randomised" in log.columns else None,
        segments=segments,
    )


def _segments(log: Log) -> dict[str, np.ndarray]:
    """{name: value of each query at its first event}, of the temporary table `units`."""
    found = {}
    for number, name in enumerate(log.segments):
        (found[name],) = log.sql.arrays(
            f"select value from units join (select query, arg_min(segment_{number}, (time, item)) as value from events "
            "group by query) using (query) order by unit"
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Unjoined:
    """Query items that the catalogue lacks: `said`, an id of each side; `refused`, whether hardly any is there."""

    said: str
    refused: bool


def _unjoined_query_items(log: Log) -> _Unjoined | None:
    """Of the temporary tables `asked` and `placed`, whose query items are ids; None where the catalogue has all."""
    of = "select distinct cast(asked.asked as text) from asked join placed using (query) where problem"
    theirs = log.sql.arrays(f"{of} = ?", [_LACKS])[0]
    if not len(theirs):
        return None
    joined = set(log.sql.arrays(f"{of} is distinct from ?", [_LACKS])[0])
    names = log.sql.arrays("select id from items where code < ? order by code", [log.items])[0]
    ours = [item for item in names if item not in joined]
    said = describe_mismatch(theirs, ours or names, of_theirs="the log's query items", of_ours="the catalogue's ids")
    few = len(joined) < FEW_JOINED * min(len(theirs) + len(joined), log.items)
    return _Unjoined(said, few and likely_cause(theirs, ours) is not None)


def known_items(queries: Queries, *, items: int, rule: str) -> Queries:
    """Without the candidates that the catalogue (of `items` items) lacks.

    Args:
      rule: "skip", counted, or "error".

    Raises:
      UserError: rule="error" and an item not in the catalogue, or an unknown rule.
    """
    rule = checked_on_error("config.evaluation.missing_items", rule)
    unknown = queries.candidates >= items
    if rule == "error" and unknown.any():
        raise UserError(
            f"{int(unknown.sum())} candidates of {len(np.unique(queries.owner[unknown]))} queries are not in the "
            "catalogue; embed them too, or leave them out with --config.evaluation.missing_items=skip"
        )
    return queries.drop(unknown, reason="not in the catalogue")


def repeated_queries(queries: Queries) -> np.ndarray:
    """True where an earlier query is the same under another id: bool [q].

    The same user, time, query item, and the same candidates with the same gains and positions. A log written twice, or
    joined with itself, has them, and each would count as evidence of its own.
    """
    entry = np.stack([queries.candidates, queries.gains.view(np.int32), queries.positions], axis=1).astype(np.uint64)
    mixed = np.zeros(len(entry), np.uint64)
    with np.errstate(over="ignore"):
        for column in entry.T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        ends = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        content = ends[queries.starts[1:]] - ends[queries.starts[:-1]]  # a sum, so the order does not matter
    key = np.stack([queries.users, queries.times, queries.items, queries.lengths, content.view(np.int64)], axis=1)
    return duplicates(key)


def heavy_users(log: Log, *, factor: float = 10, at_least: int = 100) -> dict[str, int]:
    """{user_id: events} of users with more events of some worth than `factor` times the 99th percentile of the others.

    A crawler or a tester. They stay: a user's queries are taken together, so one of them widens the interval, and the
    mean over users is reported beside the mean over queries.
    """
    names, counts = log.sql.arrays(
        "select users.id, count(*) as n from events join users on user = users.code where gain > 0 group by 1 "
        "order by n desc, 1"
    )
    heavy: dict[str, int] = {}
    for place, (name, count) in enumerate(zip(names, counts, strict=True)):
        others = counts[place + 1 :]
        if count < at_least or (others.size and count <= factor * np.percentile(others, 99)):
            break
        heavy[str(name)] = int(count)
    return heavy if len(heavy) < len(names) or len(names) == 1 else {}


def _bounds(since: int | None, until: int | None) -> dict[str, int]:
    least, most = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    return {"since": int(least) if since is None else since, "until": int(most) if until is None else until}
