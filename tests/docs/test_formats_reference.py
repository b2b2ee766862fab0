"""The keys that docs/reference/formats.md documents are those that are written."""

import csv
import json
import pathlib
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

import siglip_jax
from eval.comparison.build_report import build_report
from eval.comparison.by_attributes import rank_by_attributes
from eval.comparison.choose_rankers import RankersToCompare
from eval.comparison.items import read_split
from eval.embeddings import write_store
from eval.embeddings.dumps.item_facts import ItemFacts
from eval.embeddings.dumps.vertex import restricts_of, write_vertex
from eval.embeddings.store import write_manifest, write_shard
from eval.embeddings.store_shards import ShardRows, write_rows
from eval.embeddings.stored_rows import StoredRows
from eval.logs.log_format import COLUMNS
from eval.rankers import VectorRanker
from eval.search import build_index, measure_recall
from eval.search.answers import Answers
from eval.search.selection import Selection
from eval.search.updates import deleted

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")


def documented(heading: str, table: int = 0) -> set[str]:
    """The names in the first column of a table below a heading."""
    section = re.split(r"(?m)^#+ ", PAGE.split(f"# {heading}\n", 1)[1])[0]
    tables = re.findall(r"(?m)(?:^\|.*\n)+", section)
    return {name for line in tables[table].splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_dataset(shop_dataset):
    assert read(shop_dataset / "audit.json").keys() == documented("`audit.json`")
    assert set(pq.read_schema(shop_dataset / "rows.parquet").names) == documented("`rows.parquet`")
    with open(shop_dataset / "problems.csv", newline="", encoding="utf-8") as file:
        assert set(next(csv.reader(file))) == documented("`problems.csv`")
    features = set(tfds.builder_from_directory(str(shop_dataset)).info.features)
    assert features == documented("Records") - {"more_images", "more_titles"}
    files = {path.name.partition("-")[0] for path in shop_dataset.iterdir()}
    assert files == {name.partition("-")[0] for name in documented("Dataset")}


def test_embedding_store(tmp_path):
    about = {"model": {}, "preprocessing": {}, "dataset": {}}
    vectors = np.eye(2, 3, dtype=np.float32)
    written = write_store(tmp_path / "whole", [(["a", "b"], vectors)], manifest=about)
    keys = documented("Embedding store", table=1)
    assert written.keys() == keys - {"skipped", "pool"}
    shards = [write_shard(tmp_path, 0, ["a", "b"], vectors)]
    skipped = [{"row": 2, "id": "c", "reason": "no image"}]
    about["pool"] = {}
    assert write_manifest(tmp_path, shards, manifest=about, skipped=skipped).keys() == keys
    assert set(pq.read_schema(tmp_path / "shard-00000.parquet").names) == {"id", "embedding"}
    rows = ShardRows.of(["a", "b"], vectors, dtype="int8", inputs=[b"\1" * 32, None])
    columns = pq.read_schema(tmp_path / write_rows(tmp_path, 1, rows)["file"]).names
    assert set(columns) == documented("Embedding store")


def test_dumps_of_a_store(tmp_path):
    write_store(tmp_path / "store", [(["a"], np.ones((1, 2), np.float32))], manifest={})
    facts = ItemFacts({"a": 0}, ["A"], {"colour": ["red"], "price": ["3"], "product": ["p"]})
    restricts = restricts_of(facts, names=[], numeric=["price"], crowding="product")
    write_vertex(StoredRows(tmp_path / "store"), tmp_path / "batch", restricts=restricts)
    assert read(tmp_path / "batch" / "part-00000.json").keys() == documented("Dumps of a store")


@pytest.mark.parametrize("missing", [[], [{"row": 2, "id": "c", "reason": "no image"}]])
def test_search_index(tmp_path, missing):
    vectors = np.eye(3, dtype=np.float32)
    index = build_index(vectors, ["a", "b", "d"])
    measured = measure_recall(index, vectors, k=1)
    index.missing, index.encoder = missing, {"model": {"name": "m"}} if missing else {}
    index.save(tmp_path / "index")
    manifest = read(tmp_path / "index" / "manifest.json")
    assert manifest.keys() == documented("Search index") - {"delta"} - (set() if missing else {"missing", "encoder"})
    deleted(index, ["d"]).index.save(tmp_path / "changed")
    changed = read(tmp_path / "changed" / "manifest.json")
    assert changed.keys() - manifest.keys() == {"delta"}
    assert changed["delta"] == {"items": 0, "dead": 1}
    assert all(f"`{name}`" in PAGE for name in changed["files"])
    answers = Answers(index, {"b": ("", {"colour": "red"})})
    answered = answers.of_item("a", Selection(k=1, collapse=0.99, where={"colour": {"red", "rad"}}))
    assert answered.keys() == documented("Search answer")
    assert all(f"`{key}`" in PAGE for key in answered["items"][0])
    assert measured.keys() == {"recall", "k", "queries", "seed"}
    assert "of `measure_recall`: recall, k, queries, seed;" in PAGE


def test_columns_of_logs():
    assert documented("Interaction logs") == set(COLUMNS)


def test_training_run(trained_workdir):
    files = {path.name for path in trained_workdir.iterdir()}
    always = {"config.json", "model.json", "preprocessing.json", "tokenizer.model", "metrics.jsonl", "lock"}
    folders = {"checkpoints", "tensorboard"}
    assert files == always | folders
    assert {name.partition("/")[0] for name in documented("Training run")} >= files
    newest = max((trained_workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    parts = {path.name for path in newest.iterdir() if path.is_dir()}
    assert parts == {"state", "iterator", "metrics_of_step", "run"}
    assert all(f"`{part}`" in PAGE for part in parts)
    lines = [json.loads(line) for line in (trained_workdir / "metrics.jsonl").read_text().splitlines()]
    trained = set().union(*(line for line in lines if "loss" in line))
    assert trained == documented("Training run", table=1) - {"mfu"}  # no peak is known of a CPU


def test_model_folder(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    written = read(tmp_path / "model" / "model.json")
    assert written.keys() == documented("Model", table=1)
    assert written["architecture"].keys() == {
        "image_size", "patch_size", "image", "text", "vocab_size", "text_length", "text_head", "naflex"
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "model").iterdir()} == documented("Model") - {"tokenizer.json"}
    fields = set(siglip_jax.Preprocessing.__dataclass_fields__) - {"tokenizer"} | {"tokenizer_sha256"}
    assert read(tmp_path / "model" / "preprocessing.json").keys() <= fields


def test_report(shop_dataset, tiny_config):
    items = read_split(shop_dataset, "test")
    random = np.random.default_rng(0)
    rankers = {name: VectorRanker(name, random.normal(size=(len(items.ids), 4))) for name in ("old", "new")}
    result = rank_by_attributes(list(rankers.values()), config=tiny_config, dataset=shop_dataset, items=items)
    compared = RankersToCompare(rankers=rankers, items=items, new="new", against="old")
    report = build_report(result, compared, title="t")
    assert report.keys() == documented("Report")
    for key in ("rows", "differences"):
        names = set().union(*report[key])
        assert names <= set(re.findall(r"\w+", PAGE.split(f"| `{key}` |", 1)[1].splitlines()[0]))
