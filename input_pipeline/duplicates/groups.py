"""Groups of rows that belong together: by equal keys, and by links from row to row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


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


def value_codes(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Every value's number in order of first appearance (int32 [m]), its row (int32 [m]), the values; no nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_list(column.type):
        rows, column = pc.list_parent_indices(column).to_numpy().astype(np.int32), pc.list_flatten(column)
    else:
        rows = np.arange(len(column), dtype=np.int32)
    if column.null_count:
        rows, column = rows[column.is_valid().to_numpy(zero_copy_only=False)], column.drop_null()
    encoded = column.dictionary_encode()
    return encoded.indices.to_numpy(), rows, encoded.dictionary
