"""Exports as shops write them, each through `siglip-jax data`: the right rows, or one line that names the step.

The functions are the table: what a shop has, and its right value.
"""

import base64
import csv
import datetime
import decimal
import gzip
import html
import io
import json
import re
import tarfile
import unicodedata
import zipfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from input_pipeline.dataset import open_split
from siglip_jax import cli

N = 30


def picture(number, kind="PNG"):
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 7, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


PICTURES = [picture(number) for number in range(N + 1)]


def title(number):
    return f"shirt number {number}"


def with_pictures(folder, first=0, count=N):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"images/{number:03d}.png").write_bytes(PICTURES[number])
    return folder


def written(folder, name, rows, delimiter=","):
    """A table of dicts, quoted as the csv module does it."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / name).write_text(stream.getvalue(), encoding="utf-8")


def plain(number, **more):
    return {"id": f"{number:03d}", "title": title(number), "image": f"images/{number:03d}.png", **more}


def kept(number, *further, id_=None, titled=None, **attributes):
    """What the dataset is to hold of a row: {id: (title, pictures, attributes)}."""
    pictures = [PICTURES[k] for k in (number, *further)]
    return {id_ or f"{number:03d}": (titled or title(number), pictures, attributes)}


def merged(dicts):
    return {key: value for each in dicts for key, value in each.items()}


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(count=N):
    for k in range(count):
        yield f"{k:03d}.png", PICTURES[k]
        yield f"{k:03d}.json", json.dumps({"sku": f"s{k}", "title": title(k)}).encode()


# --- what is read right -----------------------------------------------------------------------------------------------


def range_in_folders(folder):
    """Tables of one name in folders such as day=01: each is read, and day is a column."""
    for day in range(2):
        within = with_pictures(folder / f"day=0{day}", 15 * day, 15)
        written(within, "part.csv", [plain(k) for k in range(15 * day, 15 * day + 15)])
    return [f"--catalog={folder}/day={{00..01}}/part.csv"], merged(kept(k, day=f"0{k // 15}") for k in range(N))


def folders_of_columns(folder):
    """The same, named by their folder alone."""
    _, right = range_in_folders(folder)
    return [f"--catalog={folder}"], right


def image_1_and_image_2(folder):
    """Pictures counted from one: taken without a flag, and said."""
    with_pictures(folder)
    rows = [{**plain(k), "image_2": f"images/{k + 1:03d}.png" if k % 2 == 0 else ""} for k in range(N)]
    rows = [{"image_1" if name == "image" else name: value for name, value in row.items()} for row in rows]
    written(folder, "items.csv", rows)
    right = merged(kept(k, *([k + 1] if k % 2 == 0 else [])) for k in range(N))
    return [f"--catalog={folder}"], right, "pictures taken from image_1, image_2"


def additional_image_link(folder):
    """Further pictures under a name of their own: told without the flag (below), taken with it."""
    with_pictures(folder)
    rows = [plain(k, additional_image_link=f"images/{k ^ 1:03d}.png") for k in range(N)]
    written(folder, "items.csv", rows)
    flags = [f"--catalog={folder}", "--image_column=image,additional_image_link"]
    return flags, merged(kept(k, k ^ 1) for k in range(N))


def additional_image_link_without_the_flag(folder):
    """The note names the flag."""
    additional_image_link(folder)
    right = merged(kept(k, additional_image_link=f"images/{k ^ 1:03d}.png") for k in range(N))
    return [f"--catalog={folder}"], right, "--image_column=image,additional_image_link"


def tsv_with_quotes(folder):
    """Quotes of a spreadsheet are no part of a title."""
    with_pictures(folder)
    lines = ["id\ttitle\timage"]
    for k in range(N):
        name = f'Tablet 10" {k // 2}'
        lines.append("\t".join([f"{k:03d}", f'"Tablet 10"" {k // 2}"' if k % 2 else name, f"images/{k:03d}.png"]))
    (folder / "items.tsv").write_text("\n".join(lines) + "\n")
    right = merged(kept(k, titled=f'Tablet 10" {k // 2}') for k in range(N))
    return [f"--catalog={folder}"], right, "quotes round its fields are taken off"


def nested_parquet(folder):
    """Lists of times and structs with decimals are attributes, as JSON; bytes that are no picture are left out."""
    with_pictures(folder)
    moment = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    columns = {name: [plain(k)[name] for k in range(N)] for name in ("id", "title", "image")}
    columns |= {"times": [[moment]] * N, "price": [{"value": decimal.Decimal("1.50")}] * N, "digest": [b"\x00\xff"] * N}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    told = {"times": '["2024-05-01T00:00:00+00:00"]', "price": '{"value": "1.50"}'}
    return [f"--catalog={folder}"], merged(kept(k, **told) for k in range(N)), "left out the columns of bytes digest"


def semicolons_and_decimal_commas(folder):
    """A csv of a German Excel, with its byte order mark."""
    with_pictures(folder)
    lines = ["id;title;image;price", *(f"{k:03d};{title(k)};images/{k:03d}.png;19,90" for k in range(N))]
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return [f"--catalog={folder}"], merged(kept(k, price="19,90") for k in range(N)), "';' between its fields"


def table_of_other_name_in_a_zip(folder):
    """The only table of a zip needs no name."""
    with_pictures(folder)
    rows = [{"article_id": f"{k:03d}", "prod_name": title(k), "image": f"images/{k:03d}.png"} for k in range(N)]
    written(folder, "articles.csv", rows)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            if file.suffix != ".zip":
                archive.write(file, file.relative_to(folder))
    flags = [f"--catalog={folder}/archive.zip", "--id_column=article_id", "--title_column=prod_name"]
    return flags, merged(kept(k) for k in range(N))


def several_paths_in_a_cell(folder):
    """a.jpg|b.jpg are two pictures."""
    with_pictures(folder)
    rows = [{**plain(k), "image": f"images/{k:03d}.png|images/{k ^ 1:03d}.png"} for k in range(N)]
    written(folder, "items.csv", rows)
    return [f"--catalog={folder}"], merged(kept(k, k ^ 1) for k in range(N))


def tar_of_a_mac(folder):
    """The ._ companions of bsdtar are no items."""
    members = [each for name, data in samples() for each in ((f"._{name}", b"\x00\x05\x16\x07"), (name, data))]
    tar(folder / "a.tar", members)
    return [f"--catalog={folder}/a.tar"], merged(kept(k, sku=f"s{k}") for k in range(N))


def ids_of_a_json(folder):
    """--id_column names a member of the .json of tars."""
    tar(folder / "a.tar", samples())
    return [f"--catalog={folder}/a.tar", "--id_column=sku"], merged(kept(k, id_=f"s{k}") for k in range(N))


def jsonl_shards_of_other_keys(folder):
    """A key that one shard lacks is empty there."""
    with_pictures(folder)
    for shard in range(2):
        numbers = range(15 * shard, 15 * shard + 15)
        lines = [json.dumps(plain(k, note="x") if shard else plain(k)) for k in numbers]
        (folder / f"m-0{shard}.jsonl").write_text("\n".join(lines) + "\n")
    right = merged(kept(k, note="x" if k >= 15 else "") for k in range(N))
    return [f"--catalog={folder}/m-{{00..01}}.jsonl"], right


def names_of_a_mac_in_a_zip(folder):
    """Letters and their accents apart, as macOS has them."""
    path = zip_of_names(folder, "Blüte", unicodedata.normalize("NFD", "Blüte"))
    return [f"--catalog={path}"], merged(kept(k) for k in range(N))


def names_in_shift_jis_in_a_zip(folder):
    """Names in another encoding, which the zip does not tell."""
    path = zip_of_names(folder, "東京", "XXXX")
    path.write_bytes(path.read_bytes().replace(b"XXXX", "東京".encode("cp932")))
    return [f"--catalog={path}"], merged(kept(k) for k in range(N))


def zip_of_names(folder, in_table, in_zip):
    with zipfile.ZipFile(folder / "shop.zip", "w") as archive:
        lines = ["id,title,image", *(f"{k:03d},{title(k)},{in_table}{k}.png" for k in range(N))]
        archive.writestr("items.csv", "\n".join(lines))
        for k in range(N):
            archive.writestr(f"{in_zip}{k}.png", PICTURES[k])
    return folder / "shop.zip"


def shared_size_chart(folder):
    """One picture of most products is no product's: it links nothing, and is named."""
    with_pictures(folder, count=N + 1)
    rows = [plain(k, image_2=f"images/{N:03d}.png" if k % 5 else "") for k in range(N)]
    written(folder, "items.csv", rows)
    right = merged(kept(k, *([N] if k % 5 else [])) for k in range(N))
    return [f"--catalog={folder}"], right, "the image is in 24 of 30 rows"


def cp1252_with_its_flag(folder):
    """--encoding reads the rows with accents."""
    cp1252(folder)
    right = merged(kept(k, titled=f"Weiß {title(k)}" if k % 3 == 0 else title(k)) for k in range(N))
    return [f"--catalog={folder}", "--encoding=cp1252"], right


def utf16_with_its_mark(folder):
    """What Excel calls Unicode text."""
    with_pictures(folder)
    lines = ["id\ttitle\timage", *(f"{k:03d}\tWeiß {k}\timages/{k:03d}.png" for k in range(N))]
    (folder / "items.tsv").write_text("\n".join(lines), encoding="utf-16")
    return [f"--catalog={folder}"], merged(kept(k, titled=f"Weiß {k}") for k in range(N)), "read as UTF-16"


# --- what ends with one line ------------------------------------------------------------------------------------------


def names_that_no_json_has(folder):
    """A flag that matches nothing."""
    tar(folder / "a.tar", samples())
    return [f"--catalog={folder}/a.tar", "--id_column=SKU"], r"no \.json has SKU, named by --id_column; they have sku"


def image_column_of_a_tar(folder):
    """A flag that tars have no use for."""
    tar(folder / "a.tar", samples())
    return [f"--catalog={folder}/a.tar", "--image_column=foo"], "--image_column: .* leave the flag out"


def time_column_of_a_tar(folder):
    """A column that no .json has."""
    tar(folder / "a.tar", samples())
    flags = ["--time_column=created", "--split_time=2024-06-01"]
    return [f"--catalog={folder}/a.tar", *flags], "time column created: no such attribute; there are sku"


def pictures_in_a_chain(folder):
    """Each picture is in two rows, so that all rows are one group: what links them, and the flag."""
    with_pictures(folder, count=N + 1)
    written(folder, "items.csv", [plain(k, image_2=f"images/{k + 1:03d}.png") for k in range(N)])
    return [f"--catalog={folder}"], "split test would be empty: .* title 1, image 30; --split_by=title leaves out"


def pictures_in_a_chain_with_the_flag(folder):
    """The flag that the line before names."""
    pictures_in_a_chain(folder)
    return [f"--catalog={folder}", "--split_by=title"], merged(kept(k, k + 1) for k in range(N))


def table_in_gzip(folder):
    """A packed table."""
    with_pictures(folder)
    lines = [json.dumps(plain(k)) for k in range(N)]
    (folder / "items.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return [f"--catalog={folder}/items.jsonl.gz"], "unpack it with gunzip first"


def packed_folder(folder):
    """A .tar.gz of a folder is no WebDataset."""
    with_pictures(folder / "shop")
    written(folder / "shop", "items.csv", [plain(k) for k in range(N)])
    with tarfile.open(folder / "shop.tar.gz", "w:gz") as archive:
        archive.add(folder / "shop", "shop")
    return [f"--catalog={folder}/shop.tar.gz"], r"holds the table shop/items\.csv, .* unpack it \(tar -xf\)"


def placeholder_titles(folder):
    """nan, NULL, None and the like stand for nothing."""
    words = ["nan", "NULL", "None", "\\N", "#N/A", "-"]
    with_pictures(folder)
    written(folder, "items.csv", [{**plain(k), "title": words[k] if k < 6 else title(k)} for k in range(N)])
    return [f"--catalog={folder}"], r"6 of 30 rows .*6 empty title; .* row 0, id '000': the title is 'nan'"


def same_names_in_each_tar(folder):
    """The key is the id."""
    for k in range(12):
        tar(folder / f"{k:03d}.tar", [("item.png", PICTURES[k]), ("item.txt", title(k).encode())])
    return [f"--catalog={folder}"], "11 duplicate id; .* row 1, id 'item': .*--id_column"


def base64_in_a_cell(folder):
    """A picture's text instead of its path."""
    with_pictures(folder)
    text = base64.b64encode(picture(0, "JPEG")).decode()
    written(folder, "items.csv", [{**plain(k), "image": text if k < 5 else plain(k)["image"]} for k in range(N)])
    return [f"--catalog={folder}"], r"5 of 30 rows .*letters, perhaps base64: save it as a file"


def cp1252(folder):
    """A table of another encoding would lose just the rows with accents."""
    with_pictures(folder)
    names = [f"Weiß {title(k)}" if k % 3 == 0 else title(k) for k in range(N)]
    lines = ["id,title,image", *(f"{k:03d},{names[k]},images/{k:03d}.png" for k in range(N))]
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="cp1252")
    return [f"--catalog={folder}"], "10 not UTF-8; .*line 2: not UTF-8; .*--encoding=cp1252"


def shopify(folder):
    """Rows that go on with a product, for its further pictures."""
    with_pictures(folder)
    rows = []
    for k in range(N):
        first = {"Title": title(k), "Body (HTML)": "<p>x</p>"} if k % 2 == 0 else {"Title": "", "Body (HTML)": ""}
        rows.append(
            {"Handle": f"shirt-{k // 2}", **first, "Image Src": f"images/{k:03d}.png", "Image Position": k % 2 + 1}
        )
    written(folder, "products_export_1.csv", rows)
    flags = [f"--catalog={folder}/products_export_1.csv", "--id_column=Handle", "--title_column=Title"]
    right = "15 continued item; .* row 1, id 'shirt-0': .*this one has no title; put its picture into that row: image_2"
    return [*flags, "--image_column=Image Src"], right


CASES = [
    range_in_folders, folders_of_columns, image_1_and_image_2, additional_image_link,
    additional_image_link_without_the_flag, tsv_with_quotes, nested_parquet, semicolons_and_decimal_commas,
    table_of_other_name_in_a_zip, several_paths_in_a_cell, tar_of_a_mac, ids_of_a_json, jsonl_shards_of_other_keys,
    names_of_a_mac_in_a_zip, names_in_shift_jis_in_a_zip, shared_size_chart, cp1252_with_its_flag, utf16_with_its_mark,
    names_that_no_json_has, image_column_of_a_tar, time_column_of_a_tar, pictures_in_a_chain,
    pictures_in_a_chain_with_the_flag, table_in_gzip, packed_folder, placeholder_titles, same_names_in_each_tar,
    base64_in_a_cell, cp1252, shopify,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_shop(case, tmp_path, capsys):
    (tmp_path / "shop").mkdir()
    flags, right, *said = case(tmp_path / "shop")
    code = cli.main(["data", *flags, f"--output={tmp_path / 'out'}"])
    captured = capsys.readouterr()
    if isinstance(right, str):
        lines = [line for line in captured.err.splitlines() if line.startswith("siglip-jax")]
        assert (code, len(lines)) == (2, 1), captured
        assert re.search(right, lines[0])
        assert len(lines[0]) < 1000
        return
    assert code == 0, captured.err
    audit = json.loads((tmp_path / "out/audit.json").read_text())
    rows = [row for split in audit["splits"] for row in open_split(tmp_path / "out", split)]
    assert {row["id"]: (row["title"], [row["image"], *row["more_images"]], row["attributes"]) for row in rows} == right
    assert all(text in captured.out for text in said)
    page = html.unescape((tmp_path / "out/audit.html").read_text(encoding="utf-8"))
    assert all(any(text in note for note in audit["notes"]) and text in page for text in said)
