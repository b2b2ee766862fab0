"""What is known of every row of a catalogue, in Parquet parts that are read one column at a time."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from input_pipeline.building.split import NEAR_KEY
from input_pipeline.duplicates.near_images import near_groups, signatures

_TEXTS = pa.list_(pa.string())
# Of a row alone; `attributes` is JSON, since the names of all are known only at the end.
STAGED = pa.schema(
    {
        "row": pa.int64(), "id": pa.string(), "title": pa.string(), "kind": pa.string(), "detail": pa.string(),
        "image_sha256": pa.string(), "image_phash": pa.uint64(), "image_signature": pa.binary(64),
        "height": pa.int32(), "width": pa.int32(), "bytes": pa.int64(), "format": pa.string(),
        "more_titles": _TEXTS, "more_problems": _TEXTS, "title_keys": _TEXTS, "image_keys": _TEXTS,
        "attributes": pa.string(), "record_bytes": pa.int64(), "item_key": pa.binary(16),
    }
)  # fmt: skip
PASSING = ("title_keys", "record_bytes", "item_key")  # of use to the build alone
DUPLICATE, CONTINUED = "duplicate id", "continued item"
_OF_EARLIER = (
    "; keep one of them, or name another column with --id_column",
    ", and this one has no title; put its picture into that row: image_2, image_3, ... are further pictures",
)
NO_TIME, SEEN = "no time", "in an earlier split"
NO_TITLE = "empty title"
_TEXT_KINDS = (
    "not UTF-8",
    "empty id",
    NO_TITLE,
    CONTINUED,
    "NUL byte",
)  # a row with one of these is not looked at further


def write_part(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = pa.table({name: [row[name] for row in rows] for name in STAGED.names}, schema=STAGED)
    pq.write_table(table, path, compression="zstd")


def read_part(path: pathlib.Path, columns: Sequence[str]) -> pa.Table:
    return pq.read_table(path, columns=list(columns), use_threads=False, pre_buffer=False)


class Facts(Mapping[str, pa.ChunkedArray]):
    """Columns over all parts, read anew each time; attributes by their names, title and image as `split_rows` takes.

    Attributes:
      parts: the files.
      kept: bool [n]; where it is given, only those rows are in the columns.
    """

    def __init__(self, parts: Sequence[pathlib.Path], attribute_names: Sequence[str], kept: np.ndarray | None = None):
        self.parts, self.attribute_names, self.kept = list(parts), list(attribute_names), kept

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        if name in ("title", "image"):
            return _single(self.staged(f"{name}_keys"))
        if name == NEAR_KEY:
            return pa.chunked_array([near_groups(signatures(self.staged("image_signature")))])
        if name not in self.attribute_names:
            raise KeyError(name)
        chunks = []
        for chunk in self.staged("attributes").chunks:
            chunks.append(pa.array([json.loads(text).get(name, "") for text in chunk.to_pylist()], pa.string()))
        return pa.chunked_array(chunks, pa.string())

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys(("title", "image", NEAR_KEY, *self.attribute_names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def staged(self, name: str) -> pa.ChunkedArray:
        """A column of `STAGED`, of the kept rows if these are known."""
        columns = [read_part(path, [name])[name] for path in self.parts]
        whole = pa.chunked_array([chunk for column in columns for chunk in column.chunks], STAGED.field(name).type)
        return whole if self.kept is None else whole.filter(pa.array(self.kept))

    def numbers(self, name: str) -> np.ndarray:
        return self.staged(name).to_numpy()


def kinds_of(facts: Facts) -> pa.ChunkedArray:
    """The kind of problem of every row, with the ids that an earlier row has; "" for rows that are kept.

    A row without a title and with the id of an earlier one goes on with that item, as exports of some shops do.
    """
    codes = facts.staged("id").combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.full(int(codes.max(initial=-1)) + 1, len(codes), np.int64)
    np.minimum.at(first, codes, np.arange(len(codes)))
    repeated = first[codes] < np.arange(len(codes))
    kinds = facts.staged("kind")
    continued = pc.and_(pa.array(repeated), pc.equal(kinds, NO_TITLE))
    kinds = pc.if_else(continued, CONTINUED, kinds)
    repeated &= ~pc.is_in(kinds, pa.array(_TEXT_KINDS)).to_numpy(zero_copy_only=False)
    return pc.if_else(pa.array(repeated), DUPLICATE, kinds)


def details_of(kinds: pa.Array | pa.ChunkedArray, ids: pa.ChunkedArray, details: pa.ChunkedArray) -> pa.ChunkedArray:
    """What is told of each row, with the kinds that only all rows together show."""
    earlier = [pc.binary_join_element_wise("id ", ids, f" was in an earlier row{what}", "") for what in _OF_EARLIER]
    for kind, text in (
        *zip((DUPLICATE, CONTINUED), earlier, strict=True),
        (NO_TIME, "the time is empty or no ISO 8601 date"),
        (SEEN, "what rows are split by, an earlier split has too"),
    ):
        details = pc.if_else(pc.equal(kinds, kind), text, details)
    return details


def attribute_names(parts: Sequence[pathlib.Path]) -> list[str]:
    """Names over all rows, in order of first appearance."""
    names: dict[str, None] = {}
    for path in parts:
        for text in read_part(path, ["attributes"])["attributes"].to_pylist():
            names.update(dict.fromkeys(json.loads(text)))
    return list(names)


def _single(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Lists of one value each as the values themselves, which most catalogues have."""
    lengths = pc.list_value_length(column)
    if not len(column) or (pc.min(lengths).as_py() == pc.max(lengths).as_py() == 1):
        return pc.list_flatten(column)
    return column
