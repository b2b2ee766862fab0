"""Paths, ranges, patterns and folders of columns mean the same files, for tables and for tars."""

import io
import pathlib
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.expand import common_top, expand, folder_values
from siglip_jax.errors import UserError

PNG = b"\x89PNG\r\n\x1a\n"


def table(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / f"{number}.png").write_bytes(PNG + bytes([number]))
    path.write_text(f"id,title,image\n{number},hat {number},{number}.png\n")


def tar(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in ((f"{number}.png", PNG + bytes([number])), (f"{number}.txt", f"hat {number}".encode())):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


WRITERS = {".csv": table, ".tar": tar}
PATHS = ("day={00..01}/part{suffix}", "day=*/part{suffix}", "day=0[01]/*{suffix}", "**/*{suffix}", "", "day=*")


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("path", PATHS)
def test_every_way_to_name_two_files(tmp_path, suffix, path):
    for day in range(2):
        WRITERS[suffix](tmp_path / f"day=0{day}/part{suffix}", day)
    catalogue = read_catalogue(f"{tmp_path}/{path.replace('{suffix}', suffix)}")
    items = catalogue.rows
    assert [(item.id, item.title, item.attributes) for item in items] == [
        (str(day), f"hat {day}", {"day": f"0{day}"}) for day in range(2)
    ]
    assert [catalogue.read_first_image(item) for item in items] == [PNG + bytes([day]) for day in range(2)]
    listed = read_catalogue([tmp_path / f"day=0{day}/part{suffix}" for day in range(2)])
    assert listed.rows == items
    assert listed.identity() == catalogue.identity()


@pytest.mark.parametrize("suffix", WRITERS)
def test_one_folder_of_a_column_has_the_column(tmp_path, suffix):
    WRITERS[suffix](tmp_path / f"shop=a%20b/day=__HIVE_DEFAULT_PARTITION__/part{suffix}", 7)
    (item,) = read_catalogue(tmp_path / f"shop=a%20b/day=__HIVE_DEFAULT_PARTITION__/part{suffix}").rows
    assert item.attributes == {"shop": "a b", "day": ""}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("day={01..00}/part.csv", "smaller number first"), ("day={00..09}/part.csv", r"of the 10 in .* 8 are missing"),
        ("*.csv", "no file is named so"), ("day=*/*", "tables alone or tars alone"), ("none=*", "no file is named so"),
        (["day=00/part.csv", "day=*/part.csv"], "given twice"), ("day=00/none.csv", "no such file or folder"),
        ([], "no catalogue given"), ("a{0..9999999}.csv", "no more than"), ("notes*", "a folder without files"),
    ],
)  # fmt: skip
def test_what_matches_nothing(tmp_path, path, told):
    for day in range(2):
        table(tmp_path / f"day=0{day}/part.csv", day)
    (tmp_path / "notes").mkdir()
    paths = [f"{tmp_path}/{each}" for each in path] if isinstance(path, list) else f"{tmp_path}/{path}"
    with pytest.raises(UserError, match=told):
        read_catalogue(paths)


def test_a_name_with_signs_of_patterns_is_a_name(tmp_path):
    table(tmp_path / "a[1]{2..3}*.csv", 4)
    assert [item.id for item in read_catalogue(tmp_path / "a[1]{2..3}*.csv").rows] == ["4"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.integers(0, 30), count=st.integers(1, 30), width=st.integers(1, 4))
def test_ranges_are_those_of_the_shell(tmp_path, first, count, width):
    """As bash: padded to the width of the first number."""
    numbers = [f"{k:0{width}d}" for k in range(first, first + count)]
    for number in numbers:
        (tmp_path / f"{number}.csv").touch()
    found = expand(f"{tmp_path}/{{{first:0{width}d}..{first + count - 1}}}.csv", [".csv"])
    assert [file.name for file in found] == [f"{number}.csv" for number in numbers]


def test_folders_above_are_no_columns():
    files = [pathlib.Path("/shop/day=1/a.csv"), pathlib.Path("/shop/day=2/a.csv")]
    assert common_top(files) == pathlib.Path("/shop")
    assert folder_values("day=1/=x/a=/b=c=d/part.csv") == {"day": "1", "a": "", "b": "c=d"}
