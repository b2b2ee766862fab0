"""Items that users share, against sets."""

import numpy as np
import pytest

from eval.rankers.item_to_item import CooccurrenceRanker
from siglip_jax.errors import UserError

N = 60


def test_cooccurrence_against_sets():
    drawn = np.random.default_rng(0).integers(0, [12, N], (90, 2))
    users, items = np.unique(drawn, axis=0).T  # each pair once
    ranker = CooccurrenceRanker(users, items, N)
    fans = [set(users[items == item]) for item in range(N)]
    expected = np.array(
        [[len(a & b) / np.sqrt(len(a) * len(b)) if a and b else 0 for b in fans] for a in fans], np.float32
    )
    np.testing.assert_allclose(ranker.scores(np.arange(N)), expected, atol=1e-6)
    listed = np.random.default_rng(0).integers(-1, N, (N, 5))
    want = np.where(listed >= 0, np.take_along_axis(expected, np.maximum(listed, 0), axis=1), -np.inf)
    np.testing.assert_allclose(ranker.scores(np.arange(N), listed), want, atol=1e-6)
    with pytest.raises(UserError, match="pairs of rows"):
        CooccurrenceRanker(np.array([0]), np.array([N]), N)
