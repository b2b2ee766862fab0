"""What accuracy does not see: how much of the catalogue is shown, how evenly, how new and how varied the lists are.

Lists are int [query, k]: item rows in ranking order, -1 where a list is shorter.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from eval.checks import check_lists
from siglip_jax.errors import UserError

_BLOCK = 1 << 21  # numbers of [query, k, dimension] gathered at once


def beyond_accuracy(
    lists: np.ndarray,
    *,
    items: int,
    k: int,
    popularity: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    attributes: Mapping[str, Sequence[str | None] | np.ndarray] | None = None,
) -> dict[str, float | np.ndarray]:
    """All measures whose data is at hand, of the first k of each list.

    Returns:
      {"coverage@k": float, "gini@k": float, "novelty@k": float64 [query] (with popularity), "diversity@k": float64
      [query] (with vectors), "diversity_NAME@k" (with attributes)}: the latter can be compared pair by pair as any
      per-query metric; NaN where a list is too short.

    Raises:
      UserError: rows outside the catalogue, an item twice in one list, arrays of other lengths than `items`.
    """
    lists = np.asarray(lists)
    if k < 1 or lists.ndim != 2:
        raise UserError(f"lists of shape {list(lists.shape)} and k={k}: expected [query, k] and k >= 1")
    lists = lists[:, :k]
    check_lists(lists, items=items)
    shown = exposure(lists, items=items)
    out: dict[str, float | np.ndarray] = {f"coverage@{k}": coverage(shown), f"gini@{k}": gini(shown)}
    if popularity is not None:
        out[f"novelty@{k}"] = novelty(lists, popularity, items=items)
    if vectors is not None:
        out[f"diversity@{k}"] = embedding_diversity(lists, vectors, items=items)
    for name, values in (attributes or {}).items():
        out[f"diversity_{name}@{k}"] = attribute_diversity(lists, values, items=items)
    return out


def exposure(lists: np.ndarray, *, items: int) -> np.ndarray:
    """How many lists show each item: int64 [item]."""
    return np.bincount(lists[lists >= 0], minlength=items)


def coverage(shown: np.ndarray) -> float:
    """Share of the catalogue that at least one list shows. shown: `exposure`, [item]."""
    return float(np.count_nonzero(shown) / len(shown)) if len(shown) else float("nan")


def gini(shown: np.ndarray) -> float:
    """Gini index of exposure over the whole catalogue: 0 when all items are shown equally often, near 1 when one is.

    NaN when nothing is shown. shown: `exposure`, [item].
    """
    n, total = len(shown), shown.sum()
    if not total:
        return float("nan")
    ordered = np.sort(shown).astype(np.float64)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total))


def novelty(lists: np.ndarray, popularity: np.ndarray, *, items: int) -> np.ndarray:
    """Mean self-information in bits of what is shown, -log2 of an item's share of interactions: float64 [query].

    Zhou et al. 2010, "Solving the apparent diversity-accuracy dilemma of recommender systems". One interaction is added
    to every item, so that items without any are very new instead of infinitely so.

    Args:
      popularity: [item] interactions in the training period, >= 0.
    """
    counts = np.asarray(popularity, np.float64)
    if counts.shape != (items,) or not ((counts >= 0) & (counts < np.inf)).all():
        raise UserError(f"popularity of shape {list(counts.shape)}: expected {items} finite numbers >= 0, one an item")
    bits = -np.log2((counts + 1) / (counts.sum() + items))
    there = lists >= 0
    return _mean(np.where(there, bits[lists], 0).sum(axis=1), there.sum(axis=1))


def embedding_diversity(lists: np.ndarray, vectors: np.ndarray, *, items: int) -> np.ndarray:
    """Mean of 1 - cosine over the pairs of a list: float64 [query], NaN for lists of fewer than two items.

    Ziegler et al. 2005, intra-list similarity. Of m unit vectors it takes their sum alone: the cosines of all pairs add
    up to (|sum|^2 - m) / 2. `vectors`: [item, dimension], any norm but 0.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != items:
        raise UserError(f"vectors of shape {list(vectors.shape)}: expected one of each of {items} items")
    norm = np.linalg.norm(vectors.astype(np.float64), axis=1)
    if not ((norm > 0) & (norm < np.inf)).all():
        raise UserError(f"vector of item {int((~((norm > 0) & (norm < np.inf))).argmax())} is zero or not finite")
    out = np.empty(len(lists))
    step = max(1, _BLOCK // max(1, lists.shape[1] * vectors.shape[1]))
    for lo in range(0, len(lists), step):
        rows = lists[lo : lo + step]
        weight = (rows >= 0) / norm[rows]
        total = np.einsum("qk,qkd->qd", weight, vectors[rows].astype(np.float64, copy=False))
        m = (rows >= 0).sum(axis=1)
        out[lo : lo + step] = 1 - _mean(np.square(total).sum(axis=1) - m, m * (m - 1))
    return out


def attribute_diversity(lists: np.ndarray, values: Sequence[str | None] | np.ndarray, *, items: int) -> np.ndarray:
    """Share of a list's pairs that differ in an attribute: float64 [query], NaN for lists of fewer than two items.

    values: [item] texts or numbers; an empty text or None differs from everything, another empty one too.
    """
    if len(values) != items:
        raise UserError(f"{len(values)} attribute values: expected one of each of {items} items")
    table: dict[object, int] = {}
    keys = (
        value if value not in ("", None) else ("empty", row) for row, value in enumerate(np.asarray(values).tolist())
    )
    codes = np.fromiter((table.setdefault(key, len(table)) for key in keys), np.int64, items)
    there = lists >= 0
    found = np.where(there, codes[lists], -1 - np.arange(lists.shape[1]))  # what is not there equals nothing
    ordered = np.sort(found, axis=1)
    same = np.zeros(len(lists))
    for shift in range(1, lists.shape[1]):
        same += np.count_nonzero(ordered[:, shift:] == ordered[:, :-shift], axis=1)
    m = there.sum(axis=1)
    return 1 - _mean(2 * same, m * (m - 1))


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
