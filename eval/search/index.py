"""Nearest neighbours by cosine: the interface that every backend has, and the folder that an index is saved in.

A saved index is a folder: the backend's files, ids.json, and manifest.json with the sha256 of each. Nothing is pickled.
"""

import functools
import hashlib
import io
import json
import math
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

import siglip_jax
from eval.embeddings.vectors import unit_rows
from siglip_jax.errors import UserError

FORMAT = "siglip-jax index 1"
MANIFEST, PARTIAL, IDS, VECTORS = "manifest.json", "manifest.json.partial", "ids.json", "vectors.npy"
_NPY_HEADER = 4096  # bytes of an .npy in which its header ends


@dataclass(frozen=True)
class Neighbours:
    """The nearest items of each query, nearest first."""

    rows: np.ndarray  # int64 [query, k], index rows; -1 where fewer than k were found
    scores: np.ndarray  # float32 [query, k], cosine; -inf where rows is -1
    catalogue: Sequence[str]

    @property
    def ids(self) -> list[list[str]]:
        """Item ids per query, without padding."""
        return [[self.catalogue[row] for row in found if row >= 0] for found in self.rows]


class Index(ABC):
    """Items searchable by cosine. Built by `build_index`, read by `load_index`."""

    backend: str

    def __init__(self, ids: Sequence[str], dimension: int, options: Mapping[str, Any], measured: Mapping[str, Any]):
        self.ids = list(ids)
        self.dimension = dimension
        self.options = dict(options)  # what the backend was built with
        self.measured = dict(measured)  # what `measure_recall` said, kept in the manifest
        self.missing: list[dict[str, Any]] = []  # what the store was embedded without, `EmbeddingStore.skipped`; kept
        # "model" and "preprocessing" of the store's manifest, {} where not known; kept.
        self.encoder: dict[str, Any] = {}
        self.generation = ""  # 16 digits of what was saved or read: equal builds have equal ones; "" before it is saved

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item: str) -> bool:
        return item in self._row_of

    @property
    def bytes_in_memory(self) -> int:
        """Of what a search reads; the full vectors unless the backend says otherwise."""
        return len(self) * self.dimension * 4

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.ids)}

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Unit vectors of items: float32 [n, dimension].

        Raises:
          UserError: an id that is not in the index.
        """
        if unknown := [item for item in ids if item not in self]:
            raise UserError(f"item {unknown[0]!r} is not in the index of {len(self)} items, such as {self.ids[0]!r}")
        return self.vectors_at(np.array([self._row_of[item] for item in ids], np.int64))

    def search(self, queries: np.ndarray, *, k: int) -> Neighbours:
        """The k nearest items of each query.

        Args:
          queries: real [query, dimension], normalised here.
          k: neighbours wanted; where there are fewer the result is padded (rows -1, scores -inf).

        Raises:
          UserError: another dimension, a NaN, infinite or zero query, k < 1.
        """
        unit = self.check_query(queries, k=k)
        rows = np.full((len(unit), k), -1, np.int64)
        scores = np.full((len(unit), k), -np.inf, np.float32)
        found = min(k, len(self))
        if len(unit):
            rows[:, :found], scores[:, :found] = self._search(unit, found)
        return Neighbours(rows, scores, self.ids)

    def check_query(self, queries: np.ndarray, *, k: int) -> np.ndarray:
        """Queries with norm 1, float32 [query, dimension]; UserError as `search` raises it."""
        if k < 1:
            raise UserError(f"k={k}: expected at least 1")
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise UserError(f"queries of shape {list(queries.shape)}: the index expects [query, {self.dimension}]")
        return unit_rows(queries, what="query")

    def save(self, folder: epath.PathLike) -> None:
        """Writes the index, manifest last; replaces an index that is there. Equal builds write equal bytes.

        Raises:
          UserError: the folder is a file or holds something else than an index or one whose writing was cut off.
        """
        folder = epath.Path(folder)
        earlier = _earlier_files(folder)
        files = {**self._files(), IDS: json.dumps(self.ids, ensure_ascii=False).encode()}
        manifest = {
            "format": FORMAT,
            "library_version": siglip_jax.__version__,
            "backend": self.backend,
            "count": len(self),
            "dimension": self.dimension,
            "options": self.options,
            "measured": self.measured,
            **({"missing": self.missing} if self.missing else {}),
            **({"encoder": self.encoder} if self.encoder else {}),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())},
        }
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / PARTIAL  # written first: if this is cut off, it tells the next save whose files these are
        partial.write_text(json.dumps(manifest, indent=2) + "\n")
        for old in [MANIFEST, *earlier]:  # from here until the end the folder is no index
            (folder / old).unlink(missing_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        partial.replace(folder / MANIFEST)
        self.generation = generation_of(manifest)

    @abstractmethod
    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        """Unit vectors float32 [n, dimension] of the items in these rows."""

    @abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """rows int64 and scores float32 [query, k] for unit queries float32 and 1 <= k <= len(self)."""

    @abstractmethod
    def _files(self) -> dict[str, bytes]:
        """What the backend needs on disk, by file name."""


def generation_of(manifest: Mapping[str, Any]) -> str:
    """`Index.generation` of a saved index: follows from its files and its encoder."""
    content = json.dumps([manifest["files"], manifest.get("encoder")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def npy_bytes(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()


def npy_array(content: bytes | mmap.mmap) -> np.ndarray:
    """The array of an .npy, read-only, where its content lies: nothing is copied.

    Raises:
      UserError: it is none.
    """
    head = io.BytesIO(content[:_NPY_HEADER])
    try:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(head)
        if fortran or dtype.hasobject:
            raise ValueError("order or objects")
        return np.frombuffer(content, dtype, math.prod(shape), head.tell()).reshape(shape)
    except (ValueError, KeyError) as error:
        raise UserError(f"search index: an array cannot be read ({error}); build the index again") from None


def file_content(path: epath.Path) -> bytes | mmap.mmap:
    """A memory map of a file of this machine; what is elsewhere, or empty, is read."""
    if "://" in os.fspath(path) or not path.stat().length:
        return path.read_bytes()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _earlier_files(folder: epath.Path) -> list[str]:
    """Files of the index, complete or cut off, that is in the folder; UserError where it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    manifests = []
    for path in (folder / MANIFEST, folder / PARTIAL):
        try:
            manifests.append(json.loads(path.read_text()) if path.exists() else None)
        except (OSError, ValueError):
            manifests.append({})
    whole, partial = manifests
    found = partial if whole is None else whole
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(
            f"search index {folder}: holds something else than an index: expected an empty or new folder, or an index "
            "to replace; choose another"
        )
    listed = [files for m in manifests if isinstance(m, dict) and isinstance(files := m.get("files"), dict)]
    return [name for files in listed for name in files if name and name == os.path.basename(name)]
