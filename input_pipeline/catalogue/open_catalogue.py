"""Opens a catalogue as shops keep it: tables with images beside them or inside, WebDataset tars, or a TFDS dataset."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence

from input_pipeline.catalogue.expand import common_top, expand
from input_pipeline.catalogue.item import PARTS, Catalogue
from input_pipeline.catalogue.table_catalogue import find_table, open_tables
from input_pipeline.catalogue.tables.table import FORMATS
from input_pipeline.catalogue.tables.text_options import UTF8, TextOptions
from input_pipeline.folder_or_zip import Folder, local_path, open_files
from siglip_jax.errors import UserError

_TABLES = tuple(f".{suffix}" for suffix in FORMATS)


def read_catalogue(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    columns: Mapping[str, str] | None = None,
    keys: Mapping[str, str] | None = None,
    text: TextOptions = UTF8,
    dots_in_keys: bool = False,
) -> Catalogue:
    """Opens a catalogue; its rows are read later, in order, and pictures as they are asked for.

    Args:
      path: a folder or .zip that holds `items.tsv|csv|jsonl|parquet` (one of them), or such a table itself, whatever
        its name, with the pictures beside it or inside; WebDataset tars, or a folder of them; or `tfds:NAME`,
        `tfds:FOLDER`. Several tables, or several tars, are a range (`part-{000..123}.parquet`), a pattern
        (`day=*/*.tar`), a list of paths, or a folder of folders such as `day=01`; what these names say is a column.
      columns: which column plays the part of "id", "title" or "image", where it has another name; several between
        commas for further titles and pictures. These also stand in columns of that name with _2, _3, ...; without a
        column `image`, `image_1` or `images`, the pictures are `images/<id>.jpg|jpeg|png|webp`.
      keys: {"id", "title", "image": path of a feature} of a TFDS dataset.
      text: encoding and separator of tables of text, see `TextOptions`.
      dots_in_keys: of tars: the key of a member ends at the last dot of its name, not at the first.

    Raises:
      UserError: no table, several, or one that `open_table` refuses; a column that is not there; an option that the
        source has no use for.
    """
    paths = [os.fspath(path)] if isinstance(path, (str, os.PathLike)) else [os.fspath(each) for each in path]
    columns = {part: name for part, name in (columns or {}).items() if name}
    if unknown := columns.keys() - set(PARTS):
        raise UserError(f"columns: {', '.join(sorted(unknown))} given; only id, title and image can be named")
    if not paths:
        raise UserError("no catalogue given; expected a path")
    of_tables: dict[str, object] = {"encoding": text.encoding, "separator": text.separator}
    of_tars: dict[str, object] = {"dots_in_keys": dots_in_keys}
    if paths[0].startswith("tfds:") and len(paths) == 1:
        from input_pipeline.catalogue.tfds import open_tfds

        of_others = {f"{part}_column": name for part, name in columns.items()} | of_tables | of_tars
        _refuse(of_others, "is for tables and tars; of tfds:NAME, --keys names the features")
        return open_tfds(paths[0].removeprefix("tfds:"), keys=keys or {})
    if keys:
        raise UserError(f"{paths[0]}: keys are for tfds:NAME catalogues; name a table's columns with --title_column")
    from input_pipeline.catalogue.webdataset import SUFFIXES, find_shards, open_webdataset

    files = _files(paths, (*_TABLES, *SUFFIXES))
    kinds = [_kind(file, SUFFIXES) for file in files]
    if len(files) > 1 and set(kinds) not in ({"tar"}, {"table"}):
        odd = next((file for file, kind in zip(files, kinds, strict=True) if kind != kinds[0]), files[0])
        raise UserError(f"{odd}: among {len(files)} files; expected tables alone or tars alone: narrow the paths")
    if shards := files if kinds[0] == "tar" else find_shards(files[0]):
        _refuse(of_tables, "is for tables of text; leave the flag out")
        return open_webdataset(shards, columns=columns, dots_in_keys=dots_in_keys)
    _refuse(of_tars, "is for tars; leave the flag out")
    if kinds[0] == "table":
        top = common_top(files)
        return open_tables(Folder(top), [file.absolute().relative_to(top).as_posix() for file in files], columns, text)
    place = files[0]
    within = open_files(place)
    table, beside = find_table(within, place)
    return open_tables(within, [table], columns, text, beside=beside)


def _files(paths: Sequence[str], suffixes: Sequence[str]) -> list[pathlib.Path]:
    """What the paths mean, in their order."""
    files = [file for path in paths for file in (expand(path, suffixes) or [local_path(path)])]
    seen: set[pathlib.Path] = set()
    for file in files:
        if (real := pathlib.Path(os.path.abspath(file))) in seen:
            raise UserError(f"{file}: given twice; give each file once")
        seen.add(real)
    return files


def _kind(file: pathlib.Path, tars: Sequence[str]) -> str:
    """ "tar", "table", or "" for a folder, a zip and everything else."""
    if not os.path.isfile(file):
        return ""
    name = file.name.lower()
    return "tar" if name.endswith(tuple(tars)) else "table" if name.endswith(_TABLES) else ""


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raises where an option is given that this kind of catalogue has no use for."""
    if given := [name for name, value in options.items() if value]:
        raise UserError(f"--{given[0]} {why}")
