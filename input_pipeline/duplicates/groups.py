"""Groups of rows that belong together: by equal keys, and by links from row to row."""

from __future__ import annotations

import numpy as np


def first_rows(keys: np.ndarray) -> np.ndarray:
    """int64 [n]: for each row the index of the first row with an equal key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def connected(edges: np.ndarray, nodes: int) -> np.ndarray:
    """int64 [nodes]: nodes joined by edges, directly or through others, have equal numbers: the smallest of them.

    Args:
      edges: integers [2, m].
      nodes: how many there are.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(edges.shape[1], bool), (edges[0], edges[1])), shape=(nodes, nodes))
    return first_rows(connected_components(graph, directed=False)[1])
