"""Vectors by id, of an embedding store or of a file that somebody brings, mapped into memory where their format allows.

`read_store` and `read_embeddings` give one array in memory instead, which search and ranking work on.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from eval.embeddings.embedding_files import DAMAGE, beside, check_ids, check_numbers, read_ids, read_raw
from eval.embeddings.mapped_files import map_npz, map_parquet
from eval.embeddings.store import content_sha256, dtype_of, read_manifest, read_store
from siglip_jax.errors import UserError


@dataclass(frozen=True)
class StoredVectors:
    """Vectors that are not read yet.

    Attributes:
      path: where they are.
      ids: text [n], none twice.
      parts: numbers [n_k, dimension], one after the other; memory maps, or arrays where the format allows none.
      sha256: of all that is stored; another path to the same has the same.
      model: what made them, as the store's manifest has it; {"name"} of a file.
      checked: whether every vector is known to be finite.
    """

    path: str
    ids: pa.StringArray
    parts: tuple[np.ndarray, ...]
    sha256: str
    model: dict[str, Any]
    checked: bool

    @property
    def dimension(self) -> int:
        return self.parts[0].shape[1]

    @property
    def copied_bytes(self) -> int:
        """In memory, since they could not be mapped."""
        return sum(part.nbytes for part in self.parts if not isinstance(part, np.memmap))


def open_vectors(path: epath.PathLike) -> StoredVectors:
    """Opens a store (a folder), or a file of the kinds that `embedding_files` knows.

    Raises:
      UserError: nothing there, damage, repeated ids, counts that differ, no numbers.
    """
    if "://" in os.fspath(path):
        return _in_memory(path)
    local = pathlib.Path(path)
    return _open_store(local) if local.is_dir() else _open_file(local)


def _open_store(folder: pathlib.Path) -> StoredVectors:
    manifest = read_manifest(folder)
    dtype = dtype_of(manifest)
    if dtype == "int8":  # bytes need their scales
        return _in_memory(folder)
    ids: list[pa.Array] = []
    parts: list[np.ndarray] = []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        found = _open_shard(path, manifest["dimension"], dtype) if _sha256(path) == shard["sha256"] else None
        if found is None or len(found[0]) != shard["count"]:  # that one names what is wrong
            return _in_memory(folder)
        ids.append(found[0])
        parts += found[1]
    joined = pa.concat_arrays(ids)
    check_ids(joined, f"embedding store {folder}")
    return StoredVectors(str(folder), joined, tuple(parts), content_sha256(manifest), _model(manifest), True)


def _open_shard(path: pathlib.Path, dimension: int, dtype: str) -> tuple[pa.Array, tuple[np.ndarray, ...]] | None:
    try:
        ids = pq.read_table(path, columns=["id"])["id"].combine_chunks()
        parts = map_parquet(path, "embedding")
    except (KeyError, OSError, pa.ArrowException):
        return None
    if parts is None or ids.type != pa.string() or ids.null_count:
        return None
    return (ids, parts) if all(part.shape[1] == dimension and part.dtype == dtype for part in parts) else None


def _in_memory(folder: epath.PathLike) -> StoredVectors:
    """Of a store whose shards do not map, as those of int8, of earlier versions and of object stores."""
    store = read_store(folder)
    ids, manifest = pa.array(store.ids, pa.string()), store.manifest
    return StoredVectors(os.fspath(folder), ids, (store.vectors,), content_sha256(manifest), _model(manifest), True)


def _open_file(path: pathlib.Path) -> StoredVectors:
    parts: tuple[np.ndarray, ...] | None = None
    try:
        if path.suffix.lower() == ".npz":
            found = map_npz(path, "embeddings")
            parts = None if found is None else (found,)
        elif path.suffix.lower() == ".parquet":
            parts = map_parquet(path, "embedding")
    except DAMAGE:
        parts = None  # that it is damaged is said below
    if parts is None:
        names, vectors = read_raw(path)  # a memory map of an .npy
        parts = (vectors,)
    else:
        names = read_ids(path)
        for part in parts:
            check_numbers(part, path)
    ids = pa.array(names, pa.string())
    if len(ids) != sum(map(len, parts)):
        raise UserError(f"{path}: {len(ids)} ids for {sum(map(len, parts))} embeddings; expected one each, in order")
    check_ids(ids, str(path))
    digest = _sha256(path)
    if path.suffix.lower() == ".npy":
        digest = hashlib.sha256(f"{digest} {_sha256(beside(path))}".encode()).hexdigest()
    return StoredVectors(str(path), ids, parts, digest, {"name": path.name}, False)


def _sha256(path: pathlib.Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _model(manifest: dict[str, Any]) -> dict[str, Any]:
    model = manifest.get("model")
    return dict(model) if isinstance(model, dict) else {}
