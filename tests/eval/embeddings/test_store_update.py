"""Generations of a store: killed anywhere in an update it is the old or the new one; and stores of smaller numbers."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings import read_store, write_store
from eval.embeddings.entries import Entries, joined_inputs, mean_vectors, picture_input, vector_inputs
from eval.embeddings.store import write_manifest
from eval.embeddings.store_shards import DTYPES, ShardRows, write_rows
from eval.embeddings.stored_rows import StoredRows
from eval.embeddings.stored_vectors import open_vectors
from eval.search import build_index
from siglip_jax.errors import UserError

# Updates copies of a store in children that are killed before their n-th change of a file, for n = 0, 1, ... until one
# is not killed; prints what the store is after each, and after an update of what was left.
KILLED = """
import json, os, pathlib, shutil, signal, sys
import numpy as np
from eval.embeddings import read_store
from eval.embeddings.sharded_writer import EmbeddingPlan
from eval.embeddings.store_shards import ShardRows
from eval.embeddings.stored_rows import StoredRows

source = pathlib.Path(sys.argv[1])
changes = {"open": lambda path, mode, flags: bool(flags & (os.O_WRONLY | os.O_RDWR)), "os.rename": lambda *_: True,
           "os.remove": lambda *_: True}

def update(folder):
    stored = StoredRows(folder)
    ids = [str(row) for row in range(7) if row != 2]
    plan = EmbeddingPlan(folder=folder, manifest={"model": {}}, rows=6, rows_per_shard=2, updates=stored.manifest)
    plan.claim()
    for number, rows in enumerate(plan.shards()):
        if not plan.is_finished(number):
            some = [ids[row] for row in rows]
            plan.write(number, ShardRows.of(some, np.array([[float(item), 1.0] for item in some]), dtype="float32"))
    plan.complete()

def generation(folder):
    return read_store(folder).generation

found = []
for moment in range(1000):
    folder = source.parent / f"copy-{moment}"
    shutil.copytree(source, folder)
    child = os.fork()
    if not child:
        left = [moment]
        def hook(event, arguments):
            if event in changes and str(arguments[0]).startswith(str(folder)) and changes[event](*arguments):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
        sys.addaudithook(hook)
        update(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    at_once = generation(folder)
    update(folder)
    found.append([at_once, generation(folder), sorted(path.name for path in folder.iterdir())])
    shutil.rmtree(folder)
    if not status:
        break
print(json.dumps(found))
"""


def test_killed_anywhere_it_is_the_old_or_the_new(python, tmp_path):
    vectors = np.array([[row, 1.0] for row in range(6)], np.float32)
    write_store(tmp_path / "store", [(list("012345"), vectors)], manifest={"model": {}}, rows_per_shard=2)
    old = read_store(tmp_path / "store").generation
    done = python(KILLED, tmp_path / "store")
    assert done.returncode == 0, done.stderr
    *killed, (_, new, files) = json.loads(done.stdout)
    assert len(killed) > 15  # two files of each shard and of the plan, the manifest, and what is deleted at the end
    assert [at_once for at_once, _, _ in killed] == sorted((at_once for at_once, _, _ in killed), key=[old, new].index)
    assert {at_once for at_once, _, _ in killed} == {old, new}
    assert {after for _, after, _ in killed} == {new}
    assert not any(name.endswith((".partial", "plan.json")) for _, _, names in killed for name in names)
    assert "shard-00000.parquet" in files  # equal in both, so it is the same file


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_rows_by_id_from_any_shards(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("stored")
    n, dtype = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(DTYPES))
    vectors = np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32)
    ids = [f"ä{row}" for row in range(n)]
    write_store(folder, [(ids, vectors)], manifest={}, rows_per_shard=data.draw(st.integers(1, 5)), dtype=dtype)
    whole = read_store(folder)
    stored = StoredRows(folder)
    chosen = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    taken = stored.take(chosen)
    assert taken.ids == [ids[row] for row in chosen]
    assert taken.vectors().tobytes() == whole.vectors[chosen].tobytes()
    assert [stored.places[item] for item in taken.ids] == chosen.tolist()


def test_rows_in_order_read_each_shard_once(tmp_path, monkeypatch):
    """Few shards are in memory at a time, however large the store."""
    vectors = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    write_store(tmp_path, [([str(row) for row in range(60)], vectors)], manifest={}, rows_per_shard=3)
    module = sys.modules[StoredRows.__module__]
    read, plain = [], module.read_rows
    monkeypatch.setattr(module, "read_rows", lambda *args, **kw: read.append(args[1]["file"]) or plain(*args, **kw))
    stored = StoredRows(tmp_path)
    assert not read  # ids alone
    for start in range(1, 57, 7):  # shards of another size, some rows gone
        stored.take(np.delete(np.arange(start, start + 7), 3))
    assert read == [f"shard-{number:05d}.parquet" for number in range(19)]
    assert stored._shard.cache_info().currsize == 4


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_cosines_of_smaller_numbers(tmp_path, dtype):
    """Within what their rounding can do: half a step for each number of a vector."""
    random = np.random.default_rng(0)
    exact = random.normal(size=(60, 96)) * np.exp(random.normal(size=(60, 96)))  # some numbers far larger than others
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    ids = [str(row) for row in range(60)]
    write_store(tmp_path / "store", [(ids, exact.astype(np.float32))], manifest={}, rows_per_shard=25, dtype=dtype)
    store = read_store(tmp_path / "store")
    assert store.vectors.dtype == np.float32
    kept = store.vectors.astype(np.float64)
    step = np.abs(exact).max(axis=1, keepdims=True) / 127 if dtype == "int8" else 2.0**-10 * np.abs(exact) + 2.0**-24
    assert (np.abs(kept - exact) <= step / 2 + 1e-7).all()
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    # |cos(x', y') - cos(x, y)| <= |x' - x| + |y' - y| for unit vectors; normalising at most doubles an error.
    bound = 2 * np.linalg.norm(np.broadcast_to(step / 2, exact.shape) + 1e-7, axis=1)
    difference = np.abs(kept @ kept.T - exact @ exact.T)
    assert (difference <= bound[:, None] + bound).all()
    assert difference.max() < {"float16": 1e-3, "int8": 2e-2}[dtype]
    assert build_index(store.vectors, store.ids).search(exact, k=1).rows[:, 0].tolist() == list(range(60))
    opened = open_vectors(tmp_path / "store")  # for adapters and teachers
    assert opened.ids.to_pylist() == ids
    np.testing.assert_array_equal(np.concatenate(opened.parts).astype(np.float32), store.vectors)
    assert all(isinstance(part, np.memmap) for part in opened.parts) == (dtype == "float16")
    size = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.parquet"))
    assert size < 60 * 96 * {"float16": 2, "int8": 1}[dtype] + 8000


@pytest.mark.parametrize(
    ("dtype", "row", "said"),
    [
        ("float16", [1e5, 1], "'b' is too large or too small for float16"),
        ("int8", [1e-44, 0], "for int8"),
        ("bf16", [1.0, 1], "dtype='bf16'"),
    ],
)
def test_numbers_that_do_not_fit(tmp_path, dtype, row, said):
    with pytest.raises(UserError, match=said):
        write_store(tmp_path, [(["a", "b"], np.array([[1.0, 1], row]))], manifest={}, dtype=dtype)


def test_stores_of_one_dtype(tmp_path):
    shards = [write_rows(tmp_path, 0, ShardRows.of(["a"], np.ones((1, 2)), dtype="int8"))]
    shards.append(write_rows(tmp_path, 1, ShardRows.of(["b"], np.ones((1, 2)), dtype="float16")))
    with pytest.raises(UserError, match="shards of float16, int8: expected exactly one dtype"):
        write_manifest(tmp_path, shards, manifest={})
    write_manifest(tmp_path, shards[:1], manifest={})
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace("int8", "float16"))
    with pytest.raises(UserError, match=r"holds id string, embedding fixed_size_binary\[2\], scale float: expected id"):
        read_store(tmp_path)
    (tmp_path / "manifest.json").write_text((tmp_path / "manifest.json").read_text().replace("float16", "int7"))
    with pytest.raises(UserError, match="has dtype 'int7': expected one of float32, float16, int8"):
        read_store(tmp_path)


@given(st.lists(st.sampled_from(["", "x", "y", "z"]), max_size=12), st.integers(1, 3))
def test_rows_of_equal_values_are_one_entry(values, step):
    rows = range(0, len(values), step)
    entries = Entries.grouped(rows, values)
    expected = {}
    for row in rows:
        expected.setdefault(values[row] or row, []).append(row)
    found = [entries.rows(np.array([entry])).tolist() for entry in range(len(entries))]
    assert found == list(expected.values())
    assert entries.rows(np.arange(len(entries))).tolist() == [row for some in found for row in some]
    for entry, some in enumerate(found):
        assert entries.of_rows(np.array(some)).tolist() == [entry] * len(some)


def test_vectors_that_cancel_out_have_no_mean():
    vectors = np.array([[1.0, 0], [0, 2], [0, -3]])
    with pytest.raises(UserError, match="product 'p' cancel each other out"):
        mean_vectors(vectors, np.array([0, 1]), ids=["a", "p"])
    np.testing.assert_array_equal(mean_vectors(vectors, np.arange(3), ids="abc"), [[1, 0], [0, 1], [0, -1]])


def test_what_vectors_were_made_of():
    assert picture_input("ab" * 32) == b"\xab" * 32
    assert picture_input("") is picture_input("AB" * 32) is picture_input("ab" * 31) is None
    first = {"x": np.float32([[1, 2], [3, 4]]), "y": np.float32([[5], [5]])}
    one, two = vector_inputs(first)
    assert one != two
    assert vector_inputs(dict(reversed(first.items()))) == [one, two]  # the order of the names does not matter
    assert vector_inputs({"x": first["x"][:1], "z": first["y"][:1]}) != [one]
    assert joined_inputs([one, two, None, one], np.array([0, 1, 2])) == [one, two, None]
    assert joined_inputs([one, two], np.array([0])) == joined_inputs([two, one], np.array([0])) != [one]
