"""Stores and files opened without copying their vectors, and everything that can be wrong with them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.embeddings import read_store, write_store
from eval.embeddings.embedding_files import read_embeddings
from eval.embeddings.stored_vectors import open_vectors
from siglip_jax.errors import UserError

N, D = 301, 7
IDS = [f"item {k}" for k in range(N)]
VECTORS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
MANIFEST = {"model": {"name": "cnn"}, "preprocessing": None, "dataset": {}}


def store(folder, vectors=VECTORS, ids=IDS):
    write_store(folder, [(ids, vectors)], manifest=MANIFEST, rows_per_shard=128)
    return folder


def lists(vectors=VECTORS, ids=IDS):
    flat = pa.array(vectors.reshape(-1))
    return pa.table({"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])})


def write(path, kind, vectors=VECTORS, ids=IDS):
    plain = dict(compression="none", use_dictionary=False)
    match kind:
        case "store":
            return store(path / "store", vectors, ids)
        case "npz":
            np.savez(path / "v.npz", ids=np.array(ids), embeddings=vectors)
        case "compressed npz":
            np.savez_compressed(path / "v.npz", ids=np.array(ids), embeddings=vectors)
        case "npy":
            np.save(path / "v.npy", vectors)
            (path / "v.ids.txt").write_text("\n".join(ids) + "\n")
        case "csv":
            rows = [",".join([item, *map(str, vector)]) for item, vector in zip(ids, vectors.tolist(), strict=True)]
            (path / "v.csv").write_text("\n".join(["id," + ",".join(f"v{k}" for k in range(vectors.shape[1])), *rows]))
        case "parquet":
            pq.write_table(lists(vectors, ids), path / "v.parquet", **plain)
        case "pages":
            # Many groups and pages, whose headers have a checksum and statistics.
            pq.write_table(
                lists(vectors, ids), path / "v.parquet", row_group_size=97, data_page_size=200, write_batch_size=5,
                write_page_checksum=True, **plain,
            )  # fmt: skip
        case "pages of version 2":
            pq.write_table(
                lists(vectors, ids), path / "v.parquet", data_page_version="2.0", data_page_size=300, **plain
            )
        case "compressed parquet":
            pq.write_table(lists(vectors, ids), path / "v.parquet")
        case "lists":
            pq.write_table(pa.table({"id": ids, "embedding": [v.tolist() for v in vectors]}), path / "v.parquet")
    return next(each for each in path.iterdir() if each.suffix in (".npz", ".npy", ".csv", ".parquet"))


MAPPED = ("store", "npz", "npy", "parquet", "pages", "pages of version 2")
COPIED = ("compressed npz", "csv", "compressed parquet", "lists")


@pytest.mark.parametrize("kind", [*MAPPED, *COPIED])
def test_as_written_and_mapped_where_the_format_allows(kind, tmp_path):
    found = open_vectors(write(tmp_path, kind))
    assert found.ids.to_pylist() == IDS
    assert np.array_equal(np.concatenate(found.parts), VECTORS)
    assert found.dimension == D
    assert all(isinstance(part, np.memmap) for part in found.parts) == (kind in MAPPED)
    assert (found.copied_bytes == 0) == (kind in MAPPED)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("kind", ["npz", "npy", "parquet"])
def test_keeps_the_type_that_the_file_has(kind, dtype, tmp_path):
    found = open_vectors(write(tmp_path, kind, VECTORS.astype(dtype)))
    assert found.copied_bytes == 0
    assert {part.dtype for part in found.parts} == {np.dtype(dtype)}
    assert np.array_equal(np.concatenate(found.parts), VECTORS.astype(dtype))


def test_lists_that_run_over_the_end_of_a_page_are_copied(tmp_path, monkeypatch):
    """pyarrow ends pages at rows; others need not."""
    path = write(tmp_path, "pages")
    monkeypatch.setattr("eval.embeddings.mapped_files._pages", lambda *_: iter([(4, 10), (60, N * D - 10)]))
    found = open_vectors(path)
    assert found.copied_bytes == VECTORS.nbytes
    assert np.array_equal(found.parts[0], VECTORS)


def test_nulls_are_not_taken_for_numbers(tmp_path):
    table = lists()
    column = pa.array([None, *table["embedding"].to_pylist()[1:]], table.schema.field("embedding").type)
    pq.write_table(table.set_column(1, "embedding", column), tmp_path / "v.parquet", compression="none")
    with pytest.raises(UserError, match="nulls"):
        open_vectors(tmp_path / "v.parquet")


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet", "store"])
def test_fingerprint_is_of_the_content(kind, tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    same = [open_vectors(write(tmp_path / name, kind)).sha256 for name in ("a", "b")]
    others = [
        open_vectors(write(tmp_path / "c", kind, -VECTORS)).sha256,
        open_vectors(write(tmp_path / "d", kind, ids=IDS[::-1])).sha256,
    ]
    assert len({same[0], *others}) == 3
    assert kind == "npz" or same[0] == same[1]  # zip archives may hold times


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet", "store"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.98])
def test_files_that_are_cut_short(kind, kept, tmp_path):
    path = write(tmp_path, kind)
    file = sorted(path.glob("*.parquet"))[1] if kind == "store" else path
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=str(path)):
        open_vectors(path)


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet"])
def test_an_id_that_occurs_twice(kind, tmp_path):
    path = write(tmp_path, kind, ids=[*IDS[:-1], IDS[5]])
    for read in (open_vectors, read_embeddings):
        with pytest.raises(UserError, match="id 'item 5' occurs twice"):
            read(path if read is open_vectors else str(path))


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_more_vectors_than_ids(kind, tmp_path):
    with pytest.raises(UserError, match="300 ids for 301 embeddings"):
        open_vectors(write(tmp_path, kind, ids=IDS[:-1]))


def test_what_is_no_file_of_vectors(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "v.txt").write_text("no")
    np.savez(tmp_path / "flat.npz", ids=np.array(["a"]), embeddings=np.ones(1))
    for name, said in (
        ("empty", "no manifest.json"),
        ("v.txt", "expected embeddings as"),
        ("absent.npz", "no such file"),
        ("flat.npz", r"float64 \[1\]; expected numbers"),
    ):
        with pytest.raises(UserError, match=said):
            open_vectors(tmp_path / name)


def test_a_store_of_several_pages_is_read_by_all(tmp_path):
    """The vectors of a shard are one page now; those of earlier versions are pages of a megabyte."""
    folder = store(tmp_path / "store")
    assert np.array_equal(read_store(folder).vectors, VECTORS)
    assert len(open_vectors(folder).parts) == 3  # shards
