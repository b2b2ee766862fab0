"""Leakage from a training set into an evaluation, against sets of Python values; the table of a dataset's rows."""

import csv
import io

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.audit import check_leakage, check_log, find_leakage
from input_pipeline.dataset import open_split
from input_pipeline.dataset.item_table import item_table, split_names
from input_pipeline.duplicates.near_images import image_signature, signatures
from input_pipeline.duplicates.normalised_titles import normalise_title
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import decode_image

items = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.sampled_from(["Hat", "hat ", "BAG", "", "shoe"]),
        st.sampled_from(["1", "2", ""]),
        st.sampled_from(["x", "y", ""]),
    ),
    max_size=12,
)


def table(rows) -> pa.Table:
    ids, titles, images, sellers = (
        (pa.array(column, pa.string()) for column in zip(*rows, strict=True))
        if rows
        else ([pa.array([], pa.string())] * 4)
    )
    attributes = pa.StructArray.from_arrays([sellers], ["seller"])
    return pa.table({"id": ids, "title": titles, "image_sha256": images, "attributes": attributes})


@settings(deadline=None)
@given(items, items)
def test_what_is_in_common(training, evaluation):
    keys = ("id", "title", "image", "seller")

    def value(row, place):
        return normalise_title(row[place]) if place == 1 else row[place]

    expected = set()
    for number, row in enumerate(evaluation):
        for place, key in enumerate(keys):
            same = [other[0] for other in training if value(other, place) == value(row, place) != ""]
            if same:
                expected.add((number, row[0], key, value(row, place), same[0]))
    leakage = find_leakage(table(training), table(evaluation), keys=keys)
    found = [tuple(line.values()) for line in leakage.found.to_pylist()]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert leakage.rows.tolist() == sorted({line[0] for line in expected})
    assert sum(leakage.counts().values()) == len(expected)


def test_a_near_picture():
    rng = np.random.default_rng(0)
    known = rng.integers(0, 256, (30, 64), dtype=np.uint8)
    asked = known[[4, 4, 9]].copy()
    asked[1, 0] ^= 3
    asked[2, :4] ^= 255
    tables = []
    for name, rows in (("t", known), ("e", asked)):
        values = [row.tobytes() for row in rows] + [None]
        tables.append(pa.table({"id": [f"{name}{i}" for i in range(len(values))],
                                "image_signature": pa.array(values, pa.binary(64))}))  # fmt: skip
    leakage = find_leakage(*tables, keys=("id",), near=20)
    assert [(line["id"], line["training_id"]) for line in leakage.found.to_pylist()] == [("e0", "t4"), ("e1", "t4")]
    assert leakage.counts() == {"near picture": 2}
    assert find_leakage(tables[0], tables[1].select(["id"]), near=20).not_compared == ("title", "image", "near picture")


def test_leakage_is_an_error_with_a_list(tmp_path):
    training = table([(f"i{k}", f"title {k}", str(k), "") for k in range(20)])
    evaluation = table([(f"e{k}", f"TITLE  {k}", f"p{k}", "") for k in range(10, 30)])
    output = tmp_path / "out" / "leakage.csv"
    with pytest.raises(
        UserError, match=r"10 of 20 evaluation items .*\(10 by title\): e10, e11, e12, e13, e14, \.\.\."
    ):
        check_leakage(training, evaluation, output=output)
    with open(output, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["id"], line["key"], line["training_id"]) for line in lines] == [
        (f"e{k}", "title", f"i{k}") for k in range(10, 20)
    ]
    assert check_leakage(training, evaluation, output=output, keys=("id", "image")).evaluated == 20
    assert not output.exists()


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match="leakage key selller: no such attribute"):
        find_leakage(table([]), table([]), keys=("selller",))
    with pytest.raises(UserError, match="evaluation: no column id; columns are title"):
        find_leakage(table([]), pa.table({"title": ["a"]}))


def test_a_log_against_a_dataset(shop_dataset, tmp_path):
    train, test = (open_split(shop_dataset, name) for name in ("train", "test"))
    output = tmp_path / "leakage.csv"
    fine = check_log(shop_dataset, [row["id"] for row in test] * 2 + ["not in the shop"], output=output)
    assert (fine.evaluated, fine.trained, len(fine.found)) == (len(test) + 1, len(train), 0)
    with pytest.raises(UserError, match=rf"1 of 2 evaluation items .*\(1 by id, .*\): {train[3]['id']}"):
        check_log(shop_dataset, [test[0]["id"], train[3]["id"]], output=output)
    with pytest.raises(UserError, match="no split training; splits are train, test"):
        check_log(shop_dataset, [], output=output, train_split="training")


@pytest.mark.parametrize("beside", [True, False])
def test_the_table_of_a_dataset(shop_dataset, tmp_path, beside):
    folder = shop_dataset
    if not beside:  # as earlier versions built it
        folder = tmp_path / "old"
        folder.mkdir()
        for path in shop_dataset.iterdir():
            if path.name != "rows.parquet":
                (folder / path.name).symlink_to(path)
    rows = item_table(folder, progress=False)
    assert split_names(folder) == ["train", "test"]
    assert rows.num_rows == 120
    assert sum(kind != "" for kind in rows["kind"].to_pylist()) == 5
    kept = {row["id"]: row for row in rows.to_pylist() if not row["kind"]}
    for name in ("train", "test"):
        for record in open_split(folder, name):
            row = kept.pop(record["id"])
            pixels = decode_image(record["image"])
            image_format = PIL.Image.open(io.BytesIO(record["image"])).format
            assert row["image_signature"] == image_signature(pixels).tobytes()
            assert (row["height"], row["width"]) == pixels.shape[:2]
            for column in ("title", "image_sha256", "attributes"):
                assert row[column] == record[column]
            assert (row["split"], row["bytes"], row["format"]) == (name, len(record["image"]), image_format)
    assert not kept
    few = item_table(folder, columns=["id", "split"], progress=False)
    assert few.column_names == ["id", "split"]


def test_signatures_of_sliced_columns():
    values = np.arange(64 * 5, dtype=np.uint8).reshape(5, 64)
    column = pa.chunked_array([pa.array([row.tobytes() for row in values], pa.binary(64))])
    column = pa.chunked_array([*column.slice(0, 1).chunks, *column.slice(2).chunks])
    np.testing.assert_array_equal(signatures(column), values[[0, 2, 3, 4]])
    np.testing.assert_array_equal(signatures(column.slice(1, 2)), values[[2, 3]])
