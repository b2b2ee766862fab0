"""A store as one file that other programs read: Parquet, .npy, or an index of faiss. Vectors are float32.

.npy and faiss know no ids: these are one a line in NAME.ids.txt beside the file.
"""

from __future__ import annotations

import os
import pathlib
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.embeddings.dumps.aside import written_aside
from eval.embeddings.dumps.item_facts import ItemFacts
from eval.embeddings.embedding_files import beside
from eval.embeddings.store_shards import MAPPABLE
from eval.embeddings.stored_rows import StoredRows
from eval.embeddings.vectors import unit_rows
from siglip_jax.errors import UserError

SUFFIXES = {"parquet": ".parquet", "npy": ".npy", "faiss": ".faiss"}


def write_parquet(store: StoredRows, output: str | os.PathLike, *, facts: ItemFacts | None = None) -> str:
    """Columns id and embedding (a list of fixed size); with `facts` also title and attributes, null where not known.

    Returns:
      What was written, in a line.

    Raises:
      UserError: another suffix, a file that is there already, a damaged store; as of all functions here.
    """
    output = _checked(output, "parquet")
    dimension = store.manifest["dimension"]
    fields: dict[str, pa.DataType] = {"id": pa.string(), "embedding": pa.list_(pa.float32(), dimension)}
    if facts is not None:
        fields |= {"title": pa.string()}
        if facts.attributes:
            fields |= {"attributes": pa.struct([(name, pa.string()) for name in facts.attributes])}
    schema = pa.schema(fields)
    facts = facts.of_store(store) if facts else None
    unknown = facts.describe_unknown(list(store.places)) if facts else ""
    with written_aside(output) as folder, pq.ParquetWriter(folder / output.name, schema, **MAPPABLE) as writer:
        for rows in store.shards():
            flat = pa.array(rows.vectors().reshape(-1))
            columns: dict[str, Any] = {"id": pa.array(rows.ids, pa.string())}
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, dimension)
            if facts is not None:
                places = [facts.rows.get(item) for item in rows.ids]
                columns["title"] = pa.array([None if at is None else facts.titles[at] for at in places], pa.string())
                if facts.attributes:
                    of = facts.attributes.items()
                    known = [None if at is None else {name: values[at] for name, values in of} for at in places]
                    columns["attributes"] = pa.array(known, fields["attributes"])
            writer.write_table(pa.table(columns, schema=schema))
    return f"{_count(store)} in {output}" + (f"; {unknown}" if unknown else "")


def write_npy(store: StoredRows, output: str | os.PathLike) -> str:
    """[n, dimension] as they are stored, which `rank --store` and `embed --embeddings` take too."""
    output = _checked(output, "npy")
    shape = (store.manifest["count"], store.manifest["dimension"])
    with written_aside(output) as folder, open(folder / output.name, "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for rows in store.shards():
            file.write(rows.vectors().astype("<f4", copy=False).tobytes())
        _write_ids(store, folder / beside(output).name)
    return f"{_count(store)} in {output}, ids in {beside(output).name}"


def write_faiss(store: StoredRows, output: str | os.PathLike) -> str:
    """An IndexFlatIP over unit vectors, which `faiss.read_index` reads: its scores are cosines.

    The layout is that of faiss's write_index (faiss/impl/index_write.cpp): "IxFI", dimension int32, count int64, two
    unused int64, trained bool, metric int32 (0 is the inner product), count of the numbers uint64, the numbers.
    """
    output = _checked(output, "faiss")
    count, dimension = store.manifest["count"], store.manifest["dimension"]
    with written_aside(output) as folder, open(folder / output.name, "wb") as file:
        file.write(struct.pack("<4siqqq?iQ", b"IxFI", dimension, count, 1 << 20, 1 << 20, True, 0, count * dimension))
        for rows in store.shards():
            unit = unit_rows(rows.vectors(), what="embedding", ids=rows.ids)
            file.write(unit.astype("<f4", copy=False).tobytes())
        _write_ids(store, folder / beside(output).name)
    return f"{_count(store)} in {output}, ids in {beside(output).name}"


def _write_ids(store: StoredRows, path: pathlib.Path) -> None:
    if broken := [item for item in store.places if len(item.splitlines()) != 1]:
        raise UserError(f"id {broken[0]!r} holds a line break, and ids are written one a line; use --format=parquet")
    path.write_text("\n".join(store.places) + "\n", encoding="utf-8")


def _checked(output: str | os.PathLike, kind: str) -> pathlib.Path:
    path = pathlib.Path(output)
    if path.suffix != SUFFIXES[kind]:
        raise UserError(f"--output={path}: expected a name in {SUFFIXES[kind]} for --format={kind}")
    return path


def _count(store: StoredRows) -> str:
    return f"{store.manifest['count']} embeddings of {store.manifest['dimension']} numbers"
