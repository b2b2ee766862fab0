"""The public "Fashion Product Images" layout (styles.csv + images/) turned into a catalogue folder.

Reads the full and the small version, unpacked or as the downloaded zip. The published `styles.csv` has a few lines with
unquoted commas in the product name: they have more fields than columns, and the surplus belongs to the last one.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.folder_or_zip import MAX_FILE_BYTES, ZIP_ERRORS
from siglip_jax.errors import UserError

MAX_TABLE_BYTES = 2**31  # read whole, since its lines are fixed
_STYLES = ("id", "gender", "masterCategory", "subCategory", "articleType", "baseColour", "season", "year", "usage")
_LONGEST_ID = 200  # bytes; file names have 255
_TITLE = "productDisplayName"
COLUMNS = ("id", "title", "image", *_STYLES[1:])


def convert_fashion(source: str | Path, out: str | Path) -> dict[str, int]:
    """Write `out/items.tsv` and `out/images/<id>.jpg` from a folder or zip holding `styles.csv` and `images/<id>.jpg`.

    Both may lie one or more folders deep, as the published archives have them; pictures are hard-linked where the file
    system allows, else copied. Every line becomes a row: one without a picture, with fields missing (its title is then
    empty) or with an id that cannot name a picture stays in the table, for the audit of `build_dataset` to list.

    Returns the counts: rows, and among them ragged_lines (fixed: the name held commas), unusable_lines (fields
    missing, or such an id) and, among the others, missing_images (also those that cannot be read, lead out of the
    source by a link, or are larger than a catalogue's pictures may be).

    Raises UserError for a source without a readable styles.csv, without its columns, or with a table already at `out`.
    """
    source, out = Path(source), Path(out)
    if (out / "items.tsv").exists():
        raise UserError(f"{out}/items.tsv: already there; give a new folder or remove it")
    if source.is_dir():
        return _convert_folder(source, out)
    if not zipfile.is_zipfile(source):
        raise UserError(f"{source}: neither a folder nor a zip; give the Fashion Product Images folder or its zip")
    try:
        archive = zipfile.ZipFile(source)
    except ZIP_ERRORS as error:
        raise UserError(f"{source}: cannot be opened as a zip ({error}); download it again") from error
    with archive:
        return _convert_zip(source, archive, out)


def _convert_folder(source: Path, out: Path) -> dict[str, int]:
    root = source.resolve()
    tables = sorted(source.rglob("styles.csv"), key=lambda path: (len(path.parts), path))
    table = next((path for path in tables if _inside(path, root)), None)
    if table is None:
        raise UserError(_no_styles(source))
    try:
        data = table.read_bytes()
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); fix its permissions") from error
    rows, usable, counts = _read_styles(data, where=str(table))
    images = table.parent / "images"
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row in usable:
        picture = _inside(images / f"{row['id']}.jpg", root)
        if picture is None or not _link(picture, out / row["image"]):
            counts["missing_images"] += 1
    _write_table(out, rows)
    return counts


def _inside(path: Path, root: Path) -> Path | None:
    """The file that `path` leads to, links followed; None for what is no file or lies outside `root`."""
    try:
        path = path.resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, RuntimeError):  # a loop of links, or a folder that may not be entered
        return None


def _convert_zip(source: Path, archive: zipfile.ZipFile, out: Path) -> dict[str, int]:
    names = set(archive.namelist())
    tables = sorted((n for n in names if n.rsplit("/", 1)[-1] == "styles.csv"), key=lambda n: (n.count("/"), n))
    if not tables:
        raise UserError(_no_styles(source))
    where = f"{source}:{tables[0]}"
    if archive.getinfo(tables[0]).file_size > MAX_TABLE_BYTES:
        raise UserError(f"{where}: more than {MAX_TABLE_BYTES >> 20} MiB; expected a smaller table")
    try:
        data = archive.read(tables[0])
    except ZIP_ERRORS as error:
        raise UserError(f"{where}: cannot be read ({error}); download it again or unpack it yourself") from error
    rows, usable, counts = _read_styles(data, where=where)
    prefix = tables[0].removesuffix("styles.csv")
    (out / "images").mkdir(parents=True, exist_ok=True)
    for row in usable:
        name = f"{prefix}images/{row['id']}.jpg"
        try:
            if name not in names or archive.getinfo(name).file_size > MAX_FILE_BYTES:
                raise EOFError
            picture = archive.read(name)
        except ZIP_ERRORS:
            counts["missing_images"] += 1
            continue
        (out / row["image"]).write_bytes(picture)
        with contextlib.suppress(ValueError):  # a month 0 stands for no date
            moment = datetime.datetime(*archive.getinfo(name).date_time, tzinfo=datetime.UTC).timestamp()
            os.utime(out / row["image"], (moment, moment))  # by which a build that goes on knows the picture again
    _write_table(out, rows)
    return counts


def _read_styles(data: bytes, *, where: str) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, int]]:
    """All rows, those of them that can have a picture, and the counts."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{where} line {line}: not UTF-8 ({error.reason}); save the table as UTF-8") from error
    numbered = _csv_rows(text, where)
    _, header = next(numbered, (0, []))
    missing = [name for name in (*_STYLES, _TITLE) if name not in header]
    if missing:
        raise UserError(f"{where}: no column {', '.join(missing)}; expected {', '.join((*_STYLES, _TITLE))}")
    if header[-1] != _TITLE:
        raise UserError(f"{where}: last column is {header[-1]!r}, expected {_TITLE}, whose commas may be unquoted")
    rows, usable = [], []
    counts = {"rows": 0, "ragged_lines": 0, "unusable_lines": 0, "missing_images": 0}
    for line, fields in numbered:
        if any(part.count(",") >= len(header) - 1 for field in fields for part in field.splitlines()[1:]):
            raise UserError(f"{where} line {line}: a quote that is not closed swallows the next line; fix the line")
        complete = len(fields) >= len(header)
        if len(fields) > len(header):
            counts["ragged_lines"] += 1
            fields = [*fields[: len(header) - 1], ",".join(fields[len(header) - 1 :])]
        fields += [""] * (len(header) - len(fields))
        row = {name: " ".join(value.split()) for name, value in zip(header, fields, strict=True)}
        row |= {"title": row[_TITLE], "image": f"images/{row['id']}.jpg"}
        row = {name: row[name] for name in COLUMNS}
        rows.append(row)
        # An id names a file below `images/`: with a slash or a dot in it, or very long, it is damage or worse.
        if complete and row["id"].isalnum() and len(row["id"].encode()) <= _LONGEST_ID:
            usable.append(row)
    counts |= {"rows": len(rows), "unusable_lines": len(rows) - len(usable)}
    return rows, usable, counts


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of every row."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{where} line {line}: not CSV ({error}); fix the line's quotes") from error


def _link(picture: Path, target: Path) -> bool:
    """Whether `target` now holds the picture."""
    if target.exists():
        return True
    try:
        os.link(picture, target)
    except OSError:  # another file system, or one without links
        try:
            shutil.copy2(picture, target)  # with its time, by which a build that goes on knows it again
        except PermissionError:
            return False
    return True


def _write_table(out: Path, rows: list[dict[str, str]]) -> None:
    lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]
    (out / "items.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _no_styles(source: Path) -> str:
    return (
        f"{source}: no styles.csv in it; expected the layout of Fashion Product Images: styles.csv and images/<id>.jpg"
    )
