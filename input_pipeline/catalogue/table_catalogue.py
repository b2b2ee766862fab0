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
import re
import urllib.parse
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
_PICTURE_COLUMN = re.compile(r"image|picture|photo|(^|_)img", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class TableCatalogue(Catalogue):
    """A table with its pictures in files beside it or in its own cells."""

    source: Table = dataclasses.field(repr=False)
    files: Files = dataclasses.field(repr=False)
    columns: Columns
    by_id: Mapping[str, str] | None = dataclasses.field(repr=False)  # {id: path} where no column names the pictures
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
    folders, keys = _folders(names, tables)
    parts.attributes.extend(key for key in keys if key not in source.columns)
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
    notes = [note for each in tables for note in getattr(each, "notes", ())]
    if dropped := sorted(source.pictures - set(parts.images)):
        notes.append(f"{table}: left out the columns of bytes {', '.join(dropped)}, which are no text")
    if pictures := [name for name in parts.attributes if _PICTURE_COLUMN.search(name)]:
        notes.append(
            f"{table}: {', '.join(pictures)} taken as text, not as further pictures; these are in columns named "
            f"{parts.images[0] if parts.images else 'image'}_2, ..."
        )
    return TableCatalogue(
        source=source, files=files, columns=parts, by_id=by_id, folders=folders, notes=tuple(dict.fromkeys(notes))
    )


def _folders(names: Sequence[str], tables: Sequence[Table]) -> tuple[tuple[TablePlace, ...], list[str]]:
    """Where each table lies and the columns that names of folders such as `day=01` give; nothing for one folder."""
    if len({posixpath.dirname(name) for name in names}) == 1:
        return (), []
    stops = itertools.accumulate(table.count for table in tables)
    found = []
    for name, stop in zip(names, stops, strict=True):
        pairs = (folder.partition("=") for folder in name.split("/")[:-1])
        values = {key: urllib.parse.unquote(value) for key, sign, value in pairs if key and sign}
        found.append(TablePlace(posixpath.dirname(name), stop, values))
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
        except ValueError:
            return [text]
        return [path for path in found if path] if all(isinstance(path, str) for path in found) else [text]
    for sign in "|;,":
        pieces = [piece.strip() for piece in text.split(sign)]
        pieces = [piece for piece in pieces if piece]
        if len(pieces) > 1 and all(piece.rpartition(".")[2].lower() in IMAGE_SUFFIXES for piece in pieces):
            return pieces
    return [text]


# --- tables -----------------------------------------------------------------------------------------------------------


def find_table(files: Files, path: os.PathLike) -> str:
    """The one `items.*` at the top of a catalogue."""
    candidates = [f"items.{suffix}" for suffix in FORMATS]
    found = [name for name in files.names("") if name in candidates]
    if not found:
        tables = [name for name in files.names("") if name.rpartition(".")[2].lower() in FORMATS and name[0] != "."]
        if len(tables) == 1:
            return tables[0]
        if tables:
            raise UserError(f"{path}: {', '.join(tables[:5])}; expected one table: unpack it and name the one to read")
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
            raise UserError(
                f"{table.name}: no column {name}; columns are {', '.join(table.columns)}; "
                f"name the {part} column with --{part}_column"
            )
    titles, images = (_numbered(wanted[part], table.columns) for part in ("title", "image"))
    used = {wanted["id"], *titles, *images}
    attributes = [name for name in table.columns if name not in used | table.pictures]
    if wrong := [name for name in (wanted["id"], *titles) if name in table.pictures]:
        raise UserError(
            f"{table.name}: column {wrong[0]} holds bytes; expected text there, and pictures in the image column: "
            "name it with --image_column, or leave the column out"
        )
    return Columns(wanted["id"], titles, images, attributes)


def _numbered(name: str, columns: Sequence[str]) -> list[str]:
    """`name`, `name`_2, `name`_3, ... as far as they are columns (of `image_1` too); empty without `name`."""
    stem = re.escape(name.removesuffix("_1") if name.endswith("_1") else name)
    pattern = re.compile(rf"{stem}_([2-9]|[1-9][0-9]+)")
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
