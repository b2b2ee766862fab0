"""The Fashion Product Images layout becomes a catalogue, with its ragged lines fixed and its gaps counted."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.fashion import COLUMNS, convert_fashion
from input_pipeline.folder_or_zip import FileProblem
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
_COUNTS = {"rows": 6, "ragged_lines": 1, "unusable_lines": 2, "missing_images": 1}


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
    assert list(rows) == ["15970", "39386", "59263", "21379", "1", "../../etc"]
    assert rows["39386"]["title"] == "Peter England, Men, Party Blue Jeans"
    assert rows["59263"]["title"] == "Titan, Women Silver Watch"
    assert rows["15970"]["baseColour"] == "Navy Blue"
    assert rows["15970"]["usage"] == "Casual"
    assert rows["1"]["title"] == ""
    assert rows["1"]["masterCategory"] == "Apparel"
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


_FIELDS = "Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual"


def test_unusable_lines_reach_the_reader(tmp_path: Path):
    convert_fashion(_source(tmp_path / "in", f"{_STYLES}{'7' * 300},{_FIELDS},Long\n"), tmp_path / "out")
    catalogue = read_catalogue(tmp_path / "out")
    assert [item.id for item in catalogue.rows[4:]] == ["1", "../../etc", "7" * 300]
    kinds = []
    for item in catalogue.rows[5:]:
        with pytest.raises(FileProblem) as error:
            catalogue.read_first_image(item)
        kinds.append(error.value.kind)
    assert kinds == ["unsafe path", "unreadable image"]


def test_quotes_in_the_middle_of_a_name_survive(tmp_path: Path):
    names = ['Ruler 12" Blue', 'Turtle "Check Shirt']
    styles = _HEADER + "".join(f"{k},{_FIELDS},{name}\n" for k, name in enumerate(names))
    convert_fashion(_source(tmp_path / "in", styles), tmp_path / "out")
    assert [item.title for item in read_catalogue(tmp_path / "out").rows] == names


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("styles", "message"),
    [
        (f'{_HEADER}1,{_FIELDS},a\n2,{_FIELDS},"open\n3,{_FIELDS},b\n', "line 3: not CSV"),
        (f'{_HEADER}1,{_FIELDS},"open\n2,{_FIELDS},Ruler 12"\n', "line 2: a quote that is not closed"),
        (f"{_HEADER}1,{_FIELDS},{'x' * 140_000}\n", "line 2: not CSV .*field larger"),
        (f"{_HEADER}1,{_FIELDS},caf\udce9\n", "line 2: not UTF-8"),
    ],
)
def test_damaged_tables_are_named(tmp_path: Path, packed: bool, styles: str, message: str):
    source = _source(tmp_path / "in", "")
    (source / "styles.csv").write_bytes(styles.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as error:
        convert_fashion(_zip(source, tmp_path / "in.zip", "") if packed else source, tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("linked", [True, False])
def test_links_out_of_the_source_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool):
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError))
    source = _source(tmp_path / "in")
    (tmp_path / "secret").write_bytes(b"secret")
    (source / "images/15970.jpg").unlink()
    (source / "images/15970.jpg").symlink_to(tmp_path / "secret")
    (source / "images/21379.jpg").symlink_to(source / "images/21379.jpg")
    assert convert_fashion(source, tmp_path / "out") == _COUNTS | {"missing_images": 2}
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == ["39386.jpg", "59263.jpg"]
    (source / "styles.csv").rename(tmp_path / "styles.csv")
    (source / "styles.csv").symlink_to(tmp_path / "styles.csv")
    with pytest.raises(UserError, match=r"no styles\.csv"):
        convert_fashion(source, tmp_path / "other")


def test_members_of_a_zip_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = _source(tmp_path / "in")
    path = _zip(source, tmp_path / "in.zip", "")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"15970.jpg15970", b"15970.jpg1597X"))  # the checksum is wrong now
    assert convert_fashion(path, tmp_path / "corrupt") == _COUNTS | {"missing_images": 2}

    data = bytearray(whole)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := data.find(signature, place + 1)) >= 0:
            data[place + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"styles\.csv: cannot be read .*encrypted"):
        convert_fashion(path, tmp_path / "encrypted")

    path.write_bytes(whole)
    monkeypatch.setattr("input_pipeline.catalogue.fashion.MAX_FILE_BYTES", 4)
    assert convert_fashion(path, tmp_path / "large")["missing_images"] == 4
    assert not list((tmp_path / "large/images").iterdir())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("linked", [False, True])
def test_pictures_are_known_again_when_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, linked: bool
):
    """By them a build that goes on tells whether they have changed since."""
    source = _source(tmp_path / "in")
    for path in (source / "images").iterdir():
        os.utime(path, (10**9, 10**9))
    if packed:
        source = _zip(source, tmp_path / "fashion.zip", "")
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError))
    keys = []
    for name in ("one", "two"):
        convert_fashion(source, tmp_path / name)
        catalogue = read_catalogue(tmp_path / name)
        keys.append([catalogue.item_key(item) for item in catalogue.items()])
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == _COUNTS["rows"]
