"""The rows of a store by id, for the next generation of it: ids are in memory, vectors are read shard by shard."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath

from eval.embeddings.pictures import picture_row_id
from eval.embeddings.store import dtype_of, read_manifest
from eval.embeddings.store_shards import ShardRows, read_ids, read_rows
from siglip_jax.errors import UserError
from siglip_jax.files import differences
from siglip_jax.preprocessing import comparable

_SHARDS_HELD = 4


class StoredRows:
    """Those of a store that is whole.

    Args:
      folder: of the store.

    Attributes:
      manifest: the one that was there when this was opened; its files stay for one generation more.
      places: {id: row}.
      inputs: for each row the sha256 of what it was made of; None where it is not known.

    Raises:
      UserError: no store, or one that is damaged.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        self.manifest = read_manifest(folder)
        self.places: dict[str, int] = {}
        self.inputs: list[bytes | None] = []
        for shard in self.manifest["shards"]:
            path = self._folder / shard["file"]
            try:
                for item, made_of in read_ids(path):
                    self.places[item] = len(self.inputs)
                    self.inputs.append(made_of)
            except (OSError, pa.ArrowException, KeyError) as error:
                raise UserError(
                    f"embedding store {os.fspath(folder)}: {shard['file']} cannot be read ({type(error).__name__}); "
                    "embed again with --overwrite"
                ) from error
        self._ends = np.cumsum([shard["count"] for shard in self.manifest["shards"]])
        if len(self.places) != self.manifest["count"]:
            raise UserError(
                f"embedding store {os.fspath(folder)}: {len(self.places)} ids for {self.manifest['count']} rows; embed "
                "again with --overwrite"
            )
        self._shard = functools.lru_cache(_SHARDS_HELD)(self._read)

    @property
    def dtype(self) -> str:
        return dtype_of(self.manifest)

    @property
    def knows_inputs(self) -> bool:
        """Whether it is known of any row what it was made of; stores of early versions do not say."""
        return any(each is not None for each in self.inputs)

    def unchanged(self, ids: Sequence[str], inputs: Sequence[bytes | None]) -> np.ndarray:
        """int64 [n]: the row of each of these items; -1 of one that is not here, or was made of something else."""
        rows = np.full(len(ids), -1, np.int64)
        for number, (item, made_of) in enumerate(zip(ids, inputs, strict=True)):
            row = self.places.get(item, -1)
            if row >= 0 and made_of is not None and self.inputs[row] == made_of:
                rows[number] = row
        return rows

    def unchanged_pictures(
        self, ids: Sequence[str], inputs: Sequence[Sequence[bytes | None]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] twice: as `unchanged` for items with a row for each picture, and how many rows each has.

        Args:
          inputs: of all pictures of each item, the first one first.
        """
        rows, counts = self.unchanged(ids, [each[0] for each in inputs]), np.array([len(each) for each in inputs])
        for number, (item, made_of) in enumerate(zip(ids, inputs, strict=True)):
            if rows[number] < 0:
                continue
            first = int(rows[number])
            there = self.inputs[first : first + len(made_of)] == list(made_of) and None not in made_of
            names = [self.places.get(picture_row_id(item, k + 1)) for k in range(len(made_of) + 1)]
            if not there or names != [*range(first, first + len(made_of)), None]:
                rows[number] = -1
        return rows, counts

    def shards(self) -> Iterator[ShardRows]:
        """Its rows in order, a shard at a time."""
        return map(self._read, range(len(self.manifest["shards"])))

    def take(self, places: np.ndarray) -> ShardRows:
        """Some of its rows, as they lie on disk: at least one.

        Raises:
          UserError: a shard that is not what was written.
        """
        order = np.argsort(places, kind="stable")
        numbers = np.searchsorted(self._ends, places[order], side="right")
        parts = []
        for number in np.unique(numbers):
            start = self._ends[number] - self.manifest["shards"][number]["count"]
            parts.append(self._shard(int(number)).at(places[order[numbers == number]] - start))
        return ShardRows.joined(parts).at(np.argsort(order, kind="stable"))

    def _read(self, number: int) -> ShardRows:
        shard = self.manifest["shards"][number]
        return read_rows(self._folder, shard, dimension=self.manifest["dimension"], dtype=self.dtype)


def check_update(stored: StoredRows, manifest: Mapping[str, Any], *, dtype: str | None, folder: epath.PathLike) -> None:
    """Raises a UserError unless an update may keep vectors of the store.

    Args:
      manifest: of the update, as of `EmbeddingPlan`. Its dataset may be another build.
      dtype: asked for; None leaves it as it is.
    """
    new = {**manifest, "dtype": dtype or stored.dtype}
    if different := update_differences(new, stored.manifest):
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(
            f"embedding store {os.fspath(folder)}: was made in another way ({'; '.join(different[:3])}{more}), so "
            "every item would be embedded anew: give a new --output, and build an index of it"
        )


def update_differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """Lines on what two manifests differ in so that no vector of one means anything to the other."""
    return differences(_kept_of(new), _kept_of(old))


def _kept_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the vectors of an item: not where the model or the stores of its features lie or what they hold."""
    of = json.loads(json.dumps({key: manifest.get(key) for key in ("model", "preprocessing", "pool")}))
    of["preprocessing"] = comparable(of["preprocessing"])
    of["dtype"] = dtype_of(manifest)
    of["dataset"] = {"split": (manifest.get("dataset") or {}).get("split")}
    model = of["model"] or {}
    for each in (model, *(part["model"] for parts in model.get("features", {}).values() for part in parts)):
        if any(key.endswith("sha256") for key in each):
            each.pop("name", None)
    for name, parts in model.get("features", {}).items():
        model["features"][name] = sorted({json.dumps(part["model"], sort_keys=True) for part in parts})
    return of
