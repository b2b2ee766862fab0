"""The index interface and the exact backend against a float64 sort; what every backend refuses."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings.vectors import Scorer, distinct_rows, unit_rows
from eval.search import build_index, load_index, measure_recall
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")


def vectors(n, d=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def names(n):
    return [f"item-{i}" for i in range(n)]


def cosine(q, x):
    q, x = q.astype(np.float64), x.astype(np.float64)
    return (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 9), st.integers(0, 10**6))
def test_exact_equals_a_full_sort(n, k, d, seed):
    x, q = vectors(n, d, seed) * 3, vectors(4, d, seed + 1)
    got = build_index(x, names(n)).search(q, k=k)
    want = cosine(q, x)
    found = min(n, k)
    assert got.rows.shape == got.scores.shape == (4, k)
    assert got.rows.dtype == np.int64
    assert got.scores.dtype == np.float32
    np.testing.assert_allclose(got.scores[:, :found], -np.sort(-want, axis=1)[:, :found], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(want, got.rows[:, :found], axis=1), got.scores[:, :found], atol=1e-6)
    assert (got.rows[:, found:] == -1).all()
    assert (got.scores[:, found:] == -np.inf).all()
    assert [len(set(row)) for row in got.ids] == [found] * 4
    assert got.ids[0] == [f"item-{row}" for row in got.rows[0, :found]]


@pytest.mark.parametrize("backend", ["exact", pytest.param("scann", marks=needs_scann)])
def test_equal_vectors_tie_in_row_order_whatever_the_batch(backend):
    x = vectors(40, 33)[np.random.default_rng(1).integers(0, 5, 700)]  # five pictures relisted 140 times each
    index = build_index(x, names(700), backend=backend)
    got = index.search(x[:50], k=200)
    same = (x[:50, None] == x[got.rows]).all(axis=2)
    assert (same.sum(axis=1) >= 120).all()
    spread = np.where(same, got.scores, got.scores[:, :1])
    assert (spread == spread[:, :1]).all()
    if backend == "exact":
        for row, group in zip(got.rows, same, strict=True):
            assert (np.diff(row[group]) > 0).all()
        alone = np.concatenate([index.search(x[i : i + 1], k=200).rows for i in range(50)])
        np.testing.assert_array_equal(alone[:, :100], got.rows[:, :100])


def test_equal_vectors_score_equal_under_a_blas_that_rounds_by_column():
    class Noisy(np.ndarray):
        def __matmul__(self, other):
            product = np.asarray(self) @ np.asarray(other)
            return product + np.float32(1e-6) * np.arange(product.shape[1], dtype=np.float32)

    x = vectors(5)[[0, 1, 0, 2, 3, 4, 1, 0]]
    scores = Scorer(x).scores(unit_rows(vectors(3, seed=1), what="query").view(Noisy))
    assert (scores[:, [0, 0, 1]] == scores[:, [2, 7, 6]]).all()
    np.testing.assert_allclose(scores, cosine(vectors(3, seed=1), x), atol=1e-5)


def test_saved_exact_index_answers_to_the_last_bit(tmp_path):
    x, q = vectors(300, 3) * 7, vectors(40, 3, 5)
    index = build_index(x, names(300))
    assert measure_recall(index, x, k=5, sample=50) == {"recall": 1.0, "k": 5, "queries": 50, "seed": 0}
    index.save(tmp_path)
    again = load_index(tmp_path)
    assert again.ids == index.ids
    assert again.backend == "exact"
    assert again.measured["recall"] == 1.0
    got, want = again.search(q, k=9), index.search(q, k=9)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_array_equal(got.scores, want.scores)
    assert json.loads((tmp_path / "manifest.json").read_text())["measured"]["k"] == 5
    build_index(x[:4], names(4)).save(tmp_path)  # a save replaces what was there
    assert len(load_index(tmp_path)) == 4


@pytest.mark.parametrize(
    "files",
    [
        {"manifest.json": '{"format": "siglip-jax embeddings 1"}', "shard-00000.parquet": "rows"},
        {"notes.txt": "mine"},
        {"manifest.json": "{"},
        {"manifest.json": "[]"},
        {"manifest.json.partial": '{"format": "siglip-jax embeddings 1"}'},
    ],
)
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="something else than an index") as error:
        build_index(vectors(2), names(2)).save(tmp_path)
    assert "\n" not in str(error.value)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == files


def test_recall_counts_what_an_index_loses():
    """An index that knows only every other item finds half of the neighbours: the measure must say so."""
    x = vectors(400, 4)
    index = build_index(x, names(400))
    whole = index.search

    def half(q, *, k):
        found = whole(q, k=k)
        lost = (found.rows % 2 == 1) & (np.arange(k) > 0)  # keeps the query itself
        return type(found)(np.where(lost, -1, found.rows), np.where(lost, -np.inf, found.scores), found.catalogue)

    index.search = half
    assert measure_recall(index, x, k=10, sample=200)["recall"] == pytest.approx(0.5, abs=0.05)


def test_unit_rows_neither_vanish_nor_overflow_and_stay():
    x = np.array([[1e-30, 1e-30], [1e30, 1e30], [3, 4]], np.float32)
    unit = unit_rows(x, what="vector")
    np.testing.assert_allclose(unit, [[0.5**0.5] * 2, [0.5**0.5] * 2, [0.6, 0.8]], rtol=1e-6)
    many = unit_rows(vectors(2000, 3), what="vector")
    np.testing.assert_array_equal(unit_rows(many, what="vector"), many)


def test_distinct_rows():
    first, inverse = distinct_rows(np.array([[1.0, 2], [3, 4], [1, 2], [5, 6], [3, 4]]))
    assert first.tolist() == [0, 1, 3]
    assert inverse.tolist() == [0, 1, 0, 2, 1]


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path


def with_row(row):
    x = vectors(3, 2)
    x[1] = row
    return x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_index(with_row([0, 0]), names(3)), "id 'item-1' is zero"),
        (lambda: build_index(with_row([np.nan, 1]), names(3)), "id 'item-1' holds NaN"),
        (lambda: build_index(with_row([0, 0]), names(3), backend="scann"), "id 'item-1' is zero"),  # before any import
        (lambda: build_index(vectors(2), ["a", "a"]), "not unique"),
        (lambda: build_index(vectors(2), [1, 2]), "id 1 is a int"),
        (lambda: build_index(vectors(2), ["a"]), "1 ids with vectors"),
        (lambda: build_index(np.zeros((0, 3)), []), "at least one"),
        (lambda: build_index(vectors(2), names(2), backend="faiss"), "expected one of exact, reduced, scann"),
        (lambda: build_index(vectors(2), names(2), leaves=3), "'leaves': the exact backend takes none"),
        (lambda: build_index(vectors(2), names(2)).search(vectors(1, 5), k=1), r"expects \[query, 8\]"),
        (lambda: build_index(vectors(2), names(2)).search(np.zeros((1, 8)), k=1), "query of row 0 is zero"),
        (lambda: build_index(vectors(2), names(2)).search(vectors(1), k=0), "k=0"),
        (lambda: measure_recall(build_index(vectors(2), names(2)), vectors(3)), "vectors of the index"),
        (
            lambda: measure_recall(build_index(vectors(1), names(1)), vectors(1)),
            "holds 1 item: recall needs at least 2",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(UserError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{}"), "not of format"),
        (lambda f: only(f, "vectors-*.npy").unlink(), r"vectors-\w+.npy is missing"),
        (lambda f: only(f, "ids-*.json").write_text('["x", "y"]'), r"ids-\w+.json is not what was written"),
    ],
)
def test_a_spoiled_index_is_refused(tmp_path, spoil, message):
    build_index(vectors(2), names(2)).save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        load_index(tmp_path)


def test_neither_tensorflow_nor_jax_is_imported_anywhere_in_eval(tmp_path):
    """Every module imported and every backend used, TensorFlow being installed or not."""
    code = f"""
import sys
import numpy as np
import eval.rankers.baselines, eval.embeddings.store, eval.metrics.ranking, eval.protocols.attribute_agreement
import eval.protocols.relevance, eval.search.index_builder, eval.statistics.intervals
assert "scann" not in sys.modules
from siglip_jax.errors import UserError
x = np.random.default_rng(0).normal(size=(40, 8))
for backend in ("exact", "scann"):
    try:
        index = eval.search.index_builder.build_index(x, [str(i) for i in range(40)], backend=backend)
    except UserError as error:
        assert backend == "scann" and "not installed" in str(error)
        continue
    index.save({str(tmp_path)!r} + "/" + backend)
    eval.search.index_builder.load_index({str(tmp_path)!r} + "/" + backend).search(x, k=3)
heavy = [name for name in ("tensorflow", "jax", "flax", "torch", "matplotlib") if name in sys.modules]
assert not heavy, heavy
assert not [name for name, module in sys.modules.items() if module is None]
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
