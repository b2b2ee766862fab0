"""The public "Fashion Product Images" layout (styles.csv + images/) turned into a catalogue folder.

Reads the full and the small version, unpacked or as the downloaded zip. The published `styles.csv` has a few lines with
unquoted commas in the product name: they have more fields than columns, and the surplus belongs to the last one.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from siglip_jax.errors import UserError

_STYLES = ("id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage")
_TITLE = "productDisplayName"
COLUMNS = ("id", "title", "image", *_STYLES[1:])


def convert_fashion(source: str | Path, out: str | Path) -> dict[str, int]:
    """Write `out/items.tsv` and `out/images/<id>.jpg` from a folder or zip holding `styles.csv` and `images/<id>.jpg`.

    Both may lie one or more folders deep, as the published archives have them; pictures are hard-linked where the file
    system allows, else copied. Rows without a picture stay in the table, for the catalogue reader to report.

    Returns the counts: rows, ragged_lines (mended: the name held commas), unusable_lines (left out: fields missing, or
    an id that cannot name a picture) and missing_images.

    Raises UserError for a source without styles.csv, without its columns, or with a table already at `out`.
    """
    source, out = Path(source), Path(out)
    if (out / "items.tsv").exists():
        raise UserError(f"{out}/items.tsv: already there; give a new folder or remove it")
    if source.is_dir():
        return _convert_folder(source, out)
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            return _convert_zip(source, archive, out)
    raise UserError(f"{source}: neither a folder nor a zip; give the Fashion Product Images folder or its zip")


def _convert_folder(source: Path, out: Path) -> dict[str, int]:
    tables = sorted(source.rglob("styles.csv"), key=lambda path: len(path.parts))
    if not tables:
        raise UserError(_no_styles(source))
    with tables[0].open(encoding="utf-8-sig", newline="") as file:
        rows, counts = _read_styles(file, where=str(tables[0]))
    images = tables[0].parent / "images"
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        picture, target = images / f"{row['id']}.jpg", out / row["image"]
        if not picture.is_file():
            counts["missing_images"] += 1
        elif not target.exists():
            _link(picture, target)
    _write_table(out, rows)
    return counts


def _convert_zip(source: Path, archive: zipfile.ZipFile, out: Path) -> dict[str, int]:
    names = set(archive.namelist())
    tables = sorted((n for n in names if n.rsplit("/", 1)[-1] == "styles.csv"), key=lambda n: (n.count("/"), n))
    if not tables:
        raise UserError(_no_styles(source))
    with archive.open(tables[0]) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        rows, counts = _read_styles(text, where=f"{source}:{tables[0]}")
    prefix = tables[0].removesuffix("styles.csv")
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row in rows:
        name = f"{prefix}images/{row['id']}.jpg"
        if name not in names:
            counts["missing_images"] += 1
            continue
        with archive.open(name) as packed, (out / row["image"]).open("wb") as target:
            shutil.copyfileobj(packed, target)
    _write_table(out, rows)
    return counts


def _read_styles(lines: Iterator[str] | io.TextIOBase, *, where: str) -> tuple[list[dict[str, str]], dict[str, int]]:
    reader = csv.reader(lines)
    header = next(reader, [])
    missing = [name for name in (*_STYLES, _TITLE) if name not in header]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; expected {', '.join((*_STYLES, _TITLE))}")
    if header[-1] != _TITLE:
        raise UserError(f"{where}: last column is {header[-1]!r}, expected {_TITLE}, whose commas may be unquoted")
    rows = []
    counts = {"rows": 0, "ragged_lines": 0, "unusable_lines": 0, "missing_images": 0}
    for fields in reader:
        if not fields:
            continue
        # An id names a file below `images/`: with a slash or a dot in it, it is damage or worse.
        if len(fields) < len(header) or not fields[header.index("id")].strip().isalnum():
            counts["unusable_lines"] += 1
            continue
        if len(fields) > len(header):
            counts["ragged_lines"] += 1
            fields = [*fields[: len(header) - 1], ",".join(fields[len(header) - 1 :])]
        row = {name: " ".join(value.split()) for name, value in zip(header, fields, strict=True)}
        row |= {"title": row[_TITLE], "image": f"images/{row['id']}.jpg"}
        rows.append({name: row[name] for name in COLUMNS})
    counts["rows"] = len(rows)
    return rows, counts


def _link(picture: Path, target: Path) -> None:
    try:
        os.link(picture, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(picture, target)


def _write_table(out: Path, rows: list[dict[str, str]]) -> None:
    lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]
    (out / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _no_styles(source: Path) -> str:
    return (
        f"{source}: no styles.csv in it; expected the layout of Fashion Product Images: styles.csv and images/<id>.jpg"
    )
