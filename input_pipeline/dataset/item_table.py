"""What is known of every row of a dataset as one table: the build's `rows.parquet`, or made anew from the records.

Columns: row int64 (in the source; null where records were read), id, title, kind (of problem; "" for rows that are
kept), detail, image_sha256, image_signature binary[64] (`image_signature`; null where there is no picture), height,
width int32 (pixels), bytes int64, format, split ("" for rows left out), attributes (a struct of text, absent where
there are none).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from input_pipeline.dataset.picture_format import picture_format
from input_pipeline.dataset.problem_rows import FILE as PROBLEMS_FILE
from input_pipeline.dataset.problem_rows import read_problems
from input_pipeline.dataset.reader import READ_ROWS, open_split
from input_pipeline.duplicates.near_images import SIGNATURE_BYTES, image_signature
from input_pipeline.progress import progress as show_progress
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image

FILE = "rows.parquet"
SCHEMA = pa.schema(
    {
        "row": pa.int64(), "id": pa.string(), "title": pa.string(), "kind": pa.string(), "detail": pa.string(),
        "image_sha256": pa.string(), "image_signature": pa.binary(SIGNATURE_BYTES), "height": pa.int32(),
        "width": pa.int32(), "bytes": pa.int64(), "format": pa.string(), "split": pa.string(),
    }
)  # fmt: skip
_BATCH_ROWS = 2**16
_OF_IMAGES = {"image_signature", "height", "width", "format"}  # known only once pictures are decoded


def item_table(
    dataset_dir: str | os.PathLike, *, columns: Sequence[str] | None = None, progress: bool = True
) -> pa.Table:
    """The table of all rows, or those columns of it; "attributes" is one of them.

    A dataset without `rows.parquet`, or one that lacks a column, is read record by record: rows left out by its build
    are then those of `problems.csv`, and pictures are decoded where a column needs it.

    Raises:
      UserError: no dataset, or a damaged one.
    """
    folder = pathlib.Path(dataset_dir)
    wanted = [*SCHEMA.names, "attributes"] if columns is None else list(columns)
    if file := _open_file(folder, wanted):
        with _telling_damage(folder / FILE):
            return file.read(columns=[name for name in wanted if name in file.schema_arrow.names])
    table = _from_records(folder, decode=not _OF_IMAGES.isdisjoint(wanted), progress=progress)
    return table.select([name for name in wanted if name in table.column_names])


class ItemColumns:
    """`item_table` a column at a time, so that a million rows need the memory of the one that is looked at.

    Attributes:
      attribute_names: in order.
    """

    def __init__(self, source: pa.Table | pq.ParquetFile, *, name: str = FILE):
        self._source, self._name = source, name
        self._schema = source.schema if isinstance(source, pa.Table) else source.schema_arrow
        attributes = self._schema.field("attributes").type if "attributes" in self._schema.names else []
        self.attribute_names = [field.name for field in attributes]

    def column(self, name: str, *, only_kept: bool = True) -> pa.ChunkedArray:
        """The values of all rows, or of those that are no problem.

        Raises:
          UserError: a damaged file, as from all methods.
        """
        chunks = self._gathered([name, "kind"], lambda batch: batch.column(name), only_kept)
        return pa.chunked_array(chunks, self._schema.field(name).type)

    def attribute(self, name: str) -> pa.ChunkedArray:
        """The values, text or null, of the rows that are no problem."""
        names = [f"attributes.{name}", "kind"]
        chunks = self._gathered(names, lambda batch: batch.column("attributes").field(name), True)
        return pa.chunked_array(chunks, pa.string())

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of all rows, some thousand rows at a time; "attributes.colour" is one of the attributes."""
        if isinstance(self._source, pa.Table):
            columns = dict.fromkeys("attributes" if name.startswith("attributes.") else name for name in names)
            yield from self._source.select(list(columns)).to_batches(_BATCH_ROWS)
            return
        with _telling_damage(self._name):
            yield from self._source.iter_batches(_BATCH_ROWS, columns=list(names), use_threads=False)

    def _gathered(
        self, names: Sequence[str], get: Callable[[pa.RecordBatch], pa.Array], only_kept: bool
    ) -> list[pa.Array]:
        batches = self.batches(list(dict.fromkeys(names)))
        if not only_kept:
            return [get(batch) for batch in batches]
        return [get(batch).filter(pc.equal(batch.column("kind"), "")) for batch in batches]


def open_columns(dataset_dir: str | os.PathLike, *, progress: bool = True) -> ItemColumns:
    """The columns of a dataset's table, which is read from the records where `item_table` does so.

    Raises:
      UserError: no dataset, or a damaged one.
    """
    folder = pathlib.Path(dataset_dir)
    file = _open_file(folder, SCHEMA.names)
    return ItemColumns(file or _from_records(folder, decode=True, progress=progress), name=os.fspath(folder / FILE))


def _open_file(folder: pathlib.Path, wanted: Iterable[str]) -> pq.ParquetFile | None:
    """`rows.parquet`; None where it is not there or lacks a column."""
    if not (folder / FILE).is_file():
        return None
    with _telling_damage(folder / FILE):
        file = pq.ParquetFile(folder / FILE, pre_buffer=False)
        return file if set(file.schema_arrow.names) >= set(wanted) - {"attributes"} else None


@contextlib.contextmanager
def _telling_damage(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not readable ({str(error)[:120]}); build the dataset again") from error


def split_names(dataset_dir: str | os.PathLike) -> list[str]:
    """Names of a dataset's splits, in order.

    Raises:
      UserError: no dataset in the folder, or a damaged one.
    """
    path = pathlib.Path(dataset_dir) / "dataset_info.json"
    try:
        return [split["name"] for split in json.loads(path.read_text(encoding="utf-8"))["splits"]]
    except FileNotFoundError as error:
        raise UserError(f"{dataset_dir}: no dataset here; build it with `siglip-jax data`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); build the dataset again") from error


def _from_records(folder: pathlib.Path, *, decode: bool, progress: bool) -> pa.Table:
    splits = [open_split(folder, name) for name in split_names(folder)]
    total = sum(map(len, splits))
    tables = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pieces = ((split, start) for split in splits for start in range(0, len(split), READ_ROWS))
        described = itertools.chain.from_iterable(
            pool.map(
                _describe, split[start : start + READ_ROWS], itertools.repeat(split.name), itertools.repeat(decode)
            )
            for split, start in pieces
        )
        lines = iter(show_progress(described, total=total, label="reading the dataset", show=progress))
        while some := list(itertools.islice(lines, READ_ROWS)):
            tables.append(_table(some))
    tables.append(_table(_problem_rows(folder)))
    return pa.concat_tables(tables, promote_options="default")


def _table(lines: list[dict[str, Any]]) -> pa.Table:
    table = pa.table({name: [line.get(name) for line in lines] for name in SCHEMA.names}, schema=SCHEMA)
    attributes = [line.get("attributes") for line in lines]
    if any(attributes):
        names = dict.fromkeys(name for values in attributes if values for name in values)
        table = table.append_column("attributes", pa.array(attributes, pa.struct([(n, pa.string()) for n in names])))
    return table


def _describe(record: dict[str, Any], split: str, decode: bool) -> dict[str, Any]:
    line = {key: record[key] for key in ("id", "title", "image_sha256", "attributes")}
    line |= {"kind": "", "detail": "", "split": split, "bytes": len(record["image"])}
    if decode:
        line["format"] = picture_format(record["image"])
        try:
            pixels = decode_image(record["image"])
        except UserError as error:  # a dataset of another builder, whose pictures nobody checked
            return line | {"kind": "corrupt image", "detail": str(error)}
        line |= {"height": pixels.shape[0], "width": pixels.shape[1]}
        line["image_signature"] = image_signature(pixels).tobytes()
    return line


def _problem_rows(folder: pathlib.Path) -> list[dict[str, Any]]:
    rows = read_problems(folder / PROBLEMS_FILE).to_pylist()
    if not rows:  # a dataset of an earlier version, whose audit lists all
        try:
            audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
            rows = [{key: row[key] for key in ("row", "id", "kind", "detail")} for row in audit["problem_rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []
    return [row | {"title": "", "split": "", "image_sha256": ""} for row in rows]
