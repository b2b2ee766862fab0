"""Experiments that come as a table of users: one row each, the variant and the sums in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eval.experiments.experiment_metrics import ExperimentMetric, check_terms
from eval.experiments.experiment_users import ExperimentUsers, check_numbers, order_variants
from eval.logs.database import Database
from eval.logs.log_files import event_file, log_files
from eval.simulate import PREFIX
from siglip_jax.errors import UserError


def read_user_rows(
    paths: Sequence[str],
    metrics: Sequence[ExperimentMetric],
    *,
    columns: Mapping[str, str] | None = None,
    control: str = "",
    segments: Sequence[str] = (),
) -> ExperimentUsers:
    """Users and their sums.

    Args:
      paths: Parquet, CSV, TSV or JSON lines, every file with all the columns needed.
      columns: {"user_id" or "variant": the table's}, for those of another name.

    Raises:
      UserError: columns missing, a user in two rows of one variant, a cell that is no number, one variant only.
    """
    named = {ours: (columns or {}).get(ours, ours) for ours in ("user_id", "variant")}
    keys = list(
        dict.fromkeys(t.key for m in metrics for t in (*m.terms, *(each for each in m.covariate or () if each)))
    )
    with Database() as sql:
        fields = ["user_id", "variant", *(f"c{i}" for i in range(len(keys))), *(f"s{i}" for i in range(len(segments)))]
        sql.execute(f"create table raw ({', '.join(f'{field} text' for field in fields)})")
        notes = []
        for file in log_files(paths):
            source = event_file(sql, file)
            if lost := [ours for ours, theirs in named.items() if theirs not in source.columns]:
                flag = "--variant=COLUMN" if lost[0] == "variant" else f"--log_column={lost[0]}=COLUMN"
                raise UserError(
                    f"{file}: no column {named[lost[0]]!r}; columns are {', '.join(source.columns)}; name it with "
                    f"{flag}"
                )
            if not metrics:
                raise UserError(
                    f"{file}: give --metric=name=column or name=column/column; columns are {', '.join(source.columns)}"
                )
            if same := [m.name for m in metrics if m.covariate == (m.numerator, m.denominator)]:
                raise UserError(f"--covariate={same[0]}=...: is the metric itself; expected columns of the time before")
            check_terms(metrics, source.columns, what=f"column of {file.name}")
            if lost := [name for name in segments if name not in source.columns]:
                raise UserError(f"--segment={lost[0]}: no such column in {file}")
            wanted = [named["user_id"], named["variant"], *keys, *segments]
            source.insert(sql, "raw", [source.text(name) for name in wanted], of=wanted)
            notes += [source.assumed] if source.assumed else []
        check_numbers(sql, {f"c{i}": key for i, key in enumerate(keys)})
        for i, key in enumerate(keys):
            (empty,) = sql.one(f"select count(*) from raw where c{i} is null")
            notes += [f"{empty:,} empty cells of {key} count as 0"] if empty else []
        left_out = _repeated(sql)
        counts = ", ".join(f"coalesce(cast(c{i} as double), 0)" for i in range(len(keys)))
        texts = "".join(f", coalesce(s{i}, '')" for i in range(len(segments)))
        names, variant, *cells = sql.arrays(
            f"select user_id, variant, {counts}{texts} from raw where user_id is not null and variant is not null and "
            "user_id not in (select user_id from raw where user_id is not null group by 1 having count(*) > 1) "
            "order by user_id"
        )
    if not len(names):
        raise UserError(f"{', '.join(map(str, paths))}: no row has a user and a variant; expected one row a user")
    variants = order_variants(sorted(set(variant)), control)
    place = {name: i for i, name in enumerate(variants)}
    sums = {key: np.asarray(cell, np.float64) for key, cell in zip(keys, cells, strict=False)}
    return ExperimentUsers(
        names=names,
        variants=variants,
        variant=np.array([place[name] for name in variant], np.int64),
        user=np.arange(len(names)),
        day=np.zeros(len(names), np.int64),
        sums=sums,
        before=sums if any(metric.covariate for metric in metrics) else {},
        exposed=np.zeros(len(names), np.int64),
        segments=dict(zip(segments, cells[len(keys) :], strict=True)),
        left_out=left_out,
        notes=notes,
        simulated=bool(len(names)) and str(names[0]).startswith(PREFIX),
    )


def _repeated(sql: Database) -> dict[str, dict[str, object]]:
    """What is left out; UserError where a user has two rows in one variant."""
    users, example, rows = sql.one(
        "select count(*), min(user_id), max(n) from (select user_id, count(*) as n from raw where user_id is not null "
        "and variant is not null group by 1 having count(*) > 1 and count(distinct variant) = 1)"
    )
    if users:
        raise UserError(
            f"user {example!r} is in {rows} rows of one variant, and {users} users are in more than one: expected one "
            "row a user; sum them up, or give events with --logs"
        )
    left_out: dict[str, dict[str, object]] = {}
    for reason, query in (
        (
            "in several variants",
            "select user_id from raw where user_id is not null group by 1 having count(distinct variant) > 1",
        ),
        ("without a variant", "select user_id from raw where variant is null and user_id is not null"),
        ("without an id", "select '' as user_id from raw where user_id is null"),
    ):
        found, first = sql.one(f"select count(*), min(user_id) from ({query})")
        if found:
            left_out[reason] = {"users": found, "example": first}
    return left_out
