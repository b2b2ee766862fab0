"""Embedding with --on_error=skip: a damaged record and a damaged picture are named and recorded, and missed later."""

import json
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from eval.comparison.items import Items
from eval.embeddings import read_store, write_store
from eval.embeddings.store import describe_skipped, read_manifest, write_manifest, write_shard
from eval.protocols import AttributeRelevance, Measures, rank_catalogue
from eval.rankers.baselines import raw_pixels
from eval.search import load_index
from input_pipeline.dataset import Split, attributes, open_split
from siglip_jax import cli
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from tools.workflow.embedding import embed, load_encoder

PICTURE, RECORD = 5, 19  # rows of either split whose picture is cut short, whose record fails its checksum
BAD = [PICTURE, RECORD]
NEVER = -1


@pytest.fixture(scope="module")
def spoilt(shop_dataset, tmp_path_factory):
    """A copy of the dataset that rotted after it was built."""
    folder = tmp_path_factory.mktemp("spoilt") / "shop"
    shutil.copytree(shop_dataset, folder)
    for split in ("train", "test"):
        spoil(folder, split)
    return folder


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def spoil(folder, split):
    rows = open_split(folder, split)
    within = rows[RECORD]["image_sha256"].encode()
    name, start, stop = rows.shard_of(RECORD)
    assert start <= PICTURE < stop
    path = folder / name
    reader = ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = tf_example_pb2.Example.FromString(records[PICTURE - start])
    image = example.features.feature["image"].bytes_list
    image.value[0] = image.value[0][:60]
    records[PICTURE - start] = example.SerializeToString(deterministic=True)
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()
    content = bytearray(path.read_bytes())
    place = content.index(within)
    content[place : place + 4] = b"\0\0\0\0"
    path.write_bytes(content)


@pytest.fixture(scope="module")
def ids(shop_dataset):
    return {split: attributes(shop_dataset, split)[0] for split in ("train", "test")}


@pytest.fixture(scope="module")
def flags(trained_workdir, spoilt):
    return [f"--model={trained_workdir}", f"--dataset={spoilt}", "--split=train", "--rows_per_shard=16"]


@pytest.fixture(scope="module")
def in_one_go(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("stores") / "whole"
    assert cli.main(["embed", *flags, "--on_error=skip", f"--output={output}"]) == 0
    return output


def test_skipped_rows_are_named_recorded_and_nothing_else_changes(
    flags, spoilt, shop_dataset, trained_workdir, ids, tmp_path, capsys
):
    assert cli.main(["embed", *flags, f"--output={tmp_path / 'store'}"]) == 2
    assert f"row {PICTURE}, id {ids['train'][PICTURE]}: not a readable picture" in capsys.readouterr().err
    # The same command with the flag goes on from there.
    assert cli.main(["embed", *flags, "--on_error=skip", f"--output={tmp_path / 'store'}"]) == 0
    out = capsys.readouterr().out
    assert "2 rows of split train skipped" in out
    store = read_store(tmp_path / "store")
    assert [(each["row"], each["id"]) for each in store.skipped] == [(row, ids["train"][row]) for row in BAD]
    assert store.skipped[0]["reason"].startswith("not a readable picture")
    assert store.skipped[1]["reason"].startswith("damaged record (")
    for each in store.skipped:
        assert f"row {each['row']}, id {each['id']}: {each['reason'][:30]}" in out
    assert len(max(out.splitlines(), key=len)) < 400
    whole = embed(load_encoder(str(trained_workdir)), dataset=shop_dataset, split="train", output=tmp_path / "unharmed")
    assert whole.skipped == []
    assert "skipped" not in whole.manifest
    kept = np.setdiff1d(np.arange(len(whole.ids)), BAD)
    assert store.ids == [whole.ids[row] for row in kept]
    np.testing.assert_allclose(store.vectors, whole.vectors[kept], atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_continues(flags, in_one_go, python, embed_script, tmp_path):
    """Killed once after the shard that lacks a picture, once after the one that lacks a record; the same bytes."""
    output = tmp_path / "store"
    skipping = [*flags, "--on_error=skip", f"--output={output}"]
    for last in (PICTURE // 16, RECORD // 16):
        done = python(embed_script, last, *skipping)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert cli.main(["embed", *skipping]) == 0
    assert files_of(output) == files_of(in_one_go)


def test_an_unfinished_store_with_skips_does_not_serve_a_run_that_may_not_skip(
    flags, python, embed_script, tmp_path, capsys
):
    output = tmp_path / "store"
    python(embed_script, 1, *flags, "--on_error=skip", f"--output={output}")
    assert cli.main(["embed", *flags, f"--output={output}"]) == 2
    assert f"row {PICTURE}, id " in capsys.readouterr().err


def test_a_complete_store_with_skips_is_kept_or_refused(flags, in_one_go, tmp_path, capsys):
    output = tmp_path / "store"
    shutil.copytree(in_one_go, output)
    assert cli.main(["embed", *flags, f"--output={output}"]) == 2
    error = capsys.readouterr().err
    assert f"lacks 2 rows that could not be read (row {PICTURE}, id " in error
    assert "--overwrite" in error
    assert files_of(output) == files_of(in_one_go)
    assert cli.main(["embed", *flags, "--on_error=skip", f"--output={output}"]) == 0
    assert "2 rows of split train skipped" in capsys.readouterr().out
    assert files_of(output) == files_of(in_one_go)


@pytest.mark.slow
def test_two_processes(flags, in_one_go, embed_in_two, tmp_path):
    output = tmp_path / "store"
    embed_in_two(*flags, "--on_error=skip", f"--output={output}")
    assert files_of(output) == files_of(in_one_go)


def test_a_shard_of_nothing_but_skipped_rows(spoilt, trained_workdir, ids, tmp_path, monkeypatch):
    options = dict(dataset=spoilt, split="train", rows_per_shard=1, on_error="skip")
    store = embed(load_encoder(str(trained_workdir)), output=tmp_path / "store", **options)
    assert store.ids == [item for row, item in enumerate(ids["train"]) if row not in BAD]
    assert [each["row"] for each in store.skipped] == BAD
    assert not (tmp_path / "store" / f"shard-{PICTURE:05d}.parquet").exists()
    plain = Split.__getitems__
    cut = lambda self, rows: [record | {"image": b"x"} for record in plain(self, rows)]  # noqa: E731
    monkeypatch.setattr(Split, "__getitems__", cut)
    with pytest.raises(UserError, match=r"none of the 3 rows could be read \(row 0, id .*: not a readable"):
        embed(load_encoder(str(trained_workdir)), output=tmp_path / "none", most=3, **options)


# --- downstream -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(spoilt, trained_workdir, ids, tmp_path_factory):
    """A store that lacks the two, and one that lacks only the picture, as made before the record was damaged."""
    folder = tmp_path_factory.mktemp("downstream")
    line = [f"--model={trained_workdir}", f"--dataset={spoilt}", "--on_error=skip", f"--output={folder / 'two'}"]
    assert cli.main(["embed", *line]) == 0
    manifest = read_manifest(folder / "two")
    kept = [item for row, item in enumerate(ids["test"]) if row != PICTURE]
    (folder / "one").mkdir()
    shard = write_shard(folder / "one", 0, kept, np.random.default_rng(0).normal(size=(len(kept), 6)))
    about = {name: manifest[name] for name in ("model", "preprocessing", "dataset")}
    write_manifest(folder / "one", [shard], manifest=about, skipped=manifest["skipped"][:1])
    return folder


def ranked(stores, config_file, *flags, out):
    line = ["rank", f"--config={config_file}", f"--output={out}", "--scann=none", f"--store=one={stores / 'one'}"]
    assert cli.main([*line, f"--store=two={stores / 'two'}", *flags]) == 0
    return json.loads(out.with_suffix(".json").read_text())


def test_rank_says_what_is_missing_and_every_row_ranks_the_same_items(
    stores, spoilt, shop_dataset, config_file, tiny_config, ids, tmp_path, capsys
):
    report = ranked(stores, config_file, f"--dataset={spoilt}", "--ladder=two", out=tmp_path / "report.html")
    out = capsys.readouterr().out
    picture, record = (ids["test"][row] for row in BAD)
    assert (
        "2 items are missing from every row, as queries and as candidates: they could not be read when store 'two'"
        in (" ".join(out.split()))
    )
    assert f"({picture}, {record})" in " ".join(out.split())
    assert {name: [each["id"] for each in found] for name, found in report["missing"].items()} == {
        "one": [picture], "two": [picture, record]}  # fmt: skip
    assert "missing from every row" in (tmp_path / "report.html").read_text()
    assert report["items"] == len(ids["test"]) - 2
    assert [row["name"] for row in report["rows"]] == ["random", "raw pixels", "one", "two"]
    # Against the sound dataset without the two.
    kept = np.setdiff1d(np.arange(len(ids["test"])), BAD)
    _, titles, columns = attributes(shop_dataset, "test")
    known = {name: [values[row] for row in kept] for name, values in {"title": titles, **columns}.items()}
    relevance = AttributeRelevance(tuple(tiny_config.evaluation.relevance), known)
    one = read_store(stores / "one")
    pixels = Preprocessing(image_size=(32, 32))
    rows = open_split(shop_dataset, "test")
    vectors = {
        "two": read_store(stores / "two").vectors,
        "one": one.vectors[[one.ids.index(ids["test"][row]) for row in kept]],
        "raw pixels": raw_pixels(np.stack([pixels.image(rows[int(row)]["image"]) for row in kept])),
    }
    measures = Measures(tuple(tiny_config.evaluation.metrics), tiny_config.evaluation.gain)
    for row in report["rows"][1:]:
        for metric, values in rank_catalogue(vectors[row["name"]], relevance, measures).metrics.items():
            assert row["exact"][metric]["mean"] == pytest.approx(np.nanmean(values), abs=1e-9), (row["name"], metric)


@pytest.mark.parametrize("with_dataset", [True, False])
def test_rank_over_logs_says_it_too(stores, spoilt, shop_dataset, config_file, ids, tmp_path, capsys, with_dataset):
    log = tmp_path / "log.parquet"
    line = ["simulate", f"--config={config_file}", f"--dataset={shop_dataset}", "--length=8", "--queries=200"]
    assert cli.main([*line, f"--output={log}"]) == 0
    flags = [f"--logs={log}", "--protocol=logged_lists", *([f"--dataset={spoilt}"] if with_dataset else [])]
    report = ranked(stores, config_file, *flags, f"--per_query={tmp_path / 'q.parquet'}", out=tmp_path / "report.html")
    assert "2 items are missing from every row" in " ".join(capsys.readouterr().out.split())
    assert report["items"] == len(ids["test"]) - 2
    assert report["log"]["unknown_items"] == 2
    assert not {ids["test"][row] for row in BAD} & set(pq.read_table(tmp_path / "q.parquet")["query_item"].to_pylist())


def test_a_store_that_lacks_items_without_a_word_is_refused(stores, spoilt, config_file, ids, tmp_path, capsys):
    write_store(tmp_path / "few", [(ids["test"][:3], np.eye(3))], manifest={})
    line = ["rank", f"--config={config_file}", f"--dataset={spoilt}", f"--output={tmp_path / 'r.html'}", "--scann=none"]
    assert cli.main([*line, f"--store=two={stores / 'two'}", f"--store=few={tmp_path / 'few'}"]) == 2
    assert "store 'few' holds 3 items that are not the" in capsys.readouterr().err


def test_an_index_says_and_keeps_what_is_missing(stores, ids, tmp_path, capsys):
    assert cli.main(["index", f"--store={stores / 'two'}", f"--output={tmp_path / 'index'}"]) == 0
    assert f"2 items are not in the index, since they could not be read to be embedded: row {PICTURE}, id " in (
        capsys.readouterr().out
    )
    assert [each["id"] for each in load_index(tmp_path / "index").missing] == [ids["test"][row] for row in BAD]


def test_many_skipped_rows_are_told_in_one_line():
    skipped = [{"row": row, "id": "" if row else "a", "reason": "gone"} for row in range(9)]
    assert describe_skipped([skipped[0] | {"reason": "word " * 50}]) == f"row 0, id a: {'word ' * 15}..."
    assert describe_skipped(skipped) == (
        "row 0, id a: gone; row 1: gone; row 2: gone; row 3: gone; row 4: gone; and 4 more"
    )
    items = Items([], [], {}, [], {"new": [{**each, "id": f"i{each['row']}"} for each in skipped * 2]})
    (warning,) = items.warnings()
    assert warning.startswith("18 items are missing")
    assert warning.endswith("i8, i0, ...).")
