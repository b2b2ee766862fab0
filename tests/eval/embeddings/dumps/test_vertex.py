"""Batches for Vertex AI Vector Search, read back as JSON and put together as the service does."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings import read_store, write_store
from eval.embeddings.dumps.item_facts import ItemFacts
from eval.embeddings.dumps.vertex import restricts_of, write_vertex
from eval.embeddings.stored_rows import StoredRows
from input_pipeline.dataset import attributes
from siglip_jax.cli import main
from siglip_jax.errors import UserError

FACTS = ItemFacts(
    rows={"a": 0, 'ä "b"': 1, "c": 2},
    titles=["A", "B", "C"],
    attributes={
        "colour": ["red", "", "tiefes Rot"], "price": ["3", "", "5.25"], "size": ["41", "-2", ""],
        "product": ["p", "p", ""],
    },
)  # fmt: skip
VECTORS = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32) * np.float32([[1], [1e-20], [1e20]])


def stored(folder, vectors=None, *, manifest=None, **options):
    vectors = dict(zip(FACTS.rows, VECTORS, strict=True)) if vectors is None else vectors
    rows = [(list(vectors), np.array(list(vectors.values()), np.float32))]
    write_store(folder, rows, manifest=manifest or {}, **options)
    return StoredRows(folder)


def read(batch):
    """(items by id, ids to delete, names of the files)."""
    lines = [line for path in sorted(batch.glob("*.json")) for line in path.read_text("utf-8").splitlines()]
    items = {item["id"]: item for item in map(json.loads, lines)}
    assert len(items) == len(lines)
    deleted = [line for path in batch.glob("delete/*") for line in path.read_text("utf-8").splitlines()]
    return items, deleted, sorted(str(path.relative_to(batch)) for path in batch.rglob("*") if path.is_file())


def test_every_field_and_every_bit(tmp_path):
    restricts = restricts_of(FACTS, names=[], numeric=["price", "size"], crowding="product")
    said = write_vertex(
        stored(tmp_path / "store", rows_per_shard=1), tmp_path / "batch", restricts=restricts, rows_per_file=2
    )
    assert said == f"3 items of 5 numbers in 2 files of {tmp_path / 'batch'}"
    items, deleted, names = read(tmp_path / "batch")
    assert (deleted, names) == ([], ["part-00000.json", "part-00001.json"])
    for item, vector in zip(FACTS.rows, VECTORS, strict=True):
        np.testing.assert_array_equal(np.float32(items[item].pop("embedding")), vector)
    assert list(items.values()) == [
        {
            "id": "a",
            "restricts": [{"namespace": "colour", "allow": ["red"]}],
            "numeric_restricts": [{"namespace": "price", "value_float": 3.0}, {"namespace": "size", "value_int": 41}],
            "crowding_tag": "p",
        },
        {"id": 'ä "b"', "numeric_restricts": [{"namespace": "size", "value_int": -2}], "crowding_tag": "p"},
        {
            "id": "c",
            "restricts": [{"namespace": "colour", "allow": ["tiefes Rot"]}],
            "numeric_restricts": [{"namespace": "price", "value_float": 5.25}],
        },
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3), min_size=1), min_size=2, max_size=4))
def test_batches_one_after_the_other_give_the_newest_store(tmp_path_factory, generations):
    """What the service holds after upserts and deletes, whatever changed between the stores."""
    folder, held, last = tmp_path_factory.mktemp("batches"), {}, None
    for number, generation in enumerate(generations):
        store = stored(folder / f"{number}", {k: [v, 1] for k, v in generation.items()}, rows_per_shard=2)
        if number and generation == generations[number - 1]:
            with pytest.raises(UserError, match="both stores hold the same"):
                write_vertex(store, folder / f"batch-{number}", since=last)
            assert not (folder / f"batch-{number}").exists()
        else:
            write_vertex(store, folder / f"batch-{number}", since=last, rows_per_file=2)
            items, deleted, _ = read(folder / f"batch-{number}")
            assert not items.keys() & set(deleted)
            held = {k: v for k, v in held.items() if k not in deleted} | {k: v["embedding"] for k, v in items.items()}
            if last is not None:
                before = dict(zip((old := read_store(folder / f"{number - 1}")).ids, old.vectors.tolist(), strict=True))
                assert items.keys() == {k for k, v in generation.items() if before.get(k) != [v, 1]}
        assert held == {k: [v, 1] for k, v in generation.items()}
        last = store


def test_with_attributes_all_items_are_written(tmp_path):
    """They may have changed where the vector has not."""
    restricts = restricts_of(FACTS, names=["colour"], numeric=[], crowding="")
    old = stored(tmp_path / "old", {"a": VECTORS[0], "gone": VECTORS[1]})
    said = write_vertex(stored(tmp_path / "new"), tmp_path / "batch", restricts=restricts, since=old)
    items, deleted, names = read(tmp_path / "batch")
    assert (list(items), deleted) == (list(FACTS.rows), ["gone"])
    assert names == ["delete/ids.txt", "part-00000.json"]
    assert said.endswith("batch, 1 to delete")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"numeric": ["colour"]}, "--numeric=colour: item 'a' has 'red'; expected a number"),
        ({"numeric": ["weight"]}, "--numeric=weight: the dataset has no such attribute; it has colour, price, size,"),
        ({"names": ["weight"]}, "--restrict=weight: "),
        ({"crowding": "weight"}, "--crowding=weight: "),
    ],
)
def test_attributes_that_cannot_be_asked_for(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        write_vertex(
            stored(tmp_path / "store"),
            tmp_path / "batch",
            restricts=restricts_of(FACTS, **{"names": [], "numeric": [], "crowding": "", **options}),
        )
    assert [path.name for path in tmp_path.iterdir()] in ([], ["store"])


def test_limits(tmp_path):
    many = stored(tmp_path / "many", {str(row): [row, 1] for row in range(10_002)})
    with pytest.raises(
        UserError, match="10,002 files for 10,002 items; Vertex AI takes 5,000: give --rows_per_file=3 or"
    ):
        write_vertex(many, tmp_path / "batch", rows_per_file=1)
    broken = stored(tmp_path / "line", {"a\nb": [1, 2]})
    with pytest.raises(UserError, match=r"id 'a\\nb' holds a line break"):
        write_vertex(broken, tmp_path / "batch")
    new, old = (stored(tmp_path / f"{n}", manifest={"model": {"name": "m", "x_sha256": n}}) for n in (1, 2))
    with pytest.raises(UserError, match=r"made in another way \(model.x_sha256: 1 here, 2 there\).*leave --since out"):
        write_vertex(new, tmp_path / "batch", since=old)
    other = stored(tmp_path / "other", {"x": [1, 2], "y": [2, 1]})
    restricts = restricts_of(FACTS, names=[], numeric=[], crowding="")
    with pytest.raises(UserError, match="none of the 2 items of the store is in the dataset"):
        write_vertex(other, tmp_path / "batch", restricts=restricts)
    assert not (tmp_path / "batch").exists()
    store = stored(tmp_path / "store")
    assert write_vertex(store, tmp_path / "batch", restricts=None)
    before = read(tmp_path / "batch")
    with pytest.raises(UserError, match="exists already"):
        write_vertex(store, tmp_path / "batch")
    assert read(tmp_path / "batch") == before


def test_an_item_that_the_dataset_lacks_is_named(tmp_path):
    store = stored(tmp_path / "store", {"a": VECTORS[0], "x": VECTORS[1]})
    restricts = restricts_of(FACTS, names=["colour"], numeric=[], crowding="")
    said = write_vertex(store, tmp_path / "batch", restricts=restricts)
    assert said.endswith("; 1 items are not in the dataset, 'x' the first")
    assert read(tmp_path / "batch")[0]["x"].keys() == {"id", "embedding"}


def test_the_command(shop_dataset, tmp_path, capsys):
    ids, _, columns = attributes(shop_dataset, "test")
    stored(tmp_path / "store", {item: [row, 1] for row, item in enumerate(ids)}, dtype="int8")
    flags = ["export", "--format=vertex", f"--store={tmp_path / 'store'}", f"--output={tmp_path / 'batch'}"]
    assert main([*flags, f"--dataset={shop_dataset}", "--crowding=type"]) == 0
    items, _, _ = read(tmp_path / "batch")
    assert list(items) == ids
    row = next(k for k, colour in enumerate(columns["colour"]) if colour)
    assert {"namespace": "colour", "allow": [columns["colour"][row]]} in items[ids[row]]["restricts"]
    assert items[ids[row]]["crowding_tag"] == columns["type"][row]
    vectors = read_store(tmp_path / "store").vectors
    np.testing.assert_array_equal(np.float32([item["embedding"] for item in items.values()]), vectors)
    for flags, said in (
        (["--format=vertex"], "--store is missing"),
        (["--format=vertex", "--model=m"], "expected --model, to write a model, or --format"),
        (["--store=s", "--model=m"], "--store is of --reduce=pca:WIDTH"),
        (["--format=npy", "--store=s", "--since=t"], "--since is of --format=vertex"),
        (["--format=vertex", f"--store={tmp_path / 'store'}", "--numeric=price"], "give --dataset"),
    ):
        capsys.readouterr()
        assert main(["export", *flags, "--output=o"]) == 2
        assert said in capsys.readouterr().err


def test_pictures_crowd_as_their_item(tmp_path):
    vectors = dict(zip(["a", "a#2", "c", "x#2"], np.random.default_rng(1).normal(size=(4, 5)), strict=True))
    store = stored(tmp_path / "store", vectors, manifest={"pool": {"how": "each", "by": None}})
    for name, restricts in (
        ("plain", None),
        ("with", restricts_of(FACTS, names=["colour"], numeric=["price"], crowding="")),
    ):
        write_vertex(store, tmp_path / name, restricts=restricts)
        items, _, _ = read(tmp_path / name)
        assert {row: each["crowding_tag"] for row, each in items.items()} == {
            "a": "a", "a#2": "a", "c": "c", "x#2": "x#2",
        }  # fmt: skip
    assert items["a#2"]["restricts"] == [{"namespace": "colour", "allow": ["red"]}]
