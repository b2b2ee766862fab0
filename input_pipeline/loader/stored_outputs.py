"""What a frozen part of a tower made of each row of a split, kept in files, and examples that have it in the place of
the picture or the title."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # noqa: F401  numpy then knows "bfloat16"
import numpy as np

from input_pipeline.loader.bad_rows import BadRow
from input_pipeline.loader.examples import Joined, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArray:
    """One array of a store.

    Attributes:
      shape, dtype: of one row. Two bytes of a bfloat16 are written as an uint16, since `.npy` has no name for it.
      variants: 2 where there is another value for the mirrored picture, else 1.
    """

    shape: tuple[int, ...]
    dtype: str
    variants: int = 1

    @property
    def written_as(self) -> np.dtype:
        dtype = np.dtype(self.dtype)
        return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype

    @property
    def row_bytes(self) -> int:
        return self.variants * math.prod(self.shape) * self.written_as.itemsize


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredOutputs:
    """Arrays of all rows of a split, in shards of so many rows: `00003.image_embedding.npy` is [rows, variants, ...].

    A shard is complete once its `00003.json` is there, which lists its bad rows. Files are written aside and renamed.

    Attributes:
      arrays: by the key of a batch.
      rows: of the split.
    """

    folder: pathlib.Path
    arrays: Mapping[str, StoredArray]
    rows: int
    rows_per_shard: int

    @property
    def shards(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    @property
    def row_bytes(self) -> int:
        return sum(array.row_bytes for array in self.arrays.values())

    @property
    def sources(self) -> set[str]:
        """ "image" and "text": what they stand for."""
        return {key.partition("_")[0] for key in self.arrays}

    def shard_rows(self, shard: int) -> range:
        return range(shard * self.rows_per_shard, min(self.rows, (shard + 1) * self.rows_per_shard))

    def is_complete(self, shard: int) -> bool:
        return self._file(shard, "json").exists() and all(self._opened(shard, key) is not None for key in self.arrays)

    def write(self, shard: int, arrays: Mapping[str, np.ndarray], *, bad: Sequence[BadRow], writer: int = 0) -> None:
        """Writes a shard: arrays [rows, variants, ...], and the rows of it that mean nothing.

        Args:
          writer: number of the process; two may write the same shard.
        """
        for key, array in arrays.items():
            values = np.ascontiguousarray(array).view(self.arrays[key].written_as)
            with _written_aside(self._file(shard, f"{key}.npy"), writer) as path, path.open("wb") as file:
                np.save(file, values)
                _flush(file)
        with _written_aside(self._file(shard, "json"), writer) as path, path.open("w", encoding="utf-8") as file:
            json.dump([dataclasses.asdict(each) for each in bad], file)
            _flush(file)

    def take(self, rows: np.ndarray, mirrored: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{key: [b, ...]} of int64 [b] rows, in arrays of the caller's own.

        Args:
          mirrored: bool [b]; where True, the value of the mirrored picture.
        """
        shard, place = np.divmod(rows, self.rows_per_shard)
        taken = {}
        for key, array in self.arrays.items():
            out = np.empty((len(rows), *array.shape), array.written_as)
            variant = np.zeros(len(rows), np.int64) if mirrored is None or array.variants == 1 else mirrored + 0
            for number in np.unique(shard):
                here = np.flatnonzero(shard == number)
                out[here] = self._maps[int(number), key][place[here], variant[here]]
            taken[key] = out.view(array.dtype)
        return taken

    def joined_to(self, source: Source) -> WithStored:
        """The examples of the source, with what is stored of them."""
        return WithStored(source, self)

    @functools.cached_property
    def bad(self) -> dict[int, BadRow]:
        """Of all shards, by row."""
        lists = [json.loads(self._file(shard, "json").read_text(encoding="utf-8")) for shard in range(self.shards)]
        return {each["row"]: BadRow(**each) for found in lists for each in found}

    @functools.cached_property
    def _maps(self) -> dict[tuple[int, str], np.ndarray]:
        found = {(shard, key): self._opened(shard, key) for shard in range(self.shards) for key in self.arrays}
        return {place: array for place, array in found.items() if array is not None}

    def _opened(self, shard: int, key: str) -> np.ndarray | None:
        """[rows, variants, ...], memory-mapped; None where the file is absent or of another shape."""
        try:
            found = np.load(self._file(shard, f"{key}.npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):  # cut short
            return None
        array = self.arrays[key]
        shape = (len(self.shard_rows(shard)), array.variants, *array.shape)
        return found if (found.shape, found.dtype) == (shape, array.written_as) else None

    def _file(self, shard: int, ending: str) -> pathlib.Path:
        return self.folder / f"{shard:05}.{ending}"

    def __getstate__(self) -> dict[str, Any]:  # a worker process maps the files itself
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclasses.dataclass
class WithStored(Joined):
    """What is stored of each row beside the examples of a source: the same rows and draws as without a store."""

    stored: StoredOutputs

    def take(self, rows: np.ndarray, epoch: int) -> tuple[dict[str, Any], list[BadRow]]:
        found, bad = super().take(rows, epoch)
        mirrored = self.recipe.augmentation.mirrored(rows, seed=self.recipe.seed, epoch=epoch)
        known = {each.row for each in bad}
        more = [self.stored.bad[row] for row in rows.tolist() if row in self.stored.bad and row not in known]
        return {**found, **self.stored.take(rows, mirrored)}, [*bad, *more]


class _written_aside:
    """The path to write to, which becomes `path` at the end of the `with`."""

    def __init__(self, path: pathlib.Path, writer: int):
        self._path, self._aside = path, path.with_name(f".{path.name}.{writer}")

    def __enter__(self) -> pathlib.Path:
        return self._aside

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            os.replace(self._aside, self._path)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
