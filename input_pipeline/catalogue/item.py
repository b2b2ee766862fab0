"""What every catalogue gives: `Item`s in a fixed order, again from any row on, with memory that does not grow with
their number."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.folder_or_zip import (
    FileProblem,
    check_image_size,
)

IMAGE_SUFFIXES = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "avif",
)  # where an id has several, the first
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
      notes: what was assumed, and what of the source nobody uses, in a sentence each.
    """

    table: str
    sha256: str
    attribute_names: list[str] | None
    total: int | None
    notes: tuple[str, ...] = ()
    has_keys: bool = False

    @abc.abstractmethod
    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        """The items in order, from row `start` on; without pictures that lie inside the rows, if not asked for."""

    def identity(self) -> dict[str, Any]:
        """What must be the same for a build to go on where an earlier one stopped."""
        return {"table": self.table, "sha256": self.sha256}

    def unused(self) -> list[str]:
        """Sentences on what of the source no row uses, and on what was assumed that only reading all of it tells."""
        return []

    def item_key(self, item: Item) -> bytes | None:
        """bytes [16] that are others after an item's text or one of its files has changed; reads no picture."""
        return None

    def read_file(self, name: str) -> bytes:
        """The bytes of a picture that does not come with its row."""
        raise FileProblem("missing image", f"{name} is not in {self.table}")

    def read_image(self, item: Item, name: str) -> bytes:
        """The encoded picture that an item has under this name. Safe to call from several threads.

        Raises:
          FileProblem (a UserError): its `kind` is "missing image", "unsafe path", "too large", "empty file" or
            "unreadable image".
        """
        if name in item.pictures:
            data = item.pictures[name]
            check_image_size(name, len(data))
        else:
            data = self.read_file(name)
        if not data:
            raise FileProblem("empty file", f"{name} has 0 bytes")
        return data

    def read_first_image(self, item: Item) -> bytes:
        """The encoded first picture of one item; see `read_image`."""
        if not item.image:
            raise FileProblem("missing image", f"item {item.id} has no picture")
        return self.read_image(item, item.image)

    @property
    def rows(self) -> list[Item]:
        """All items at once, for small catalogues."""
        return list(self.items())


def as_text(value: Any) -> str:
    """A cell as text; lists as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def title_texts(value: Any) -> list[str]:
    """The titles of a cell: one text, or a list of them; empty ones are none."""
    titles = value if isinstance(value, list) else [value]
    return [text for text in (as_text("" if title is None else title) for title in titles) if text.strip()]
