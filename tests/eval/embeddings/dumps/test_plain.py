"""Plain dumps of a store, read back by the libraries that others read them with."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from eval.embeddings import read_store, write_store
from eval.embeddings.dumps.item_facts import ItemFacts
from eval.embeddings.dumps.plain import write_faiss, write_npy, write_parquet
from eval.embeddings.embedding_files import read_embeddings
from eval.embeddings.stored_rows import StoredRows
from eval.embeddings.stored_vectors import open_vectors
from siglip_jax.cli import main
from siglip_jax.errors import UserError

IDS = [f"ärt/{row}" for row in range(23)]


@pytest.fixture(params=["float32", "float16", "int8"])
def store(request, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(23, 6)).astype(np.float32)
    write_store(tmp_path / "store", [(IDS, vectors)], manifest={}, rows_per_shard=5, dtype=request.param)
    return tmp_path / "store"


def test_npy(store, tmp_path):
    said = write_npy(StoredRows(store), tmp_path / "out" / "v.npy")
    assert said == f"23 embeddings of 6 numbers in {tmp_path / 'out' / 'v.npy'}, ids in v.ids.txt"
    found = np.load(tmp_path / "out" / "v.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, read_store(store).vectors)
    assert (tmp_path / "out" / "v.ids.txt").read_text("utf-8").split("\n") == [*IDS, ""]
    assert read_embeddings(str(tmp_path / "out" / "v.npy")).ids == IDS
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["v.ids.txt", "v.npy"]


def test_parquet(store, tmp_path):
    facts = ItemFacts({item: row for row, item in enumerate(IDS[1:])}, [f"t{k}" for k in IDS[1:]], {"c": ["x"] * 22})
    said = write_parquet(StoredRows(store), tmp_path / "v.parquet", facts=facts)
    assert said.endswith("v.parquet; 1 items are not in the dataset, 'ärt/0' the first")
    table = pq.read_table(tmp_path / "v.parquet")
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), read_store(store).vectors)
    assert table["id"].to_pylist() == IDS
    assert table["title"].to_pylist() == [None, *(f"t{k}" for k in IDS[1:])]
    assert table["attributes"].to_pylist() == [None, *[{"c": "x"}] * 22]
    np.testing.assert_array_equal(read_embeddings(str(tmp_path / "v.parquet")).vectors, read_store(store).vectors)
    assert open_vectors(tmp_path / "v.parquet").copied_bytes == 0  # mapped, as a feature
    write_parquet(StoredRows(store), tmp_path / "bare.parquet")
    assert pq.read_schema(tmp_path / "bare.parquet").names == ["id", "embedding"]


def test_faiss(store, tmp_path):
    faiss = pytest.importorskip("faiss")
    write_faiss(StoredRows(store), tmp_path / "v.faiss")
    index = faiss.read_index(str(tmp_path / "v.faiss"))
    assert isinstance(index, faiss.IndexFlatIP)
    assert (index.ntotal, index.d, index.metric_type, index.is_trained) == (23, 6, faiss.METRIC_INNER_PRODUCT, True)
    exact = read_store(store).vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    np.testing.assert_allclose(index.reconstruct_n(0, 23), exact, atol=1e-7)
    scores, rows = index.search(exact.astype(np.float32), 3)
    expected = np.argsort(-(exact @ exact.T), axis=1)[:, :3]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact @ exact.T, expected, axis=1), atol=1e-6)
    assert (tmp_path / "v.ids.txt").read_text("utf-8").split() == IDS
    faiss.write_index(index, str(tmp_path / "theirs.faiss"))
    assert (tmp_path / "theirs.faiss").read_bytes() == (tmp_path / "v.faiss").read_bytes()


def test_the_command_and_what_it_refuses(tmp_path, capsys):
    write_store(tmp_path / "store", [(["a\nb"], np.ones((1, 2), np.float32))], manifest={})
    flags = ["export", f"--store={tmp_path / 'store'}"]
    for more, said in (
        (["--format=npy", "--output=v.faiss"], "expected a name in .npy for --format=npy"),
        (["--format=faiss", f"--output={tmp_path / 'v.faiss'}"], "holds a line break"),
        (["--format=faiss", f"--output={tmp_path / 'v.faiss'}", "--crowding=c"], "--crowding is of --format=vertex"),
    ):
        assert main([*flags, *more]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert main([*flags, "--format=parquet", f"--output={tmp_path / 'v.parquet'}"]) == 0
    assert f"1 embeddings of 2 numbers in {tmp_path / 'v.parquet'}" in capsys.readouterr().out
    assert main([*flags, "--format=parquet", f"--output={tmp_path / 'v.parquet'}"]) == 2
    (tmp_path / "v.ids.txt").write_text("mine")
    write_store(tmp_path / "lines", [(["a"], np.ones((1, 2), np.float32))], manifest={})
    with pytest.raises(UserError, match=r"v\.ids\.txt exists already"):
        write_npy(StoredRows(tmp_path / "lines"), tmp_path / "v.npy")
    assert (tmp_path / "v.ids.txt").read_text() == "mine"
    assert not (tmp_path / "v.npy").exists()
