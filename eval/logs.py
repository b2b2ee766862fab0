"""Interaction logs: who was shown which items for which query item, and what they did; Parquet, CSV, TSV or JSON lines.

    query_id   one request for items; user_id; time; item_id; action  ("impression", "tap", "like", "purchase", ...)
    position   of the item in its list; list_id  where one query shows several lists; query_item_id  what was looked at

One row is one event, so an item that was shown and tapped has two. Logs without queries (user, item, time, and an
action or a rating) serve the protocols over users. Whole folders are read, file by file, into a DuckDB database that
goes to disk where it outgrows its memory: on 4 million rows DuckDB took half the time and two thirds of the memory of
Polars' streaming engine.

Times are ISO 8601 (UTC where they name no zone) or numbers since 1970: seconds below 1e11, milliseconds below 1e14,
microseconds below 1e17, nanoseconds above.
"""

from __future__ import annotations

import csv
import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from input_pipeline.progress import progress
from siglip_jax.errors import UserError

SUFFIXES = ("parquet", "csv", "tsv", "jsonl")
IMPRESSION = "impression"
REQUIRED = ("user_id", "time", "item_id")
OPTIONAL = ("query_id", "action", "rating", "position", "list_id", "query_item_id")
COLUMNS = (*REQUIRED, *OPTIONAL)
LIKE, RATED = "like", "rated"  # the actions that a rating is read as
PROBLEMS = ("no time", "no user", "no item", "no query", "no action", "impossible position")  # the first that fits
_LONGEST_HEADER = 1 << 16
MEMORY = "2GB"  # of DuckDB; beyond, it works on disk
_MOVIELENS = ({"user_id": "userId", "item_id": "movieId", "time": "timestamp"}, {"time": "timestamp"})


@dataclasses.dataclass(frozen=True)
class LogFormat:
    """How a log is written, and what its actions are worth.

    Attributes:
      actions: {action: gain}, gains finite and >= 0; "impression" is worth 0 and need not be named.
      columns: {our column: the log's}, for those of another name.
      like_from: instead of an action the log has a rating, "like" from this number and "rated" below it; 0 for none.
      first_position: the position of the first item in a list.
      on_error: what an impossible row does, "skip" (left out and counted) or "refuse".
    """

    actions: Mapping[str, float]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    like_from: float = 0
    first_position: int = 0
    on_error: str = "skip"

    def gains(self) -> dict[str, float]:
        """{action: gain} with what needs no name. UserError on gains that are none."""
        gains: dict[str, float] = {IMPRESSION: 0.0, **({RATED: 0.0} if self.like_from else {})}
        for action, gain in self.actions.items():
            if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0 <= gain < float("inf"):
                raise UserError(f"config.evaluation.actions: {action}={gain!r}; expected a number from 0")
            gains[action] = float(gain)
        if gains[IMPRESSION]:
            raise UserError(f"config.evaluation.actions: impression={gains[IMPRESSION]:g}; being shown is worth 0")
        if not any(gains.values()):
            raise UserError('config.evaluation.actions: nothing is worth anything; expected such as {"tap": 1}')
        if self.like_from and not gains.get(LIKE):
            raise UserError(f'config.evaluation.like_from={self.like_from:g} needs a gain of "like" in actions')
        return gains


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


def log_files(paths: Sequence[str]) -> list[pathlib.Path]:
    """The files of the logs named: files as they are, folders by what of .parquet, .csv, .tsv, .jsonl is in them.

    Raises:
      UserError: nothing there, a file of another suffix, or a name that DuckDB would take for a pattern.
    """
    files: list[pathlib.Path] = []
    for given in paths:
        if "://" in given:
            raise UserError(f"--logs={given}: logs are read from local disk; copy them there first")
        path = pathlib.Path(given).expanduser()
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix[1:].lower() in SUFFIXES)
            if not found:
                raise UserError(f"--logs={given}: no .{', .'.join(SUFFIXES)} file in this folder")
            files += found
        elif not path.is_file():
            raise UserError(f"--logs={given}: no such file or folder; expected a log, as .{' or .'.join(SUFFIXES)}")
        elif path.suffix[1:].lower() not in SUFFIXES:
            raise UserError(f"--logs={given}: expected a file that ends in .{', .'.join(SUFFIXES)}")
        else:
            files.append(path)
    if odd := [f for f in files if set(str(f)) & set("*?[")]:
        raise UserError(f"--logs: the name of {odd[0]} holds one of * ? [; rename it")
    if len({f.resolve() for f in files}) < len(files):
        raise UserError("--logs: a file is named twice; its events would be counted twice")
    return files


def read_log(paths: Sequence[str], *, items: Sequence[str], form: LogFormat, show: bool = True) -> Log:
    """Reads logs into a database, every row checked; close it after use.

    Rows that are equal in every column are one event; the others are counted as "duplicate row".

    Args:
      paths: files or folders.
      items: ids of the catalogue, in its order.

    Raises:
      UserError: no such file, columns missing, a file that does not parse, an action without a gain (naming it and how
        often it occurs), impossible rows with on_error="refuse", or no usable row.
    """
    gains = form.gains()
    if form.on_error not in ("skip", "refuse"):
        raise UserError(f"on_error={form.on_error!r}; expected skip or refuse")
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
        sql.execute(
            "create table raw (query text, list text, user_id text, item_id text, time bigint, position text, "
            "action text, query_item text)"
        )
        for file in progress(files, total=len(files), label="reading logs", unit="files", show=show):
            log.columns |= _insert(sql, file, form)
        _check_actions(sql, gains)
        _make_events(log, items, gains, form)
    except BaseException:
        log.close()
        raise
    log.counts["files"] = len(files)
    return log


def times_of(values: Sequence[str], *, what: str, ids: Sequence[str]) -> np.ndarray:
    """Texts as in a log's time column -> microseconds since 1970, int64 [n]; the smallest int64 for "".

    Raises:
      UserError: naming the item whose value is no time.
    """
    missing = np.iinfo(np.int64).min
    table = pa.table({"row": np.arange(len(values)), "t": pa.array([v or None for v in values], pa.string())})
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as sql:
        sql.execute("set TimeZone = 'UTC'")
        sql.register("given", table)
        query = f"select {_TIME_OF_TEXT.format('t')} us from given order by row"
        found = [time for (time,) in sql.execute(query).fetchall()]
    for value, time, item in zip(values, found, ids, strict=True):
        if value and time is None:
            raise UserError(f"{what} of item {item!r} is {value!r}; expected an ISO 8601 time or seconds since 1970")
    return np.array([missing if time is None else time for time in found], np.int64)


# --- reading ----------------------------------------------------------------------------------------------------------

_DECIMAL = "try_cast({0} as decimal(38, 9))"  # a double would round nanoseconds
_EPOCH_DECIMAL = (
    f"(case when abs({_DECIMAL}) < 100000000000 then {_DECIMAL} * 1000000 "
    f"when abs({_DECIMAL}) < 100000000000000 then {_DECIMAL} * 1000 "
    f"when abs({_DECIMAL}) < 100000000000000000 then {_DECIMAL} else {_DECIMAL} / 1000 end)"
)
_TIME_OF_TEXT = (
    "(case when regexp_full_match({0}, '\\s*[+-]?[0-9]+([.][0-9]*)?\\s*') "
    f"then try_cast(floor({_EPOCH_DECIMAL}) as bigint) "
    "else epoch_us(try_cast({0} as timestamptz)) end)"
)


def _insert(sql: duckdb.DuckDBPyConnection, file: pathlib.Path, form: LogFormat) -> set[str]:
    """Adds one file to `raw`; which of our columns it has."""
    suffix = file.suffix[1:].lower()
    try:
        columns = _describe(sql, file, suffix)
        names = _names(columns, form, file)
        source = _source(file, suffix, list(names.values() if suffix == "jsonl" else columns))
        text = {ours: f"nullif(trim(cast({_quoted(theirs)} as text)), '')" for ours, theirs in names.items()}
        kind = columns[names["time"]].upper()
        time = _quoted(names["time"])
        if kind.startswith(("TIMESTAMP", "DATE")):
            text["time"] = f"epoch_us(cast({time} as timestamptz))"
        else:
            text["time"] = _TIME_OF_TEXT.format(text["time"])
        if form.like_from and "rating" in names:
            rating = f"try_cast({text['rating']} as double)"
            text["action"] = (
                f"case when {rating} >= {float(form.like_from)!r} then '{LIKE}' when {rating} is not null and not "
                f"isnan({rating}) then '{RATED}' end"
            )
        ordered = ("query_id", "list_id", "user_id", "item_id", "time", "position", "action", "query_item_id")
        sql.execute(f"insert into raw select {', '.join(text.get(c, 'null') for c in ordered)} from {source}")
    except duckdb.Error as error:
        raise UserError(f"log {file}: cannot be read ({_one_line(error)})") from error
    if form.like_from and "rating" in names:
        return set(names) | {"action"}
    return set(names)


def _describe(sql: duckdb.DuckDBPyConnection, file: pathlib.Path, suffix: str) -> dict[str, str]:
    """{column: type} of one file; those of its first rows in JSON lines."""
    if suffix == "jsonl":
        keys = sql.execute(
            f"select distinct unnest(json_keys(json)) from (select json from "
            f"read_ndjson_objects({_literal(str(file))}) limit 10000)"
        ).fetchall()
        return {key: "TEXT" for (key,) in keys}
    if suffix == "parquet":
        found = sql.execute(f"describe select * from read_parquet({_literal(str(file))})").fetchall()
        return {row[0]: row[1] for row in found}
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            line = text.readline(_LONGEST_HEADER).rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"log {file}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    header = line.split("\t") if suffix == "tsv" else next(csv.reader([line]), [])
    if not line or len(set(header)) < len(header):
        raise UserError(f"log {file}: the first line is {line[:100]!r}; expected column names, each once")
    return dict.fromkeys(header, "TEXT")


def _source(file: pathlib.Path, suffix: str, columns: Sequence[str]) -> str:
    """SQL that reads the columns of a file; as text, but from Parquet."""
    name = _literal(str(file))
    if suffix == "parquet":
        return f"read_parquet({name})"
    wanted = "{" + ", ".join(f"{_literal(column)}: 'VARCHAR'" for column in columns) + "}"
    if suffix == "jsonl":
        return f"read_json({name}, format = 'newline_delimited', columns = {wanted})"
    dialect = "delim = ',', quote = '\"', escape = '\"'" if suffix == "csv" else "delim = '\t', quote = '', escape = ''"
    return f"read_csv({name}, header = true, auto_detect = false, columns = {wanted}, {dialect})"


def _names(columns: Mapping[str, str], form: LogFormat, file: pathlib.Path) -> dict[str, str]:
    """{our column: the file's} of those that are there."""
    known = ", ".join(columns) or "none"
    names = {ours: form.columns.get(ours, ours) for ours in COLUMNS}
    for ours, theirs in names.items():
        if theirs not in columns and (ours in REQUIRED or ours in form.columns):
            raise UserError(
                f"log {file}: no column {theirs}; columns are {known}; name it with --log_column={ours}=..."
            )
    names = {ours: theirs for ours, theirs in names.items() if theirs in columns}
    if form.like_from and "rating" not in names:
        raise UserError(f"log {file}: no column rating for like_from={form.like_from:g}; columns are {known}")
    if not form.like_from and "action" not in names:
        raise UserError(f"log {file}: no column action (nor like_from for a rating); columns are {known}")
    return names


def movielens_columns(paths: Sequence[str]) -> dict[str, str]:
    """The columns of MovieLens' ratings (userId, movieId, rating, timestamp), or of the same with user_id, item_id.

    Raises:
      UserError: a file with neither.
    """
    file = log_files(paths)[0]
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as sql:
        try:
            there = _describe(sql, file, file.suffix[1:].lower())
        except duckdb.Error as error:
            raise UserError(f"log {file}: cannot be read ({_one_line(error)})") from error
    for columns in _MOVIELENS:
        names = {ours: columns.get(ours, ours) for ours in (*REQUIRED, "rating")}
        if set(names.values()) <= there.keys():
            return dict(columns)
    raise UserError(
        f"log {file}: columns are {', '.join(there)}; MovieLens has userId, movieId, rating, timestamp (ratings.csv)"
    )


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
    if skipped and form.on_error == "refuse":
        raise UserError(f"log: {listed} among {rows} rows; mend them, or leave them out with --on_error=skip")
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


def iso(time: int) -> str:
    """Microseconds since 1970 as ISO 8601, UTC."""
    return str(np.datetime64(int(time), "us").astype("datetime64[s]")) + "Z"


def parse_time(text: str, *, flag: str) -> int:
    """A time as a log has it -> microseconds since 1970. UserError names the flag."""
    try:
        return int(times_of([text], what=flag, ids=[""])[0])
    except UserError:
        raise UserError(f"{flag}={text}: expected an ISO 8601 time, such as 2024-07-01 or 2024-07-01T06:00Z") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).partition("Possible fixes")[0].split())[:200]
