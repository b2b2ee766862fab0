"""Every way of reading the items finds what a sort of float64 products has first."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings.vectors import unit_rows
from eval.search.scans import Scan, exact_best, scan

WAYS = ("small", "threads", "jax", "device")


def way_of(name, monkeypatch):
    """Of `Scan`, by the limits that pick it; returns its `device`."""
    monkeypatch.setattr(scan, "_SMALL", 1 << 21 if name == "small" else 0)
    monkeypatch.setattr(scan, "_ITEMS_AT_ONCE", 300)  # several tiles, the last one short
    monkeypatch.setattr(scan, "_QUERIES_AT_ONCE", 5)
    product = scan._jax_product if name == "jax" else np.matmul
    monkeypatch.setattr(scan, "product_for", lambda operations: product)
    return jax.devices("cpu")[0] if name == "device" else "cpu"


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield monkeypatch


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 9), queries=st.sampled_from([1, 2, 7]), different=st.integers(2, 300), seed=st.integers(0, 99)
)
def test_exact_best_is_the_first_of_a_sort(way, patched, count, queries, different, seed):
    """Few different items are many equal ones, which come in row order, at the cut too."""
    device = way_of(way, patched)
    random = np.random.default_rng(seed)
    items = unit_rows(random.normal(size=(different, 9)), what="vector")[random.integers(0, different, 300)]
    asked = unit_rows(random.normal(size=(queries, 9)), what="query")
    rows, scores = exact_best(Scan(items, device=device), items, asked, k=count)
    exact = asked.astype(np.float64) @ items.T.astype(np.float64)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :count], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    _, number = np.unique(items, axis=0, return_inverse=True)
    for row in rows:
        for item in np.unique(number[row]):
            found = row[number[row] == item]
            np.testing.assert_array_equal(found, np.flatnonzero(number == item)[: len(found)])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("queries", [1, 11])
def test_whole_numbers_are_added_up_exactly(way, queries, monkeypatch):
    device = way_of(way, monkeypatch)
    random = np.random.default_rng(queries)
    items = random.integers(-127, 128, (400, 33)).astype(np.int8)
    scales = random.uniform(0.5, 2, 400).astype(np.float32)
    asked = random.normal(size=(queries, 33)).astype(np.float32)
    rows, values = Scan(items, scales, device=device).best(asked, 20)
    exact = scan.whole_numbers(asked).astype(np.int64) @ items.T.astype(np.int64)
    np.testing.assert_array_equal(values, np.take_along_axis((exact * scales).astype(np.float32), rows, axis=1))
    np.testing.assert_array_equal(
        -np.sort(-values, axis=1), -np.sort(-(exact * scales).astype(np.float32), axis=1)[:, :20]
    )
    assert all(len(set(row)) == 20 for row in rows.tolist())


def test_equal_queries_get_equal_scores_in_any_batch(monkeypatch):
    random = np.random.default_rng(0)
    items = unit_rows(random.normal(size=(500, 65)), what="vector")
    asked = unit_rows(random.normal(size=(12, 65)), what="query")
    found = []
    for way in WAYS:
        device = way_of(way, monkeypatch)
        whole = exact_best(Scan(items, device=device), items, asked, k=7)
        alone = [exact_best(Scan(items, device=device), items, asked[i : i + 1], k=7) for i in range(12)]
        found += [whole, tuple(np.concatenate(each) for each in zip(*alone, strict=True))]
    for rows, scores in found[1:]:
        np.testing.assert_array_equal(rows, found[0][0])
        np.testing.assert_array_equal(scores, found[0][1])


def test_a_memory_map_is_read_where_it_lies(tmp_path, monkeypatch):
    way_of("threads", monkeypatch)
    items = unit_rows(np.random.default_rng(0).normal(size=(300, 8)), what="vector")
    np.save(tmp_path / "items.npy", items)
    mapped = np.load(tmp_path / "items.npy", mmap_mode="r")
    rows, _ = exact_best(Scan(mapped, device="cpu"), mapped, items[:9], k=1)
    assert rows[:, 0].tolist() == list(range(9))
