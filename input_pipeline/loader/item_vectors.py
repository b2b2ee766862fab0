"""Stored vectors of items in the batches: an image tower's input in the place of pictures, or what a teacher says.

The vectors stay where they are, mostly in files that are mapped into memory; a batch gathers its rows of them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from input_pipeline.dataset import Split
from input_pipeline.loader.bad_rows import IDS_SHOWN, BadRow, read_record
from input_pipeline.loader.buffers import Recycler
from siglip_jax.errors import UserError

MISSING = -1


@dataclasses.dataclass(frozen=True)
class ItemVectors:
    """The vector of each row of a split, one kind of them.

    Attributes:
      vectors: numbers [m, d], as one array or as several [m_k, d] that count as one after the other; memory-mapped
        files among them are opened anew, not copied, in a worker process.
      rows: int64 [n], for each row of the split the row of `vectors`, MISSING where there is none.
    """

    vectors: np.ndarray | tuple[np.ndarray, ...]
    rows: np.ndarray

    @functools.cached_property
    def parts(self) -> tuple[np.ndarray, ...]:
        return self.vectors if isinstance(self.vectors, tuple) else (self.vectors,)

    @property
    def dimension(self) -> int:
        return self.parts[0].shape[1]

    @property
    def missing(self) -> np.ndarray:
        """int64: the rows of the split that have no vector."""
        return np.flatnonzero(self.rows == MISSING)

    def take(self, rows: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of the split, int64 [n] -> float32 [n, d], in `out` where it is given.

        Raises:
          UserError: a row without a vector.
        """
        places = self.rows[rows]
        if (places < 0).any():
            raise UserError(f"row {np.asarray(rows)[places < 0][0]} of the split has no vector")
        if out is None:
            out = np.empty((len(places), self.dimension), np.float32)
        if len(self.parts) == 1:
            return _gather(self.parts[0], places, out)
        # Part by part in the order of the file, so that each is asked once however many there are.
        order = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[order], self._starts)
        for number in np.flatnonzero(np.diff(ends)):
            here = order[ends[number] : ends[number + 1]]
            part, within = self.parts[number], places[here] - self._starts[number]
            out[here] = _gather(part, within, np.empty((len(here), self.dimension), part.dtype))
        return out

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.parts)])

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": [_file_of(part) or part for part in self.parts], "rows": self.rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        parts = tuple(np.memmap(**part) if isinstance(part, dict) else part for part in state["parts"])
        object.__setattr__(self, "vectors", parts)
        object.__setattr__(self, "rows", state["rows"])


def align(
    ids_of_split: Sequence[str], ids: Sequence[str] | pa.StringArray, vectors: np.ndarray | tuple[np.ndarray, ...]
) -> ItemVectors:
    """The vectors of the items of a split; row i of `vectors` is that of `ids[i]`. There may be others among them."""
    found = pc.index_in(pa.array(ids_of_split, pa.string()), value_set=pa.array(ids, pa.string()))
    return ItemVectors(vectors, pc.fill_null(found, MISSING).to_numpy().astype(np.int64))


def complete_rows(vectors: Mapping[str, ItemVectors]) -> np.ndarray:
    """int64: the rows of the split that lack none of these vectors."""
    return np.flatnonzero(np.all([each.rows != MISSING for each in vectors.values()], axis=0))


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """Rows of a split that lack a vector.

    Attributes:
      count: how many.
      ids: of the first of them.
      by_name: how many lack that kind of vector.
    """

    count: int = 0
    ids: tuple[str, ...] = ()
    by_name: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        """Such as "cnn 3, pixels 1: ids a, b, c and 1 more"."""
        kinds = ", ".join(f"{name} {count}" for name, count in self.by_name.items())
        more = f" and {self.count - len(self.ids)} more" if self.count > len(self.ids) else ""
        return f"{kinds}: ids {', '.join(self.ids)}{more}"


NOTHING = LeftOut()


@dataclasses.dataclass(frozen=True)
class BatchVectors:
    """All the vectors that a batch has.

    Attributes:
      image: by name, what stands in the place of "image"; none where that is pictures.
      more: by the key of the batch.
    """

    image: Mapping[str, ItemVectors] = dataclasses.field(default_factory=dict)
    more: Mapping[str, ItemVectors] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _memory(self) -> Recycler:
        return Recycler()

    def __getstate__(self) -> dict[str, Any]:  # no memory goes to a worker process
        return {"image": self.image, "more": self.more}

    @property
    def bytes_per_row(self) -> int:
        return sum(4 * each.dimension for each in self._all.values())

    def check(self, count: int) -> None:
        """Raises a UserError where they are not of a split of so many rows, or a key of a batch is taken."""
        for name, each in self._all.items():
            if len(each.rows) != count:
                raise UserError(f"vectors {name}: of a split of {len(each.rows)} rows; this one has {count}")
        if taken := {"image", "text", "group", "index", "id", "title", "attributes"} & self.more.keys():
            raise UserError(f"vectors named {', '.join(sorted(taken))}: a batch has something else of that name")

    def complete(self, among: np.ndarray) -> np.ndarray:
        """int64, ascending: those of these rows of the split that lack none."""
        return np.intersect1d(complete_rows(self._all), among, assume_unique=True) if self._all else among

    def left_out(self, rows: Split, among: np.ndarray) -> LeftOut:
        """Those of these rows of the split that lack some."""
        lacking = np.setdiff1d(among, self.complete(among), assume_unique=True)
        if not len(lacking):
            return NOTHING
        records = (read_record(rows, row) for row in lacking[:IDS_SHOWN].tolist())
        ids = tuple(f"row {each.row}" if isinstance(each, BadRow) else each["id"] for each in records)
        missing = {name: int((each.rows[among] == MISSING).sum()) for name, each in self._all.items()}
        return LeftOut(len(lacking), ids, {name: count for name, count in missing.items() if count})

    def lacking(self, row: int) -> str:
        """Such as "no vector of cnn"; "" for a row that lacks none."""
        names = [name for name, each in self._all.items() if each.rows[row] == MISSING]
        return f"no vector of {', '.join(names)}" if names else ""

    def take(self, rows: np.ndarray) -> dict[str, Any]:
        """{"image": {name: float32 [n, d]}, ...} of complete rows."""
        taken: dict[str, Any] = {name: self._rows(each, rows) for name, each in self.more.items()}
        if self.image:
            taken["image"] = {name: self._rows(each, rows) for name, each in self.image.items()}
        return taken

    def _rows(self, vectors: ItemVectors, rows: np.ndarray) -> np.ndarray:
        return vectors.take(rows, out=self._memory.empty((len(rows), vectors.dimension), np.float32))

    @property
    def _all(self) -> dict[str, ItemVectors]:
        return {**self.image, **self.more}


NO_VECTORS = BatchVectors()


def _gather(vectors: np.ndarray, places: np.ndarray, out: np.ndarray) -> np.ndarray:
    if not vectors.flags.c_contiguous:
        out[...] = vectors[places]
        return out
    # As bytes, since those of a mapped file may begin anywhere and numpy would align all of them first; and without a
    # check of the range, so that nothing is made in between.
    same = out if out.dtype == vectors.dtype else np.empty(out.shape, vectors.dtype)
    np.take(vectors.view(np.uint8), places, axis=0, out=same.view(np.uint8), mode="clip")
    if same is not out:
        out[...] = same
    return out


def _file_of(array: np.ndarray) -> dict[str, Any] | None:
    """What `np.memmap` opens the array with again; None of one that is no whole mapping."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    offset = array.offset  # of the mapping; a view of a part of it says the same
    base: Any = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    offset += array.ctypes.data - base.ctypes.data
    return {"filename": array.filename, "dtype": array.dtype, "mode": "r", "offset": offset, "shape": array.shape}
