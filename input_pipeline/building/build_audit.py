"""The audit of a build: what was kept and left out, how it was divided, and what is worth saying of it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.building import facts
from input_pipeline.building.problems import first_of_each_kind, problem_tables
from input_pipeline.building.records import Rows
from input_pipeline.building.split import SplitRule
from input_pipeline.building.split_notes import largest_by_key, share_notes, shares_off
from input_pipeline.catalogue import Catalogue


def build_audit(
    catalogue: Catalogue,
    columns: facts.Facts,
    rows: Rows,
    kinds: pa.ChunkedArray,
    rule: SplitRule,
    names: Sequence[str],
) -> dict[str, Any]:
    """What `build_dataset` returns, but for what only the whole dataset tells.

    Args:
      columns: of the rows kept.
      kinds: the kind of problem of every row, "" where it is kept.
      names: of the attributes.
    """
    counts = np.bincount(rows.split, minlength=len(rule.names)).tolist()
    group_sizes = np.unique(rows.group, return_counts=True)[1]
    kept = len(rows.split)
    sides = [columns.numbers(side) for side in ("height", "width")] if kept else []
    found = {value["values"]: value["counts"] for value in pc.value_counts(kinds).to_pylist() if value["values"]}
    more = collections.Counter(
        text.partition(":")[0] for text in pc.list_flatten(columns.staged("more_problems")).to_pylist()
    )
    return {
        "rows": len(rows.kept),
        "kept": kept,
        "splits": dict(zip(rule.names, counts, strict=True)),
        "problems": dict(sorted(found.items())),
        "problem_rows": first_of_each_kind(problem_tables(columns.parts, kinds)),
        "more_image_problems": dict(sorted(more.items())),
        "duplicate_images": kept - pc.count_distinct(columns.staged("image_sha256")).as_py(),
        "duplicate_titles": kept - int(rows.title_group.max(initial=-1)) - 1,
        "linked_groups": len(group_sizes),
        "largest_group": int(group_sizes.max(initial=0)),
        "notes": [*catalogue.notes, *catalogue.unused(), *share_notes(rule, counts, columns, group_sizes)],
        "linked_by": largest_by_key(rule, columns) if shares_off(rule, counts) else {},
        "image_sides": [int(min(s.min() for s in sides)), int(max(s.max() for s in sides))] if kept else [],
        "attributes": list(names),
        **rule_told(rule),
        "table": catalogue.table,
        "catalogue_sha256": catalogue.sha256,
    }


def rule_told(rule: SplitRule) -> dict[str, Any]:
    """The rule in JSON's own types."""
    return {
        "seed": rule.seed,
        "fractions": dict(rule.fractions),
        "split_by": list(rule.by),
        "time_column": rule.time_column,
        "split_times": dict(rule.times),
    }
