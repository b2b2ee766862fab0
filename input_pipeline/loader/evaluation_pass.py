"""A pass over a split for evaluation or embedding: every row once, and none ever replaced by another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from input_pipeline.loader.bad_rows import BadRow
from input_pipeline.loader.examples import Disk, tree_map
from input_pipeline.loader.item_vectors import NO_VECTORS, BatchVectors
from siglip_jax.errors import UserError


@dataclasses.dataclass
class Pass(Iterator[dict[str, Any]]):
    """Batches of a pass over a split.

    Attributes:
      skipped: the rows left out so far.
    """

    _iterator: Iterator[tuple[dict[str, Any], list[BadRow]]]
    skipped: list[BadRow] = dataclasses.field(default_factory=list)

    def __next__(self) -> dict[str, Any]:
        while True:
            batch, skipped = next(self._iterator)
            self.skipped += skipped
            if len(batch["index"]):
                return batch


def pass_batch(
    disk: Disk, rows: np.ndarray, *, on_error: str, vectors: BatchVectors = NO_VECTORS
) -> tuple[dict[str, Any], list[BadRow]]:
    """The examples of int64 [b] rows with "index", "id", "title", "image_sha256" and "attributes", and those left out.

    Those that lack a vector are left out whatever `on_error` says.

    Raises:
      UserError: a bad row, unless `on_error` is "skip"; a damaged file.
    """
    arrays, bad, records = disk.examples(rows)
    bad.sort(key=lambda each: each.row)
    if bad and on_error == "error":
        more = f" (and {len(bad) - 1} more of {len(rows)} rows)" if len(bad) > 1 else ""
        raise UserError(
            f"{disk.rows.dataset_dir}: split {disk.rows.name}: {bad[0]}{more}; build the dataset again, or leave out "
            "such rows (on_error=skip)"
        )
    found = {each.row for each in bad}
    for row, record in zip(rows.tolist(), records, strict=True):
        if row not in found and (reason := vectors.lacking(row)):
            bad.append(BadRow(row, record["id"] if record else "", reason))
    if bad:
        there = np.flatnonzero(~np.isin(rows, [each.row for each in bad]))
        arrays = {key: tree_map(lambda part: part[there], value) for key, value in arrays.items()}
        rows, records = rows[there], [records[k] for k in there]
        bad.sort(key=lambda each: each.row)
    kept = [record for record in records if record is not None]
    return {
        **vectors.take(rows),
        **arrays,
        "index": rows,
        "id": [record["id"] for record in kept],
        "title": [record["title"] for record in kept],
        "image_sha256": [record["image_sha256"] for record in kept],
        "attributes": {name: [record["attributes"][name] for record in kept] for name in disk.rows.attribute_names},
    }, bad
