"""Every table format, folder and zip, and what must be refused."""

import json
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline import folder_or_zip
from input_pipeline.catalogue import read_catalogue
from input_pipeline.folder_or_zip import FileProblem
from siglip_jax.errors import UserError

ROWS = [
    {"id": "7", "title": 'Red "A-line" Dress', "image": "pictures/7.jpg", "colour": "red", "price": "10.50"},
    {"id": "8", "title": "Café tee, blue", "image": "pictures/8.png", "colour": "", "price": "9"},
]


def write_table(path, suffix):
    columns = list(ROWS[0])
    if suffix == "tsv":
        text = "\n".join("\t".join(row) for row in [columns, *(row.values() for row in ROWS)]) + "\n"
    elif suffix == "csv":
        text = "\r\n".join(
            ",".join('"' + value.replace('"', '""') + '"' for value in row)
            for row in [columns, *(row.values() for row in ROWS)]
        )
    elif suffix == "jsonl":
        second = {**ROWS[1], "colour": None, "price": 9}
        text = f"{json.dumps(ROWS[0])[:-9]} 10.50}}\n\n{json.dumps(second, ensure_ascii=False)}\n"
    if suffix == "parquet":
        table = {name: [row[name] or None for row in ROWS] for name in columns} | {"id": [7, 8]}
        pq.write_table(pa.table(table), path / "items.parquet")
    else:
        (path / f"items.{suffix}").write_bytes(text.encode())


def make(folder, table="id\ttitle\timage\n1\tshoe\timages/1.jpg\n", images=("images/1.jpg",), name="items.tsv"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    for image in images:
        (folder / image).parent.mkdir(exist_ok=True)
        (folder / image).write_bytes(image.encode())
    return folder


def zip_of(folder, *, top=""):
    path = folder.parent / "shop.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, top + str(file.relative_to(folder)))
    return path


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet"])
def test_formats_give_the_same_items(tmp_path, suffix):
    write_table(tmp_path, suffix)
    catalogue = read_catalogue(tmp_path)
    found = [{"id": i.id, "title": i.title, "image": i.image, **i.attributes} for i in catalogue.rows]
    assert found == ROWS
    assert [i.row for i in catalogue.rows] == [0, 1]
    assert catalogue.attribute_names == ["colour", "price"]
    assert read_catalogue(tmp_path / f"items.{suffix}").rows == catalogue.rows  # the table itself may be named


def test_parquet_types_become_text(tmp_path):
    columns = {"id": ["a", "b"], "title": ["x", "y"], "image": ["", ""], "f": [1.5, float("nan")], "b": [True, None]}
    pq.write_table(pa.table(columns), tmp_path / "items.parquet")
    assert [i.attributes for i in read_catalogue(tmp_path).rows] == [{"f": "1.5", "b": "true"}, {"f": "", "b": ""}]


@pytest.mark.parametrize("top", ["", "shop/"])
def test_zip_reads_as_the_folder_does(tmp_path, top):
    folder = make(tmp_path / "shop")
    catalogue = read_catalogue(zip_of(folder, top=top))
    assert catalogue.rows == read_catalogue(folder).rows
    assert catalogue.read_first_image(catalogue.rows[0]) == b"images/1.jpg"


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_are_found_by_id(tmp_path, packed):
    images = ("images/1.png", "images/1.JPG", "images/b.2.webp", "images/readme.txt")
    folder = make(tmp_path / "shop", "id\ttitle\n1\tshoe\nb.2\that\n../b.2\tx\n", images)
    rows = read_catalogue(zip_of(folder) if packed else folder).rows
    assert [item.image for item in rows] == ["images/1.JPG", "images/b.2.webp", ""]


def test_columns_can_be_named(tmp_path):
    make(tmp_path, "sku,name,photo,title\n1,shoe,images/1.jpg,other\n", name="goods.csv")
    columns = {"id": "sku", "title": "name", "image": "photo"}
    (item,) = read_catalogue(tmp_path / "goods.csv", columns=columns).rows
    assert (item.id, item.title, item.image, item.attributes) == ("1", "shoe", "images/1.jpg", {"title": "other"})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id\ttitle\tphoto\n1\ta\tb\n", r"no column image; columns are id, title, photo; name .* --image_column"),
        ("sku\ttitle\timage\n", r"no column id; columns are sku, title, image; .* --id_column"),
        ("id\ttitle\timage\n", "no rows"),
        ("", "empty"),
        ("id\ttitle\timage\n1\ta\tb\n2\tc\n", r"items.tsv line 3: 2 fields; expected 3 \(id, title, image\)"),
        ("id\ttitle\ttitle\n", "two columns are named title"),
        ("\tid\ttitle\n", "column 1 has no name"),
        (b"id\tt\xeftle\timage\n1\tcafe\tb\n", "items.tsv line 1: not UTF-8"),
        ("id\ttitle\timage\n".encode("utf-16"), "items.tsv: no rows"),
        ("id\ttitle\timage\n".encode("utf-16-le"), "NUL byte in its name; save the table as UTF-8"),
    ],
)
def test_bad_tables_are_named(tmp_path, table, message):
    with pytest.raises(UserError, match=message) as error:
        read_catalogue(make(tmp_path / "shop", table, images=()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("items.csv", 'id,title\n1,"a\n', "not CSV"),
        ("items.jsonl", '{"id": "1"}\n[1]\n', "items.jsonl line 2: not a JSON object"),
        ("items.jsonl", '{"id": "\\ud800", "title": "a", "image": "b"}\n', "line 1"),
        ("items.jsonl", "[" * 100_000, "line 1"),
        ("items.jsonl", '{"id": "1"}\n{"id": "1", "id": "2"}\n', "line 2: .*the key id is given twice"),
        ("items.jsonl", "\n", "empty; expected a JSON object with id and title on each line"),
        ("items.jsonl", "{}\n", "empty; expected"),
        ("items.csv", "id,title,title\n1,a\n", "two columns are named title"),
        ("items.parquet", "PAR1 no", "not readable as Parquet"),
    ],
)
def test_bad_files_of_other_formats(tmp_path, name, table, message):
    with pytest.raises(UserError, match=message):
        read_catalogue(make(tmp_path / "shop", table, images=(), name=name))


def test_parquet_with_equal_column_names(tmp_path):
    pq.write_table(pa.table([["1"], ["a"], ["b"]], names=["id", "title", "title"]), tmp_path / "items.parquet")
    with pytest.raises(UserError, match="two columns are named title"):
        read_catalogue(tmp_path)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("items.tsv", "id\ttitle\timage\r1\ta\tb\r2\tc\td\r"),
        ("items.csv", "id,title,image\r1,a,b\r2,c,d\r"),
        ("items.jsonl", '{"id": 1, "title": "a", "image": "b"}\r{"id": 2, "title": "c", "image": "d"}'),
    ],
)
def test_lines_may_end_with_a_carriage_return_alone(tmp_path, name, table):
    rows = read_catalogue(make(tmp_path / "shop", table, images=(), name=name)).rows
    assert [(item.id, item.title, item.image) for item in rows] == [("1", "a", "b"), ("2", "c", "d")]


def test_exactly_one_table(tmp_path):
    with pytest.raises(UserError, match=r"no table; expected exactly one of items\.tsv"):
        read_catalogue(tmp_path)
    make(tmp_path)
    make(tmp_path, name="items.csv")
    with pytest.raises(UserError, match=r"items\.csv and items\.tsv; expected exactly one"):
        read_catalogue(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_catalogue(tmp_path / "absent.zip")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="cannot be opened as a zip"):
        read_catalogue(tmp_path / "bad.zip")
    with pytest.raises(UserError, match="local disk"):
        read_catalogue("gs://bucket/shop.zip")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ("../secret.jpg", "unsafe path"),
        ("images/../../secret.jpg", "unsafe path"),
        ("/etc/hostname", "unsafe path"),
        ("C:/secret.jpg", "unsafe path"),
        ("a\0b", "unsafe path"),
        ("images/2.jpg", "missing image"),
        ("images", "missing image"),
        ("x" * 5000, "unreadable image"),
        ("", "missing image"),
        ("./images/1.jpg", None),
    ],
)
def test_pictures_stay_inside(tmp_path, packed, image, kind):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    folder = make(tmp_path / "shop", f"id\ttitle\timage\n1\tshoe\t{image}\n")
    catalogue = read_catalogue(zip_of(folder) if packed else folder)
    if kind is None:
        assert catalogue.read_first_image(catalogue.rows[0]) == b"images/1.jpg"
        return
    with pytest.raises(FileProblem) as error:
        catalogue.read_first_image(catalogue.rows[0])
    assert error.value.kind == (kind if not (packed and len(image) == 5000) else "missing image")


def test_links_out_of_the_folder_and_pipes_are_refused(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    table = "id\ttitle\timage\n1\ta\tout.jpg\n2\tb\tpipe\n3\tc\tloop\n4\td\tin.jpg\n"
    folder = make(tmp_path / "shop", table, images=("images/1.jpg",))
    (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "in.jpg").symlink_to(folder / "images/1.jpg")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    catalogue = read_catalogue(folder)
    kinds = []
    for item in catalogue.rows[:3]:
        with pytest.raises(FileProblem) as error:
            catalogue.read_first_image(item)
        kinds.append(error.value.kind)
    assert kinds == ["unsafe path", "missing image", "unreadable image"]
    assert catalogue.read_first_image(catalogue.rows[3]) == b"images/1.jpg"


@pytest.mark.parametrize("packed", [False, True])
def test_large_pictures_are_refused_unread(tmp_path, packed):
    folder = make(tmp_path / "shop")
    with open(folder / "images/1.jpg", "wb") as file:
        file.truncate(folder_or_zip.MAX_FILE_BYTES + 1)
    catalogue = read_catalogue(zip_of(folder) if packed else folder)
    with pytest.raises(FileProblem, match="32 MiB") as error:
        catalogue.read_first_image(catalogue.rows[0])
    assert error.value.kind == "too large"


def test_damaged_zip_member(tmp_path):
    path = zip_of(make(tmp_path / "shop"))
    data = path.read_bytes().replace(b"images/1.jpgimages/1.jpg", b"images/1.jpgimages/X.jpg")
    path.write_bytes(data)
    catalogue = read_catalogue(path)
    with pytest.raises(FileProblem) as error:
        catalogue.read_first_image(catalogue.rows[0])
    assert error.value.kind == "unreadable image"
