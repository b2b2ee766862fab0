"""The items that a comparison is over: a split of a dataset, without what its stores were made without."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from eval.embeddings import EmbeddingStore, read_store
from eval.embeddings.embedding_files import read_embeddings
from eval.embeddings.pictures import first_pictures, has_picture_rows
from eval.embeddings.store import read_manifest, skipped_of
from eval.embeddings.stored_rows import StoredRows
from input_pipeline.dataset import dataset_fingerprint, open_split
from input_pipeline.dataset.reader import READ_ROWS
from siglip_jax.errors import UserError

IDS_SHOWN = 10
POOLED = "in the mean of another item"  # why an item has no row of its own in a store of --pool


@dataclasses.dataclass(frozen=True)
class Items:
    """Parallel: ids, titles ("" where not known), attributes, rows of the split (those of the store without a dataset).

    Attributes:
      missing: {store: items that embedding skipped, see `EmbeddingStore.skipped`}. They are not among the items: every
        ranker of a comparison ranks the same ones.
    """

    ids: list[str]
    titles: list[str]
    columns: dict[str, list[str]]
    rows: list[int]
    missing: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def without(self, ids: Collection[str]) -> Items:
        """Without these items."""
        kept = [place for place, item in enumerate(self.ids) if item not in ids]
        return self if len(kept) == len(self.ids) else self.at(kept)

    def at(self, kept: Sequence[int]) -> Items:
        """Those at these places."""
        return dataclasses.replace(
            self,
            ids=[self.ids[k] for k in kept],
            titles=[self.titles[k] for k in kept],
            columns={name: [values[k] for k in kept] for name, values in self.columns.items()},
            rows=[self.rows[k] for k in kept],
        )

    def warnings(self) -> list[str]:
        """What a reader of the comparison has to know of the missing items."""
        lines = []
        for store, skipped in self.missing.items():
            for why, some in (
                ("could not be read when store {} was embedded", [x for x in skipped if x["reason"] != POOLED]),
                ("are in the mean vectors of others in store {}", [x for x in skipped if x["reason"] == POOLED]),
            ):
                named = [each["id"] or f"row {each['row']}" for each in some]
                shown = ", ".join(named[:IDS_SHOWN]) + (", ..." if len(named) > IDS_SHOWN else "")
                if named:
                    lines.append(
                        f"{len(named):,} items are missing from every row, as queries and as candidates: they "
                        f"{why.format(repr(store))} ({shown})."
                    )
        return lines


def read_split(dataset: epath.PathLike, split: str, *, skipping: Collection[int] = ()) -> Items:
    """All items of a split but those rows, whose records are not touched; pictures are not decoded.

    Raises:
      UserError: another record that cannot be read.
    """
    source = open_split(dataset, split)
    rows = [row for row in range(len(source)) if row not in skipping]
    found = Items([], [], {name: [] for name in source.attribute_names}, rows)
    for start in range(0, len(rows), READ_ROWS):
        for record in source.__getitems__(rows[start : start + READ_ROWS]):
            found.ids.append(record["id"])
            found.titles.append(record["title"])
            for name, value in record["attributes"].items():
                found.columns[name].append(value)
    return found


def read_items(dataset: epath.PathLike | None, split: str, stores: Mapping[str, str]) -> Items:
    """The items of the split, or of the first store where there is no dataset, that no store was made without.

    Args:
      stores: {name: folder of a store or file of embeddings}.

    Raises:
      UserError: a dataset or a store that cannot be read, neither of them, a store without ids, or no item left.
    """
    folders = {name: path for name, path in stores.items() if epath.Path(path).is_dir()}
    manifests = {name: read_manifest(path) for name, path in folders.items()}
    missing = {name: skipped for name, manifest in manifests.items() if (skipped := skipped_of(manifest))}
    ids = {each["id"] for skipped in missing.values() for each in skipped} - {""}
    if dataset:
        made_of = {"fingerprint": dataset_fingerprint(dataset), "split": split}
        here = [name for name in missing if made_of.items() <= manifests[name].get("dataset", {}).items()]
        found = read_split(dataset, split, skipping={each["row"] for name in here for each in missing[name]})
    elif stores:
        found = _of_store(next(iter(stores.values())))
    else:
        raise UserError("no items: give --dataset or a --store")
    for name, manifest in manifests.items():
        if "pool" in manifest and not has_picture_rows(manifest):
            away = _pooled_away(folders[name], found)
            missing[name] = missing.get(name, []) + away
            ids |= {each["id"] for each in away}
    found = dataclasses.replace(found.without(ids), missing=missing)
    if not found.ids:
        raise UserError(f"stores {', '.join(missing)}: every item is missing from one of them; embed them again")
    return found


def places_in_store(name: str, store: EmbeddingStore, items: Items, *, fingerprint: str) -> list[int]:
    """Where in a store the items are.

    Raises:
      UserError: the store is not of this dataset, or holds other items than the split, or these in another order.
    """
    made_of = store.manifest.get("dataset", {}).get("fingerprint")
    if made_of not in (None, fingerprint):
        raise UserError(f"store {name!r} was made from another dataset ({made_of}, not {fingerprint}); embed it again")
    known = set(items.ids)
    places = [place for place, item in enumerate(store.ids) if item in known]
    missing = {each["row"] for skipped in items.missing.values() for each in skipped}
    if [store.ids[place] for place in places] != items.ids or len(store.ids) - len(places) > len(missing):
        raise UserError(
            f"store {name!r} holds {len(store.ids)} items that are not the {len(items.ids)} of this split, in "
            "order; embed the split again"
        )
    return places


def _pooled_away(folder: str, items: Items) -> list[dict[str, Any]]:
    """Items without a row of their own, as `EmbeddingStore.skipped` would have them."""
    kept = StoredRows(folder).places
    return [
        {"row": row, "id": item, "reason": POOLED}
        for row, item in zip(items.rows, items.ids, strict=True)
        if item not in kept
    ]


def _of_store(path: str) -> Items:
    ids = list(
        first_pictures(read_store(path))[0].ids if epath.Path(path).is_dir() else read_embeddings(path).ids or []
    )
    if not ids:
        raise UserError(f"{path}: holds no ids, which tell the log's items apart; give --dataset or a store with ids")
    return Items(ids, [""] * len(ids), {}, list(range(len(ids))))
