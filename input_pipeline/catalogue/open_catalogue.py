"""Opens a catalogue as shops keep it: a table with images beside it or inside, WebDataset tars, or a TFDS dataset."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

from input_pipeline.catalogue.item import PARTS, Catalogue
from input_pipeline.catalogue.table_catalogue import find_table, open_tables
from input_pipeline.catalogue.tables.table import FORMATS
from input_pipeline.folder_or_zip import (
    Files,
    Folder,
    expand_shards,
    local_path,
    open_files,
)
from siglip_jax.errors import UserError


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
        top = pathlib.Path(os.path.commonpath([part.absolute().parent for part in parts]))
        names = [part.absolute().relative_to(top).as_posix() for part in parts]
        return open_tables(Folder(top), names, columns)
    place = local_path(path)
    if place.is_file() and place.suffix[1:].lower() in FORMATS:
        files: Files = Folder(place.parent)
        table = place.name
    else:
        files = open_files(place)
        table = find_table(files, place)
    return open_tables(files, [table], columns)
