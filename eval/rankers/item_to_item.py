"""Item-to-item: what users who liked this also liked; the row that an image has to add something to."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from eval.rankers.sparse_products import row_products
from siglip_jax.errors import UserError


class CooccurrenceRanker:
    """|users of both| / sqrt(|users of a| |users of b|): the cosine of item-based collaborative filtering
    (Sarwar et al. 2001; Linden, Smith and York 2003). 0 with an item that nobody liked.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n: int, *, name: str = "item-to-item"):
        """users, items: int64 [m], who liked what (repeats count once), of a time before the queries; n items."""
        if len(users) != len(items) or (len(items) and not 0 <= items.min() <= items.max() < n):
            raise UserError(
                f"{len(users)} users and {len(items)} items of {n}: expected pairs of rows of the catalogue"
            )
        self.name = name
        columns = int(users.max(initial=0)) + 1
        weights = scipy.sparse.csr_array((np.ones(len(items)), (items, users)), shape=(n, columns))
        weights.sum_duplicates()
        count = np.diff(weights.indptr)
        weights.data = np.repeat(1 / np.sqrt(np.maximum(count, 1)), count)
        self._weights = weights

    def scores(self, queries: np.ndarray, candidates: np.ndarray | None = None) -> np.ndarray:
        """See `eval.rankers.ranker.Ranker`; 0 to 1."""
        return row_products(self._weights, queries, candidates)
