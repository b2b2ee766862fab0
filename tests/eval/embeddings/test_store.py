"""The embedding store: round trips, what it refuses to write, what it refuses to read."""

import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings import read_store, write_store
from eval.embeddings.store import read_manifest, write_manifest, write_shard
from siglip_jax.errors import UserError

ABOUT = {"model": "tiny", "preprocessing": {"size": 32}, "dataset": {"fingerprint": "f00d"}}


def vectors(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def batches(v, ids, sizes):
    lo = 0
    for size in sizes:
        yield ids[lo : lo + size], v[lo : lo + size]
        lo += size


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any), st.integers(1, 9), st.integers(1, 4))
def test_round_trip_whatever_the_batches_and_shards(tmp_path_factory, sizes, rows_per_shard, d):
    folder = tmp_path_factory.mktemp("store")
    n = sum(sizes)
    v, ids = vectors(n, d), [f"ärt/{i}" for i in range(n)]
    written = write_store(folder, batches(v, ids, sizes), manifest=ABOUT, rows_per_shard=rows_per_shard)
    store = read_store(folder)
    np.testing.assert_array_equal(store.vectors, v)
    assert store.ids == ids
    assert store.manifest == written == read_manifest(folder)
    assert (store.manifest["count"], store.manifest["dimension"], store.manifest["model"]) == (n, d, "tiny")
    counts = [shard["count"] for shard in store.manifest["shards"]]
    assert counts == [rows_per_shard] * (n // rows_per_shard) + [n % rows_per_shard] * (n % rows_per_shard > 0)


def test_shards_are_plain_parquet_with_true_sums(tmp_path):
    v = vectors(5)
    manifest = write_store(tmp_path, [(list("abcde"), v)], manifest=ABOUT, rows_per_shard=3)
    for shard in manifest["shards"]:
        assert hashlib.sha256((tmp_path / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    table = pa.concat_tables([pq.read_table(tmp_path / s["file"]) for s in manifest["shards"]])
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert table["id"].to_pylist() == list("abcde")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), v)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "shard-00000.parquet", "shard-00001.parquet"]


def test_equal_input_writes_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_store(tmp_path / name, [(["x", "y"], vectors(2))], manifest=ABOUT)
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_parts_written_by_several_hosts_make_one_store(tmp_path):
    entries = [write_shard(tmp_path, 1, ["c"], vectors(1, seed=1)), write_shard(tmp_path, 0, ["a", "b"], vectors(2))]
    write_manifest(tmp_path, entries[::-1], manifest=ABOUT)
    assert read_store(tmp_path).ids == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"dimensions \[3, 4\]"):
        write_manifest(tmp_path, [*entries, write_shard(tmp_path, 2, ["d"], vectors(1, 4))], manifest=ABOUT)


def test_a_write_cut_off_leaves_no_store_and_a_new_write_replaces_all(tmp_path):
    write_store(tmp_path, [(["a", "b", "c"], vectors(3))], manifest=ABOUT, rows_per_shard=1)

    def dies():
        yield ["x"], vectors(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path, dies(), manifest=ABOUT, rows_per_shard=1)
    with pytest.raises(UserError, match="cut off"):
        read_store(tmp_path)
    write_store(tmp_path, [(["y"], vectors(1))], manifest=ABOUT)
    assert read_store(tmp_path).ids == ["y"]
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_partial_files_of_a_killed_write_are_replaced(tmp_path):
    for name in ("shard-00000.parquet", "shard-00001.parquet.partial", "manifest.json.partial"):
        (tmp_path / name).write_text("cut off")
    write_store(tmp_path, [(["y"], vectors(1))], manifest=ABOUT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "shard-00000.parquet"]


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": "mine"},
        {"shard-a.parquet": "mine", "shard-00000.parquet": "theirs"},
        {"manifest.json": '{"format": "siglip-jax index 1"}', "shard-00000.parquet": "theirs"},
        {"manifest.json": "{"},
        {"manifest.json": "[]"},
        {"sub/shard-00000.parquet": "mine"},
    ],
)
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="expected an empty or new folder"):
        write_store(tmp_path, [(["y"], vectors(1))], manifest=ABOUT)
    assert {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_a_file_is_no_folder_for_a_store(tmp_path):
    (tmp_path / "store").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        write_store(tmp_path / "store", [(["y"], vectors(1))], manifest=ABOUT)


def bad(row):
    v = vectors(3)
    v[1] = row
    return v


@pytest.mark.parametrize(
    ("given_batches", "message"),
    [
        ([(["a", "b", "c"], bad([1, np.nan, 1]))], "id 'b' holds NaN or infinity"),
        ([(["a", "b", "c"], bad([1, np.inf, 1]))], "id 'b' holds NaN or infinity"),
        ([(["a", "b", "c"], bad([0, 0, 0]))], "id 'b' holds only zeros"),
        ([(["a"], np.array([[1e300, 1.0]]))], "id 'a' holds NaN or infinity"),  # too large for float32
        ([(["a", "b"], vectors(3))], "2 ids \\(first id 'a'\\)"),
        ([(["a"], vectors(1)[0])], "expected floats"),
        ([(["a"], np.ones((1, 3), np.uint8))], "expected floats"),
        ([(["a"], vectors(1)), (["b"], vectors(1, 4))], "'b' has dimension 4, earlier ones 3"),
        ([(["a", "b"], vectors(2)), (["a"], vectors(1))], "'a' occurs twice"),
        ([([7], vectors(1))], "id 7"),
        ([([""], vectors(1))], "non-empty"),
        ([], "no embedding was given"),
    ],
)
def test_refuses_to_write(tmp_path, given_batches, message):
    with pytest.raises(UserError, match=message):
        write_store(tmp_path / "s", given_batches, manifest=ABOUT)
    assert not (tmp_path / "s" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("about", "message"), [({"count": 3}, "'count'"), ({"x": np.float32(1)}, "JSON"), ({"x": float("nan")}, "JSON")]
)
def test_refuses_manifests(tmp_path, about, message):
    with pytest.raises(UserError, match=message):
        write_store(tmp_path, [(["a"], vectors(1))], manifest=about)


def store_with(tmp_path, change):
    write_store(tmp_path, [(["a", "b", "c"], vectors(3))], manifest=ABOUT, rows_per_shard=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    change(tmp_path, manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))


def tamper(folder, manifest):
    path = folder / "shard-00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def repeat(folder, manifest):
    manifest["shards"][1] = {k: v for k, v in write_shard(folder, 1, ["a"], vectors(1)).items() if k != "dimension"}


def huge(folder, manifest):
    """Counts that agree with each other, not with the files: nothing may be allocated by them."""
    manifest["shards"][0]["count"] = 10**12
    manifest["count"] = 10**12 + 1


def cell(value):
    return pa.array([value], pa.list_(pa.float32(), 3))


def table(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def reshard(folder, manifest, content):
    (folder / "shard-00001.parquet").write_bytes(content)
    manifest["shards"][1]["sha256"] = hashlib.sha256(content).hexdigest()


def other_dimension(folder, manifest):
    manifest["shards"][1] = write_shard(folder, 1, ["c"], vectors(1, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tamper, "shard-00001.parquet is not what was written"),
        (lambda folder, m: (folder / "shard-00001.parquet").unlink(), "shard-00001.parquet is missing"),
        (lambda folder, m: m["shards"][0].update(file="../elsewhere/shard-00000.parquet"), "a file name"),
        (lambda folder, m: m["shards"].pop(), "2 rows in the shards, 3 in the manifest"),
        (lambda folder, m: m.update(count=2), "3 rows in the shards, 2 in the manifest"),
        (lambda folder, m: [s.update(count=3 - s["count"]) for s in m["shards"]], "holds 2 rows, not 1"),
        (huge, "holds 2 rows, not 1000000000000"),
        (lambda folder, m: m.update(count="3"), "count '3': expected a whole number from 1"),
        (lambda folder, m: m.update(count=0), "count 0"),
        (lambda folder, m: m.update(dimension=True), "dimension True"),
        (lambda folder, m: m.update(dimension=-3), "dimension -3"),
        (lambda folder, m: m.update(dimension=2**40), "expected id string, embedding float32 of 1099511627776"),
        (lambda folder, m: m.update(shards=7), "has shard 7: expected a list"),
        (lambda folder, m: m.update(shards=m["shards"][0]), "expected a list"),
        (lambda folder, m: m.update(shards=["shard-00000.parquet"]), "expected a list"),
        (lambda folder, m: m["shards"][0].pop("sha256"), "expected a list"),
        (lambda folder, m: m["shards"][0].update(count=True), "a whole number"),
        (lambda folder, m: m["shards"][0].update(file=".."), "a file name"),
        (lambda folder, m: reshard(folder, m, b"no parquet"), "is not Parquet"),
        (lambda folder, m: reshard(folder, m, table(id=pa.array(["c"]))), "holds id string: expected"),
        (lambda folder, m: reshard(folder, m, table(id=pa.array([7]), embedding=cell([1, 2, 3]))), "holds id int64"),
        (lambda folder, m: reshard(folder, m, table(id=pa.array(["c"]), embedding=cell(None))), "null"),
        (lambda folder, m: reshard(folder, m, table(id=pa.array(["c"]), embedding=cell([1, None, 3]))), "null"),
        (
            lambda folder, m: reshard(folder, m, table(id=pa.array([None], pa.string()), embedding=cell([1, 2, 3]))),
            "null",
        ),
        (lambda folder, m: m.update(dimension=4), "expected id string, embedding float32 of 4"),
        (lambda folder, m: m.update(format="other"), "not of format"),
        (lambda folder, m: m.update(skipped="none"), "has skipped none: expected a list"),
        (lambda folder, m: m.update(skipped=[{"row": -1, "id": "d", "reason": "gone"}]), "has skipped .'row': -1"),
        (lambda folder, m: m.update(skipped=[{"row": 3, "id": 4, "reason": "gone"}]), "expected a list of"),
        (repeat, "'a' occurs twice"),
        (other_dimension, "expected id string, embedding float32 of 3"),
    ],
)
def test_refuses_to_read(tmp_path, change, message):
    store_with(tmp_path, change)
    with pytest.raises(UserError, match=message) as error:
        read_store(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder_and_broken_manifest(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_store(tmp_path / "none")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_store(tmp_path)


@pytest.mark.skipif(not pathlib.Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_reading_starts_no_thread(tmp_path):
    """A thread of Arrow's that still holds a shard aborted a program that ended just then, about once in three."""
    write_store(tmp_path / "store", [(["a", "b"], np.eye(2, dtype=np.float32))], manifest={})
    program = f"""
import os
import pyarrow.parquet
from eval.embeddings.store import read_store
before = len(os.listdir("/proc/self/task"))
read_store({str(tmp_path / "store")!r})
print(len(os.listdir("/proc/self/task")) - before)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "0"
