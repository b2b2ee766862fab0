"""The Fashion Product Images layout becomes a catalogue, with its ragged lines mended and its gaps counted."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from input_pipeline.fashion import COLUMNS, convert_fashion
from siglip_jax.errors import UserError

_HEADER = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName\n"
_STYLES = (
    _HEADER + "15970,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Turtle Check Men Navy Blue Shirt\n"
    "39386,Men,Apparel,Bottomwear,Jeans,Blue,Summer,2012,Casual,Peter England, Men, Party Blue Jeans\n"
    '59263,Women,Accessories,Watches,Watches,Silver,Winter,2016,Casual,"Titan, Women\tSilver\nWatch"\n'
    "21379,Men,Apparel,Bottomwear,Track Pants,Black,Fall,2011,Casual,Manchester United Men Solid Black Track Pants\n"
    "1,Men,Apparel\n"
    "../../etc,Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual,Not an id\n"
)
_COUNTS = {"rows": 4, "ragged_lines": 1, "unusable_lines": 2, "missing_images": 1}


def _source(folder: Path, styles: str = _STYLES) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "styles.csv").write_text(styles, encoding="utf-8", newline="")
    for name in ("15970", "39386", "59263", "77777"):
        (folder / "images" / f"{name}.jpg").write_bytes(name.encode())
    return folder


def _zip(source: Path, path: Path, prefix: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + str(file.relative_to(source)))
    return path


def _check(out: Path) -> None:
    table = [line.split("\t") for line in (out / "items.tsv").read_text(encoding="utf-8").splitlines()]
    assert tuple(table[0]) == COLUMNS
    assert COLUMNS[:3] == ("id", "title", "image")
    rows = {fields[0]: dict(zip(COLUMNS, fields, strict=True)) for fields in table[1:]}
    assert list(rows) == ["15970", "39386", "59263", "21379"]
    assert rows["39386"]["title"] == "Peter England, Men, Party Blue Jeans"
    assert rows["59263"]["title"] == "Titan, Women Silver Watch"
    assert rows["15970"]["baseColour"] == "Navy Blue"
    assert rows["15970"]["usage"] == "Casual"
    assert (out / rows["39386"]["image"]).read_bytes() == b"39386"
    assert sorted(p.name for p in (out / "images").iterdir()) == ["15970.jpg", "39386.jpg", "59263.jpg"]


def test_a_folder(tmp_path: Path):
    assert convert_fashion(_source(tmp_path / "in"), tmp_path / "out") == _COUNTS
    _check(tmp_path / "out")


def test_a_folder_with_the_files_further_down(tmp_path: Path):
    _source(tmp_path / "in" / "myntradataset")
    assert convert_fashion(tmp_path / "in", tmp_path / "out") == _COUNTS
    _check(tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "fashion-dataset/"])
def test_a_zip(tmp_path: Path, prefix: str):
    archive = _zip(_source(tmp_path / "in"), tmp_path / "fashion.zip", prefix)
    assert convert_fashion(archive, tmp_path / "out") == _COUNTS
    _check(tmp_path / "out")


def test_the_table_can_be_written_beside_the_pictures(tmp_path: Path):
    source = _source(tmp_path / "in")
    assert convert_fashion(source, source) == _COUNTS
    assert (source / "images" / "39386.jpg").read_bytes() == b"39386"


def test_what_is_missing_is_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no styles\.csv"):
        convert_fashion(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match="neither a folder nor a zip"):
        convert_fashion(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UserError, match="no column season, productDisplayName"):
        convert_fashion(
            _source(tmp_path / "in", _HEADER.replace(",season", "").replace(",productDisplayName", "")), "out"
        )
    with pytest.raises(UserError, match=r"no styles\.csv"):
        convert_fashion(_zip(tmp_path / "empty", tmp_path / "empty.zip", ""), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_table_is_kept(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "items.tsv").write_text("mine")
    with pytest.raises(UserError, match="already there"):
        convert_fashion(_source(tmp_path / "in"), tmp_path / "out")
