"""Whatever was put in, taken out and compacted, an index answers as exact search over its live items does."""

import importlib.util
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.search import build_index, load_index, measure_recall
from eval.search.answers import Answers
from eval.search.live_index import LiveIndex
from eval.search.updates import check_same_encoder, compacted, deleted, share_changed, upserted, with_missing
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")
BACKENDS = ["exact", "reduced", pytest.param("scann", marks=needs_scann)]


def vectors(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def names(n):
    return [f"item-{i}" for i in range(n)]


def unit64(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def check_against_exact(index, live):
    """live: {id: vector}, the items that there should be."""
    assert sorted(index.ids) == sorted(live)
    assert len(index) == len(live)
    queries = vectors(4, seed=99)
    own = unit64(np.stack([live[item] for item in index.ids])) if live else np.empty((0, 3))
    np.testing.assert_allclose(index.vectors_of(index.ids), own, atol=1e-6)
    cosines = unit64(queries) @ own.T
    for k in (1, 3, len(live) + 2):
        found = index.search(queries, k=k)
        some = min(k, len(live))
        assert found.rows.shape == found.scores.shape == (4, k)
        assert (found.rows[:, some:] == -1).all()
        assert (found.scores[:, some:] == -np.inf).all()
        assert all(len(set(row)) == some for row in found.ids)  # none twice, and none of the dead
        np.testing.assert_allclose(found.scores[:, :some], -np.sort(-cosines, axis=1)[:, :some], atol=1e-6)
        np.testing.assert_allclose(
            np.take_along_axis(cosines, found.rows[:, :some], axis=1), found.scores[:, :some], atol=1e-6
        )


ITEMS = st.lists(st.integers(0, 11), unique=True, max_size=8)
STEPS = st.one_of(
    st.tuples(st.just("upsert"), ITEMS, st.integers(0, 5)),  # few seeds, so that vectors come back and are equal
    st.tuples(st.just("delete"), ITEMS, st.just(0)),
    st.tuples(st.sampled_from(["compact", "save"]), st.just([]), st.just(0)),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(first=st.integers(1, 8), steps=st.lists(STEPS, max_size=7))
def test_any_sequence_of_changes(backend, first, steps):
    live = dict(zip(names(first), vectors(first), strict=True))
    index = build_index(vectors(first), names(first), backend=backend)
    for kind, items, seed in steps:
        ids, before = [f"item-{i}" for i in items], index
        held = [*before.ids]
        if kind == "upsert":
            put = vectors(12, seed=seed)[items]
            done = upserted(index, put, ids)
            assert done.new == [item for item in ids if item not in live]
            same = [
                item for item, row in zip(ids, put, strict=True) if item in live and np.array_equal(live[item], row)
            ]
            assert done.changed == [item for item in ids if item in live and item not in same]
            assert done.equal == len(same)
            live.update(zip(ids, put, strict=True))
            index = done.index
        elif kind == "delete":
            gone = deleted(index, ids)
            assert gone.deleted == [item for item in ids if item in live]
            assert gone.unknown == [item for item in ids if item not in live]
            live = {item: row for item, row in live.items() if item not in ids}
            index = gone.index
        elif kind == "compact":
            index = compacted(index)
            assert share_changed(index) == 0 or not live
        else:
            with tempfile.TemporaryDirectory() as folder:
                index.save(folder)
                index = load_index(folder)
                assert index.generation == before.generation != ""
                assert index.ids == before.ids
        check_against_exact(index, live)
        assert before.ids == held  # a change leaves the index before as it was


@needs_scann
def test_a_tree_with_dead_rows_and_a_delta_finds_what_a_new_build_finds(tmp_path):
    x = vectors(1500, 16)
    index = build_index(x[:1200], names(1500)[:1200], backend="scann", mode="tree", leaves_to_search=20)
    measure_recall(index, x[:1200])
    index = upserted(index, x[1100:], names(1500)[1100:]).index
    index = deleted(index, names(100)).index
    index.save(tmp_path)
    index = load_index(tmp_path)
    assert isinstance(index, LiveIndex)
    assert (len(index.delta), int(index.dead.sum())) == (300, 100)
    rebuilt = compacted(index)
    assert rebuilt.options == index.options
    assert rebuilt.measured["recall"] == measure_recall(rebuilt, x[100:])["recall"]
    exact = build_index(x[100:], names(1500)[100:]).search(x[:60], k=10).ids
    for each in (index, rebuilt):
        found = each.search(x[:60], k=10).ids
        assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) > 0.9
        assert not {item for row in found for item in row} & set(names(100))


def test_all_neighbours_of_a_query_may_be_dead():
    x = np.concatenate([np.eye(1, 4) + 0.01 * vectors(200, 4), -np.eye(1, 4) + 0.01 * vectors(5, 4)])
    index = deleted(build_index(x, names(205)), names(200)).index
    found = index.search(np.eye(1, 4), k=5)
    assert sorted(found.ids[0]) == sorted(names(205)[200:])
    assert (found.scores < 0).all()


def test_ties_are_in_row_order_in_base_and_delta():
    x = np.repeat(np.eye(2, 3, dtype=np.float32), [3, 2], axis=0)
    index = deleted(build_index(x, names(5)), ["item-0"]).index
    index = upserted(index, np.eye(1, 3).repeat(3, axis=0), ["x", "y", "z"]).index
    assert index.search(np.eye(1, 3), k=4).ids == [["item-1", "item-2", "x", "y"]]


def test_two_sequences_to_one_set_of_items_give_equal_neighbours():
    x, q = vectors(60, 8), vectors(20, 8, seed=1)
    one = compacted(deleted(upserted(build_index(x[:50], names(50)), x[50:], names(60)[50:]).index, names(10)).index)
    other = build_index(x[10:], names(60)[10:])
    np.testing.assert_array_equal(one.search(q, k=5).rows, other.search(q, k=5).rows)
    np.testing.assert_array_equal(one.search(q, k=5).scores, other.search(q, k=5).scores)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_of_which_all_is_deleted_finds_nothing_and_takes_items_again(tmp_path, backend):
    index = deleted(build_index(vectors(4), names(4), backend=backend), names(4)).index
    index.save(tmp_path)
    index = load_index(tmp_path)
    assert (len(index), compacted(index)) == (0, index)
    assert index.search(vectors(2), k=3).ids == [[], []]
    assert Answers(index).of_vector(vectors(1))["items"] == []
    with pytest.raises(UserError, match="'item-1' is not in the index of 0 items"):
        index.vectors_of(["item-1"])
    assert upserted(index, vectors(1), ["new"]).index.search(vectors(2), k=3).ids == [["new"], ["new"]]


def test_missing_stays_true():
    lost = [{"row": 3, "id": "lost", "reason": "no image"}, {"row": 4, "id": "", "reason": "no id"}]
    index = build_index(vectors(4), names(4))
    index.missing, index.encoder = lost, {"model": {"name": "m"}}
    found = upserted(index, vectors(1, seed=1), ["lost"]).index
    assert found.missing == lost[1:]
    assert found.encoder == index.encoder
    assert index.missing == lost
    gone = deleted(index, ["lost", "never"])
    assert (gone.deleted, gone.missing, gone.unknown) == ([], ["lost"], ["never"])
    assert gone.index.missing == lost[1:]
    skipped = [{"row": 0, "id": "item-1", "reason": "bad"}, {"row": 1, "id": "lost", "reason": "bad"}, lost[1]]
    assert with_missing(index, skipped, earlier=True).missing == [lost[1], skipped[1]]
    assert with_missing(index, skipped, earlier=False).missing == [skipped[1], lost[1]]
    assert with_missing(index, [], earlier=False).missing == []
    assert compacted(found).missing == lost[1:]


def test_bytes_of_a_search_are_those_of_base_and_delta():
    index = build_index(vectors(20), names(20), backend="reduced")
    measure_recall(index, vectors(20))
    index.measured["bytes"] = index.bytes_in_memory
    changed = upserted(index, vectors(5, seed=1), names(5)).index
    assert changed.bytes_in_memory == index.bytes_in_memory + 5 * 3 * 4
    assert compacted(changed).measured["bytes"] == index.bytes_in_memory == 20 * (3 + 4)


def test_share_of_changes():
    index = build_index(vectors(20), names(20))
    assert share_changed(index) == 0
    assert share_changed(upserted(index, vectors(5, seed=1), names(5)).index) == pytest.approx(5 / 20)
    assert share_changed(deleted(index, names(4)).index) == pytest.approx(4 / 16)


def test_stores_of_another_encoder_are_refused():
    index = build_index(vectors(2), names(2))
    sums = {"name": "runs/a", "dtype": "float32", "image_tower_sha256": "1"}
    index.encoder = {"model": sums, "preprocessing": {"resize": "bilinear"}}
    moved = {"model": {**sums, "name": "runs/b"}, "preprocessing": {"resize": "bilinear"}}
    check_same_encoder(index, moved, store="s")
    for other in (
        {},
        {**moved, "preprocessing": {"resize": "center"}},
        {**moved, "model": {**sums, "image_tower_sha256": "2"}},
    ):
        with pytest.raises(UserError, match=r"store s is of encoder .* vectors of two encoders") as error:
            check_same_encoder(index, other, store="s")
        assert "\n" not in str(error.value)
    check_same_encoder(build_index(vectors(2), names(2)), {}, store="s")


@pytest.mark.parametrize(
    ("x", "ids", "message"),
    [
        (vectors(1, 4), ["a"], r"expects \[n, 3\]"),
        (vectors(2), ["a"], "1 ids with vectors"),
        (vectors(2), ["a", "a"], "not unique"),
        (vectors(1), [1], "id 1 is a int"),
        (np.zeros((1, 3)), ["a"], "id 'a' is zero"),
    ],
)
def test_errors(x, ids, message):
    index = build_index(vectors(2), names(2))
    with pytest.raises(UserError, match=message):
        upserted(index, x, ids)
    assert index.ids == names(2)
