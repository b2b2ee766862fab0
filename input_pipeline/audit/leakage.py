"""Items of an evaluation that are, or look like, items of the training set: an error, with all of them in a file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.dataset.item_table import item_table, split_names
from input_pipeline.duplicates.near_images import near_matches, signatures
from input_pipeline.duplicates.normalised_titles import normalise_title
from siglip_jax.errors import UserError

KEYS = ("id", "title", "image")
NEAR_KEY = "near picture"
_SHOWN = 5  # ids in the error message
_COLUMNS = {"id": "id", "title": "title", "image": "image_sha256"}


@dataclasses.dataclass(frozen=True)
class Leakage:
    """What `find_leakage` found.

    Attributes:
      evaluated, trained: rows that were compared.
      found: a line for each row of the evaluation and each key by which it is in the training set: row int64 and id of
        the evaluation, key, value, training_id (of the first such row).
      not_compared: keys that could not be looked at, since a table has no such column.
    """

    evaluated: int
    trained: int
    found: pa.Table
    not_compared: tuple[str, ...] = ()

    @property
    def rows(self) -> np.ndarray:
        """int64: rows of the evaluation that leak, each once, in order."""
        return np.unique(self.found["row"].to_numpy())

    @property
    def ids(self) -> list[str]:
        """Their ids, each once, in order."""
        return list(dict.fromkeys(self.found.sort_by("row")["id"].to_pylist()))

    def counts(self) -> dict[str, int]:
        """{key: rows of the evaluation that leak by it}."""
        return {pair["values"]: pair["counts"] for pair in pc.value_counts(self.found["key"]).to_pylist()}


def find_leakage(
    training: pa.Table, evaluation: pa.Table, *, keys: Sequence[str] = KEYS, near: int | None = None
) -> Leakage:
    """Rows of the evaluation that have an id, title, picture or attribute in common with the training set.

    Args:
      training, evaluation: as `item_table` gives them, or any tables with some of its columns; `id` is required.
      keys: "id"; "title", as `normalise_title` writes it; "image", the bytes of the picture; or an attribute, such as
        "seller". Empty values are in common with none.
      near: bits in which signatures of pictures that look alike may differ (see `near_image_pairs`), or None.

    Raises:
      UserError: a key that neither of the tables has, or an evaluation without id.
    """
    for name, table in (("training", training), ("evaluation", evaluation)):
        if "id" not in table.column_names:
            raise UserError(f"{name}: no column id; columns are {', '.join(table.column_names)}")
    lines, missing = [], []
    for key in keys:
        known, asked = _column(training, key), _column(evaluation, key)
        if known is None and asked is None and key not in KEYS:
            raise UserError(f"leakage key {key}: no such attribute; keys are {', '.join(KEYS)} or an attribute's name")
        if known is None or asked is None:
            missing.append(key)
            continue
        place = pc.index_in(asked, value_set=_distinct_first(known))
        use = pc.and_(pc.is_valid(place), pc.not_equal(asked, ""))
        rows = np.flatnonzero(use.to_numpy(zero_copy_only=False))
        first = _first_rows(known)[place.take(rows).to_numpy()]
        lines.append(_lines(training, evaluation, rows, key, asked.take(rows), first))
    if near is not None:
        if "image_signature" in training.column_names and "image_signature" in evaluation.column_names:
            lines.append(_near_lines(training, evaluation, near))
        else:
            missing.append(NEAR_KEY)
    empty = _lines(
        training, evaluation, np.zeros(0, np.int64), "", pa.chunked_array([[]], pa.string()), np.zeros(0, np.int64)
    )
    return Leakage(len(evaluation), len(training), pa.concat_tables([empty, *lines]), tuple(missing))


def check_leakage(
    training: pa.Table,
    evaluation: pa.Table,
    *,
    output: str | os.PathLike,
    keys: Sequence[str] = KEYS,
    near: int | None = None,
) -> Leakage:
    """`find_leakage`, which then must find nothing.

    Args:
      output: a .csv file for the whole list; written only where there is leakage, an older one is removed.

    Raises:
      UserError: items of the evaluation are in the training set: how many by which key, the first ids, where the list
        is; and whatever `find_leakage` refuses.
    """
    return _refuse(find_leakage(training, evaluation, keys=keys, near=near), output=output)


def _refuse(leakage: Leakage, *, output: str | os.PathLike) -> Leakage:
    from pyarrow import csv

    output = pathlib.Path(output)
    if not len(leakage.found):
        output.unlink(missing_ok=True)
        return leakage
    output.parent.mkdir(parents=True, exist_ok=True)
    csv.write_csv(leakage.found, output)
    ids, rows = leakage.ids, len(leakage.rows)
    by = ", ".join(f"{count} by {key}" for key, count in leakage.counts().items())
    shown = ", ".join(ids[:_SHOWN]) + (", ..." if len(ids) > _SHOWN else "")
    raise UserError(
        f"{rows} of {leakage.evaluated} evaluation items are in the training set ({by}): {shown}; "
        f"all are listed in {output}; leave them out of the evaluation or train on a split without them"
    )


def check_log(
    dataset_dir: str | os.PathLike,
    item_ids: Iterable[str],
    *,
    output: str | os.PathLike,
    train_split: str = "train",
    keys: Sequence[str] = KEYS,
    near: int | None = None,
) -> Leakage:
    """`find_log_leakage`, which then must find nothing.

    Args:
      output: see `check_leakage`.

    Raises:
      UserError: leakage; whatever `find_log_leakage` refuses.
    """
    found = find_log_leakage(dataset_dir, item_ids, train_split=train_split, keys=keys, near=near)
    return _refuse(found, output=output)


def find_log_leakage(
    dataset_dir: str | os.PathLike,
    item_ids: Iterable[str],
    *,
    train_split: str = "train",
    keys: Sequence[str] = KEYS,
    near: int | None = None,
) -> Leakage:
    """`find_leakage` of the items of a ranking log in the split that a model was trained on.

    What the dataset knows of the items beside their ids is compared too; items that it does not have, by id alone.

    Args:
      dataset_dir: the dataset trained on.
      item_ids: the log's items, repeated or not.
      keys, near: see `find_leakage`.

    Raises:
      UserError: no dataset or no such split.
    """
    if train_split not in (names := split_names(dataset_dir)):
        raise UserError(f"{dataset_dir}: no split {train_split}; splits are {', '.join(names)}")
    attributes = [key for key in keys if key not in KEYS]
    columns = ["id", "split", *(_COLUMNS[key] for key in ("title", "image") if key in keys)]
    columns += ["image_signature"] if near is not None else []
    columns += ["attributes"] if attributes else []
    table = item_table(dataset_dir, columns=columns)
    table = table.filter(pc.not_equal(table["split"], ""))  # what a build left out nobody trains on
    items = pa.table({"id": pa.array(dict.fromkeys(map(str, item_ids)), pa.string())})
    known = table.filter(pc.is_in(table["id"], items["id"].combine_chunks()))
    unknown = items.filter(pc.invert(pc.is_in(items["id"], known["id"].combine_chunks())))
    return find_leakage(
        table.filter(pc.equal(table["split"], train_split)),
        pa.concat_tables([known, unknown], promote_options="default"),
        keys=keys,
        near=near,
    )


def _column(table: pa.Table, key: str) -> pa.ChunkedArray | None:
    """Text to compare, "" where there is nothing; None where the table has no such column."""
    name = _COLUMNS.get(key, key)
    if name in table.column_names:
        column = table[name]
    elif "attributes" in table.column_names and key in [field.name for field in table.schema.field("attributes").type]:
        column = pc.struct_field(table["attributes"], key)
    else:
        return None
    column = pc.fill_null(column.cast(pa.string()), "")
    if key == "title":
        return pa.chunked_array([[normalise_title(title) for title in column.to_pylist()]], pa.string())
    return column


def _distinct_first(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks().dictionary_encode().dictionary


def _first_rows(column: pa.ChunkedArray) -> np.ndarray:
    """int64: the first row of each distinct value, in the order of `_distinct_first`."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    return np.unique(codes, return_index=True)[1]


def _near_lines(training: pa.Table, evaluation: pa.Table, near: int) -> pa.Table:
    trained, asked = (
        np.flatnonzero(table["image_signature"].is_valid().to_numpy()) for table in (training, evaluation)
    )
    known, queries = (
        signatures(table["image_signature"].take(pa.array(rows)))
        for table, rows in ((training, trained), (evaluation, asked))
    )
    found = near_matches(queries, known, distance=near)
    rows, first = asked[found >= 0], trained[found[found >= 0]]
    value = pa.chunked_array([[""] * len(rows)], pa.string())
    return _lines(training, evaluation, rows, NEAR_KEY, value, first)


def _lines(
    training: pa.Table, evaluation: pa.Table, rows: np.ndarray, key: str, value: pa.ChunkedArray, first: np.ndarray
) -> pa.Table:
    return pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "id": evaluation["id"].take(pa.array(rows)).cast(pa.string()),
            "key": pa.array([key] * len(rows), pa.string()),
            "value": value,
            "training_id": training["id"].take(pa.array(first)).cast(pa.string()),
        }
    )
