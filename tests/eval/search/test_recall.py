"""An index is asked for more until enough of what it returns is allowed."""

import numpy as np

from eval.search import Neighbours, build_index
from eval.search.recall import recall_of_allowed, search_allowed

N = 60


def test_an_index_is_asked_until_enough_is_allowed(vectors, unit):
    v = vectors()
    index = build_index(v, [str(i) for i in range(N)])
    mask = np.random.default_rng(0).random((N, N)) < 0.05
    rows, scores = search_allowed(index, v, mask, k=5)
    exact = np.where(mask, unit(v) @ unit(v).T, -np.inf)
    for i in range(N):
        count = min(5, mask[i].sum())
        np.testing.assert_array_equal(rows[i, :count], np.argsort(-exact[i])[:count])
        assert (rows[i, count:] == -1).all()
    np.testing.assert_allclose(recall_of_allowed(rows, exact, k=5)[mask.any(axis=1)], 1)
    assert isinstance(index.search(v, k=1), Neighbours)
    assert (scores[rows < 0] == -np.inf).all()
