"""Labels of many queries in ranking order, with the groups of equal scores marked.

A narrow row is sorted whole: score, column and label are packed into one 64-bit key, which numpy sorts with vector
instructions, several times faster than a stable argsort followed by a gather. Of a wide row the best are selected.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.metrics.cumulative import by_position
from eval.metrics.topk import select_top

_NARROW = 256  # candidates
_MAX_COLUMNS, _MAX_LABEL = 1 << 24, (1 << 8) - 1  # what fits below the 32 bits of the score
_NOT_RETRIEVED = np.uint32(0xFF800000)  # the code of -inf


@dataclass(frozen=True)
class Piece:
    """Some queries of a block, their candidates in ranking order, equal scores in column order."""

    rows: slice | np.ndarray  # which queries of the block
    labels: (
        np.ndarray
    )  # [row, width] label at each position, 0 where nothing is retrieved; see `eval.metrics.cumulative`
    first: np.ndarray | None = None  # bool [row, width], first of its group of equal scores, row by row


def ranked_pieces(scores: np.ndarray, labels: np.ndarray, depth: int, *, groups: bool) -> Iterator[Piece]:
    """The first `depth` positions of every query.

    With `groups`, queries with equal scores come in pieces of their own, which say where groups begin and are wide
    enough for the group that crosses the depth. What is not retrieved makes no group.

    Args:
      scores: float32 or float64 [row, column] without NaN; labels: [row, column]; 1 <= depth <= columns.
    """
    columns = scores.shape[1]
    selected = columns > _NARROW and 8 * depth <= columns
    if selected:
        top = select_top(scores, depth)
        retrieved = top.values > -np.inf
        first = _first_of_group(top.values, retrieved)
        ranked = np.where(retrieved, np.take_along_axis(labels, top.columns, axis=1), labels.dtype.type(0))
        crossed = (top.at_least_cut > depth) & retrieved[:, -1]
    else:
        ranked, first = _sort(scores, labels)
        crossed = ~first[:, depth] if depth < columns else np.zeros(len(first), bool)
    tied = ~first[:, :depth].all(axis=1) | crossed if groups else np.zeros(len(first), bool)
    if not tied.any():
        yield Piece(slice(None), by_position(ranked[:, :depth]))
        return
    if not tied.all():
        rows = np.flatnonzero(~tied)
        yield Piece(rows, by_position(ranked[rows, :depth]))
    rows = np.flatnonzero(tied & ~crossed)
    if rows.size:
        yield Piece(rows, by_position(ranked[rows, :depth]), first[rows, :depth])
    rows = np.flatnonzero(crossed)
    if rows.size and selected:
        above = np.count_nonzero(top.values[rows] > top.values[rows, -1:], axis=1)
        yield _widened(rows, ranked, first, above, scores, labels, top.values[:, -1])
    elif rows.size:
        yield Piece(rows, by_position(ranked[rows]), first[rows])


def _first_of_group(values: np.ndarray, retrieved: np.ndarray) -> np.ndarray:
    first = np.ones(values.shape, bool)
    first[:, 1:] = (values[:, 1:] != values[:, :-1]) | ~retrieved[:, 1:]
    return first


def _widened(
    rows: np.ndarray,
    ranked: np.ndarray,
    first: np.ndarray,
    above: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    cut: np.ndarray,
) -> Piece:
    """What is `above` the group at the cut, then all of that group."""
    number, column = np.nonzero(scores[rows] == cut[rows, None])
    begins = np.searchsorted(number, np.arange(len(rows)))
    place = above[number] + np.arange(len(number)) - begins[number]
    width = max(int(place.max()) + 1, ranked.shape[1])
    wide, new = np.zeros((len(rows), width), labels.dtype), np.ones((len(rows), width), bool)
    depth = ranked.shape[1]
    wide[:, :depth], new[:, :depth] = ranked[rows], first[rows]
    wide[number, place] = labels[rows[number], column]
    new[number, place] = place == above[number]
    return Piece(rows, by_position(wide), new)


def _sort(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels by descending score, and where a group of equal scores begins."""
    single = scores.astype(np.float32, copy=False)
    if scores.shape[1] > _MAX_COLUMNS or (scores.dtype != np.float32 and not np.array_equal(single, scores)):
        return _argsort(scores, labels)
    bits = (single + np.float32(0)).view(np.int32)  # -0.0 equals 0.0
    code = (bits ^ (~(bits >> 31) & 0x7FFFFFFF)).view(np.uint32)  # ascending where the score descends
    packed = labels.dtype.kind in "iu" and labels.max(initial=0) <= _MAX_LABEL
    key = code.astype(np.uint64)
    key <<= np.uint64(32)
    key |= np.arange(scores.shape[1], dtype=np.uint64) << np.uint64(8)
    if packed:
        key |= labels.astype(np.uint64)
    key.sort(axis=1)
    if packed:
        ranked = key.astype(np.uint8)
    else:
        ranked = np.take_along_axis(labels, ((key & np.uint64(0xFFFFFFFF)) >> np.uint64(8)).astype(np.int64), axis=1)
    key >>= np.uint64(32)
    first = np.ones(key.shape, bool)
    np.not_equal(key[:, 1:], key[:, :-1], out=first[:, 1:])
    if (key[:, -1] == _NOT_RETRIEVED).any():
        lost = key == _NOT_RETRIEVED
        ranked[lost], first[lost] = 0, True
    return ranked, first


def _argsort(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-scores, axis=1, kind="stable")
    values = np.take_along_axis(scores, order, axis=1)
    retrieved = values > -np.inf
    ranked = np.where(retrieved, np.take_along_axis(labels, order, axis=1), labels.dtype.type(0))
    return ranked, _first_of_group(values, retrieved)
