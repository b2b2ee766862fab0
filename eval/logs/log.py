"""Interaction logs: who was shown which items for which query item, and what they did; Parquet, CSV, TSV or JSON lines.

    query_id   one request for items; user_id; time; item_id; action  ("impression", "tap", "like", "purchase", ...)
    position   of the item in its list; list_id  where one query shows several lists; query_item_id  what was looked at

One row is one event, so an item that was shown and tapped has two. Logs without queries (user, item, time, and an
action or a rating) serve the protocols over users. Whole folders are read, file by file, into a DuckDB database that
goes to disk where it outgrows its memory: on 4 million rows DuckDB took half the time and two thirds of the memory of
Polars' streaming engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from eval.logs.log_files import RAW, insert_file, log_files
from eval.logs.log_format import COLUMNS, LogFormat
from eval.logs.log_times import iso
from input_pipeline.progress import progress
from siglip_jax.errors import UserError, checked_on_error

__all__ = ["Log", "LogFormat", "read_log"]

PROBLEMS = ("no time", "no user", "no item", "no query", "no action", "impossible position")  # the first that fits
MEMORY = "2GB"  # of DuckDB; beyond, it works on disk


class Log:
    """A log that was read and checked; SQL over `events` until `close`. A context manager.

    events: query, list (text, null where the log has none), user, item (int32; the catalogue's row, or from n on an
    item that it lacks), time (int64, microseconds since 1970), position (int32 or null, 0 the first), action, gain
    (float64), query_item (text or null).

    Attributes:
      items: n, of the catalogue.
      columns: those that any file has.
      counts: {"files", "rows", "events", "skipped": {problem: rows}, "users", "items", "unknown_items",
        "unknown_rows", "actions": {action: events}, "first", "last"}; the last two ISO times.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Any, items: int, columns: set[str]):
        self.sql, self._folder, self.items, self.columns = connection, folder, items, columns
        self.counts: dict[str, Any] = {}

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.sql.close()
        self._folder.cleanup()

    def arrays(self, query: str, parameters: Sequence[Any] = ()) -> list[np.ndarray]:
        """The columns of a query as numpy arrays; text as objects."""
        found = self.sql.sql(query, params=list(parameters)).to_arrow_table()
        return [column.to_numpy() for column in found.columns]

    def one(self, query: str, parameters: Any = None) -> tuple[Any, ...]:
        """The only row of a query."""
        found = self.sql.execute(query, parameters).fetchone()
        assert found is not None, query
        return found

    def user_names(self) -> np.ndarray:
        """The user_id of each user code: objects [users]."""
        return self.arrays("select id from users order by code")[0]

    def item_names(self) -> np.ndarray:
        """The item_id of each item code, the catalogue's first: objects."""
        return self.arrays("select id from items order by code")[0]


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
    if unknown := sorted(form.columns.keys() - set(COLUMNS)):
        raise UserError(f"config.evaluation.log_columns: {unknown[0]!r}; expected some of {', '.join(COLUMNS)}")
    files = log_files(paths)
    folder = tempfile.TemporaryDirectory(prefix="siglip-jax-log-")
    sql = duckdb.connect(
        ":memory:",  # what does not fit goes to temp_directory; a database file took half as long again
        config={
            "memory_limit": MEMORY,
            "temp_directory": folder.name,
            "preserve_insertion_order": False,
            "autoinstall_known_extensions": False,
        },
    )
    log = Log(sql, folder, len(items), set())
    try:
        sql.execute("set enable_progress_bar = false; set TimeZone = 'UTC'")
        sql.execute(RAW)
        for file in progress(files, total=len(files), label="reading logs", unit="files", show=show):
            log.columns |= insert_file(sql, file, form)
        _check_actions(sql, gains)
        _make_events(log, items, gains, form)
    except BaseException:
        log.close()
        raise
    log.counts["files"] = len(files)
    return log


def _check_actions(sql: duckdb.DuckDBPyConnection, gains: Mapping[str, float]) -> None:
    found = dict(sql.execute("select action, count(*) from raw where action is not null group by action").fetchall())
    if unknown := sorted((a for a in found if a not in gains), key=lambda a: (-found[a], a)):
        listed = ", ".join(f"{action!r} ({found[action]} rows)" for action in unknown[:5])
        raise UserError(
            f"actions without a gain: {listed}; known are {', '.join(gains)}; give each one in "
            "config.evaluation.actions, 0 for what is worth nothing"
        )


def _make_events(log: Log, items: Sequence[str], gains: Mapping[str, float], form: LogFormat) -> None:
    """`raw` checked, coded and counted as `events`, `users` and `items`."""
    sql = log.sql
    rank = f"(try_cast(position as double) - {int(form.first_position)})"
    queries = "query_id" in log.columns
    tests = {
        "no time": "time is null",
        "no user": "user_id is null",
        "no item": "item_id is null",
        "no query": "query is null" if queries else "false",
        "no action": "action is null",
        "impossible position": f"position is not null and not coalesce({rank} between 0 and 1e9 and "
        f"{rank} = floor({rank}), false)",
    }
    cases = " ".join(f"when {tests[kind]} then '{kind}'" for kind in PROBLEMS)
    sql.execute(f"create table checked as select *, case {cases} end as problem from raw")
    sql.execute("drop table raw")
    (rows,) = log.one("select count(*) from checked")
    skipped = dict(sql.execute("select problem, count(*) from checked where problem is not null group by 1").fetchall())
    sql.execute("create table distinct_rows as select distinct * from checked where problem is null")
    good = rows - sum(skipped.values())
    (kept,) = log.one("select count(*) from distinct_rows")
    if good > kept:
        skipped["duplicate row"] = good - kept
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
    if skipped and checked_on_error("on_error", form.on_error) == "error":
        raise UserError(f"log: {listed} among {rows} rows; fix them, or leave them out with --on_error=skip")
    if not kept:
        raise UserError(f"log: no usable row among {rows}" + (f" ({listed})" if listed else ""))
    sql.execute("drop table checked")

    known = pa.table({"id": pa.array(list(items), pa.string()), "code": np.arange(len(items), dtype=np.int32)})
    sql.register("known", known)
    sql.execute("create table items as select * from known")
    sql.unregister("known")
    sql.execute(
        "insert into items select item_id, ? + cast(row_number() over (order by item_id) as integer) - 1 from "
        "(select distinct item_id from distinct_rows where item_id not in (select id from items))",
        [len(items)],
    )
    sql.execute(
        "create table users as select user_id as id, cast(row_number() over (order by user_id) - 1 as integer) as code "
        "from (select distinct user_id from distinct_rows)"
    )
    worth = pa.table({"action": list(gains), "gain": list(gains.values())})
    sql.register("worth", worth)
    sql.execute(
        f"create table events as select query, list, users.code as user, items.code as item, time, "
        f"cast({rank} as integer) as position, action, gain, query_item from distinct_rows "
        "join items on item_id = items.id join users on user_id = users.id join worth using (action)"
    )
    sql.unregister("worth")
    sql.execute("drop table distinct_rows")
    first, last = log.one("select min(time), max(time) from events")
    users, seen, unknown, unknown_rows = log.one(
        "select count(distinct user), count(distinct item), count(distinct item) filter (item >= $n), "
        "count(*) filter (item >= $n) from events",
        {"n": len(items)},
    )
    if len(items) and unknown == seen:
        (theirs,) = log.one("select id from items where code >= ? order by code limit 1", [len(items)])
        raise UserError(
            f"log: none of its {seen} items is in the catalogue; ids are compared as text: {theirs!r} is one of the "
            f"log, {items[0]!r} one of the catalogue; write both alike"
        )
    log.counts |= {
        "rows": rows,
        "events": kept,
        "skipped": dict(sorted(skipped.items())),
        "users": users,
        "items": seen,
        "unknown_items": unknown,
        "unknown_rows": unknown_rows,
        "actions": dict(sql.execute("select action, count(*) from events group by 1 order by 2 desc, 1").fetchall()),
        "first": iso(first),
        "last": iso(last),
    }
