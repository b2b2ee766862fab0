"""What an approximate index returned, held against the exact scores: allowed items, recall, and phantoms."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from eval.embeddings.vectors import Scorer, unit_rows
from eval.search.index import Index, Neighbours
from eval.search.scans import Scan, exact_best, rescore
from siglip_jax.errors import UserError

LEAST_RECALL = 0.98  # under this the index moves the metric more than most encoders do
_TOLERANCE = 1e-3  # of a cosine that ScaNN reordered exactly; hashed scores are off by more


def check_recall(index: Index, *, allow: bool = False) -> None:
    """Raises a UserError where an index is known to find too little: less than the target that it was tuned for, or
    than `LEAST_RECALL` where it is approximate and has none; not if that is allowed.
    """
    if not allow and (short := shortfall(index)):
        raise UserError(f"the index {short}, or give --allow_low_recall")


def shortfall(index: Index) -> str:
    """What an index is known to find too little and how to build a better one, in words; "" where it finds enough."""
    measured = index.measured
    least = measured.get("target", 0.0 if index.backend == "exact" else LEAST_RECALL)
    if measured.get("recall", 1.0) >= least:
        return ""
    return (
        f"finds {measured['recall']:.4f} of the {measured['k']} nearest, less than {least}; build it with "
        f"{better_options(index)}"
    )


def better_options(index: Index) -> str:
    """Flags of `siglip-jax index` with which more is found."""
    reduced = f"--candidates above {index.options.get('candidates')} or a wider --reduce"
    return reduced if index.backend == "reduced" else "--target_recall or --backend=exact"


def search_allowed(index: Index, vectors: np.ndarray, mask: np.ndarray, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k allowed neighbours of each query: rows int64 and scores float32 [q, k], padded with -1 and -inf.

    Asks for more and more until each query has k allowed ones, or all that there are.

    Args:
      vectors: real [q, d]; mask: bool [q, n], who is allowed.
    """
    n = mask.shape[1]
    wanted = np.minimum(k, mask.sum(axis=1))
    ask = min(n, 2 * k)
    while True:
        found = index.search(vectors, k=ask)
        good = (found.rows >= 0) & np.take_along_axis(mask, np.clip(found.rows, 0, n - 1), axis=1)
        good |= (found.rows >= n) | np.isnan(found.scores)  # phantoms stay, for check_found to name
        if ask == n or (good.sum(axis=1) >= wanted).all():
            break
        ask = min(n, 4 * ask)
    order = np.argsort(~good, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(good, order, axis=1)
    rows = np.where(kept, np.take_along_axis(found.rows, order, axis=1), -1)
    return rows, np.where(kept, np.take_along_axis(found.scores, order, axis=1), np.float32(-np.inf))


def check_found(rows: np.ndarray, scores: np.ndarray, exact: np.ndarray) -> None:
    """Raises a UserError where an index returned phantoms: rows that are none, twice, or with a score not theirs.

    ScaNN pads short results with row 0 and NaN, say, and each such pad would count as an item found.

    Args:
      rows: int64 [q, k], -1 for padding; scores [q, k]; exact: [q, n], the exact scores.
    """
    n = exact.shape[1]
    there = rows >= 0
    unknown = there & (rows >= n)
    ordered = np.sort(np.where(there, rows, -1 - np.arange(rows.shape[1])), axis=1)  # paddings differ from each other
    twice = int((ordered[:, 1:] == ordered[:, :-1]).sum())
    true = np.take_along_axis(exact, np.clip(rows, 0, n - 1), axis=1)
    with np.errstate(invalid="ignore"):
        wrong = there & ~unknown & ~(np.abs(scores - true) <= _TOLERANCE)  # true for NaN as well
    if unknown.any() or twice or wrong.any():
        raise UserError(
            f"the index returned phantom items for {len(rows)} queries: {int(unknown.sum())} that do not exist, "
            f"{twice} twice in one result, {int(wrong.sum())} with a score that is not theirs; build it again, or "
            "leave it out with --scann=none"
        )


def recall_of_allowed(rows: np.ndarray, exact: np.ndarray, *, k: int) -> np.ndarray:
    """Share of the exact k best that were found, by score, so that equal items are interchangeable: float64 [q].

    Args:
      rows: int64 [q, depth >= k]; exact: [q, n], -inf for what is not allowed. NaN for a query without candidates.
    """
    k = min(k, exact.shape[1])
    worst = np.partition(exact, exact.shape[1] - k, axis=1)[:, -k]
    there = np.minimum(k, (exact > -np.inf).sum(axis=1)).astype(np.float64)
    near = rows[:, :k]
    score = np.take_along_axis(exact, np.maximum(near, 0), axis=1)
    good = (near >= 0) & (score > -np.inf) & (score >= worst[:, None] - 1e-6)
    return good.sum(axis=1) / np.where(there > 0, there, np.nan)


def only_found(rows: np.ndarray, scores: np.ndarray, n: int) -> np.ndarray:
    """Dense scores [q, n] of what was found, -inf for everything else."""
    out = np.full((len(rows), n), -np.inf, np.float32)
    query, place = np.nonzero(rows >= 0)
    out[query, rows[query, place]] = scores[query, place]
    return out


def measure_recall(
    index: Index, vectors: np.ndarray, *, k: int = 10, sample: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Share of the exact k nearest an index finds; sampled items are the queries, each left out of its own result.

    A found item counts when it scores as well as the exact k-th (up to 1e-6), so that equal items are interchangeable.
    The result is also kept as `index.measured`, and so in the manifest of a later save.

    Args:
      vectors: real [n, dimension], the ones the index was built from, in its order.

    Returns:
      {"recall", "k", "queries", "seed"}.

    Raises:
      UserError: vectors of another shape than the index, or fewer than two items.
    """
    vectors = np.asarray(vectors)
    if len(index) < 2:
        raise UserError("the index holds 1 item: recall needs at least 2, a query and a neighbour to find; index more")
    if vectors.shape != (len(index), index.dimension) or k < 1 or sample < 1:
        raise UserError(
            f"recall@{k} over {sample} queries of vectors {list(vectors.shape)}: expected k and sample >= 1 and the "
            f"vectors of the index, [{len(index)}, {index.dimension}]"
        )
    truth = Truth.of(unit_rows(vectors, what="vector"), k=k, sample=sample, seed=seed)
    index.measured = {"recall": truth.recall(index), "k": truth.k, "queries": len(truth.rows), "seed": seed}
    return dict(index.measured)


@dataclasses.dataclass(frozen=True)
class Truth:
    """Sampled items as queries, each without itself, and what exact search says of them.

    Attributes:
      unit: float32 [n, dimension], all items.
      rows: int64 [query], the sampled ones.
      worst: float32 [query], the score of the k-th neighbour.
    """

    unit: np.ndarray
    rows: np.ndarray
    worst: np.ndarray
    k: int

    @classmethod
    def of(cls, unit: np.ndarray, *, k: int, sample: int, seed: int) -> Truth:
        """unit: float32 [n, dimension] of unit norm, 2 or more; k is n - 1 at most."""
        k = min(k, len(unit) - 1)
        rows = np.sort(np.random.default_rng(seed).permutation(len(unit))[:sample])
        nearest, scores = exact_best(Scan(unit), unit, unit[rows], k=k + 1)
        found = without_self(Neighbours(nearest, scores, ()), rows)
        return cls(unit, rows, found.scores[:, -1], k)

    @property
    def queries(self) -> np.ndarray:
        return self.unit[self.rows]

    def part(self, places: slice) -> Truth:
        """Of some of the queries."""
        return dataclasses.replace(self, rows=self.rows[places], worst=self.worst[places])

    def recall(self, index: Index) -> float:
        """Share of the k nearest that the index finds, by score, so that equal items are interchangeable."""
        return self.recall_of(index.search(self.queries, k=self.k + 1))

    def recall_of(self, found: Neighbours) -> float:
        """The same of k + 1 neighbours of each query, itself perhaps among them."""
        near = without_self(found, self.rows).rows[:, : self.k]
        return float((rescore(self.unit, self.queries, near) >= self.worst[:, None] - 1e-6).mean())


def recall_of(
    found: Neighbours, scorer: Scorer, rows: np.ndarray, *, k: int, scores: np.ndarray | None = None
) -> np.ndarray:
    """Recall@k [query] of neighbours found for items `rows`; `scores`: the exact ones, if at hand, own ones -inf."""
    if scores is None:
        scores = scorer.scores(scorer.rows(rows))
        scores[np.arange(len(rows)), rows] = -np.inf
    worst = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]
    near = found.rows[:, :k]
    good = np.take_along_axis(scores, np.maximum(near, 0), axis=1) >= worst[:, None] - 1e-6
    return (good & (near >= 0)).sum(axis=1) / k


def without_self(found: Neighbours, rows: np.ndarray) -> Neighbours:
    """Drops each query item from its own neighbours [query, k + 1]; the last neighbour where it was not among them."""
    keep = found.rows != rows[:, None]
    keep[keep.all(axis=1), -1] = False
    shape = (len(rows), found.rows.shape[1] - 1)
    return Neighbours(found.rows[keep].reshape(shape), found.scores[keep].reshape(shape), found.catalogue)
