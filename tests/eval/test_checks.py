"""Planted faults are refused by name: duplicated queries, phantom items."""

import numpy as np
import pytest

from eval.checks import check_lists, check_queries, duplicates
from siglip_jax.errors import UserError


def test_a_duplicated_query_is_named():
    ids = np.array([f"q{i}" for i in range(1000)])
    check_queries(ids)
    ids[700] = "q3"
    with pytest.raises(UserError, match=r"query q3 \(row 700\) is that of row 3, and 1 of 1000"):
        check_queries(ids)


@pytest.mark.parametrize("dtype", [np.int64, np.int16, str, object])
def test_queries_with_other_ids_but_equal_content_are_found(dtype):
    rng = np.random.default_rng(0)
    content = rng.integers(0, 1000, (500, 4)).astype(dtype)
    check_queries(content)
    content[[40, 41]] = content[7]
    assert np.flatnonzero(duplicates(content)).tolist() == [40, 41]
    with pytest.raises(UserError, match="query of row 40 is that of row 7, and 2 of 500"):
        check_queries(content)


def test_phantom_items_of_an_index_are_refused():
    rows, scores = np.array([[5, 2, 1], [4, 0, 0]]), np.array([[0.9, 0.8, 0.1], [0.9, np.nan, np.nan]])
    with pytest.raises(UserError, match="list of query 1 holds item 0 with score NaN at position 2, as 1 of 2"):
        check_lists(rows, scores, items=6)
    rows[1, 1:] = -1
    check_lists(rows, scores, items=6)
    with pytest.raises(UserError, match="list of query 0 holds item 5"):
        check_lists(rows, scores, items=5)
    with pytest.raises(UserError, match="expected one of each"):
        check_lists(rows, scores[:1], items=6)
