"""The rows a build left out: counted by kind, the first of each kind for the audit, all of them in a file.

Further pictures left out of rows that are kept are listed too, as kind "further picture: ...". Where there can be no
dataset, audit and list are written beside its place.
"""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from input_pipeline.building import facts
from input_pipeline.dataset.problem_rows import FILE, FURTHER, SCHEMA
from siglip_jax.errors import UserError

LISTED = 100  # of each kind, in the audit
_SHOWN, _DETAIL = 60, 200  # letters on the terminal


def problem_tables(parts: Sequence[pathlib.Path], kinds: pa.ChunkedArray) -> Iterator[pa.Table]:
    """Tables of `SCHEMA`, one for each part, rows in order.

    Args:
      kinds: of every row, "" where it is kept.
    """
    start = 0
    for path in parts:
        table = facts.read_part(path, ["row", "id", "detail", "more_problems"])
        kind = kinds.slice(start, len(table))
        start += len(table)
        bad = pc.not_equal(kind, "")
        details = facts.details_of(kind, table["id"], table["detail"])
        left_out = pa.table([table["row"], table["id"], kind, details], schema=SCHEMA).filter(bad)
        yield pa.concat_tables([left_out, _further(table.filter(pc.invert(bad)))]).sort_by("row")


def _further(table: pa.Table) -> pa.Table:
    texts = pc.list_flatten(table["more_problems"])
    rows = table.take(pc.list_parent_indices(table["more_problems"]))
    pairs = [text.partition(": ") for text in texts.to_pylist()]
    columns = [[FURTHER + kind for kind, *_ in pairs], [detail for *_, detail in pairs]]
    return pa.table([rows["row"], rows["id"], *(pa.array(column, pa.string()) for column in columns)], schema=SCHEMA)


def first_of_each_kind(tables: Iterable[pa.Table], count: int = LISTED) -> list[dict[str, Any]]:
    """The first `count` rows left out of each kind, in order of rows; without further pictures."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for table in tables:
        kinds = table["kind"].to_pylist()
        places = []
        for place, kind in enumerate(kinds):
            seen[kind] += 1
            if seen[kind] <= count and not kind.startswith(FURTHER):
                places.append(place)
        found += table.take(pa.array(places, pa.int64())).to_pylist()
    return found


def write_problems(path: pathlib.Path, tables: Iterable[pa.Table]) -> None:
    """All of them as a csv; no file, and none left from before, where there are none."""
    some = (table for table in tables if len(table))
    first = next(some, None)
    if first is None:
        path.unlink(missing_ok=True)
        return
    with csv.CSVWriter(path, SCHEMA) as writer:
        writer.write_table(first)
        for table in some:
            writer.write_table(table)


def told_problems(audit: dict[str, Any]) -> str:
    """Each kind with its count, and the first row of the commonest."""
    problems = audit["problems"]
    if not problems:
        return "nothing"
    commonest = max(problems, key=lambda kind: problems[kind])
    first = next(row for row in audit["problem_rows"] if row["kind"] == commonest)
    counts = ", ".join(f"{count} {kind}" for kind, count in problems.items())
    example = f"row {first['row']}, id {first['id'][:_SHOWN]!r}: {first['detail'][:_DETAIL]}"
    return " ".join(f"{counts}; the first {commonest} is {example}".split())


def refuse(
    audit: dict[str, Any], listed: Iterator[pa.Table], out_dir: pathlib.Path, on_error: str, max_left_out: float
) -> None:
    """Raises, after writing the audit and the list beside `out_dir`, where no dataset can or may be written."""
    problems = collections.Counter(audit["problems"])
    problems.update({f"{FURTHER}{kind}": count for kind, count in audit["more_image_problems"].items()})
    found = ", ".join(f"{count} {kind}" for kind, count in problems.items())
    lost = sum(count for kind, count in audit["problems"].items() if kind != facts.SEEN)
    empty = [name for name, count in audit["splits"].items() if not count]
    if not audit["kept"]:
        message = f"no usable row among {audit['rows']} ({told_problems(audit)})"
    elif on_error == "error" and problems.keys() - {facts.SEEN}:
        message = f"{found} among {audit['rows']} rows; fix them or leave them out (--on_error=skip)"
    elif lost > max_left_out * audit["rows"]:
        message = (
            f"{lost} of {audit['rows']} rows ({100 * lost / audit['rows']:.3g} %) would be left out, more than "
            f"{100 * max_left_out:g} %: {told_problems(audit)}; mend them, or allow it with --max_left_out="
            f"{math.ceil(100 * lost / audit['rows']) / 100:g}"
        )
    elif empty:
        told = f"{told_problems(audit)}; so " if audit["problems"] else ""
        message = (
            f"{told}split {' and '.join(empty)} would be empty: {audit['kept']} rows form "
            f"{audit['linked_groups']} groups with {' or '.join(audit['split_by'])} in common; {_more_even(audit)}"
        )
    else:
        return
    path, full_list = refusal_paths(out_dir)
    write_json(path, audit)
    write_problems(full_list, listed)
    every = f", every row is listed in {full_list}" if problems else ""
    raise UserError(f"{audit['table']}: {message}; the counts are in {path}{every}")


def _more_even(audit: dict[str, Any]) -> str:
    """What may be done so that no split is empty."""
    if audit["split_times"]:
        return "give another time"
    alone = ", ".join(f"{key} {rows}" for key, rows in audit["linked_by"].items())
    few = [key for key, rows in audit["linked_by"].items() if rows <= audit["kept"] / 2]
    if len(audit["linked_by"]) > 1 and few and len(few) < len(audit["linked_by"]):
        by = ",".join(few)
        return f"rows of the largest group by each alone: {alone}; --split_by={by} leaves out what links most of them"
    return "give larger fractions, another seed or more rows"


def refusal_paths(out_dir: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    return out_dir.with_name(f"{out_dir.name}.audit.json"), out_dir.with_name(f"{out_dir.name}.{FILE}")


def write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
