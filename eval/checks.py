"""Faults of an evaluation's input that change its numbers without a sound: refused here, by name."""

from collections.abc import Sequence

import numpy as np

from siglip_jax.errors import UserError


def check_queries(keys: Sequence[str] | np.ndarray) -> None:
    """Refuses a query that comes twice: it would weigh double in every mean and make intervals too narrow.

    Args:
      keys: [query] ids, or [query, columns] of what makes a query the same: user, time and shown items, say.

    Raises:
      UserError: naming the first query met again, and how many there are.
    """
    again = duplicates(keys)
    if again.any():
        values = np.asarray(keys)
        row = int(again.argmax())
        same = values == values[row]
        first = int((same if values.ndim == 1 else same.all(axis=1)).argmax())
        name = f"query {values[row]!s} (row {row})" if values.ndim == 1 else f"query of row {row}"
        raise UserError(
            f"{name} is that of row {first}, and {int(again.sum())} of {len(again)} queries come again: each counts "
            "once; leave the copies out or give them ids of their own"
        )


def duplicates(keys: Sequence[str] | np.ndarray) -> np.ndarray:
    """Which rows of keys [query] or [query, columns] equal an earlier one: bool [query]."""
    values = np.asarray(keys)
    if values.ndim not in (1, 2):
        raise UserError(f"query keys of shape {list(values.shape)}: expected [query] or [query, columns]")
    if values.ndim == 2:
        if values.dtype == object:
            values = np.unique(values.astype(str), axis=0, return_inverse=True)[1].reshape(-1)
        else:  # equal bytes; much faster than unique along an axis
            width = values.dtype.itemsize * values.shape[1]
            values = np.ascontiguousarray(values).view(np.dtype((np.void, max(1, width)))).reshape(-1)
    out = np.ones(len(values), bool)
    out[np.unique(values, return_index=True)[1]] = False
    return out


def check_lists(rows: np.ndarray, scores: np.ndarray | None = None, *, items: int) -> None:
    """Refuses lists an index cannot have meant: phantom items, rows outside the catalogue, an item twice.

    ScaNN pads short lists with item 0 at distance NaN; taken as found, item 0 is then in every list.

    Args:
      rows: int [query, k] item rows, -1 where a list is shorter.
      scores: [query, k], of those that are there.

    Raises:
      UserError: naming the first query with such a fault.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.dtype.kind not in "iu":
        raise UserError(f"lists are {rows.dtype} {list(rows.shape)}: expected whole numbers [query, k], item rows")
    if scores is not None:
        scores = np.asarray(scores)
        if scores.shape != rows.shape:
            raise UserError(f"scores {list(scores.shape)} of lists {list(rows.shape)}: expected one of each item")
        phantom = np.isnan(scores) & (rows >= 0)
        if phantom.any():
            query, place = np.argwhere(phantom)[0]
            raise UserError(
                f"list of query {query} holds item {rows[query, place]} with score NaN at position {place + 1}, as "
                f"{int(phantom.any(axis=1).sum())} of {len(rows)} lists hold one: an index pads short lists so; "
                "give -1 for what was not found"
            )
    outside = (rows < -1) | (rows >= items)
    if outside.any():
        query, place = np.argwhere(outside)[0]
        raise UserError(f"list of query {query} holds item {rows[query, place]}: expected rows from 0 to {items - 1}")
    ordered = np.sort(rows, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        query, place = np.argwhere(twice)[0]
        raise UserError(f"list of query {query} holds item {ordered[query, place]} twice: each item is ranked once")
