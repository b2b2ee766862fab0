"""Embeddings from files: every kind reads to the same, and what is no such file is said in one sentence."""

import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.embeddings import embedding_files
from eval.embeddings.embedding_files import read_embeddings
from siglip_jax.errors import UserError

IDS = ["7", "a b", "東京", "x,y"]
VECTORS = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)


def write(path, ids=IDS, vectors=VECTORS, kind=""):
    match path.suffix:
        case ".npy":
            np.save(path, vectors)
            path.with_suffix(".ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        case ".npz":
            np.savez_compressed(path, ids=np.array(ids), embeddings=vectors)
        case ".csv":
            header = ",".join(["id", *(f"v{i}" for i in range(vectors.shape[1]))])
            numbers = [",".join(f"{x:.9g}" for x in row) for row in vectors]
            lines = [f'"{item}",{row}' for item, row in zip(ids, numbers, strict=True)]
            path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        case ".parquet":
            if kind == "columns":
                table = pa.table({"id": ids} | {f"v{i}": column for i, column in enumerate(vectors.T.copy())})
            else:
                types = {"list": pa.list_(pa.float32()), "fixed": pa.list_(pa.float16(), vectors.shape[1])}
                rows = pa.array(list(vectors.astype(np.float16 if kind == "fixed" else np.float32)), types[kind])
                table = pa.table({"id": ids, "title": ids, "embedding": rows})
            pq.write_table(table, path)
    return str(path)


KINDS = [(".npy", ""), (".npz", ""), (".csv", ""), (".parquet", "columns"), (".parquet", "list"), (".parquet", "fixed")]


@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_every_kind(tmp_path, suffix, kind):
    found = read_embeddings(write(tmp_path / f"mine{suffix}", kind=kind))
    assert found.ids == IDS
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, VECTORS, atol=2e-3 if kind == "fixed" else 0)
    vectors, more = found.aligned(["東京", "7"])
    np.testing.assert_array_equal(vectors, found.vectors[[2, 0]])
    assert more == 2
    with pytest.raises(UserError, match=r"no embedding of 2 of the 3 items, 'nobody' the first"):
        found.aligned(["7", "nobody", "none"])


def test_vectors_without_direction_are_refused_where_they_are_asked_for(tmp_path):
    vectors = VECTORS.copy()
    vectors[1] = 0
    vectors[3, 2] = np.inf
    found = read_embeddings(write(tmp_path / "mine.npy", vectors=vectors))
    found.aligned(["7", "東京"])
    for item, what in (("a b", "is zero"), ("x,y", "NaN or infinity")):
        with pytest.raises(UserError, match=f"'{item}' .*{what}"):
            found.aligned([item])


def test_pickles_stay_shut(tmp_path):
    np.save(tmp_path / "mine.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "mine.ids.txt").write_text("a\n")
    np.savez(tmp_path / "mine.npz", ids=np.array([{}]), embeddings=VECTORS, allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("ids.npy", pickle.dumps([1]))
        archive.writestr("embeddings.npy", pickle.dumps([1]))
    for name in ("mine.npy", "mine.npz", "raw.npz"):
        with pytest.raises(UserError, match="cannot be read as embeddings"):
            read_embeddings(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("a.npy", {"ids": IDS[:3]}, "3 ids for 4 embeddings"),
        ("a.npy", {"vectors": VECTORS[0]}, "float32"),
        ("a.npz", {"ids": ["a", "b", "a", "c"]}, "id 'a' occurs twice"),
        ("a.npz", {"vectors": VECTORS.astype(str)}, "expected numbers"),
        ("a.npz", {"vectors": VECTORS[:, :0]}, "expected numbers"),
    ],
)
def test_wrong_content(tmp_path, name, arguments, message):
    with pytest.raises(UserError, match=message):
        read_embeddings(write(tmp_path / name, **arguments))


def test_wrong_files(tmp_path, monkeypatch):
    for name, content, message in (
        ("a.pkl", b"x", "expected embeddings as .npy"),
        ("a.npz", b"x", "cannot be read"),
        ("a.parquet", b"x", "cannot be read"),
        ("a.npy", b"x", "no a.ids.txt beside it"),
        ("a.csv", b"item,v0\n1,2\n", "expected a header line id"),
        ("b.csv", b"id,v0\n1,2\n2\n", "cannot be read"),
        ("c.csv", b"id,v0\n1,two\n", "column v0 is string"),
        ("d.csv", b"id\n1\n", "0 columns beside id"),
        ("e.csv", b"id,v0,v1,price\n1,2,3,9\n", "columns 'price' beside id and 2 named v0"),
        ("f.csv", b"id,v1,v0\n1,2,3\n", "in order"),
        ("g.csv", b"id,price\n1,9\n", "columns 'price' beside id; expected"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_embeddings(str(tmp_path / name))
    for name in ("none.npy", "none", "none.pkl"):
        with pytest.raises(UserError, match="no such file"):
            read_embeddings(str(tmp_path / name))
    pq.write_table(pa.table({"id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}), tmp_path / "uneven.parquet")
    with pytest.raises(UserError, match="lengths 1, 2"):
        read_embeddings(str(tmp_path / "uneven.parquet"))
    pq.write_table(pa.table({"id": ["a", None], "v0": [1.0, 2.0]}), tmp_path / "null.parquet")
    with pytest.raises(UserError, match="1 rows without an id"):
        read_embeddings(str(tmp_path / "null.parquet"))
    bomb = write(tmp_path / "big.npz", ids=["a"] * 1, vectors=np.zeros((1, 1 << 16), np.float32))
    monkeypatch.setattr(embedding_files, "MAX_BYTES", 1 << 16)
    with pytest.raises(UserError, match="the limit is"):
        read_embeddings(bomb)


def test_several_files_are_one_after_the_other(tmp_path):
    for part in range(3):
        folder = tmp_path / f"part={part}"
        folder.mkdir()
        write(folder / "mine.csv", [f"{item} {part}" for item in IDS], VECTORS + part)
    ids = [f"{item} {part}" for part in range(3) for item in IDS]
    for named in ("part={0..2}/mine.csv", "part=*/mine.csv", "*/*.csv"):
        found = read_embeddings(str(tmp_path / named))
        assert found.ids == ids
        np.testing.assert_allclose(found.vectors, np.concatenate([VECTORS, VECTORS + 1, VECTORS + 2]), atol=1e-6)
    write(tmp_path / "part=1" / "mine.csv")
    write(tmp_path / "part=2" / "mine.csv")
    with pytest.raises(UserError, match="id '7' occurs twice"):
        read_embeddings(str(tmp_path / "part=*/mine.csv"))
    write(tmp_path / "part=2" / "mine.csv", vectors=VECTORS[:, :2])
    with pytest.raises(UserError, match=r"several lengths, .*has 5.*has 2; expected"):
        read_embeddings(str(tmp_path / "part={1..2}/mine.csv"))
    with pytest.raises(UserError, match="1 are missing"):
        read_embeddings(str(tmp_path / "part={0..3}/mine.csv"))
