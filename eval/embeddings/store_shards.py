"""One shard of an embedding store: ids, vectors in the numbers of the store, and what each vector was made of.

    id            string
    embedding     fixed_size_list<float32 or float16>[dimension]; int8: fixed_size_binary[dimension], a byte a number
    scale         float32, of int8 only: a vector is its bytes times its scale
    input_sha256  fixed_size_binary[32], of the encoded picture or the stored vectors that went in; null where it is not
                  known, absent where none is

Parquet has no numbers of one byte: a list of int8 would take four each.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from siglip_jax.errors import UserError, check_choice

DTYPES = ("float32", "float16", "int8")
LARGEST = 127  # of int8: symmetric, so that a vector and its opposite stay opposite
# One page, in which the vectors lie as numpy has them: `mapped_files` maps it.
MAPPABLE: dict[str, Any] = {
    "compression": "none", "use_dictionary": False, "write_statistics": False, "data_page_size": 1 << 30,
}  # fmt: skip
_LISTED = {"float32": pa.float32(), "float16": pa.float16()}


@dataclass(frozen=True)
class ShardRows:
    """Rows of a store, as they lie on disk.

    Attributes:
      ids: n of them.
      numbers: float32, float16 or int8 [n, dimension].
      scales: float32 [n] of int8, else None.
      inputs: sha256 of what each vector was made of, 32 bytes; None where it is not known.
    """

    ids: list[str]
    numbers: np.ndarray
    scales: np.ndarray | None
    inputs: list[bytes | None]

    @classmethod
    def of(
        cls, ids: Sequence[str], vectors: np.ndarray, *, dtype: str, inputs: Sequence[bytes | None] | None = None
    ) -> ShardRows:
        """Real [n, dimension] in the numbers of a store.

        Raises:
          UserError: wrong shapes, ids that are no text, a vector that is NaN, infinite or zero, also once rounded.
        """
        check_choice("dtype", dtype, DTYPES)
        exact = checked_vectors(ids, vectors)
        scales = None
        if dtype == "int8":
            scales = (np.abs(exact).max(axis=1, initial=0) / np.float64(LARGEST)).astype(np.float32)
            with np.errstate(divide="ignore", invalid="ignore"):
                numbers = np.rint(exact / scales[:, None].astype(np.float64)).clip(-LARGEST, LARGEST)
            bad = ~(scales > 0)
            numbers = np.where(bad[:, None], 0, numbers).astype(np.int8)
        else:
            with np.errstate(over="ignore"):
                numbers = exact.astype(dtype)
            bad = ~np.isfinite(numbers).all(axis=1) | ~numbers.any(axis=1)
        if bad.any():
            raise UserError(f"embedding of id {ids[int(bad.argmax())]!r} is too large or too small for {dtype}")
        return cls(list(ids), numbers, scales, list(inputs) if inputs is not None else [None] * len(ids))

    def vectors(self) -> np.ndarray:
        """float32 [n, dimension]."""
        if self.scales is None:
            return self.numbers.astype(np.float32, copy=False)
        return self.numbers * self.scales[:, None]

    def at(self, places: np.ndarray) -> ShardRows:
        """Those at these places."""
        return ShardRows(
            [self.ids[k] for k in places],
            self.numbers[places],
            None if self.scales is None else self.scales[places],
            [self.inputs[k] for k in places],
        )

    @staticmethod
    def joined(parts: Sequence[ShardRows]) -> ShardRows:
        """One after the other; at least one part, all of one store."""
        scales = [part.scales for part in parts if part.scales is not None]
        return ShardRows(
            [item for part in parts for item in part.ids],
            np.concatenate([part.numbers for part in parts]),
            np.concatenate(scales) if scales else None,
            [each for part in parts for each in part.inputs],
        )


def write_rows(
    folder: epath.PathLike, number: int, rows: ShardRows, *, beside: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Writes one shard, at once under its final name, and returns its entry {file, count, dimension, dtype, sha256}.

    Args:
      beside: {sha256: file} of a store that stays readable meanwhile. The shard gets a name of its own, or is that file
        where it would be equal.
    """
    dimension = rows.numbers.shape[1]
    flat = rows.numbers.reshape(-1)
    columns: dict[str, pa.Array] = {"id": pa.array(rows.ids, pa.string())}
    if rows.scales is None:
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), dimension)
    else:
        buffers = [None, pa.py_buffer(np.ascontiguousarray(flat))]
        columns["embedding"] = pa.Array.from_buffers(pa.binary(dimension), len(rows.ids), buffers)
        columns["scale"] = pa.array(rows.scales)
    if any(each is not None for each in rows.inputs):
        columns["input_sha256"] = pa.array(rows.inputs, pa.binary(32))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, **MAPPABLE)
    content = sink.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = f"shard-{number:05d}.parquet"
    if beside is not None:
        name = beside.get(digest, f"shard-{number:05d}-{digest[:12]}.parquet")
    if beside is None or digest not in beside:
        write_whole(epath.Path(folder) / name, content.to_pybytes())
    dtype = rows.numbers.dtype.name
    return {"file": name, "count": len(rows.ids), "dimension": dimension, "dtype": dtype, "sha256": digest}


def read_rows(folder: epath.Path, shard: Mapping[str, Any], *, dimension: int, dtype: str) -> ShardRows:
    """A shard that the manifest lists.

    Raises:
      UserError: missing, altered, not Parquet, or other columns or rows than the manifest says.
    """
    path, name = folder / shard["file"], shard["file"]
    if not path.exists():
        raise UserError(f"embedding store {folder}: shard {name} is missing; embed again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        raise UserError(f"embedding store {folder}: {name} is not what was written (sha256); embed again")
    try:
        # Threads of Arrow's may hold the last reference to `content`, and abort a process that is ending.
        table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
    except (pa.ArrowException, OSError):
        raise UserError(f"embedding store {folder}: {name} is not Parquet; embed again") from None
    kinds: dict[str, Any] = dict(zip(table.schema.names, table.schema.types, strict=True))
    # Arrow may make no type of the size that a manifest claims, so sizes are compared as numbers.
    wanted = [kinds.pop("id", None) == pa.string(), _is_embedding(kinds.pop("embedding", None), dimension, dtype)]
    wanted.append(kinds.pop("scale", None) == (pa.float32() if dtype == "int8" else None))
    wanted.append(kinds.pop("input_sha256", pa.binary(32)) == pa.binary(32) and not kinds)
    if not all(wanted) or len(table.schema.names) != len(set(table.schema.names)):
        found = ", ".join(f"{field.name} {field.type}" for field in table.schema)
        raise UserError(
            f"embedding store {folder}: {name} holds {found}: expected id string, embedding {dtype} of "
            f"{dimension}; embed again"
        )
    if table.num_rows != shard["count"]:
        raise UserError(
            f"embedding store {folder}: {name} holds {table.num_rows} rows, not {shard['count']}; embed again"
        )
    raw: Any = table["embedding"].combine_chunks()
    nulls = sum(table[column].null_count for column in table.schema.names if column != "input_sha256")
    if nulls or (dtype != "int8" and raw.flatten().null_count):
        raise UserError(f"embedding store {folder}: {name} holds null ids or vectors; embed again")
    if dtype == "int8":
        numbers = np.frombuffer(raw.buffers()[1], np.int8)[raw.offset * dimension :][: len(raw) * dimension]
    else:
        numbers = raw.flatten().to_numpy()
    return ShardRows(
        table["id"].to_pylist(),
        numbers.reshape(-1, dimension),
        table["scale"].to_numpy() if dtype == "int8" else None,
        table["input_sha256"].to_pylist() if "input_sha256" in table.schema.names else [None] * len(table),
    )


def _is_embedding(kind: Any, dimension: int, dtype: str) -> bool:
    if kind is None:
        return False
    if dtype == "int8":
        return pa.types.is_fixed_size_binary(kind) and kind.byte_width == dimension
    return pa.types.is_fixed_size_list(kind) and (kind.value_type, kind.list_size) == (_LISTED[dtype], dimension)


def read_ids(path: epath.Path) -> Iterator[tuple[str, bytes | None]]:
    """(id, sha256 of the input) of each row of a shard, its vectors left where they are."""
    with path.open("rb") as content:
        file = pq.ParquetFile(content, pre_buffer=False)
        known = "input_sha256" in file.schema_arrow.names
        table = file.read(columns=["id", *["input_sha256"] * known], use_threads=False)
    inputs = table["input_sha256"].to_pylist() if known else [None] * len(table)
    yield from zip(table["id"].to_pylist(), inputs, strict=True)


def checked_vectors(ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """float32 [n, dimension], or an error that names the first bad id."""
    vectors = np.asarray(vectors)
    if (
        vectors.ndim != 2
        or len(vectors) != len(ids)
        or (len(ids) and not vectors.shape[1])
        or vectors.dtype.kind != "f"
    ):
        first = f" (first id {ids[0]!r})" if len(ids) else ""
        raise UserError(
            f"{len(ids)} ids{first} with embeddings {vectors.dtype} {list(vectors.shape)}: "
            f"expected floats [{len(ids)}, dimension]"
        )
    for item in ids:
        if not isinstance(item, str) or not item:
            raise UserError(f"embedding id {item!r}: expected a non-empty string")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(vectors, np.float32)
    for what, bad in (
        ("NaN or infinity", ~np.isfinite(vectors).all(axis=1)),
        ("only zeros", ~vectors.any(axis=1)),
    ):
        if bad.any():
            raise UserError(
                f"embedding of id {ids[int(bad.argmax())]!r} holds {what}: it has no direction to search by"
            )
    return vectors


def write_whole(path: epath.Path, content: bytes) -> None:
    """Under the final name only once complete and on the disk (an object store does that by itself)."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        if "://" not in os.fspath(path):
            file.flush()
            os.fsync(file.fileno())
    partial.replace(path)
