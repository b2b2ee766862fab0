"""However many rows a build leaves out, its audit stays small and its list has every one of them."""

import csv
import io
import json

import PIL.Image
import pyarrow as pa
import pytest

from input_pipeline.building import build_dataset
from input_pipeline.building.problems import LISTED, write_problems
from input_pipeline.catalogue import read_catalogue
from input_pipeline.dataset.item_table import item_table
from input_pipeline.dataset.problem_rows import SCHEMA, read_problems
from siglip_jax.errors import UserError

ROWS = 2000
NAME = 'no, "such" picture\té.png'


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Few good rows, 1,500 without a picture, some with an empty title, one whose second picture is broken."""
    folder = tmp_path_factory.mktemp("many")
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(file, "PNG")
    (folder / "good.png").write_bytes(file.getvalue())
    (folder / "broken.png").write_bytes(b"broken")
    with (folder / "items.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "title", "image", "image_2"])
        for k in range(ROWS):
            image = NAME if k % 4 else "good.png"
            writer.writerow([f"i{k}", "" if k % 40 == 0 else f"title {k}", image, "broken.png" if k == 84 else ""])
    return folder


def expected():
    lines = []
    for k in range(ROWS):
        if k % 40 == 0:
            lines.append((str(k), f"i{k}", "empty title"))
        elif k % 4:
            lines.append((str(k), f"i{k}", "missing image"))
        elif k == 84:
            lines.append((str(k), f"i{k}", "further picture: corrupt image"))
    return lines


def listed(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["row"], row["id"], row["kind"], row["detail"]) for row in csv.DictReader(file)]


def test_the_audit_has_the_first_of_each_kind_and_the_list_all(shop, tmp_path, monkeypatch):
    monkeypatch.setattr("input_pipeline.building.stage.PART_ROWS", 300)
    audit = build_dataset(
        read_catalogue(shop), tmp_path / "out", fractions={"train": 1.0}, max_left_out=1, progress=False
    )
    assert audit["problems"] == {"empty title": 50, "missing image": 1500}
    assert audit["more_image_problems"] == {"corrupt image": 1}
    lines = [line for line in expected() if not line[2].startswith("further")]
    first = [line for kind in audit["problems"] for line in [line for line in lines if line[2] == kind][:LISTED]]
    assert len(first) == LISTED + 50
    told = [(str(row["row"]), row["id"], row["kind"]) for row in audit["problem_rows"]]
    assert told == sorted(first, key=lambda line: int(line[0]))
    rows = listed(tmp_path / "out" / "problems.csv")
    assert [row[:3] for row in rows] == expected()
    details = {(row, kind): detail for row, _, kind, detail in rows}
    assert details["1", "missing image"].startswith(f"{NAME} not found in")
    assert details["84", "further picture: corrupt image"].startswith("broken.png: not a readable picture")
    (tmp_path / "out" / "rows.parquet").unlink()
    table = item_table(tmp_path / "out", columns=["id", "kind", "detail"], progress=False)
    assert table.num_rows == ROWS
    left_out = [(row["id"], row["kind"]) for row in table.to_pylist() if row["kind"]]
    assert left_out == [line[1:] for line in lines]


def test_a_refusal_lists_all_and_a_build_that_succeeds_takes_the_list_away(shop, tmp_path):
    out, full_list, counts = tmp_path / "out", tmp_path / "out.problems.csv", tmp_path / "out.audit.json"
    with pytest.raises(
        UserError, match=r"1500 missing image.*out\.audit\.json, every row is listed in .*problems\.csv"
    ):
        build_dataset(read_catalogue(shop), out, on_error="error", max_left_out=1, progress=False)
    assert [row[:3] for row in listed(full_list)] == expected()
    assert len(json.loads(counts.read_text())["problem_rows"]) == LISTED + 50
    build_dataset(read_catalogue(shop), out, fractions={"train": 1.0}, max_left_out=1, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_no_list_where_nothing_was_left_out(shop, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "good.png").write_bytes((shop / "good.png").read_bytes())
    (folder / "items.csv").write_text("id,title,image\n1,hat,good.png\n")
    build_dataset(read_catalogue(folder), tmp_path / "out", fractions={"train": 1.0}, max_left_out=1, progress=False)
    assert not (tmp_path / "out" / "problems.csv").exists()
    assert item_table(tmp_path / "out", progress=False).num_rows == 1


def test_an_id_without_end_is_listed_and_read_back(tmp_path):
    path = tmp_path / "problems.csv"
    table = pa.table([[0, 1], ["x" * 3_000_000, "b"], ["empty title"] * 2, ["", "d"]], schema=SCHEMA)
    write_problems(path, [table])
    assert read_problems(path).equals(table)
