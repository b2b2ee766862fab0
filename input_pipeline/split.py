"""Train and test splits that share no title and no picture.

Shops list one product many times: colours and sizes under one title, one photo under several titles. A split by row
would put copies of test items into training and make every encoder look better than it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from siglip_jax.errors import UserError

_AT_ONCE = 2**16  # groups whose titles are Python strings at a time
MAX_NAME = 64  # letters of a split's name, which becomes part of file names


def normalise_title(title: str) -> str:
    """Case folded, runs of white space made one blank: titles equal after this are one title."""
    return " ".join(title.casefold().split())


def title_groups(titles: Sequence[str]) -> np.ndarray:
    """int64 [n]: equal numbers for equal normalised titles, 0, 1, 2, ... in order of first appearance."""
    return _codes(pa.array([normalise_title(title) for title in titles], pa.string()))[0].astype(np.int64)


def connected_groups(titles: Sequence[str], image_hashes: Sequence[str]) -> np.ndarray:
    """int64 [n]: rows linked by an equal normalised title or an equal picture, directly or through others.

    The number of a group is the index of its first row.
    """
    titles = [normalise_title(title) for title in titles]
    return _linked([_edges(pa.array(titles, pa.string())), _edges(pa.array(list(image_hashes), pa.string()))])


def split_groups(
    titles: Sequence[str], image_hashes: Sequence[str], *, fractions: Mapping[str, float], seed: int
) -> list[str]:
    """A split name for each row; rows linked by title or picture (`connected_groups`) get the same one.

    A group goes where the hash of (seed, its smallest normalised title) falls among the cumulative fractions. So the
    order of rows does not matter, and rows added later move no group they are not linked to. Fractions are met on
    average over groups, not exactly.

    Args:
      titles, image_hashes: [n] each.
      fractions: split name -> share, positive, summing to 1.
      seed: another seed, another split.
    """
    columns = {
        "title": pa.array([normalise_title(title) for title in titles], pa.string()),
        "image": pa.array(list(image_hashes), pa.string()),
    }
    splits, _ = split_rows(columns, fractions=fractions, seed=seed)
    names = list(fractions)
    return [names[split] for split in splits]


def split_rows(
    columns: Mapping[str, pa.Array | pa.ChunkedArray], *, fractions: Mapping[str, float], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`split_groups` for millions of rows: Arrow columns in, small arrays out.

    Args:
      columns: "title", normalised, and "image", hashes: text [n], or lists of text where rows have several. A mapping
        that reads a column when it is asked for keeps memory small; others of its columns are not asked for.
      fractions, seed: see `split_groups`.

    Returns:
      uint8 [n], the index of each row's split among `fractions`, and int64 [n], its group (the index of the group's
      first row).
    """
    check_fractions(fractions)
    codes, rows, distinct = _codes(columns["title"])
    groups = _linked([(codes, rows, len(distinct)), _edges(columns["image"])])
    # Byte order of UTF-8 is the order of code points, so that these ranks are those of Python's strings.
    order = pc.array_sort_indices(distinct).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    smallest = np.full(len(groups), len(order), np.int64)  # of each group, at the index of its first row
    np.minimum.at(smallest, groups[rows], rank[codes])
    bounds = np.cumsum(list(fractions.values()))[:-1]
    firsts = np.flatnonzero(groups == np.arange(len(groups)))
    split = np.zeros(len(groups), np.uint8)
    for start in range(0, len(firsts), _AT_ONCE):
        some = firsts[start : start + _AT_ONCE]
        keys = distinct.take(pa.array(order[smallest[some]])).to_pylist()
        split[some] = np.searchsorted(bounds, [_uniform(seed, key) for key in keys], side="right")
    return split[groups], groups


def _codes(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """Every value's number in order of first appearance (int32 [m]), its row (int32 [m]), the distinct values."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_list(column.type):
        rows, column = pc.list_parent_indices(column).to_numpy().astype(np.int32), pc.list_flatten(column)
    else:
        rows = np.arange(len(column), dtype=np.int32)
    encoded = column.dictionary_encode()
    return encoded.indices.to_numpy(), rows, encoded.dictionary


def _edges(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, int]:
    codes, rows, distinct = _codes(column)
    return codes, rows, len(distinct)


def _linked(columns: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> np.ndarray:
    """int64 [n]: rows with a value of a column in common, directly or through others, get the index of the first.

    `columns` are those of `_edges`; every row has a value in each of them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(columns[0][1].max(initial=-1)) + 1
    starts = np.cumsum([count, *(distinct for _, _, distinct in columns)])  # a node for each row and distinct value
    ends = [
        np.concatenate([rows for _, rows, _ in columns]),
        np.concatenate([codes + np.int32(start) for (codes, _, _), start in zip(columns, starts[:-1], strict=True)]),
    ]
    graph = coo_array((np.ones(len(ends[0]), bool), tuple(ends)), shape=(starts[-1], starts[-1]))
    labels = connected_components(graph, directed=False)[1][:count]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuses, as a `UserError`, what is no set of shares with names that TFDS accepts."""
    for name, fraction in fractions.items():
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name == "all":
            raise UserError(f"split name {name!r}; expected letters, digits and _, a letter first, and not 'all'")
        if len(name) > MAX_NAME:
            raise UserError(f"split name {name[:20]}... of {len(name)} letters; expected {MAX_NAME} or fewer")
        if not 0 < fraction <= 1:
            raise UserError(f"split {name}={fraction}; expected a fraction between 0 and 1")
    if not fractions or not math.isclose(math.fsum(fractions.values()), 1, abs_tol=1e-6):
        given = ", ".join(f"{name}={fraction}" for name, fraction in fractions.items())
        raise UserError(f"splits {given or 'none'}; expected fractions that sum to 1")


def _uniform(seed: int, key: str) -> float:
    """A number in [0, 1) from a hash, the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
