"""Experiment logs: exposures and outcomes of users, one row an event, the variant in a column.

    user_id, time    as in every log;  variant  on exposures at least (--variant names the column)
    action           "exposure" or "impression" show a variant, other actions are outcomes; a file without this column
                     holds exposures
    value            of an outcome: its price;  item_id, query_id, list_id  where there are any

Exposures and outcomes may lie in files of different columns. A user's events count from the first exposure on. Rows
that are equal in every column are one event, unless `duplicates` is "keep". What does not count is counted and named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.experiments.experiment_metrics import VALUE, ExperimentMetric, check_terms
from eval.experiments.experiment_users import ExperimentUsers, check_numbers, order_variants
from eval.logs.database import Database, literal
from eval.logs.log_files import event_file, log_files
from eval.logs.log_times import AUTO, FIRST, LAST, iso
from eval.simulate import PREFIX
from siglip_jax.errors import UserError, check_choice

EXPOSURE, IMPRESSION = "exposure", "impression"
DAY = 86_400_000_000  # microseconds
COLUMNS = ("user_id", "time", "variant", "action", VALUE, "item_id", "query_id", "list_id")
_MANY_DUPLICATES = 0.01


@dataclasses.dataclass(frozen=True)
class ExperimentLog:
    """How an experiment's log is written, and which part of it counts.

    Attributes:
      columns: {our column: the log's}, for those of another name.
      actions: {the log's word: our action}.
      start, end: microseconds since 1970; start None is the first exposure, end None the last event.
      before: days before `start` that CUPED's covariates are of; 0 for all there are.
      exposure: the action that shows a variant; "" takes "exposure" where there is one, else "impression".
      segments: columns that a user's value at the first exposure is taken of.
    """

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    actions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    control: str = ""
    start: int | None = None
    end: int | None = None
    before: int = 0
    exposure: str = ""
    segments: tuple[str, ...] = ()
    duplicates: str = "drop"
    time_unit: str = AUTO


@dataclasses.dataclass
class Events:
    """A table `events` (user, time, variant, action, value, item_id, query_id, list_id, s0, s1, ...), until `close`."""

    sql: Database
    notes: list[str]
    warnings: list[str]
    columns: set[str]
    actions: dict[str, int]

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: Any) -> None:
        self.sql.close()


def read_events(paths: Sequence[str], form: ExperimentLog, *, variants: bool = True) -> Events:
    """Reads and checks the files of a log; close it after use.

    Args:
      variants: whether there must be a column of them; a plan is made of a log without.

    Raises:
      UserError: no such file, a column missing, no usable row.
    """
    check_choice("duplicates", form.duplicates, ("drop", "keep"))
    if unknown := sorted(form.columns.keys() - set(COLUMNS)):
        raise UserError(f"--log_column={unknown[0]}=...: expected one of {', '.join(COLUMNS)}")
    names = {ours: form.columns.get(ours, ours) for ours in COLUMNS}
    fields = [*COLUMNS, *(f"s{i}" for i in range(len(form.segments)))]
    sql, notes, seen = Database(), [], set[str]()
    try:
        kinds = (f"{field} {'bigint' if field == 'time' else 'text'}" for field in fields)
        sql.execute(f"create table raw ({', '.join(kinds)})")
        files = log_files(paths)
        for file in files:
            source = event_file(sql, file)
            there = {ours: theirs for ours, theirs in names.items() if theirs in source.columns}
            _check_columns(file, there, names, source.columns)
            cells = {ours: source.text(theirs) for ours, theirs in there.items()}
            cells["time"] = source.time(there["time"], form.time_unit)[0]
            cells["action"] = _renamed(cells.get("action", literal(EXPOSURE)), form.actions)
            segments = [source.text(name) if name in source.columns else "null" for name in form.segments]
            source.insert(
                sql,
                "raw",
                [*(cells.get(ours, "null") for ours in COLUMNS), *segments],
                of=[*there.values(), *form.segments],
            )
            seen |= there.keys() | (set(form.segments) & source.columns.keys())
            notes += [source.assumed] if source.assumed else []
        if variants and "variant" not in seen:
            raise UserError(
                f"no column {names['variant']!r} in {', '.join(map(str, files[:3]))}: expected who saw which variant; "
                "name the column with --variant=COLUMN"
            )
        if lost := [name for name in form.segments if name not in seen]:
            raise UserError(f"--segment={lost[0]}: no such column in the log")
        return _checked(sql, form, notes, seen)
    except BaseException:
        sql.close()
        raise


def read_log_users(events: Events, form: ExperimentLog, metrics: Sequence[ExperimentMetric]) -> ExperimentUsers:
    """The users of an experiment with the sums that the metrics need.

    Raises:
      UserError: an action that no event has, no exposures, one variant only, or nothing between start and end.
    """
    check_terms(metrics, events.actions, what="action")
    sql = events.sql
    exposure = _exposure(events, form)
    first, last = sql.one("select min(time) filter (variant is not null), max(time) from events")
    start, end = first if form.start is None else form.start, last + 1 if form.end is None else form.end
    window = f"time >= {start} and time < {end}"
    shown = f"{window} and variant is not null and action = {literal(exposure)}"
    segment = "".join(
        f", arg_min(s{i}, time) filter ({shown} and s{i} is not null) as s{i}" for i in range(len(form.segments))
    )
    sql.execute(
        f"create or replace temp table seen as select user_id, min(variant) filter ({window}) as variant, "
        f"count(distinct variant) filter ({window}) as variants, min(time) filter ({shown}) as first, "
        f"count(*) filter ({window}) as inside{segment} from events group by user_id"
    )
    reasons = {
        "in several variants": "variants > 1",
        "with a variant and no exposure": "variants = 1 and first is null",
        "without a variant": "variants = 0 and inside > 0",
    }
    left_out: dict[str, dict[str, object]] = {}
    for reason, test in reasons.items():
        users, example = sql.one(f"select count(*), min(user_id) from seen where {test}")
        if users:
            left_out[reason] = {"users": users, "example": example}
    sql.execute(
        "create or replace temp table kept as select *, row_number() over (order by user_id) - 1 as code from seen "
        "where variants = 1 and first is not null"
    )
    found = [row[0] for row in sql.execute("select distinct variant from kept order by 1").fetchall()]
    if not found:
        raise UserError(
            f"no user was exposed between {iso(start)} and {iso(end)}; exposures are {exposure!r} events with a "
            f"variant, from {'none' if first is None else iso(first)} on: move --start and --end"
        )
    variants = order_variants(found, form.control)
    code, names, variant, firsts, *segments = sql.arrays(
        "select code, user_id, variant, first"
        + "".join(f", coalesce(s{i}, '')" for i in range(len(form.segments)))
        + " from kept order by code"
    )
    keys = _keys(metrics)
    columns = ", ".join(_sum(key) for key in keys)
    user, day, *values = sql.arrays(
        f"select code, time // {DAY} - {start // DAY} as day, {columns} from events join kept using (user_id) "
        f"where time >= first and time < {end} group by 1, 2 order by 2, 1"
    )
    since = start - form.before * DAY if form.before else FIRST
    before: dict[str, np.ndarray] = {}
    (earlier,) = sql.one(f"select count(*) from events where time < {start} and time >= {since}")
    if earlier:
        who, *past = sql.arrays(
            f"select code, {columns} from events join kept using (user_id) where time < {start} and time >= {since} "
            "group by 1"
        )
        before = {key: np.bincount(who, column, len(code)) for key, column in zip(keys, past, strict=True)}
    place = {name: i for i, name in enumerate(variants)}
    days = np.arange(start // DAY, max(end - 1, start) // DAY + 1).astype("datetime64[D]").astype(str)
    return ExperimentUsers(
        names=names,
        variants=variants,
        variant=np.array([place[name] for name in variant], np.int64),
        user=user.astype(np.int64),
        day=day.astype(np.int64),
        sums={key: column.astype(np.float64) for key, column in zip(keys, values, strict=True)},
        before=before,
        exposed=firsts.astype(np.int64) // DAY - start // DAY,
        days=tuple(map(str, days)),
        segments=dict(zip(form.segments, segments, strict=True)),
        left_out=left_out,
        notes=[*events.notes, f"exposures are {exposure!r} events; a user's events count from the first one on"],
        warnings=events.warnings,
        simulated=bool(len(names)) and str(names[0]).startswith(PREFIX),
    )


def _exposure(events: Events, form: ExperimentLog) -> str:
    shown = events.sql.counts("select action, count(*) from events where variant is not null group by 1")
    wanted = [form.exposure] if form.exposure else [EXPOSURE, IMPRESSION]
    for action in wanted:
        if action in shown:
            return action
    there = ", ".join(f"{action!r} ({rows})" for action, rows in sorted(shown.items())) or "none"
    raise UserError(
        f"outcomes without exposures: no {' or '.join(map(repr, wanted))} event has a variant; those that have one are "
        f"{there}. Users who did nothing are then not in the log, and no rate can be measured: give the exposures too, "
        "or name their action with --exposure"
    )


def _checked(sql: Database, form: ExperimentLog, notes: list[str], seen: set[str]) -> Events:
    """`raw` as `events`, what is impossible left out and counted."""
    tests = {
        "no user": "user_id is null",
        "no time": "time is null",
        "impossible time": f"time not between {FIRST} and {LAST - 1}" if form.time_unit == AUTO else "false",
        "no action": "action is null",
    }
    cases = " ".join(f"when {test} then '{kind}'" for kind, test in tests.items())
    problems = sql.counts(f"select case {cases} end as problem, count(*) from raw where problem is not null group by 1")
    (rows,) = sql.one("select count(*) from raw")
    good = rows - sum(problems.values())
    if not good:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(problems.items())) or "the files are empty"
        raise UserError(f"log: no usable row among {rows} ({listed})")
    check_numbers(sql, {VALUE: VALUE})
    warnings: list[str] = []
    distinct = "distinct" if form.duplicates == "drop" else ""
    sql.execute(
        f"create table events as select {distinct} * replace (cast({VALUE} as double) as {VALUE}) from raw "
        f"where case {cases} end is null"
    )
    sql.execute("drop table raw")
    (kept,) = sql.one("select count(*) from events")
    if good > kept:
        said = f"{good - kept:,} rows equal another in every column and were left out"
        many = good - kept > _MANY_DUPLICATES * good
        advice = "; where times are coarse these may be events of their own: --duplicates=keep counts them"
        (warnings if many else notes).append(said + (advice if many else ""))
    if problems:
        warnings.append(
            f"of {rows:,} rows left out: {', '.join(f'{count:,} {kind}' for kind, count in sorted(problems.items()))}"
        )
    actions = sql.counts("select action, count(*) from events group by 1 order by 2 desc, 1")
    notes.append(f"{kept:,} events: {', '.join(f'{count:,} {action}' for action, count in actions.items())}")
    return Events(sql, notes, warnings, seen, actions)


def _check_columns(
    file: object, there: Mapping[str, str], names: Mapping[str, str], columns: Mapping[str, str]
) -> None:
    missing = [ours for ours in ("user_id", "time") if ours not in there]
    if not missing and not {"variant", "action"} & there.keys():
        raise UserError(
            f"log {file}: no column {names['variant']} and none {names['action']}; columns are {', '.join(columns)}; "
            "name the variant's with --variant=COLUMN, the action's with --log_column=action=COLUMN"
        )
    if missing:
        flags = " ".join(f"--log_column={ours}=..." for ours in missing)
        raise UserError(
            f"log {file}: no column {', '.join(names[m] for m in missing)}; columns are {', '.join(columns)}; name "
            f"them with {flags}"
        )


def _renamed(action: str, names: Mapping[str, str]) -> str:
    if not names:
        return action
    return (
        f"case {action} {' '.join(f'when {literal(a)} then {literal(b)}' for a, b in names.items())} else {action} end"
    )


def _keys(metrics: Sequence[ExperimentMetric]) -> list[str]:
    return list(dict.fromkeys(term.key for metric in metrics for term in metric.terms))


def _sum(key: str) -> str:
    if key.startswith(f"{VALUE}("):
        action = key.removeprefix(f"{VALUE}(").removesuffix(")")
        return f"coalesce(sum({VALUE}) filter (action = {literal(action)}), 0)"
    return f"count(*) filter (action = {literal(key)})"


def default_metrics(events: Events) -> list[str]:
    """Of the actions that the log has: CTR, conversion, revenue."""
    found = []
    if {IMPRESSION, "tap"} <= events.actions.keys():
        found.append("CTR=tap/impression")
    if "purchase" in events.actions:
        found.append("conversion=any(purchase)")
        if VALUE in events.columns:
            found.append("revenue=value(purchase)")
    if not found:
        raise UserError(
            f"no --metric: expected such as --metric=rate=any(ACTION); actions are {', '.join(events.actions)}"
        )
    return found


def sums_of(
    events: Events, metrics: Sequence[ExperimentMetric], *, start: int, end: int, since: int
) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(u, {key: [u]} of users' sums in [start, end), the same in [since, start)) of the users of the former."""
    keys = _keys(metrics)
    columns = ", ".join(_sum(key) for key in keys)
    window = f"time >= {start} and time < {end}"
    current = events.sql.arrays(f"select user_id, {columns} from events where {window} group by 1 order by 1")
    earlier = events.sql.arrays(
        f"select user_id, {columns} from events where time >= {since} and time < {start} "
        f"and user_id in (select user_id from events where {window}) group by 1 order by 1"
    )
    place = np.searchsorted(current[0].astype(str), earlier[0].astype(str))
    sums = {key: column.astype(np.float64) for key, column in zip(keys, current[1:], strict=True)}
    before = {
        key: np.bincount(place, column.astype(np.float64), len(current[0]))
        for key, column in zip(keys, earlier[1:], strict=True)
    }
    return len(current[0]), sums, before
