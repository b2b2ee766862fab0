"""Exports as shops and their tools write them: read right, or refused in one line, and nothing lost in silence."""

import csv
import datetime
import decimal
import io
import json
import tarfile
import unicodedata
import zipfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.table_catalogue import split_paths
from siglip_jax.errors import UserError


def picture(number):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def shop(folder, table, *, name="items.csv", encoding="utf-8"):
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        (folder / f"images/{number}.png").write_bytes(picture(number))
    (folder / name).write_bytes(table.encode(encoding))
    return folder


def rows(path, **columns):
    return read_catalogue(path, columns=columns).rows


def test_a_range_reaches_over_folders_whose_names_are_columns(tmp_path):
    for day in range(2):
        shop(tmp_path / f"day=0{day}", f"id,title,image\n{day},shirt,images/{day}.png\n", name="part.csv")
    catalogue = read_catalogue(tmp_path / "day={00..01}/part.csv")
    assert [(item.id, item.image, item.attributes) for item in catalogue.items()] == [
        (str(day), f"day=0{day}/images/{day}.png", {"day": f"0{day}"}) for day in range(2)
    ]
    assert [catalogue.read_first_image(item) for item in catalogue.items(1)] == [picture(1)]


def test_further_pictures_are_counted_from_one(tmp_path):
    folder = shop(tmp_path / "shop", "id,title,image_1,image_2,photo\na,b,images/0.png,images/1.png,x\n")
    (item,) = rows(folder, image="image_1")
    assert (item.image, item.more_images) == ("images/0.png", ("images/1.png",))
    assert "photo taken as text" in read_catalogue(folder, columns={"image": "image_1"}).notes[0]


@given(st.lists(st.from_regex(r"[a-z0-9_/ -]{1,8}\.(png|jpg|JPEG)", fullmatch=True), min_size=1, max_size=4))
def test_several_paths_in_a_cell(paths):
    paths = [path.strip() for path in paths]
    for text in (*(sign.join(paths) for sign in "|;,"), json.dumps(paths)):
        assert split_paths(text) == paths


def test_a_name_with_a_comma_is_one_path():
    assert split_paths("red, blue.png") == ["red, blue.png"]


TITLES = st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=("Cs", "Cc")), min_size=1, max_size=9)


@given(st.lists(TITLES.map(lambda title: 'a "' + title), min_size=1, max_size=5))
def test_a_tsv_of_a_spreadsheet_gives_its_titles(tmp_path_factory, titles):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
    writer.writerows([["id", "title", "image"], *([str(k), title, "x.png"] for k, title in enumerate(titles))])
    folder = shop(tmp_path_factory.mktemp("tsv") / "shop", stream.getvalue(), name="items.tsv")
    assert [item.title for item in rows(folder)] == titles


def test_a_tsv_with_lone_quotes_stays_as_it_is(tmp_path):
    folder = shop(tmp_path / "shop", 'id\ttitle\timage\n1\t"so ""called\tx.png\n2\t"A"\tx.png\n', name="items.tsv")
    assert [item.title for item in rows(folder)] == ['"so ""called', '"A"']


def test_semicolons_with_decimal_commas(tmp_path):
    folder = shop(tmp_path / "shop", "id;title;image;price\n1;a, b;images/0.png;19,90\n")
    (item,) = rows(folder)
    assert (item.title, item.attributes) == ("a, b", {"price": "19,90"})
    assert "';'" in read_catalogue(folder).notes[0]


def test_parquet_attributes_of_any_type(tmp_path):
    moment = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    table = {
        "id": ["1"], "title": ["a"], "image": ["images/0.png"], "digest": [b"\x00"], "times": [[moment]],
        "price": [{"value": decimal.Decimal("1.50")}],
    }  # fmt: skip
    folder = shop(tmp_path / "shop", "", name="none")
    pq.write_table(pa.table(table), folder / "items.parquet")
    catalogue = read_catalogue(folder)
    assert next(catalogue.items()).attributes == {
        "times": '["2024-05-01T00:00:00+00:00"]', "price": '{"value": "1.50"}'
    }  # fmt: skip
    assert "bytes digest" in catalogue.notes[0]


def test_shards_of_jsonl_may_lack_keys(tmp_path):
    shop(tmp_path / "shop", '{"id": "1", "title": "a", "image": "images/0.png"}\n', name="m-0.jsonl")
    with open(tmp_path / "shop/m-1.jsonl", "w") as file:
        file.write('{"id": "2", "title": "b", "image": "images/1.png", "note": "x"}\n')
    assert [item.attributes for item in rows(tmp_path / "shop/m-{0..1}.jsonl")] == [{"note": ""}, {"note": "x"}]


def test_names_in_a_zip_are_found_in_any_spelling(tmp_path):
    for encoding in ("utf-8", "cp932"):
        names = {"utf-8": unicodedata.normalize("NFD", "Blüte.png"), "cp932": "XXXX.png"}
        path = tmp_path / f"{encoding}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            named = {"utf-8": "Blüte", "cp932": "東京"}[encoding]
            archive.writestr("articles.csv", f"id,title,image\n1,a,{named}.png\n")
            archive.writestr(names[encoding], picture(1))
        path.write_bytes(path.read_bytes().replace(b"XXXX", "東京".encode("cp932")))  # without the flag of UTF-8
        catalogue = read_catalogue(path)
        assert catalogue.read_first_image(next(catalogue.items())) == picture(1)


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_of_a_mac_and_names_that_match_nothing(tmp_path):
    members = {"._0.png": b"\0", "0.png": picture(0), "._0.json": b"\0", "0.json": b'{"sku": "7", "title": "a"}'}
    path = tar(tmp_path / "a.tar", members)
    assert [item.id for item in rows(path, id="sku")] == ["7"]
    with pytest.raises(UserError, match=r"no \.json has SKU, named by --id_column; they have sku, title"):
        rows(path, id="SKU")
    with pytest.raises(UserError, match="--image_column: pictures of tars"):
        rows(path, image="foo")


@pytest.mark.parametrize(("name", "told"), [("a.jsonl.gz", "gunzip"), ("a.json", "jsonl"), ("a.xlsx", "save it as")])
def test_other_files_are_told_what_to_do(tmp_path, name, told):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=told):
        read_catalogue(tmp_path / name)


LOST = {
    "cp1252": ("1,Weiß,images/0.png\n2,b,images/1.png\n", "1 not UTF-8"),
    "utf-8": ("1,nan,images/0.png\n2,b,images/1.png\n", "the title is 'nan'"),
    "ascii": (f"1,a,/9j/{'A' * 5000}==\n2,b,images/1.png\n", "perhaps base64"),
}


@pytest.mark.parametrize("encoding", LOST)
def test_a_build_that_loses_much_stops_with_an_example(tmp_path, encoding):
    table, told = LOST[encoding]
    folder = shop(tmp_path / "shop", "id,title,image\n" + table, encoding=encoding)
    with pytest.raises(UserError, match=told) as caught:
        build_dataset(read_catalogue(folder), tmp_path / "out", max_left_out=0.01, progress=False)
    assert "1 of 2 rows (50 %)" in str(caught.value)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)


def test_a_size_chart_links_nothing(tmp_path):
    lines = [f"{k},shirt {k},images/{k}.png,{'images/chart.png' if k % 5 else ''}\n" for k in range(30)]
    folder = shop(tmp_path / "shop", "id,title,image,image_2\n" + "".join(lines))
    for number in range(30):
        (folder / f"images/{number}.png").write_bytes(picture(number))
    (folder / "images/chart.png").write_bytes(picture(99))
    audit = build_dataset(read_catalogue(folder), tmp_path / "out", max_left_out=0.01, progress=False)
    assert audit["largest_group"] == 1
    assert audit["linked_groups"] == 30
    assert "the image is in 24 of 30 rows" in audit["notes"][0]
