"""A catalogue as shops keep it, read row by row: items with titles, pictures and attributes.

`read_catalogue` opens a table with pictures beside it or inside, WebDataset tars or a TFDS dataset. What comes out is
the same for all: `Item`s in a fixed order, again from any row on, with memory that does not grow with their number.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.tables.text_table import FORMATS, ChainedTable, Table, open_table
from input_pipeline.folder_or_zip import (
    FileProblem,
    Files,
    Folder,
    check_picture_size,
    expand_shards,
    local_path,
    open_files,
)
from siglip_jax.errors import UserError

MAX_TABLE_BYTES = 2**36  # of a table in a zip, which may unpack to anything
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")  # in this order where an id has several
REQUIRED = ("id", "title")
PARTS = (*REQUIRED, "image")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One row of a catalogue.

    Attributes:
      row: 0 for the first row below the header.
      id, title: as written.
      image: path of the picture inside the catalogue; "" where there is none.
      attributes: every other column, "" where a value is absent.
      more_images, more_titles: the further pictures and titles, in order.
      pictures: {name: bytes} of pictures that came with the row, by the names in `image` and `more_images`.
      problem: why the row cannot be used, where reading already shows it.
    """

    row: int
    id: str
    title: str
    image: str
    attributes: dict[str, str]
    more_images: tuple[str, ...] = ()
    more_titles: tuple[str, ...] = ()
    pictures: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    problem: FileProblem | None = None


class Catalogue(abc.ABC):
    """What `read_catalogue` found.

    Attributes:
      table: name of the table file, of the tars or of the TFDS dataset.
      sha256: of the table file; of tars, TFDS datasets and tables with pictures inside, of what tells them apart.
      attribute_names: what is neither id, title nor picture; None where only reading all rows tells.
      total: rows, or None where only reading all rows tells.
      has_keys: whether `item_key` tells items apart.
    """

    table: str
    sha256: str
    attribute_names: list[str] | None
    total: int | None
    has_keys: bool = False

    @abc.abstractmethod
    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        """The items in order, from row `start` on; without pictures that lie inside the rows, if not asked for."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a build to go on where an earlier one stopped."""
        return {"table": self.table, "sha256": self.sha256}

    def item_key(self, item: Item) -> bytes | None:
        """bytes [16] that are others after an item's text or one of its files has changed; reads no picture."""
        return None

    def read_file(self, name: str) -> bytes:
        """The bytes of a picture that does not come with its row."""
        raise FileProblem("missing image", f"{name} is not in {self.table}")

    def read_picture(self, item: Item, name: str) -> bytes:
        """The encoded picture that an item has under this name. Safe to call from several threads.

        Raises:
          FileProblem (a UserError): its `kind` is "missing image", "unsafe path", "too large", "empty file" or
            "unreadable image".
        """
        if name in item.pictures:
            data = item.pictures[name]
            check_picture_size(name, len(data))
        else:
            data = self.read_file(name)
        if not data:
            raise FileProblem("empty file", f"{name} has 0 bytes")
        return data

    def read_image(self, item: Item) -> bytes:
        """The encoded first picture of one item; see `read_picture`."""
        if not item.image:
            raise FileProblem("missing image", f"item {item.id} has no picture")
        return self.read_picture(item, item.image)

    @property
    def rows(self) -> list[Item]:
        """All items at once, for small catalogues."""
        return list(self.items())


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
                names, inside = gather_pictures({column: values.get(column, "") for column in columns.images})
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


def read_catalogue(
    path: str | os.PathLike, *, columns: Mapping[str, str] | None = None, keys: Mapping[str, str] | None = None
) -> Catalogue:
    """Opens a catalogue; its rows are read later, in order, and pictures as they are asked for.

    Args:
      path: a folder or .zip that holds `items.tsv|csv|jsonl|parquet` (one of them), or such a table itself, whatever
        its name, or several (`part-{000..123}.parquet`), with the pictures beside it or inside; WebDataset tars
        (`shard-{000..123}.tar`, or a folder of tars); or `tfds:NAME`, `tfds:FOLDER`.
      columns: which column plays the part of "id", "title" or "image", where it has another name. Further pictures and
        titles stand in columns of that name with _2, _3, ...; without a column `image`, the pictures are
        `images/<id>.jpg|jpeg|png|webp`.
      keys: {"id", "title", "image": path of a feature} of a TFDS dataset.

    Raises:
      UserError: no table, several, or one that `open_table` refuses; a column that is not there.
    """
    text, columns = os.fspath(path), {part: name for part, name in (columns or {}).items() if name}
    if unknown := columns.keys() - set(PARTS):
        raise UserError(f"columns: {', '.join(sorted(unknown))} given; only id, title and image can be named")
    if text.startswith("tfds:"):
        from input_pipeline.catalogue.tfds import open_tfds

        return open_tfds(text.removeprefix("tfds:"), keys=keys or {})
    if keys:
        raise UserError(f"{path}: keys are for tfds:NAME catalogues; name a table's columns with --title_column")
    from input_pipeline.catalogue.webdataset import find_shards, open_webdataset

    if shards := find_shards(text):
        return open_webdataset(shards, columns=columns)
    if text.rpartition(".")[2].lower() in FORMATS and (parts := expand_shards(text)):
        return _open_tables(Folder(parts[0].parent), [part.name for part in parts], columns)
    place = local_path(path)
    if place.is_file() and place.suffix[1:].lower() in FORMATS:
        files: Files = Folder(place.parent)
        table = place.name
    else:
        files = open_files(place)
        table = _find_table(files, place)
    return _open_tables(files, [table], columns)


def _open_tables(files: Files, names: Sequence[str], columns: Mapping[str, str]) -> Catalogue:
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
        by_id = _pictures_by_id(files)
        if not by_id:
            raise UserError(
                f"{table}: no column image; columns are {', '.join(source.columns)}; name the image column with "
                "--image_column or put the pictures into images/<id>.jpg"
            )
    if not source.count:
        raise UserError(f"{table}: no rows; expected a line for each item below the column names")
    return TableCatalogue(source=source, files=files, columns=parts, by_id=by_id)


# --- cells ------------------------------------------------------------------------------------------------------------


def as_text(value: Any) -> str:
    """A cell as text; lists as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def title_texts(value: Any) -> list[str]:
    """The titles of a cell: one text, or a list of them; empty ones are none."""
    titles = value if isinstance(value, list) else [value]
    return [text for text in (as_text("" if title is None else title) for title in titles) if text.strip()]


def gather_pictures(cells: Mapping[str, Any]) -> tuple[list[str], dict[str, bytes]]:
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


def _find_table(files: Files, path: os.PathLike) -> str:
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


def _pictures_by_id(files: Files) -> dict[str, str]:
    pictures: dict[str, tuple[int, str]] = {}
    for name in files.names("images"):
        stem, _, suffix = name.rpartition(".")
        if (suffix := suffix.lower()) in PICTURE_SUFFIXES:
            choice = (PICTURE_SUFFIXES.index(suffix), f"images/{name}")
            pictures[stem] = min(choice, pictures.get(stem, choice))
    return {stem: name for stem, (_, name) in pictures.items()}
