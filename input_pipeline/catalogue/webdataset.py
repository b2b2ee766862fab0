"""WebDataset tars as a catalogue: members `key.jpg`, `key.json`, `key.txt` side by side are one item."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from input_pipeline.catalogue.expand import common_top, folder_values
from input_pipeline.catalogue.item import Catalogue, Item, as_text, title_texts
from input_pipeline.catalogue.tables.table import mend_text
from input_pipeline.catalogue.tar_samples import Findings, Sample, check_end, read_samples
from siglip_jax.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
TITLE_KEYS = ("title", "caption")  # of a .json, where no .txt has the title


@dataclasses.dataclass(frozen=True)
class Shard:
    """A tar, its path below the folder common to all, and the values that folders such as `day=01` give."""

    path: pathlib.Path
    name: str
    values: Mapping[str, str]


def find_shards(place: pathlib.Path) -> list[pathlib.Path]:
    """The tars of a folder without a table; [] for everything else."""
    if not os.path.isdir(place) or any(place.glob("items.*")):
        return []
    return sorted(entry for entry in place.iterdir() if entry.name.lower().endswith(SUFFIXES))


def open_webdataset(
    files: Sequence[pathlib.Path], *, columns: Mapping[str, str], dots_in_keys: bool = False
) -> Catalogue:
    """The tars as one catalogue, in this order.

    The id is the member `id` of the sample's .json, else its key; the title the .txt, else `title` or `caption` of the
    .json, text or a list; every other member of the .json is an attribute, as are the folders such as `day=01` in which
    the tars lie. `columns` names other members.

    Raises:
      UserError: a shard that is cut short, as far as its end tells.
    """
    if "image" in columns:
        raise UserError("--image_column: pictures of tars are members such as key.jpg; leave the flag out")
    top = common_top(files)
    names = [file.absolute().relative_to(top).as_posix() for file in files]
    values = [folder_values(name) for name in names]
    keys = dict.fromkeys(key for each in values for key in each)
    for file in files:
        check_end(file)
    shards = [
        Shard(file, mend_text(name), {key: each.get(key, "") for key in keys})
        for file, name, each in zip(files, names, values, strict=True)
    ]
    return WebDataset(tuple(shards), dict(columns), dots_in_keys=dots_in_keys)


class WebDataset(Catalogue):
    attribute_names = None
    total = None

    def __init__(self, shards: tuple[Shard, ...], columns: dict[str, str], *, dots_in_keys: bool = False):
        self.shards, self.columns, self.dots_in_keys = shards, columns, dots_in_keys
        first, last = shards[0].name, shards[-1].name
        self.table = first if len(shards) == 1 else f"{first} ... {last}"
        sizes = [[shard.name, shard.path.stat().st_size] for shard in shards]
        self.sha256 = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()
        self._findings: Findings | None = None

    def identity(self) -> dict[str, Any]:
        times = {shard.name: shard.path.stat().st_mtime_ns for shard in self.shards}
        told = {"columns": self.columns, "modified": times, "dots_in_keys": self.dots_in_keys}
        return super().identity() | told

    def unused(self) -> list[str]:
        if self._findings is None:
            for _ in self.items():
                pass
        assert self._findings is not None
        return self._findings.sentences()

    def items(self, start: int = 0, *, pictures: bool = True) -> Iterator[Item]:
        row, seen, findings = 0, set[str](), Findings()
        for shard in self.shards:
            for sample in read_samples(shard.path, findings, dots_in_keys=self.dots_in_keys):
                seen.update(sample.fields)
                if row >= start:
                    yield self._item(row, sample, shard.values)
                row += 1
        if row and (wrong := [part for part, name in self.columns.items() if name not in seen]):
            known = ", ".join(sorted(seen)[:20]) or "none"
            raise UserError(
                f"{self.table}: no .json has {self.columns[wrong[0]]}, named by --{wrong[0]}_column; they have {known}"
            )
        if not row:
            raise UserError(f"{self.table}: no samples; expected members such as 0001.jpg with 0001.txt or 0001.json")
        self._findings = findings

    def _item(self, row: int, sample: Sample, values: Mapping[str, str]) -> Item:
        fields = {**values, **sample.fields}  # a member of the .json is what it says
        id_ = as_text(fields.pop(self.columns.get("id", "id"), "")) or sample.key
        titles = list(sample.titles)
        for name in [self.columns["title"]] if "title" in self.columns else TITLE_KEYS:
            if found := title_texts(fields.get(name, "")):
                if not titles or "title" in self.columns:
                    titles = found
                    del fields[name]
                break
        names = list(sample.pictures)
        return Item(
            row=row,
            id=id_,
            title=titles[0] if titles else "",
            image=names[0] if names else "",
            attributes={name: as_text(value) for name, value in fields.items()},
            more_images=tuple(names[1:]),
            more_titles=tuple(titles[1:]),
            pictures=sample.pictures,
            problem=sample.problem,
        )
