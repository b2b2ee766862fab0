"""Stored vectors by name (`--features=cnn=STORE`), joined with the rows of a dataset's splits."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from eval.embeddings.embedding_files import embedding_paths
from eval.embeddings.stored_vectors import StoredVectors, open_vectors
from input_pipeline.dataset import item_table, open_split
from input_pipeline.dataset.reader import READ_ROWS
from input_pipeline.loader.item_vectors import IDS_SHOWN, MISSING, ItemVectors, align
from siglip_jax.errors import UserError

CHECKED_BYTES = 1 << 26  # of vectors looked at together


@dataclasses.dataclass(frozen=True)
class VectorStores:
    """What there is of one name: stores and files that are joined by id, such as one a split.

    Attributes:
      name: for messages and in batches.
      parts: at least one.
    """

    name: str
    parts: tuple[StoredVectors, ...]

    @classmethod
    def open(cls, name: str, paths: Sequence[epath.PathLike]) -> VectorStores:
        """UserError where one cannot be opened, or they are of different dimensions."""
        several = [each for path in paths for each in embedding_paths(os.fspath(path))]
        parts = tuple(open_vectors(path) for path in several)
        if len({part.dimension for part in parts}) > 1:
            found = ", ".join(f"{part.path} has {part.dimension} numbers" for part in parts)
            raise UserError(f"{name}: {found}; expected stores of one encoder")
        return cls(name, parts)

    @property
    def dimension(self) -> int:
        return self.parts[0].dimension

    @property
    def fingerprint(self) -> str:
        """sha256 of what is stored, in whatever order the stores were named."""
        return hashlib.sha256(" ".join(sorted(part.sha256 for part in self.parts)).encode()).hexdigest()

    @property
    def description(self) -> list[dict[str, Any]]:
        """For a manifest: what made the vectors, and their fingerprint, for each store."""
        return [{"model": part.model, "sha256": part.sha256} for part in self.parts]

    def of_split(self, dataset: epath.PathLike, split: str) -> ItemVectors:
        """The vectors of the items of a split; says how many there are.

        Raises:
          UserError: none at all, an item of different vectors in two stores, vectors that are not finite.
        """
        ids = split_ids(dataset, split)
        found = [align(ids, part.ids, part.parts) for part in self.parts]
        arrays: list[np.ndarray] = []
        rows, start = np.full(len(ids), MISSING, np.int64), 0
        for each, part in zip(found, self.parts, strict=True):
            here = each.rows != MISSING
            if len(twice := np.flatnonzero(here & (rows != MISSING))):
                self._check_equal(ItemVectors(tuple(arrays), rows), each, twice, ids, part)
            rows = np.where(here & (rows == MISSING), each.rows + start, rows)
            arrays += part.parts
            start += sum(map(len, part.parts))
        vectors = ItemVectors(tuple(arrays), rows)
        missing = vectors.missing
        if len(missing) == len(ids):
            raise UserError(
                f"{self.name}: none of the {len(ids)} items of split {split} is in "
                f"{', '.join(part.path for part in self.parts)}; ids there are such as {self.parts[0].ids[0]}, here "
                f"{ids[0]} (they are compared as text)"
            )
        if not all(part.checked for part in self.parts):
            self._check_finite(vectors, ids)
        print(self._found(ids, missing, start, split), flush=True)
        return vectors

    def _found(self, ids: Sequence[str], missing: np.ndarray, stored: int, split: str) -> str:
        there = len(ids) - len(missing)
        said = f"{self.name}: vectors of {self.dimension} numbers for {there} of {len(ids)} items of split {split}"
        if len(missing):
            names = ", ".join(ids[row] for row in missing[:IDS_SHOWN].tolist())
            more = f" and {len(missing) - IDS_SHOWN} more" if len(missing) > IDS_SHOWN else ""
            said += f"; none for {names}{more}"
        if stored > there:
            said += f"; {stored - there} of other items"
        if copied := sum(part.copied_bytes for part in self.parts):
            said += f"; {copied / 2**20:.0f} MiB in memory, since the format cannot be mapped"
        return said

    def _check_equal(
        self, one: ItemVectors, other: ItemVectors, rows: np.ndarray, ids: Sequence[str], part: StoredVectors
    ) -> None:
        for some in _stretches(rows, self.dimension):
            if len(bad := some[(one.take(some) != other.take(some)).any(axis=1)]):
                raise UserError(
                    f"{self.name}: item {ids[bad[0]]} has another vector in {part.path} than in a store named before "
                    "it; expected stores of one encoder"
                )

    def _check_finite(self, vectors: ItemVectors, ids: Sequence[str]) -> None:
        for some in _stretches(np.flatnonzero(vectors.rows != MISSING), self.dimension):
            if len(bad := some[~np.isfinite(vectors.take(some)).all(axis=1)]):
                raise UserError(f"{self.name}: the vector of item {ids[bad[0]]} holds NaN or infinity; embed it again")


@dataclasses.dataclass(frozen=True)
class Features:
    """All of a model's inputs.

    Attributes:
      stores: by name, in the order of the names: that of the flags must not matter when a run goes on.
    """

    stores: Mapping[str, VectorStores]

    @classmethod
    def open(cls, paths: Mapping[str, Sequence[epath.PathLike]]) -> Features:
        return cls({name: VectorStores.open(name, some) for name, some in sorted(paths.items())})

    @property
    def dimensions(self) -> dict[str, int]:
        return {name: stores.dimension for name, stores in self.stores.items()}

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a run records, to go on with the same."""
        return {name: stores.fingerprint for name, stores in self.stores.items()}

    def check(self, wanted: Mapping[str, int], *, model: object) -> None:
        """Raises a UserError unless these are the features that a model takes."""
        if not wanted:
            raise UserError(f"{model}: it takes pictures; leave --features out")
        flags = (f"--features={name}=STORE of {size} numbers" for name, size in wanted.items())
        given = self.dimensions
        problems = [f"no {name} is given" for name in wanted if name not in given]
        problems += [f"{name} is unknown to it" for name in given if name not in wanted]
        problems += [
            f"{name} has {given[name]} numbers" for name in given if name in wanted and given[name] != wanted[name]
        ]
        if problems:
            raise UserError(f"{model}: {', '.join(problems)}; expected {', '.join(flags)}")

    def of_split(self, dataset: epath.PathLike, split: str) -> dict[str, ItemVectors]:
        return {name: stores.of_split(dataset, split) for name, stores in self.stores.items()}


def open_item_vectors(
    paths: epath.PathLike | Sequence[epath.PathLike], *, dataset: epath.PathLike, split: str, name: str = "vectors"
) -> ItemVectors:
    """The vectors of a split's items from one store or file, or several that are joined by id; prints the counts."""
    several = list(paths) if isinstance(paths, list | tuple) else [paths]
    return VectorStores.open(name, several).of_split(dataset, split)


def split_ids(dataset: epath.PathLike, split: str) -> list[str]:
    """The ids of a split in row order."""
    return split_columns(dataset, split)["id"]


def split_columns(dataset: epath.PathLike, split: str, *, names: Sequence[str] = ()) -> dict[str, list[str]]:
    """ "id" and other columns of a split in row order: "title", "image_sha256", "attributes.colour" ("" for null).

    From the table of the build where there is one, since that is fast; else record by record.

    Raises:
      UserError: no such attribute, a record that cannot be read.
    """
    rows = open_split(dataset, split)
    wanted = {name: name.partition(".")[::2] for name in dict.fromkeys(("id", *names))}
    for column, attribute in wanted.values():
        if column == "attributes" and attribute not in rows.attribute_names:
            known = ", ".join(rows.attribute_names) or "none"
            raise UserError(f"{dataset}: no attribute {attribute!r}; it has {known}")
    if (epath.Path(dataset) / item_table.FILE).exists():
        columns = dict.fromkeys(column for column, _ in wanted.values())
        table = item_table.item_table(dataset, columns=("split", *columns))
        table = table.filter(pc.equal(table["split"], pa.scalar(split)))
        if len(table) == len(rows) and all(table["id"][row].as_py() == rows[row]["id"] for row in {0, len(rows) - 1}):
            found = {
                name: pc.struct_field(table[column], attribute) if attribute else table[column]
                for name, (column, attribute) in wanted.items()
            }
            return {name: pc.fill_null(values, "").to_pylist() for name, values in found.items()}
    read: dict[str, list[str]] = {name: [] for name in wanted}
    for start in range(0, len(rows), READ_ROWS):
        for record in rows[start : start + READ_ROWS]:
            for name, (column, attribute) in wanted.items():
                read[name].append(record[column][attribute] if attribute else record[column])
    return read


def _stretches(rows: np.ndarray, dimension: int) -> Iterable[np.ndarray]:
    step = max(1, CHECKED_BYTES // (4 * dimension))
    return (rows[start : start + step] for start in range(0, len(rows), step))
