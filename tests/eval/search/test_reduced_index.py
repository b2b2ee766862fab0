"""Candidates from fewer bytes, scored in full: recall, bytes, files."""

import numpy as np
import pytest

from eval.search import build_index, load_index, measure_recall
from siglip_jax.errors import UserError

N, D = 3000, 48


@pytest.fixture(scope="module")
def items():
    random = np.random.default_rng(0)
    spread = np.exp(-np.arange(D) / 8)  # most of the variance in few directions, as in embeddings
    return (random.normal(size=(N // 20, D))[np.arange(N) % (N // 20)] + 0.4 * random.normal(size=(N, D))) * spread


@pytest.mark.parametrize(
    ("reduce", "bytes_of_one", "least"),
    [("int8", D + 4, 0.99), ("pca:16", 64, 0.95), ("truncate:24", 96, 0.9), ("pca:16+int8", 20, 0.95)],
)
def test_scores_are_those_of_the_full_vectors(items, reduce, bytes_of_one, least, tmp_path):
    ids = [str(row) for row in range(N)]
    index = build_index(items, ids, backend="reduced", reduce=reduce)
    exact = build_index(items, ids)
    assert measure_recall(index, items, k=10, sample=200)["recall"] >= least
    assert index.bytes_in_memory == N * bytes_of_one
    queries = items[:30] + 0.1
    got, want = index.search(queries, k=5), exact.search(queries, k=5)
    both = got.rows == want.rows
    assert both.mean() > 0.8
    np.testing.assert_array_equal(got.scores[both], want.scores[both])
    index.save(tmp_path)
    again = load_index(tmp_path)
    assert (again.options, again.bytes_in_memory) == ({"reduce": reduce, "candidates": 4}, index.bytes_in_memory)
    np.testing.assert_array_equal(again.search(queries, k=5).rows, got.rows)
    np.testing.assert_array_equal(again.search(queries, k=5).scores, got.scores)


def test_as_many_candidates_as_items_are_exact(items):
    ids = [str(row) for row in range(60)]
    index = build_index(items[:60], ids, backend="reduced", reduce="truncate:2", candidates=6)
    np.testing.assert_array_equal(
        index.search(items[:20], k=10).rows, build_index(items[:60], ids).search(items[:20], k=10).rows
    )
    assert (index.search(items[:2], k=70).rows[:, 60:] == -1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduce": "pca"}, "expected pca:WIDTH"),
        ({"reduce": "truncate:49"}, "have 48 numbers"),
        ({"candidates": 0}, "candidates=0"),
        ({"leaves": 3}, "unknown option 'leaves': the reduced backend takes reduce, candidates"),
    ],
)
def test_errors(items, options, message):
    with pytest.raises(UserError, match=message) as error:
        build_index(items[:60], [str(row) for row in range(60)], backend="reduced", **options)
    assert "\n" not in str(error.value)


def test_a_changed_byte_is_an_error(items, tmp_path):
    build_index(items[:60], [str(row) for row in range(60)], backend="reduced", reduce="pca:4+int8").save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            continue
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{path.name} is not what was written"):
            load_index(tmp_path)
        path.write_bytes(content)
    assert len(load_index(tmp_path)) == 60
