"""Which column of a table plays which part, and what of the table nobody uses."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.item import IMAGE_SUFFIXES, PARTS, as_text
from input_pipeline.catalogue.tables.table import Table, told
from input_pipeline.folder_or_zip import shown
from siglip_jax.errors import UserError

INSTEAD_OF_IMAGE = ("image_1", "images")  # taken where there is no column `image` and none is named
_ROWS_LOOKED_AT = 100
_PICTURE_NAME = re.compile(r"image|picture|photo|(^|_)img", re.IGNORECASE)
_PICTURE_END = re.compile(rf"\.({'|'.join(IMAGE_SUFFIXES)})($|[?|;,\]\"])", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9.,+-]*")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column plays which part; `images` and `titles` in order, the further ones after the first."""

    id: str
    titles: list[str]
    images: list[str]
    attributes: list[str]


def choose_columns(table: Table, given: Mapping[str, str]) -> Columns:
    """Which column plays which part; no `images` where there is no such column.

    Args:
      given: {"id", "title", "image": name}; several names between commas for further titles and images.

    Raises:
      UserError: a column that is not there, one for two parts, or bytes where text is expected.
    """
    found: dict[str, list[str]] = {}
    for part in PARTS:
        names = _names(given.get(part, part), table.columns)
        if part == "image" and part not in given and names[0] not in table.columns:
            names = [name for name in INSTEAD_OF_IMAGE if name in table.columns][:1]
        for name in names:
            if name not in table.columns:
                raise UserError(
                    f"{table.name}: no column {name}; columns are {told(table.columns)}; "
                    f"name the {part} column with --{part}_column"
                )
        if part == "id" and len(names) > 1:
            raise UserError(f"{table.name}: --id_column={','.join(names)}; expected one column")
        with_numbers = [[name] if part == "id" else _numbered(name, table.columns) for name in names]
        found[part] = list(dict.fromkeys(itertools.chain(*with_numbers)))
    id_, titles, images = found["id"][0], found["title"], found["image"]
    used = {id_, *titles, *images}
    attributes = [name for name in table.columns if name not in used | table.pictures]
    if wrong := [name for name in (id_, *titles) if name in table.pictures]:
        raise UserError(
            f"{table.name}: column {wrong[0]} holds bytes; expected text there, and pictures in the image column: "
            "name it with --image_column, or leave the column out"
        )
    return Columns(id_, titles, images, attributes)


def column_notes(table: Table, columns: Columns, given: Mapping[str, str]) -> list[str]:
    """What was assumed of the columns, and those that may hold pictures and are not taken as such."""
    notes = []
    if columns.images and "image" not in given and columns.images[0] != "image":
        notes.append(f"{table.name}: pictures taken from {told(columns.images)}; --image_column says otherwise")
    if dropped := sorted(table.pictures - set(columns.images)):
        notes.append(f"{table.name}: left out the columns of bytes {told(dropped)}, which are no text")
    sample = [values for values, _ in itertools.islice(table.rows(pictures=False), _ROWS_LOOKED_AT)]
    if pictures := [name for name in columns.attributes if _may_hold_pictures(name, sample)]:
        flag = ",".join([*columns.images, *pictures])
        notes.append(
            f"{table.name}: {told(pictures)} taken as text, not as further pictures; where they are pictures, give "
            f"--image_column={shown(flag)}"
        )
    return notes


def _may_hold_pictures(name: str, sample: Sequence[Mapping[str, Any]]) -> bool:
    texts = [text for values in sample if (text := as_text(values.get(name, "")).strip())]
    if any(_PICTURE_END.search(text) for text in texts):
        return True
    return bool(_PICTURE_NAME.search(name)) and not all(_NUMBER.fullmatch(text) for text in texts)


def _names(text: str, columns: Sequence[str]) -> list[str]:
    if text in columns or "," not in text:
        return [text]
    return [name.strip() for name in text.split(",") if name.strip()] or [text]


def _numbered(name: str, columns: Sequence[str]) -> list[str]:
    """`name`, `name`_2, `name`_3, ... as far as they are columns (of `image_1` too)."""
    stem = re.escape(name.removesuffix("_1") if name.endswith("_1") else name)
    pattern = re.compile(rf"{stem}_([2-9]|[1-9][0-9]+)")
    others = sorted((int(found[1]), column) for column in columns if (found := pattern.fullmatch(column)))
    return [name, *(column for _, column in others)]
