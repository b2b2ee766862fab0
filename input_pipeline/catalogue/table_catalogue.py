"""A table with its images in files beside it, inside its own cells, or found by the items' ids."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.expand import folder_values
from input_pipeline.catalogue.item import IMAGE_SUFFIXES, Catalogue, Item, as_text, title_texts
from input_pipeline.catalogue.table_columns import Columns, choose_columns, column_notes
from input_pipeline.catalogue.tables.open_table import open_table
from input_pipeline.catalogue.tables.table import FORMATS, ChainedTable, Table, mend_text, told
from input_pipeline.catalogue.tables.text_options import UTF8, TextOptions
from input_pipeline.catalogue.unused_files import unused_pictures
from input_pipeline.folder_or_zip import FileProblem, Files
from siglip_jax.errors import UserError

MAX_TABLE_BYTES = 2**36  # of a table in a zip, which may unpack to anything


@dataclasses.dataclass(frozen=True)
class TableCatalogue(Catalogue):
    """A table with its pictures in files beside it or in its own cells."""

    source: Table = dataclasses.field(repr=False)
    files: Files = dataclasses.field(repr=False)
    columns: Columns
    by_id: Mapping[str, Mapping[str, str]] | None = dataclasses.field(repr=False)  # {folder: {id: path}}, see `items`
    folders: tuple[TablePlace, ...] = ()  # of the tables of a range that reaches over folders, in order
    notes: tuple[str, ...] = ()

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
        told = {"columns": dataclasses.asdict(self.columns)}
        if self.folders:
            told["folders"] = {part.folder: part.stop for part in self.folders}
        return super().identity() | self.files.identity() | told

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

    def unused(self) -> list[str]:
        items = self.items(pictures=False)
        return unused_pictures(self.files, (name for item in items for name in (item.image, *item.more_images) if name))

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        columns, stops = self.columns, [part.stop for part in self.folders]
        for number, (values, problem) in enumerate(self.source.rows(start, pictures=pictures), start):
            part = self.folders[bisect.bisect_right(stops, number)] if stops else _TOP
            values = {**values, **part.values}
            id_ = as_text(values[columns.id])
            titles = [text for column in columns.titles for text in title_texts(values[column])]
            if self.by_id is None:
                names, inside = gather_images({column: values.get(column, "") for column in columns.images})
                names = [name if name in inside else part.path(name) for name in names]
            else:  # no column names the pictures
                path = self.by_id[part.folder].get(id_)
                names, inside = [path] if path else [], {}
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
class TablePlace:
    """Where one table of several lies.

    Attributes:
      folder: in which its pictures are, below the catalogue's; "" for the same one.
      stop: the catalogue's row after its last.
      values: of the columns that the names of folders give (`day=01`).
    """

    folder: str = ""
    stop: int = 0
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}" if self.folder and not name.startswith("/") else name


_TOP = TablePlace()


def open_tables(
    files: Files,
    names: Sequence[str],
    columns: Mapping[str, str],
    text: TextOptions = UTF8,
    *,
    beside: Sequence[str] = (),
) -> Catalogue:
    """The catalogue of one table, or of several of the same columns, in `files`; see `read_catalogue`.

    Args:
      beside: tables that are not read.
    """
    tables: list[Table] = []
    for name in names:
        try:
            read = functools.partial(files.open, name, limit=MAX_TABLE_BYTES)
            tables.append(open_table(read, name=mend_text(name), text=text))
        except FileProblem as problem:
            raise UserError(f"the table cannot be read: {problem}") from problem
    source = tables[0] if len(tables) == 1 else ChainedTable(tables)
    parts = choose_columns(source, columns)
    folders, keys = _folders(names, tables)
    parts.attributes.extend(key for key in keys if key not in source.columns)
    by_id = None
    if not parts.images:
        by_id = {place.folder: _images_by_id(files, place.folder) for place in folders or (_TOP,)}
        if not any(by_id.values()):
            raise UserError(
                f"{source.name}: no column image; columns are {told(source.columns)}; name the image column with "
                "--image_column or put the pictures into images/<id>.jpg"
            )
    if not source.count:
        raise UserError(f"{source.name}: no rows; expected a line for each item below the column names")
    notes = [note for each in tables for note in getattr(each, "notes", ())] + column_notes(source, parts, columns)
    if beside:
        notes.append(f"{source.name}: the only table that is read; not {told(beside)}")
    return TableCatalogue(
        source=source, files=files, columns=parts, by_id=by_id, folders=folders, notes=tuple(dict.fromkeys(notes))
    )


def _folders(names: Sequence[str], tables: Sequence[Table]) -> tuple[tuple[TablePlace, ...], list[str]]:
    """Where each table lies and the columns that names of folders such as `day=01` give; nothing at the top."""
    if not any("/" in name for name in names):
        return (), []
    stops = itertools.accumulate(table.count for table in tables)
    found = [
        TablePlace(posixpath.dirname(name), stop, folder_values(name)) for name, stop in zip(names, stops, strict=True)
    ]
    keys = list(dict.fromkeys(key for part in found for key in part.values))
    inside = set(tables[0].columns)  # a column of the table is what it says
    parts = [
        dataclasses.replace(part, values={key: part.values.get(key, "") for key in keys if key not in inside})
        for part in found
    ]
    return tuple(parts), keys


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
                names += split_paths(as_text(value))
                continue
            names.append(name)
    return names, inside


def split_paths(text: str) -> list[str]:
    """The paths of a cell: one, or several as a JSON list or between `|`, `;` or `,`.

    A cell is several where every piece ends as a picture does, so that a comma in a file's name stays in it.
    """
    if text.startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        return [path for path in found if path] if all(isinstance(path, str) for path in found) else [text]
    for sign in "|;,":
        pieces = [piece.strip() for piece in text.split(sign)]
        pieces = [piece for piece in pieces if piece]
        if len(pieces) > 1 and all(piece.rpartition(".")[2].lower() in IMAGE_SUFFIXES for piece in pieces):
            return pieces
    return [text]


# --- tables -----------------------------------------------------------------------------------------------------------


def find_table(files: Files, path: os.PathLike) -> tuple[str, list[str]]:
    """The one `items.*` at the top of a catalogue, or its one table; and the tables beside it."""
    candidates = [f"items.{suffix}" for suffix in FORMATS]
    found = [name for name in files.names("") if name in candidates]
    tables = [name for name in files.names("") if name.rpartition(".")[2].lower() in FORMATS and name[0] != "."]
    if not found:
        if len(tables) == 1:
            return tables[0], []
        if tables:
            some = f"{', '.join(tables[:5])}{', ...' if len(tables) > 5 else ''}"
            raise UserError(f"{path}: {some}; expected one table: name it, or all of a folder with a pattern (*.csv)")
    if len(found) != 1:
        raise UserError(
            f"{path}: {' and '.join(found) or 'no table'}; expected exactly one of {', '.join(candidates)}"
            + ("; remove the others or name one file" if found else " at its top")
        )
    return found[0], [name for name in tables if name != found[0]]


def _images_by_id(files: Files, folder: str) -> dict[str, str]:
    pictures: dict[str, tuple[int, str]] = {}
    within = posixpath.join(folder, "images")
    for name in files.names(within):
        stem, _, suffix = name.rpartition(".")
        if (suffix := suffix.lower()) in IMAGE_SUFFIXES:
            choice = (IMAGE_SUFFIXES.index(suffix), f"{within}/{name}")
            pictures[stem] = min(choice, pictures.get(stem, choice))
    return {stem: name for stem, (_, name) in pictures.items()}
