"""The same shop as tables, zips, tars and parquets with the pictures inside gives the same dataset."""

import io
import json
import tarfile
import zipfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.catalogue import read_catalogue
from input_pipeline.catalogue.filter import choose_items
from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError


def picture(seed, kind="PNG"):
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)).save(file, kind)
    return file.getvalue()


ITEMS = [  # id, titles, pictures, colour
    (f"p{k}", [f"Títle {k}", *(f"other name {k}.{j}" for j in range(k % 3))],
     [picture(10 * k + j) for j in range(k % 2 + 1)], ["red", "", "blue"][k % 3])
    for k in range(14)
]  # fmt: skip


def tsv(folder, suffix="tsv"):
    columns = ["id", "title", "title_2", "title_3", "image", "image_2", "colour"]
    lines = [columns]
    for id_, titles, pictures, colour in ITEMS:
        names = [f"{id_}-{j}.png" for j in range(len(pictures))]
        for name, data in zip(names, pictures, strict=True):
            (folder / name).write_bytes(data)
        lines.append([id_, *[*titles, "", ""][:3], *[*names, ""][:2], colour])
    separator = "\t" if suffix == "tsv" else ","
    (folder / f"items.{suffix}").write_text("".join(separator.join(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def csv(folder):
    return tsv(folder, "csv")


def jsonl(folder):
    with open(folder / "items.jsonl", "w", encoding="utf-8") as file:
        for id_, titles, pictures, colour in ITEMS:
            names = [f"{id_}-{j}.png" for j in range(len(pictures))]
            for name, data in zip(names, pictures, strict=True):
                (folder / name).write_bytes(data)
            record = {"id": id_, "title": titles, "image": names if len(names) > 1 else names[0], "colour": colour}
            file.write(json.dumps(record if colour else record | {"colour": None}) + "\n")
    return folder


def parquet_bytes(folder):
    table = {
        "id": [item[0] for item in ITEMS], "title": [item[1] for item in ITEMS],
        "image": [item[2][0] for item in ITEMS],
        "image_2": [item[2][1] if len(item[2]) > 1 else None for item in ITEMS],
        "colour": [item[3] for item in ITEMS],
    }  # fmt: skip
    pq.write_table(pa.table(table), folder / "shop.parquet", row_group_size=4)
    return folder / "shop.parquet"


def parquet_huggingface(folder):
    (folder / "p1-1.png").write_bytes(ITEMS[1][2][1])
    images = [[{"bytes": data, "path": None} for data in item[2]] for item in ITEMS]
    images[1][1] = {"bytes": None, "path": "p1-1.png"}  # a picture that is a file
    table = {"id": [item[0] for item in ITEMS], "title": [item[1] for item in ITEMS], "image": images}
    pq.write_table(pa.table(table | {"colour": [item[3] for item in ITEMS]}), folder / "shop.parquet")
    return folder / "shop.parquet"


def parquet_parts(folder):
    path = parquet_bytes(folder)
    table = pq.read_table(path)
    for part, (first, last) in enumerate([(0, 4), (4, 5), (5, 14)]):
        pq.write_table(table.slice(first, last - first), folder / f"part-{part + 8:02d}.parquet")
    return f"{folder}/part-{{08..10}}.parquet"


def zipped(folder):
    source = folder / "source"
    source.mkdir()
    tsv(source)
    with zipfile.ZipFile(folder / "shop.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.iterdir()):
            archive.write(path, f"shop/{path.name}")
    return folder / "shop.zip"


def parquet_in_zip(folder):
    path = parquet_bytes(folder)
    with zipfile.ZipFile(folder / "shop.zip", "w") as archive:
        archive.write(path, "items.parquet")
    return folder / "shop.zip"


def add(archive, name, data, **changes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def tars(folder, suffix=".tar"):
    for shard in range(3):
        with tarfile.open(folder / f"shop-{shard:03d}{suffix}", "w:gz" if suffix.endswith("z") else "w") as archive:
            for number, (id_, titles, pictures, colour) in enumerate(ITEMS[5 * shard : 5 * shard + 5]):
                # A key is the path up to the first dot; the rest says what the member is.
                for j, data in enumerate(pictures):
                    add(archive, f"a.b/{number:04d}.{'' if j == 0 else f'{j}.'}png", data)
                add(archive, f"a.b/{number:04d}.json", json.dumps({"id": id_, "colour": colour}).encode())
                for j, title in enumerate(titles):
                    add(archive, f"a.b/{number:04d}.{'' if j == 0 else f'{j}.'}txt", f"{title}\n".encode())
    return f"{folder}/shop-{{000..002}}{suffix}"


def tar_folder(folder):
    tars(folder)
    return folder


def gzipped_tars(folder):
    return tars(folder, ".tar.gz")


SOURCES = [
    tsv, csv, jsonl, zipped, parquet_bytes, parquet_huggingface, parquet_parts, parquet_in_zip, tars, tar_folder,
    gzipped_tars,
]  # fmt: skip


@pytest.mark.parametrize("write", SOURCES)
def test_every_source_gives_the_same_items(tmp_path, write):
    catalogue = read_catalogue(write(tmp_path))
    items = catalogue.rows
    assert [(item.row, item.id, item.attributes) for item in items] == [
        (k, id_, {"colour": colour}) for k, (id_, _, _, colour) in enumerate(ITEMS)
    ]
    for item, (_, titles, pictures, _) in zip(items, ITEMS, strict=True):
        assert [item.title, *item.more_titles] == titles
        assert [catalogue.read_image(item, name) for name in (item.image, *item.more_images)] == pictures
    for start in (1, 4, 5, 13, 14):  # where a build may go on
        assert list(catalogue.items(start)) == items[start:]
    assert catalogue.total in (None, len(ITEMS))
    chosen = choose_items(catalogue, {"colour": ["blue"]})
    assert [item.row for item in chosen.items()] == [2, 5, 8, 11]
    with pytest.raises(UserError, match=r"only colour=bleu: no row has this value; near it are blue and 2 others"):
        choose_items(catalogue, {"colour": ["bleu"]})
    with pytest.raises(UserError, match=r"only size=3: no such attribute; .* has colour"):
        choose_items(catalogue, {"size": ["3"]})


@pytest.mark.parametrize("write", [tsv, parquet_huggingface, tars])
def test_several_pictures_and_titles_reach_the_dataset(tmp_path, write):
    build_dataset(read_catalogue(write(tmp_path)), tmp_path / "out", fractions={"all_": 1.0}, progress=False)
    rows = list(open_split(tmp_path / "out", "all_"))
    for row, (id_, titles, pictures, colour) in zip(rows, ITEMS, strict=True):
        assert row["id"] == id_
        assert [row["title"], *row["more_titles"]] == titles
        assert [row["image"], *row["more_images"]] == pictures
        assert row["attributes"] == {"colour": colour}


def test_datasets_of_one_picture_each_have_no_further_features(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "items.csv").write_text("id,title,image\n1,hat,a.png\n")
    build_dataset(read_catalogue(tmp_path), tmp_path / "out", fractions={"all_": 1.0}, progress=False)
    assert "more_images" not in (tmp_path / "out/features.json").read_text()
    row = open_split(tmp_path / "out", "all_")[0]
    assert (row["more_images"], row["more_titles"]) == ([], [])


def test_a_further_picture_links_rows(tmp_path):
    """Else the second picture of a training item may be the first of a test item."""
    rows = [(str(k), f"title {k}", f"{k}.png", f"{k - 1}.png" if k % 2 else "") for k in range(40)]
    for k in range(40):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    text = "\n".join(["id,title,image,image_2", *(",".join(row) for row in rows)])
    (tmp_path / "items.csv").write_text(text)
    audit = build_dataset(read_catalogue(tmp_path), tmp_path / "out", fractions={"a": 0.5, "b": 0.5}, progress=False)
    assert (audit["linked_groups"], audit["largest_group"]) == (20, 2)
    for name in "ab":
        ids = {int(row["id"]) for row in open_split(tmp_path / "out", name)}
        assert {k ^ 1 for k in ids} == ids


def test_a_bad_further_picture_is_left_out_and_told(tmp_path):
    (tmp_path / "good.png").write_bytes(picture(1))
    (tmp_path / "bad.png").write_bytes(picture(2)[:60])
    (tmp_path / "items.csv").write_text(
        "id,title,image,image_2,image_3\n1,hat,good.png,bad.png,none.png\n2,cap,good.png,good.png,\n"
    )
    catalogue = read_catalogue(tmp_path)
    audit = build_dataset(catalogue, tmp_path / "out", fractions={"all_": 1.0}, progress=False)
    assert audit["kept"] == 2
    assert audit["more_image_problems"] == {"corrupt image": 1, "missing image": 1}
    assert [len(row["more_images"]) for row in open_split(tmp_path / "out", "all_")] == [0, 1]
    told = pq.read_table(tmp_path / "out/rows.parquet")["more_problems"].to_pylist()[0]
    assert [text.split(".png")[0] for text in told] == ["corrupt image: bad", "missing image: none"]
    with pytest.raises(UserError, match="1 further picture: corrupt image, 1 further picture: missing image"):
        build_dataset(catalogue, tmp_path / "no", fractions={"all_": 1.0}, on_error="error", progress=False)


def test_bytes_where_text_is_expected(tmp_path):
    pq.write_table(pa.table({"id": ["1"], "title": ["a"], "photo": [b"\xff"]}), tmp_path / "items.parquet")
    with pytest.raises(
        UserError, match=r"no column image; columns are id, title, photo; name the image column with --image_column"
    ):
        read_catalogue(tmp_path / "items.parquet", columns={})
    catalogue = read_catalogue(tmp_path / "items.parquet", columns={"image": "photo"})
    assert catalogue.read_first_image(catalogue.rows[0]) == b"\xff"


@pytest.mark.parametrize("names", [["0.json"], ["0.png", "0.txt"]])
def test_json_members_named_by_columns(tmp_path, names):
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for name in names:
            data = {"json": b'{"sku": 7, "caption": ["a", "b"], "price": 1.50}', "txt": b"c"}.get(name[2:], b"x")
            add(archive, name, data)
    columns = {"id": "sku", "title": "caption"} if "0.json" in names else {}
    (item,) = read_catalogue(tmp_path / "one.tar", columns=columns).rows
    if "0.json" in names:
        assert (item.id, item.title, item.more_titles, item.attributes) == ("7", "a", ("b",), {"price": "1.50"})
    else:
        assert (item.id, item.title, item.attributes) == ("0", "c", {})


def test_parts_of_other_columns(tmp_path):
    for part, columns in enumerate(["id,title,image", "id,title,photo"]):
        (tmp_path / f"part-{part}.csv").write_text(f"{columns}\n1,a,b\n")
    with pytest.raises(UserError, match=r"part-1.csv: columns are id, title, photo; expected those of part-0.csv"):
        read_catalogue(f"{tmp_path}/part-{{0..1}}.csv")


def test_shards_that_are_missing(tmp_path):
    tars(tmp_path)
    with pytest.raises(UserError, match=r"shop-003.tar: no such file; of the 5 in .* 2 are missing"):
        read_catalogue(f"{tmp_path}/shop-{{000..004}}.tar")
    with pytest.raises(UserError, match="smaller number first"):
        read_catalogue(f"{tmp_path}/shop-{{4..0}}.tar")
    with tarfile.open(tmp_path / "none.tar", "w"):
        pass
    with pytest.raises(UserError, match=r"none\.tar: no samples|damaged"):
        _ = read_catalogue(tmp_path / "none.tar").rows
