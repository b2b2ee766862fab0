"""The rows of a catalogue that have given values of attributes."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.item import Catalogue, Item
from siglip_jax.errors import UserError


class ChosenItems(Catalogue):
    """The rows of a catalogue that have one of the values named; see `choose_items`."""

    def __init__(self, catalogue: Catalogue, only: Mapping[str, Sequence[str]], total: int, others: int):
        self.catalogue, self.only = catalogue, {name: list(values) for name, values in only.items()}
        self.table, self.sha256, self.total = catalogue.table, catalogue.sha256, total
        self.attribute_names, self.has_keys = catalogue.attribute_names, catalogue.has_keys
        self.notes = catalogue.notes
        self.others = others  # how many rows were not chosen

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        for item in self.catalogue.items(start, pictures=pictures):
            if all(item.attributes.get(name, "") in values for name, values in self.only.items()):
                yield item

    def identity(self) -> dict[str, Any]:
        return self.catalogue.identity()

    def unused(self) -> list[str]:
        return self.catalogue.unused()

    def item_key(self, item: Item) -> bytes | None:
        return self.catalogue.item_key(item)

    def read_file(self, name: str) -> bytes:
        return self.catalogue.read_file(name)


def choose_items(catalogue: Catalogue, only: Mapping[str, Sequence[str]]) -> Catalogue:
    """The catalogue with those rows alone that have, of every attribute named, one of the values given.

    Reads the rows once without their pictures, to count them and to know the values.

    Raises:
      UserError: an attribute or a value that the catalogue has not; a misspelt one would silently choose nothing.
    """
    if not only:
        return catalogue
    _check_attributes(catalogue.table, only, catalogue.attribute_names)
    there: dict[str, set[str]] = {name: set() for name in only}
    names: dict[str, None] = {}
    total = read = 0
    for item in catalogue.items(pictures=False):
        names.update(dict.fromkeys(item.attributes))
        for name, seen in there.items():
            seen.add(item.attributes.get(name, ""))
        read += 1
        total += all(item.attributes.get(name, "") in values for name, values in only.items())
    _check_attributes(catalogue.table, only, list(names))
    for name, values in only.items():
        if missing := [value for value in values if value not in there[name]]:
            near = difflib.get_close_matches(missing[0], there[name], n=3)
            some = ", ".join(near or sorted(there[name])[:20])
            more = len(there[name]) - (len(near) or 20)
            raise UserError(
                f"only {name}={missing[0]}: no row has this value; {'near it are' if near else 'values are'} {some}"
                f"{f' and {more} others' if more > 0 else ''}"
            )
    return ChosenItems(catalogue, only, total, read - total)


def _check_attributes(table: str, only: Mapping[str, Sequence[str]], names: Sequence[str] | None) -> None:
    for name, values in only.items():
        if names is not None and name not in names:
            known = ", ".join(names) or "none"
            raise UserError(f"only {name}={values[0]}: no such attribute; {table} has {known}")
