"""Pictures that no row names, in folders and zips."""

import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.unused_files import unused_pictures
from input_pipeline.folder_or_zip import Folder


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_named_by_no_row(tmp_path, packed):
    names = ["images/1.png", "images/2.png", "images/3.png", "images/notes.txt", "images/.4.png", "other/5.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "items.csv").write_text("id,title,image\n1,a,images/./1.png\n2,b,images/none.png\n3,c,../x.png\n")
    (tmp_path / "variants.csv").write_text("id\n")
    place = tmp_path
    if packed:
        place = tmp_path / "shop.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for name in ("items.csv", "variants.csv", *names):
                archive.write(tmp_path / name, f"shop/{name}")
    catalogue = read_catalogue(place)
    assert catalogue.unused() == [
        "2 of 3 pictures in the rows' folders are named by no row, such as images/2.png"
    ]  # fmt: skip
    assert catalogue.notes == ("items.csv: the only table that is read; not variants.csv",)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 9), min_size=1))
def test_counts(tmp_path, used):
    for number in range(10):
        (tmp_path / f"{number}.png").touch()
    found = unused_pictures(Folder(tmp_path), [f"{number}.png" for number in used])
    rest = sorted(set(range(10)) - used)
    assert found == (
        [f"{len(rest)} of 10 pictures in the rows' folders are named by no row, such as {rest[0]}.png"] if rest else []
    )
