"""Stores with a row for each picture of an item: row "17" is of its first, "17#2" and "17#3" of further ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Container, Mapping
from typing import Any

import numpy as np

from eval.embeddings.store import EmbeddingStore
from siglip_jax.errors import UserError

EACH = "each"  # "how" of a manifest's "pool"
_FURTHER = re.compile(r"(.+)#([2-9]|[1-9][0-9]+)", re.DOTALL)


def has_picture_rows(about: Mapping[str, Any]) -> bool:
    """Whether a store, by its manifest, or an index, by its encoder, has a row for each picture."""
    return (about.get("pool") or {}).get("how") == EACH


def picture_row_id(item: str, number: int) -> str:
    """The id of the row of an item's picture; its first is number 1."""
    return item if number == 1 else f"{item}#{number}"


def item_and_picture(row_id: str, ids: Container[str]) -> tuple[str, int]:
    """What a row shows: (id of the item, number of the picture).

    Args:
      ids: of all rows. "x#2" is a picture of x only where x is among them: ids of a shop may look like this themselves.

    Example:
      >>> item_and_picture("17#2", {"17", "17#2"}), item_and_picture("17#2", {"17#2"})
      (('17', 2), ('17#2', 1))
    """
    found = _FURTHER.fullmatch(row_id)
    return (found[1], int(found[2])) if found and found[1] in ids else (row_id, 1)


def items_of(about: Mapping[str, Any], ids: Collection[str]) -> set[str]:
    """The items of a store by its manifest and the ids of its rows."""
    return {item_and_picture(row_id, ids)[0] for row_id in ids} if has_picture_rows(about) else set(ids)


def check_tellable(ids: Collection[str]) -> None:
    """Raises a UserError where an item's id is that of another one's picture."""
    known = set(ids)
    for each in ids:
        item, number = item_and_picture(each, known)
        if number > 1:
            raise UserError(
                f"--pool={EACH}: item {each!r} cannot be told from picture {number} of item {item!r}; give one of them "
                "another id, or choose --pool=mean"
            )


def first_pictures(store: EmbeddingStore) -> tuple[EmbeddingStore, int]:
    """The rows of first pictures alone, and how many rows are left out."""
    if not has_picture_rows(store.manifest):
        return store, 0
    known = set(store.ids)
    first = np.flatnonzero([item_and_picture(each, known)[1] == 1 for each in store.ids])
    kept = [store.ids[row] for row in first]
    return dataclasses.replace(store, ids=kept, vectors=store.vectors[first]), len(store.ids) - len(kept)
