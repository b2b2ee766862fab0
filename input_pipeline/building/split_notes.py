"""What a build says of its split before its counts: what was too common to link rows, and shares that were not met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from input_pipeline.building.split import KEYS, SplitRule, linked_groups, widely_shared
from input_pipeline.duplicates.groups import value_codes

SHARE_OFF = 0.05  # from here on a share counts as not met
_NAMED = 3  # values of each key
_SHOWN = 60  # letters


def share_notes(
    rule: SplitRule,
    counts: Sequence[int],
    columns: Mapping[str, pa.Array | pa.ChunkedArray],
    group_sizes: np.ndarray,
) -> list[str]:
    """Sentences about the rows kept.

    Args:
      counts: rows of each split of the rule.
      columns: of the rows kept, "title" and "image" as `linked_groups` takes them.
      group_sizes: int [groups], rows of each.
    """
    notes = [note for key in KEYS if key in rule.by for note in _wide(key, columns[key])]
    total, largest = sum(counts), int(group_sizes.max(initial=0))
    if off := shares_off(rule, counts):
        met = ", ".join(
            f"{name} {100 * count / total:.0f} % instead of {100 * asked:.0f} %" for name, count, asked in off
        )
        notes.append(f"shares not met: {met}; {total} rows form {len(group_sizes)} groups, the largest of {largest}")
    return notes


def shares_off(rule: SplitRule, counts: Sequence[int]) -> list[tuple[str, int, float]]:
    """(split, its rows, its share as asked) where these differ by more than `SHARE_OFF`, or no row is in it."""
    total = sum(counts)
    asked = zip(rule.fractions.items(), counts, strict=False)
    return [(name, n, share) for (name, share), n in asked if total and (not n or abs(n / total - share) > SHARE_OFF)]


def largest_by_key(rule: SplitRule, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> dict[str, int]:
    """{key of the rule: rows of the largest group that it alone links}."""
    return {key: int(np.bincount(linked_groups(columns, [key])).max(initial=0)) for key in rule.by}


def _wide(key: str, column: pa.Array | pa.ChunkedArray) -> list[str]:
    codes, rows, distinct = value_codes(column)
    wide = np.flatnonzero(widely_shared(codes, rows, len(column)))
    found = []
    for code in wide[:_NAMED].tolist():
        holders = np.unique(rows[codes == code])
        value = repr(str(distinct[code].as_py())[:_SHOWN]) + " " if key == "title" else ""
        more = f"; {len(wide) - _NAMED} more are as common" if len(wide) > _NAMED and code == wide[_NAMED - 1] else ""
        found.append(
            f"the {key} {value}is in {len(holders)} of {len(column)} rows (the first is row {int(holders[0])} of those "
            f"kept), so it links none of them{more}"
        )
    return found
