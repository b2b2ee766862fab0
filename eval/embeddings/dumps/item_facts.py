"""What a dataset says of the items of a store: titles and attributes, of all of its splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from eval.embeddings.pictures import has_picture_rows, item_and_picture
from eval.embeddings.stored_rows import StoredRows
from input_pipeline.dataset import item_table
from siglip_jax.errors import UserError


@dataclass(frozen=True)
class ItemFacts:
    """Of the items that a dataset kept.

    Attributes:
      rows: {id: row of the columns}.
      titles: text.
      attributes: {name: text of each row, "" where there is none}.
    """

    rows: dict[str, int]
    titles: list[str]
    attributes: dict[str, list[str]]

    @classmethod
    def read(cls, dataset: str | os.PathLike) -> ItemFacts:
        """UserError where there is no dataset."""
        table = item_table.item_table(dataset, columns=("id", "title", "kind", "attributes"), progress=False)
        table = table.filter(pc.equal(table["kind"], ""))
        kind = table.schema.field("attributes").type if "attributes" in table.schema.names else pa.struct([])
        columns = {
            field.name: pc.fill_null(pc.struct_field(table["attributes"], field.name), "").to_pylist() for field in kind
        }
        ids = table["id"].to_pylist()
        return cls({item: row for row, item in enumerate(ids)}, table["title"].to_pylist(), columns)

    def of_store(self, store: StoredRows) -> ItemFacts:
        """The same, known by the ids of a store's rows where those are pictures of items."""
        if not has_picture_rows(store.manifest):
            return self
        shown = {row_id: item_and_picture(row_id, store.places)[0] for row_id in store.places}
        more = {row_id: self.rows[item] for row_id, item in shown.items() if item in self.rows}
        return replace(self, rows={**self.rows, **more})

    def check(self, names: Sequence[str], *, flag: str) -> None:
        """Raises a UserError that names an attribute which is not there."""
        if unknown := [name for name in names if name not in self.attributes]:
            known = ", ".join(self.attributes) or "none"
            raise UserError(f"--{flag}={unknown[0]}: the dataset has no such attribute; it has {known}")

    def describe_unknown(self, ids: Sequence[str]) -> str:
        """Such as "3 items are not in the dataset, a the first"; "" where all are.

        Raises:
          UserError: none of them is.
        """
        unknown = [item for item in ids if item not in self.rows]
        if unknown and len(unknown) == len(ids):
            known = next(iter(self.rows), "")
            raise UserError(
                f"none of the {len(ids)} items of the store is in the dataset: ids are such as {ids[0]!r}, there such "
                f"as {known!r}; give the dataset that was embedded"
            )
        return f"{len(unknown)} items are not in the dataset, {unknown[0]!r} the first" if unknown else ""
