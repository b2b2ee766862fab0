"""What a build says of its split before its counts: what was too common to link rows, and shares that were not met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from input_pipeline.building.split import KEYS, SplitRule, widely_shared
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
    total = sum(counts)
    for (name, asked), count in zip(rule.fractions.items(), counts, strict=False):
        if total and abs(count / total - asked) > SHARE_OFF:
            largest = int(group_sizes.max(initial=0))
            notes.append(
                f"split {name} has {100 * count / total:.0f} % of the rows, asked were {100 * asked:.0f} %: "
                f"{total} rows form {len(group_sizes)} groups, the largest of {largest}"
            )
    return notes


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
