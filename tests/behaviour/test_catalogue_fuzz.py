"""Catalogues that were damaged at random: a dataset and a list of what was left out, or one line; never a traceback.

A mutation changes bytes, cells, columns, encodings or names of a small shop, as a table, a zip or tars. Whatever it
does, rows in = rows kept + rows listed. `try_one(source, seed, folder)` is one try, to look at what failed.
"""

import csv
import io
import json
import pathlib
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.tables.text_options import TextOptions
from input_pipeline.dataset import open_split
from input_pipeline.dataset.problem_rows import FURTHER
from siglip_jax.cli import one_line
from siglip_jax.errors import UserError

ROWS = 6
COLUMNS = ("id", "title", "image", "image_2", "colour")
SOURCES = ("csv", "tsv", "jsonl", "parquet", "zip", "tar", "tar.gz")
MAX_MESSAGE = 1200  # letters
CELLS = (
    "", " ", "nan", "NULL", "\0", "\ufeff", "\u200b", "\u202eabc", "a\tb", "a\nb", "a\r\nb", '"', '""', "'", "\\", ",",
    ";", "|", "../../etc/passwd", "/etc/passwd", "C:\\a.png", "https://shop.example/a.png", "images", "images/", ".",
    "..", "images/0.png|images/1.png", '["images/0.png", "images/1.png"]', "[" * 3000, "{", '{"a": 1}', "[1, null]",
    "1.23E+05", "123.0", "1e999", "-0", "true", "Weiß", "\x1b[31mred", "\u2028", "\ud7ff", "😀" * 40, "x" * 70_000, "ﬀ",
    "é", "e\u0301",
)  # fmt: skip
NAMES = (
    "", " ", "id", "ID", "title", "title_2", "image_1", "images", "image_10", "split", "\ufeffid", "a\nb", "é",
    "n" * 9000,
)  # fmt: skip
ENCODINGS = ("cp1252", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp932", "utf-7", "cp037", "gb18030")
FILE_NAMES = (
    "items.CSV",
    "Items.csv",
    "items .csv",
    "items\n.csv",
    "items\udcff.csv",
    "a.csv",
    "items.txt",
    ".items.csv",
)
MEMBERS = (
    "", ".", "/", "../x.png", "a/../b.png", ".hidden", "README", "a.b.c.png", "0.PNG", "\udcff.png", "x" * 300 + ".png",
    "0.csv", "items.csv", "0.mp4", "0.txt", "0.json", "0.1.jpg", "0.seg.png", "__MACOSX/._0.png",
)  # fmt: skip


def picture(number):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


PICTURES = [picture(number) for number in range(ROWS + 1)]


class Shop:
    """Cells and files, and the mutations that `random` chooses of them."""

    def __init__(self, source, seed):
        self.source, self.random = source, np.random.default_rng([SOURCES.index(source), seed])
        self.columns = list(COLUMNS)
        self.rows = [
            [f"p{k}", f"Weiße Tasse {k}", f"images/{k}.png", f"images/{k + 1}.png" if k % 2 else "", "rot"]
            for k in range(ROWS)
        ]
        self.files = {f"images/{k}.png": data for k, data in enumerate(PICTURES)}
        self.encoding, self.table = "utf-8", f"items.{'csv' if source == 'zip' else source}"
        self.counted = True  # whether the number of rows is still known

    def chosen(self, values):
        return values[self.random.integers(len(values))]

    def mutate(self):
        mutations = [self.cell, self.cell, self.column, self.encode, self.rename, self.picture]
        for _ in range(self.random.integers(0, 3)):
            self.chosen(mutations)()

    def cell(self):
        place = self.random.integers(len(self.columns))
        self.chosen(self.rows)[place : place + 1] = [self.chosen(CELLS)]

    def column(self):
        place = self.random.integers(len(self.columns))
        kind = self.random.integers(4)
        if kind == 0 and len(self.columns) > 1:
            del self.columns[place]
            for row in self.rows:
                del row[place : place + 1]
        elif kind == 1:
            self.columns[place] = self.chosen(NAMES)
        elif kind == 2:
            self.columns.insert(place, self.chosen(NAMES))
            for row in self.rows:
                row.insert(place, self.chosen(CELLS))
        else:
            del self.chosen(self.rows)[place:]
            self.counted = False

    def encode(self):
        self.encoding = self.chosen(ENCODINGS)
        self.counted = False

    def rename(self):
        self.table = self.chosen(FILE_NAMES)
        self.counted = False

    def picture(self):
        name = self.chosen(sorted(self.files))
        self.files[name] = self.chosen((b"", b"\x89PNG\r\n\x1a\n", b"<html>", PICTURES[0][:40], bytes(100)))

    def damaged(self, data):
        """The bytes, of which sometimes a few are others, missing or twice."""
        if self.random.integers(4):
            return data
        self.counted = False
        data, place = bytearray(data), int(self.random.integers(max(1, len(data))))
        kind = self.random.integers(5)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + int(self.random.integers(1, 600))]
        elif kind == 2:
            data[place:place] = data[place : place + int(self.random.integers(1, 600))]
        else:
            for _ in range(self.random.integers(1, 9)):
                if data:
                    data[self.random.integers(len(data))] = self.random.integers(256)
        return bytes(data)

    def text(self):
        stream = io.StringIO()
        if self.source == "jsonl":
            for row in self.rows:
                stream.write(json.dumps(dict(zip(self.columns, row, strict=False)), ensure_ascii=False) + "\n")
        elif self.source == "tsv":
            for row in (self.columns, *self.rows):
                stream.write("\t".join(row) + "\n")
        else:
            ends = self.chosen(("\n", "\r\n", "\r"))
            csv.writer(stream, lineterminator=ends).writerows([self.columns, *self.rows])
        return stream.getvalue().encode(self.encoding, "replace")

    def parquet(self):
        longest = len(self.columns)
        columns = [[(row[k] if k < len(row) else None) for row in self.rows] for k in range(longest)]
        if self.random.integers(2):
            columns = [[self.files.get(c, b"?") if c and "/" in c else None for c in column] if k == 2 else column
                       for k, column in enumerate(columns)]  # fmt: skip
        stream = io.BytesIO()
        pq.write_table(pa.table(columns, names=self.columns), stream, row_group_size=4)
        return stream.getvalue()

    def members(self):
        """Of a tar: pictures and texts under one key, some of other names."""
        found = []
        for k, row in enumerate(self.rows):
            cells = dict(zip(self.columns, row, strict=False))
            found.append((f"a/{k}.png", self.files[f"images/{k}.png"]))
            found.append((f"a/{k}.txt", str(cells.pop("title", "")).encode(self.encoding, "replace")))
            found.append((f"a/{k}.json", json.dumps(cells).encode(self.encoding, "replace")))
        for _ in range(self.random.integers(0, 3)):
            found.insert(self.random.integers(len(found)), (self.chosen(MEMBERS), self.chosen(PICTURES)))
            self.counted = False
        return found

    def write(self, folder):
        """The path to give."""
        if self.source in ("tar", "tar.gz"):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w:gz" if "gz" in self.source else "w") as archive:
                for name, data in self.members():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    info.type = self.chosen(
                        (tarfile.REGTYPE,) * 30 + (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
                    )
                    self.counted &= info.type == tarfile.REGTYPE
                    archive.addfile(info, io.BytesIO(data) if info.isreg() else None)
            path = folder / f"shop.{self.source}"
            path.write_bytes(self.damaged(stream.getvalue()))
            return path
        table = self.parquet() if self.source == "parquet" else self.text()
        if self.source == "zip":
            stream = io.BytesIO()
            with zipfile.ZipFile(stream, "w", self.chosen((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                archive.writestr(self.table.encode("utf-8", "replace").decode(), self.damaged(table))
                for name, data in self.files.items():
                    archive.writestr(name, data)
            path = folder / "shop.zip"
            path.write_bytes(self.damaged(stream.getvalue()))
            return path
        (folder / "images").mkdir()
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        (folder / self.table).write_bytes(self.damaged(table))
        return self.chosen((folder, folder / self.table, f"{folder}/*{pathlib.Path(self.table).suffix}"))

    def options(self):
        given = {}
        if not self.random.integers(24):
            given["columns"] = {
                self.chosen(("id", "title", "image")): self.chosen(("id", "title", "sku", "image_2,image", ","))
            }
        if not self.random.integers(24):
            given["text"] = TextOptions(encoding=self.chosen((*ENCODINGS, "base64", "none", "idna")))
        if not self.random.integers(24):
            given["text"] = TextOptions(separator=self.chosen((";", ",", "tab", "ab", "|", '"', "\n")))
        if not self.random.integers(24):
            given["dots_in_keys"] = True
        return given

    def building(self):
        given = {"fractions": self.chosen(({"all_": 1.0}, {"train": 0.6, "test": 0.4})), "max_left_out": 1}
        if not self.random.integers(6):
            given["split_by"] = self.chosen(
                (("title",), ("image",), ("title", "image", "near"), ("colour",), ("none",))
            )
        if not self.random.integers(12):
            given |= {
                "fractions": None,
                "time_column": self.chosen(("colour", "title_2")),
                "split_times": {"b": "2024-01-01"},
            }
        if not self.random.integers(12):
            given["only"] = {self.chosen(("colour", "title_2")): [self.chosen(("rot", "", "blau"))]}
            self.counted = False
        if not self.random.integers(12):
            given |= self.chosen(({"max_left_out": 0.01}, {"on_error": "error"}))
        return given


def try_one(source, seed, folder):
    """True for a dataset, False for one line."""
    shop = Shop(source, seed)
    shop.mutate()
    folder = pathlib.Path(folder) / f"{source}-{seed}"
    (folder / "shop").mkdir(parents=True)
    out = folder / "out"
    try:
        path = shop.write(folder / "shop")
        catalogue = read_catalogue(path, **shop.options())
        audit = build_dataset(catalogue, out, num_threads=1, progress=False, **shop.building())
        [one_line(note).encode() for note in audit["notes"]]
    except UserError as error:
        told = one_line(str(error))
        assert told.isprintable(), told
        assert len(told) <= MAX_MESSAGE, told
        assert not out.exists()
        return False
    listed = 0
    if (out / "problems.csv").exists():
        with (out / "problems.csv").open(encoding="utf-8", newline="") as file:
            listed = sum(not line["kind"].startswith(FURTHER) for line in csv.DictReader(file))
    kept = sum(len(open_split(out, split)) for split in audit["splits"])
    assert audit["rows"] == kept + listed
    assert (kept, listed) == (audit["kept"], sum(audit["problems"].values()))
    assert pq.read_metadata(out / "rows.parquet").num_rows == audit["rows"]
    assert not shop.counted or audit["rows"] == ROWS
    return True


def try_many(source, seeds, folder):
    built = []
    for seed in seeds:
        try:
            built.append(try_one(source, seed, folder))
        except Exception as error:
            raise AssertionError(f"try_one({source!r}, {seed}, ...): {error!r}") from error
    return built


@pytest.mark.parametrize("source", SOURCES)
def test_a_few(source, tmp_path):
    assert len(try_many(source, range(6), tmp_path)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_two_thousand(source, tmp_path):
    built = try_many(source, range(6, 6 + 286), tmp_path)
    assert 0.2 < np.mean(built) < 0.8  # else the mutations change too much or nothing
