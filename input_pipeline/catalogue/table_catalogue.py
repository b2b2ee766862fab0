"""A table with its images in files beside it, inside its own cells, or found by the items' ids."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.item import IMAGE_SUFFIXES, PARTS, Catalogue, Item, as_text, title_texts
from input_pipeline.catalogue.tables.open_table import open_table
from input_pipeline.catalogue.tables.table import FORMATS, ChainedTable, Table
from input_pipeline.folder_or_zip import (
    FileProblem,
    Files,
)
from siglip_jax.errors import UserError

MAX_TABLE_BYTES = 2**36  # of a table in a zip, which may unpack to anything


@dataclasses.dataclass(frozen=True)
class TableCatalogue(Catalogue):
    """A table with its pictures in files beside it or in its own cells."""

    source: Table = dataclasses.field(repr=False)
    files: Files = dataclasses.field(repr=False)
    columns: Columns
    by_id: Mapping[str, str] | None = dataclasses.field(repr=False)  # {id: path} where no column names the pictures

    @property
    def table(self) -> str:  # type: ignore[override]
        return self.source.name

    @property
    def sha256(self) -> str:  # type: ignore[override]
        return self.source.sha256

    @property
    def attribute_names(self) -> list[str]:  # type: ignore[override]
        return self.columns.attributes

    @property
    def total(self) -> int:  # type: ignore[override]
        return self.source.count

    def identity(self) -> dict[str, Any]:
        return super().identity() | self.files.identity() | {"columns": dataclasses.asdict(self.columns)}

    @property
    def has_keys(self) -> bool:  # type: ignore[override]
        return not self.source.pictures  # those inside the table have no stamps

    def item_key(self, item: Item) -> bytes | None:
        if not self.has_keys:
            return None
        names = [name for name in (item.image, *item.more_images) if name]
        stamps = [[name, self.files.stamp(name)] for name in names]
        told = [item.id, item.title, item.more_titles, item.attributes, str(item.problem or ""), stamps]
        return hashlib.sha256(json.dumps(told).encode()).digest()[:16]

    def read_file(self, name: str) -> bytes:
        return self.files.read(name)

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        columns = self.columns
        for number, (values, problem) in enumerate(self.source.rows(start, pictures=pictures), start):
            id_ = as_text(values[columns.id])
            titles = [text for column in columns.titles for text in title_texts(values[column])]
            if self.by_id is None:
                names, inside = gather_images({column: values.get(column, "") for column in columns.images})
            else:
                names, inside = [self.by_id[id_]] if id_ in self.by_id else [], {}
            yield Item(
                row=number,
                id=id_,
                title=titles[0] if titles else "",
                image=names[0] if names else "",
                attributes={name: as_text(values[name]) for name in columns.attributes},
                more_images=tuple(names[1:]),
                more_titles=tuple(titles[1:]),
                pictures=inside,
                problem=FileProblem("not UTF-8", problem) if problem else None,
            )


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column plays which part; `images` and `titles` in order, the further ones after the first."""

    id: str
    titles: list[str]
    images: list[str]
    attributes: list[str]


def open_tables(files: Files, names: Sequence[str], columns: Mapping[str, str]) -> Catalogue:
    """The catalogue of one table, or of several of the same columns, in `files`; see `read_catalogue`."""
    tables: list[Table] = []
    for name in names:
        try:
            tables.append(open_table(functools.partial(files.open, name, limit=MAX_TABLE_BYTES), name=name))
        except FileProblem as problem:
            raise UserError(f"the table cannot be read: {problem}") from problem
    source = tables[0] if len(tables) == 1 else ChainedTable(tables)
    parts, table = _assign(source, columns), source.name
    by_id = None
    if not parts.images:
        by_id = _images_by_id(files)
        if not by_id:
            raise UserError(
                f"{table}: no column image; columns are {', '.join(source.columns)}; name the image column with "
                "--image_column or put the pictures into images/<id>.jpg"
            )
    if not source.count:
        raise UserError(f"{table}: no rows; expected a line for each item below the column names")
    return TableCatalogue(source=source, files=files, columns=parts, by_id=by_id)


# --- cells ------------------------------------------------------------------------------------------------------------


def gather_images(cells: Mapping[str, Any]) -> tuple[list[str], dict[str, bytes]]:
    """The names of a row's pictures in order, and the bytes of those that came with it.

    Args:
      cells: {column: path, bytes, {"bytes", "path"} or a list of these}; "" and None are none.
    """
    names: list[str] = []
    inside: dict[str, bytes] = {}
    for column, cell in cells.items():
        several = isinstance(cell, list)
        for number, value in enumerate(cell if several else [cell], 1):
            if isinstance(value, dict):  # Hugging Face's Image; the path alone where the bytes are elsewhere
                value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
            if value is None or value == "":
                continue
            if isinstance(value, bytes):
                name = f"{column}[{number}]" if several else column
                inside[name] = value
            else:
                name = as_text(value)
            names.append(name)
    return names, inside


# --- tables -----------------------------------------------------------------------------------------------------------


def find_table(files: Files, path: os.PathLike) -> str:
    """The one `items.*` at the top of a catalogue."""
    candidates = [f"items.{suffix}" for suffix in FORMATS]
    found = [name for name in files.names("") if name in candidates]
    if len(found) != 1:
        raise UserError(
            f"{path}: {' and '.join(found) or 'no table'}; expected exactly one of {', '.join(candidates)}"
            + ("; remove the others or name one file" if found else " at its top")
        )
    return found[0]


def _assign(table: Table, given: Mapping[str, str]) -> Columns:
    """Which column plays which part; no `images` where there is no such column."""
    wanted = {part: given.get(part, part) for part in PARTS}
    for part, name in wanted.items():
        if name not in table.columns and (part != "image" or part in given):
            if len(table.columns) == 1 and ";" in table.columns[0]:
                raise UserError(
                    f"{table.name}: the fields are separated by ';'; expected commas in a .csv and tabs in a .tsv: "
                    "save it so"
                )
            raise UserError(
                f"{table.name}: no column {name}; columns are {', '.join(table.columns)}; "
                f"name the {part} column with --{part}_column"
            )
    titles, images = (_numbered(wanted[part], table.columns) for part in ("title", "image"))
    used = {wanted["id"], *titles, *images}
    attributes = [name for name in table.columns if name not in used]
    if wrong := [name for name in (wanted["id"], *titles, *attributes) if name in table.pictures]:
        raise UserError(
            f"{table.name}: column {wrong[0]} holds bytes; expected text there, and pictures in the image column: "
            "name it with --image_column, or leave the column out"
        )
    return Columns(wanted["id"], titles, images, attributes)


def _numbered(name: str, columns: Sequence[str]) -> list[str]:
    """`name`, `name`_2, `name`_3, ... as far as they are columns; empty without `name`."""
    pattern = re.compile(rf"{re.escape(name)}_([2-9]|[1-9][0-9]+)")
    others = sorted((int(found[1]), column) for column in columns if (found := pattern.fullmatch(column)))
    return [name, *(column for _, column in others)] if name in columns else []


def _images_by_id(files: Files) -> dict[str, str]:
    pictures: dict[str, tuple[int, str]] = {}
    for name in files.names("images"):
        stem, _, suffix = name.rpartition(".")
        if (suffix := suffix.lower()) in IMAGE_SUFFIXES:
            choice = (IMAGE_SUFFIXES.index(suffix), f"images/{name}")
            pictures[stem] = min(choice, pictures.get(stem, choice))
    return {stem: name for stem, (_, name) in pictures.items()}
