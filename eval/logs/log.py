"""Interaction logs: who was shown which items for which query item, and what they did; Parquet, CSV, TSV or JSON lines.

    query_id   one request for items; user_id; time; item_id; action  ("impression", "tap", "like", "purchase", ...)
    position   of the item in its list; list_id  where one query shows several lists; query_item_id  what was looked at
    propensity  with which the item came to stand at its position; randomised  whether chance put the list in order

One row is one event, so an item that was shown and tapped has two. Logs without queries (user, item, time, and an
action or a rating) serve the protocols over users. Whole folders are read, file by file, into a DuckDB database that
goes to disk where it outgrows its memory: on 4 million rows DuckDB took half the time and two thirds of the memory of
Polars' streaming engine.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.id_causes import describe_mismatch, likely_cause
from eval.logs.database import Database
from eval.logs.log_columns import likely_action
from eval.logs.log_files import create_raw, insert_file, log_files, segment_columns
from eval.logs.log_format import COLUMNS, LogFormat
from eval.logs.log_times import AUTO, EXPECTED, FIRST, LAST, READINGS, check_unit, iso
from input_pipeline.progress import progress
from siglip_jax.errors import UserError, checked_on_error

__all__ = ["Log", "LogFormat", "read_log"]

PROBLEMS = (  # the first that fits
    "no time", "no user", "no item", "no query", "no action", "impossible position", "impossible time",
    "impossible propensity",
)  # fmt: skip
FEW_JOINED = 0.05  # share of the ids of the log, or of the catalogue, below which hardly any is in both
_SHOWN = 60  # letters of a value in a message


class Log:
    """A log that was read and checked; SQL over `events` until `close`. A context manager.

    events: query, list (text, null where the log has none), user, item (int32; the catalogue's row, or from n on an
    item that it lacks), time (int64, microseconds since 1970), position (int32 or null, 0 the first), action, gain
    (float64), query_item (text or null), propensity (float64 or null), randomised (bool or null), segment_0,
    ... (text).

    Attributes:
      items: n, of the catalogue.
      columns: those that any file has.
      segments: of the `LogFormat`, segment_0 the first.
      counts: {"files", "rows", "events", "skipped": {problem: rows}, "users", "items", "unknown_items",
        "unknown_rows", "unknown_example", "unknown_cause": in what many of these differ from the catalogue's ids or "",
        "actions": {action: events}, "first", "last", "assumed": [lines]}; first and
        last are ISO times.
    """

    def __init__(self, sql: Database, items: int, segments: Sequence[str] = ()):
        self.sql, self.items, self.columns, self.segments = sql, items, set[str](), tuple(segments)
        self.counts: dict[str, Any] = {}

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.sql.close()

    def user_names(self) -> np.ndarray:
        """The user_id of each user code: objects [users]."""
        return self.sql.arrays("select id from users order by code")[0]

    def item_names(self) -> np.ndarray:
        """The item_id of each item code, the catalogue's first: objects."""
        return self.sql.arrays("select id from items order by code")[0]


def read_log(paths: Sequence[str], *, items: Sequence[str], form: LogFormat, show: bool = True) -> Log:
    """Reads logs into a database, every row checked; close it after use.

    Rows that are equal in every column are one event; the others are counted as "duplicate row".

    Args:
      paths: files or folders.
      items: ids of the catalogue, in its order.

    Raises:
      UserError: no such file, columns missing, a file that does not parse, an action without a gain (naming it and how
        often it occurs), impossible rows with on_error="error", or no usable row.
    """
    gains = form.gains()
    checked_on_error("on_error", form.on_error)
    check_unit(form.time_unit)
    if unknown := sorted(form.columns.keys() - set(COLUMNS)):
        raise UserError(f"config.evaluation.log_columns: {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
    if unknown := sorted(set(form.action_names.values()) - gains.keys()):
        raise UserError(f"--log_action={unknown[0]}: no such action; known are {', '.join(gains)}")
    files = log_files(paths)
    sql = Database()
    log = Log(sql, len(items), form.segments)
    assumed: list[str] = []
    try:
        create_raw(sql, form)
        for file in progress(files, total=len(files), label="reading logs", unit="files", show=show):
            columns, said = insert_file(sql, file, form)
            log.columns |= columns
            assumed += [said] if said else []
        _check_actions(sql, gains)
        assumed += _readings(sql)
        assumed += _join_whole_ids(sql, items)
        _make_events(log, items, gains, form)
    except BaseException:
        log.close()
        raise
    log.counts["assumed"] = assumed + log.counts["assumed"]
    log.counts["files"] = len(files)
    return log


def _check_actions(sql: Database, gains: Mapping[str, float]) -> None:
    found = sql.counts("select action, count(*) from raw where action is not null group by action")
    if unknown := sorted((a for a in found if a not in gains), key=lambda a: (-found[a], a)):
        listed = ", ".join(f"{action[:_SHOWN]!r} ({found[action]} rows)" for action in unknown[:5])
        flags = " ".join(
            shlex.quote(f"--log_action={likely_action(action, gains)}={action}")
            for action in unknown[:5]
            if action.isprintable() and len(action) <= _SHOWN
        )
        such = f"such as {flags}" if flags else "with --log_action"
        raise UserError(
            f"actions without a gain: {listed}; known are {', '.join(gains)}; say which of these each one is, {such}, "
            "or give each one in config.evaluation.actions, 0 for what is worth nothing"
        )


def _readings(sql: Database) -> list[str]:
    """What was taken for what in the column of times."""
    found = sql.counts(
        "select reading, count(*) from raw where time is not null and reading is not null group by 1 order by 2 desc, 1"
    )
    return [f"times read as {', '.join(f'{READINGS[kind]} ({rows:,})' for kind, rows in found.items())}"] * bool(found)


def _join_whole_ids(sql: Database, items: Sequence[str]) -> list[str]:
    """ "100.0" as pandas writes 100 beside missing values is "100", where the catalogue has that and not the other."""
    said = []
    with sql.table("known", {"id": pa.array(list(items), pa.string())}):
        for column in ("item_id", "query_item"):
            odd = (
                f"regexp_full_match({column}, '[0-9]+[.]0+') and {column} not in (select id from known) and "
                f"split_part({column}, '.', 1) in (select id from known)"
            )
            rows, example = sql.one(f"select count(*), min({column}) from raw where {odd}")
            if rows:
                sql.execute(f"update raw set {column} = split_part({column}, '.', 1) where {odd}")
                whole = example.partition(".")[0]
                said.append(f"{rows:,} ids such as {example!r} read as {whole!r}, as the catalogue has it")
    return said


def _check_times(sql: Database, rows: int, form: LogFormat) -> None:
    """Stops where most times cannot be right: their unit is another one than it seems."""
    where = f"odd_time is not null and time not between {FIRST} and {LAST - 1}"
    odd, text, time, reading = sql.one(f"select count(*), min(odd_time), arg_min(time, odd_time), "
                                       f"arg_min(reading, odd_time) from raw where {where}")  # fmt: skip
    if form.time_unit == AUTO and 2 * odd > rows:
        raise UserError(
            f"log: {odd} of {rows} times are before 1990 or after 2100, such as {text!r}, {iso(time)} as "
            f"{READINGS[reading]}; say what they are with --config.evaluation.time_unit=s, ms, us, ns or date"
        )


def _make_events(log: Log, items: Sequence[str], gains: Mapping[str, float], form: LogFormat) -> None:
    """`raw` checked, coded and counted as `events`, `users` and `items`."""
    sql = log.sql
    first_position, said = _first_position(sql, form)
    rank = f"(try_cast(position as double) - {first_position})"
    chance = "try_cast(propensity as double)"
    queries = "query_id" in log.columns
    odd_time = f"time not between {FIRST} and {LAST - 1}"
    tests = {
        "no time": "time is null",
        "no user": "user_id is null",
        "no item": "item_id is null",
        "no query": "query is null" if queries else "false",
        "no action": "action is null",
        "impossible position": f"position is not null and not coalesce({rank} between 0 and 1e9 and "
        f"{rank} = floor({rank}), false)",
        "impossible time": odd_time if form.time_unit == AUTO else "false",
        "impossible propensity": f"propensity is not null and not coalesce({chance} > 0 and {chance} <= 1, false)",
    }
    cases = " ".join(f"when {tests[kind]} then '{kind}'" for kind in PROBLEMS)
    (rows,) = sql.one("select count(*) from raw")
    _check_times(sql, rows, form)
    (odd,) = sql.one("select min(odd_time) from raw where time is null")
    sql.execute(f"create table checked as select *, case {cases} end as problem from raw")
    sql.execute("drop table raw")
    skipped = sql.counts("select problem, count(*) from checked where problem is not null group by 1")
    sql.execute(
        "create table distinct_rows as select distinct * exclude (reading, odd_time, problem) from checked "
        "where problem is null"
    )
    good = rows - sum(skipped.values())
    (kept,) = sql.one("select count(*) from distinct_rows")
    if good > kept:
        skipped["duplicate row"] = good - kept
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    if skipped and checked_on_error("on_error", form.on_error) == "error":
        raise UserError(f"log: {listed} among {rows} rows; fix them, or leave them out with --on_error=skip")
    if not kept:
        times = f"; {odd[:_SHOWN]!r} is no time: expected {EXPECTED}" if odd else ""
        raise UserError(f"log: no usable row among {rows}" + (f" ({listed})" if listed else "") + times)
    sql.execute("drop table checked")

    codes = np.arange(len(items), dtype=np.int32)
    with sql.table("known", {"id": pa.array(list(items), pa.string()), "code": codes}):
        sql.execute("create table items as select * from known")
    sql.execute(
        "insert into items select item_id, ? + cast(row_number() over (order by item_id) as integer) - 1 from "
        "(select distinct item_id from distinct_rows where item_id not in (select id from items))",
        [len(items)],
    )
    sql.execute(
        "create table users as select user_id as id, cast(row_number() over (order by user_id) - 1 as integer) as code "
        "from (select distinct user_id from distinct_rows)"
    )
    with sql.table("worth", {"action": list(gains), "gain": list(gains.values())}):
        sql.execute(
            f"create table events as select query, list, users.code as user, items.code as item, time, "
            f"cast({rank} as integer) as position, action, gain, query_item, {chance} as propensity, "
            f"lower(randomised) in ('1', 'true', 't', 'yes') as randomised"
            f"{''.join(f', {name}' for name in segment_columns(form))} from distinct_rows "
            "join items on item_id = items.id join users on user_id = users.id join worth using (action)"
        )
    sql.execute("drop table distinct_rows")
    first, last = sql.one("select min(time), max(time) from events")
    users, seen, unknown, unknown_rows = sql.one(
        "select count(distinct user), count(distinct item), count(distinct item) filter (item >= $n), "
        "count(*) filter (item >= $n) from events",
        {"n": len(items)},
    )
    theirs, cause = _check_joined(sql, items, seen=seen, unknown=unknown)
    log.counts |= {
        "assumed": said,
        "rows": rows,
        "events": kept,
        "skipped": dict(sorted(skipped.items())),
        "users": users,
        "items": seen,
        "unknown_items": unknown,
        "unknown_rows": unknown_rows,
        "unknown_example": theirs,
        "unknown_cause": cause,
        "actions": sql.counts("select action, count(*) from events group by 1 order by 2 desc, 1"),
        "first": iso(first),
        "last": iso(last),
    }


def _first_position(sql: Database, form: LogFormat) -> tuple[int, list[str]]:
    """(the position of the first item in a list, what was assumed of it)."""
    if form.first_position >= 0:
        return form.first_position, []
    (least,) = sql.one("select min(try_cast(position as double)) from raw")
    if least != 1:
        return 0, []
    return 1, ["positions begin at 1 (--config.evaluation.first_position=0 where the first place is never logged)"]


def _check_joined(sql: Database, items: Sequence[str], *, seen: int, unknown: int) -> tuple[str | None, str]:
    """(an item of the log that the catalogue lacks, in what many such ids differ from the catalogue's; "").

    Stops where none joins, and where hardly any does that would if it were written alike. A log of the whole shop over
    a small split joins rarely too, so few alone are no fault.
    """
    theirs = sql.arrays("select id from items where code >= ? order by id", [len(items)])[0]
    if not len(items) or not unknown:
        return (str(theirs[0]) if unknown else None), ""
    known = set(sql.arrays("select distinct id from items join events on item = code where code < ?", [len(items)])[0])
    ours = [item for item in items if item not in known]
    joined, cause = seen - unknown, likely_cause(theirs, ours)
    if not joined or (cause and joined < FEW_JOINED * min(seen, len(items))):
        said = describe_mismatch(theirs, ours, of_theirs="the log", of_ours="the catalogue")
        raise UserError(
            f"log: {_some(joined)} of its {seen} items {'is' if joined == 1 else 'are'} in the catalogue; {said}; "
            "write both alike"
        )
    if cause:
        return cause.theirs, f"{cause.words}: the catalogue has {cause.ours!r}"
    return str(theirs[0]), ""


def _some(count: int) -> str:
    return f"only {count}" if count else "none"
