"""A catalogue as shops keep it: a table of items (tsv, csv, jsonl, parquet) and their pictures, in a folder or zip."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence

from input_pipeline.files import FileProblem, Files, Folder, local_path, open_files
from input_pipeline.tables import FORMATS, read_table
from siglip_jax.errors import UserError

MAX_TABLE_BYTES = 2 * 2**30
PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")  # in this order where an id has several
REQUIRED = ("id", "title")


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One row of the table.

    Attributes:
      row: 0 for the first row below the header.
      id, title: as written.
      image: path of the picture inside the catalogue; "" where there is none.
      attributes: every other column, "" where a value is absent.
    """

    row: int
    id: str
    title: str
    image: str
    attributes: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What `read_catalogue` found.

    Attributes:
      table: name of the table file.
      sha256: of the table file.
      rows: the items, in the table's order.
      attribute_names: the columns that are neither id, title nor image.
    """

    table: str
    sha256: str
    rows: list[Item]
    attribute_names: list[str]
    files: Files = dataclasses.field(repr=False)

    def read_image(self, item: Item) -> bytes:
        """The encoded picture of one item. Safe to call from several threads.

        Raises:
          FileProblem (a UserError): its `kind` is "missing image", "unsafe path", "too large" or "unreadable image".
        """
        if not item.image:
            raise FileProblem("missing image", f"item {item.id} has no picture")
        return self.files.read(item.image)


def read_catalogue(path: str | os.PathLike, *, columns: Mapping[str, str] | None = None) -> Catalogue:
    """Reads the table of a catalogue; pictures are read later, one by one.

    Args:
      path: a folder or .zip that holds `items.tsv|csv|jsonl|parquet` (one of them), or such a table itself, whatever
        its name, with the pictures beside it.
      columns: which column plays the part of "id", "title" or "image", where it has another name. Without a column
        `image`, the pictures are `images/<id>.jpg|jpeg|png|webp`.

    Raises:
      UserError: no table, several, or one that `read_table` refuses; a column that is not there.
    """
    path = local_path(path)
    if path.is_file() and path.suffix[1:].lower() in FORMATS:
        files: Files = Folder(path.parent)
        table = path.name
    else:
        files = open_files(path)
        table = _find_table(files, path)
    try:
        data = files.read(table, limit=MAX_TABLE_BYTES)
    except FileProblem as problem:
        raise UserError(f"{path}: the table cannot be read: {problem}") from problem
    names, rows = read_table(data, name=table)
    place = _places(names, columns or {}, table)
    pictures = None
    if "image" not in place:
        pictures = _pictures_by_id(files)
        if not pictures:
            raise UserError(
                f"{table}: no column image; columns are {', '.join(names)}; name the image column with --image_column "
                "or put the pictures into images/<id>.jpg"
            )
    others = [(name, index) for index, name in enumerate(names) if index not in place.values()]
    items = []
    for number, row in enumerate(rows):
        id_ = row[place["id"]]
        image = row[place["image"]] if pictures is None else pictures.get(id_, "")
        items.append(Item(number, id_, row[place["title"]], image, {name: row[index] for name, index in others}))
    if not items:
        raise UserError(f"{table}: no rows; expected a line for each item below the column names")
    return Catalogue(table, hashlib.sha256(data).hexdigest(), items, [name for name, _ in others], files)


def choose_items(catalogue: Catalogue, only: Mapping[str, Sequence[str]]) -> Catalogue:
    """The catalogue with those rows alone that have, of every attribute named, one of the values given.

    Raises:
      UserError: an attribute or a value that the catalogue has not; a misspelt one would silently choose nothing.
    """
    for name, values in only.items():
        if name not in catalogue.attribute_names:
            known = ", ".join(catalogue.attribute_names) or "none"
            raise UserError(f"only {name}={values[0]}: no such attribute; {catalogue.table} has {known}")
        there = {item.attributes[name] for item in catalogue.rows}
        if missing := [value for value in values if value not in there]:
            some = ", ".join(sorted(there)[:20])
            raise UserError(f"only {name}={missing[0]}: no row has this value; values are {some}")
    rows = [item for item in catalogue.rows if all(item.attributes[name] in values for name, values in only.items())]
    return dataclasses.replace(catalogue, rows=rows)


def _find_table(files: Files, path: os.PathLike) -> str:
    candidates = [f"items.{suffix}" for suffix in FORMATS]
    found = [name for name in files.names("") if name in candidates]
    if len(found) != 1:
        raise UserError(
            f"{path}: {' and '.join(found) or 'no table'}; expected exactly one of {', '.join(candidates)}"
            + ("; remove the others or name one file" if found else " at its top")
        )
    return found[0]


def _places(names: list[str], columns: Mapping[str, str], table: str) -> dict[str, int]:
    """{"id": 0, "title": 1, ...}: which column plays which part; "image" only where there is one."""
    if unknown := columns.keys() - {*REQUIRED, "image"}:
        raise UserError(f"columns: {', '.join(sorted(unknown))} given; only id, title and image can be named")
    wanted = {part: columns.get(part) or part for part in (*REQUIRED, "image")}
    for part, name in wanted.items():
        if name not in names and (part != "image" or columns.get(part)):
            raise UserError(
                f"{table}: no column {name}; columns are {', '.join(names)}; "
                f"name the {part} column with --{part}_column"
            )
    return {part: names.index(name) for part, name in wanted.items() if name in names}


def _pictures_by_id(files: Files) -> dict[str, str]:
    pictures: dict[str, tuple[int, str]] = {}
    for name in files.names("images"):
        stem, _, suffix = name.rpartition(".")
        if (suffix := suffix.lower()) in PICTURE_SUFFIXES:
            choice = (PICTURE_SUFFIXES.index(suffix), f"images/{name}")
            pictures[stem] = min(choice, pictures.get(stem, choice))
    return {stem: name for stem, (_, name) in pictures.items()}
