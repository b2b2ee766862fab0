"""Nearest neighbours by cosine: the interface that every backend has.

A saved index is a folder: the backend's files, ids.json, and manifest.json with the sha256 of each; `index_folder` has
its layout. Nothing is pickled.
"""

import contextlib
import functools
import io
import json
import math
import mmap
import tokenize
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

import siglip_jax
from eval.embeddings.vectors import unit_rows
from eval.search import index_folder
from siglip_jax.errors import UserError

IDS, VECTORS = "ids.json", "vectors.npy"
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
        self.digests: dict[str, str] = {}  # sha256 of its files, once saved or read: those are not made again

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item: object) -> bool:
        return item in self._row_of

    @property
    def bytes_in_memory(self) -> int:
        """Of what a search reads; the full vectors unless the backend says otherwise."""
        return len(self) * self.dimension * 4

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {item: row for row, item in enumerate(self.ids)}

    def row_of(self, item: str) -> int:
        """The row of an item; -1 where the index has no such item."""
        return self._row_of.get(item, -1)

    def vectors_of(self, ids: Sequence[str]) -> np.ndarray:
        """Unit vectors of items: float32 [n, dimension].

        Raises:
          UserError: an id that is not in the index.
        """
        if unknown := [item for item in ids if item not in self]:
            known = f", such as {self.ids[0]!r}" if self.ids else ""
            raise UserError(f"item {unknown[0]!r} is not in the index of {len(self)} items{known}")
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
        if len(unit) and found:
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

    def save(self, folder: epath.PathLike, *, locked: bool = False) -> None:
        """Writes the index; replaces an index that is there, in one step. Equal builds write equal bytes.

        Whoever reads the folder meanwhile, or after a kill, finds the index from before or this one.

        Args:
          locked: the caller is in a `with lock_index(folder)`.

        Raises:
          UserError: the folder is a file or holds something else than an index or one whose writing was cut off, or
            another process is changing it.
        """
        folder = epath.Path(folder)
        with contextlib.nullcontext() if locked else index_folder.lock_index(folder):
            index_folder.begin(folder)
            manifest = {
                "library_version": siglip_jax.__version__,
                "backend": self.backend,
                "count": len(self),
                "dimension": self.dimension,
                "options": self.options,
                "measured": self.measured,
                **({"missing": self.missing} if self.missing else {}),
                **({"encoder": self.encoder} if self.encoder else {}),
                **self._more_of_manifest(),
                "files": dict(sorted(self.write_files(folder).items())),
            }
            index_folder.replace_manifest(folder, manifest)
        self.generation = index_folder.generation_of(manifest)

    def write_files(self, folder: epath.Path) -> dict[str, str]:
        """Writes those of its files that are not there, and returns the sha256 of each."""
        if not self.digests or not all(index_folder.is_whole(folder, *each) for each in self.digests.items()):
            files = {**self._files(), IDS: json.dumps(self.ids, ensure_ascii=False).encode()}
            self.digests = {name: index_folder.write_file(folder, name, content) for name, content in files.items()}
        return dict(self.digests)

    def _more_of_manifest(self) -> dict[str, Any]:
        """What only this kind of index says in its manifest."""
        return {}

    @abstractmethod
    def vectors_at(self, rows: np.ndarray) -> np.ndarray:
        """Unit vectors float32 [n, dimension] of the items in these rows."""

    @abstractmethod
    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """rows int64 and scores float32 [query, k] for unit queries float32 and 1 <= k <= len(self)."""

    @abstractmethod
    def _files(self) -> dict[str, bytes]:
        """What the backend needs on disk, by file name."""


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
    except (ValueError, KeyError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"search index: an array cannot be read ({error}); build the index again") from None
