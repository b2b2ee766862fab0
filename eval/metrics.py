"""Ranking metrics of many queries at once, exact under tied scores.

Metrics are values with a name, as in ir_measures: ``nDCG@5``, ``precision@1``, ``recall@10``, ``hit@5``, ``MRR``.
Library after library gives another number to a tied ranking (candidate order, docid order, silence), so the rule is an
argument here and its default is the expectation over a random order of the equal scores, in closed form (McSherry and
Najork 2008, "Computing information retrieval performance measures efficiently in the presence of tied scores").
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from siglip_jax.errors import UserError

KNOWN_METRICS = ("nDCG@k", "precision@k", "recall@k", "hit@k", "MRR")
DEFAULT_METRICS = ("nDCG@5", "MRR", "precision@1", "hit@5", "recall@5")
_CUT = re.compile(r"(nDCG|precision|recall|hit)@([1-9][0-9]*)")
_BLOCK = 1 << 21  # elements of [query, candidate] worked on at once: some tens of MB of temporaries
_MAX_COUNTED_LABEL = 16  # integer labels up to this are counted, not sorted, for the ideal ranking


def rank_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    ties: str = "expected",
    gain: str = "linear",
    relevant_from: float = 1,
) -> dict[str, np.ndarray]:
    """Per-query ranking metrics of scored candidates.

    A score of ``-inf`` stands for "in the ground truth, not retrieved": such a candidate is in no ranking but counts in
    the ideal DCG and in recall's denominator (what an approximate index missed).

    A query without any relevant candidate is NaN: for nDCG when no label is above 0, for the others when none reaches
    ``relevant_from``. Average with ``numpy.nanmean`` and say how many were left out (`mean_metrics` does both).

    Args:
        scores: [query, candidate] real numbers, higher is better; float32 and float64 are compared as given.
        labels: [query, candidate] graded relevance, finite, >= 0 (bool, integer or float).
        mask: [query, candidate] bool, True where a candidate exists; None for all. What it hides may hold anything.
        metrics: names out of nDCG@k, precision@k, recall@k, hit@k, MRR. precision@k divides by k even when fewer
            candidates exist, and nDCG discounts by log2(position + 1), both as in trec_eval.
        ties: "expected", the mean over all orders of equal scores, or "stable", equal scores in candidate order.
        gain: of nDCG: "linear", rel (Järvelin and Kekäläinen 2002, trec_eval), or "exponential", 2^rel - 1 (Burges et
            al. 2005). Reports name the latter nDCG_exp@k, see `report_name`.
        relevant_from: the smallest label that counts as relevant for the binary metrics (trec_eval's relevance_level).

    Returns:
        {name: float64 [query]}, in the order asked for.

    Raises:
        UserError: unknown metric, ties or gain; shapes that differ; a NaN score; a negative or non-finite label.
    """
    cutoffs = {name: _parse(name) for name in metrics}
    if ties not in ("expected", "stable"):
        raise UserError(f'ties={ties!r} is not known: use "expected" or "stable"')
    if gain not in ("linear", "exponential"):
        raise UserError(f'gain={gain!r} is not known: use "linear" or "exponential"')
    if not relevant_from > 0:
        raise UserError(f"relevant_from={relevant_from!r} must be above 0: label 0 means not relevant")
    scores, labels = np.asarray(scores), np.asarray(labels)
    mask = None if mask is None else np.asarray(mask)
    _check_shapes(scores, labels, mask)
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)

    queries, candidates = scores.shape
    out = {name: np.full(queries, np.nan) for name in cutoffs}
    if not candidates:
        return out
    depth = min(max((k for _, k in cutoffs.values()), default=0), candidates)
    step = max(1, _BLOCK // candidates)
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        s, rel = _clean(scores[rows], labels[rows], None if mask is None else mask[rows], start)
        block = _block_metrics(s, rel, cutoffs, depth, ties=ties, gain=gain, relevant_from=relevant_from)
        for name, values in block.items():
            out[name][rows] = values
    return out


def mean_metrics(per_query: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means over the queries that are not NaN: {name: {"mean", "queries", "left_out"}}; NaN when all are."""
    out = {}
    for name, values in per_query.items():
        known = values[~np.isnan(values)]
        mean = float(known.mean()) if known.size else float("nan")
        out[name] = {"mean": mean, "queries": int(known.size), "left_out": int(values.size - known.size)}
    return out


def report_name(metric: str, *, gain: str) -> str:
    """The name a report prints: nDCG@5 under the exponential gain is nDCG_exp@5; other metrics have no gain."""
    return metric.replace("nDCG@", "nDCG_exp@") if gain == "exponential" else metric


def max_cutoff(metrics: Sequence[str]) -> int:
    """The deepest k among the metrics, 0 when only MRR is asked for. Raises UserError on an unknown name."""
    return max((_parse(name)[1] for name in metrics), default=0)


def has_ties(scores: np.ndarray, mask: np.ndarray | None = None, *, k: int) -> np.ndarray:
    """Whether equal scores stand within the first k positions or across the cut behind them: bool [query].

    The mean is the tie rate a report prints: where it is not 0, the tie rule has a say in every metric@k.
    """
    scores = np.asarray(scores)
    out = np.zeros(len(scores), bool)
    step = max(1, _BLOCK // max(1, scores.shape[1]))
    for start in range(0, len(scores) if scores.shape[1] else 0, step):
        rows = slice(start, start + step)
        s = scores[rows] if mask is None else np.where(mask[rows], scores[rows], -np.inf)
        top = select_top(s, min(k, s.shape[1]))
        cut = top.values[:, -1]
        inside = (top.values[:, 1:] == top.values[:, :-1]) & (top.values[:, 1:] > -np.inf)
        out[rows] = inside.any(1) | ((top.at_least_cut > top.values.shape[1]) & (cut > -np.inf))
    return out


@dataclass(frozen=True)
class Top:
    """The k best columns of each row, ordered by (-score, column)."""

    columns: np.ndarray  # int64 [row, k]
    values: np.ndarray  # [row, k], descending
    at_least_cut: np.ndarray  # int64 [row], how many columns score at least the k-th best: above k, ties cross the cut


def select_top(scores: np.ndarray, k: int) -> Top:
    """The k best columns per row without a full sort, equal scores in column order, at the cut too.

    Args:
        scores: [row, column] floating point without NaN; k: 1 <= k <= columns.
    """
    rows, n = scores.shape
    if k < n:
        columns = np.argpartition(scores, n - k, axis=1)[:, n - k :]
        columns.sort(axis=1)
    else:
        columns = np.broadcast_to(np.arange(n), (rows, n))
    values = np.take_along_axis(scores, columns, axis=1)
    cut = values.min(axis=1)
    at_least_cut = np.count_nonzero(scores >= cut[:, None], axis=1)
    crossed = np.flatnonzero(at_least_cut > k)
    if crossed.size:  # the partition took any of the equal ones: take the first
        s, c = scores[crossed], cut[crossed, None]
        above, equal = s > c, s == c
        room = k - np.count_nonzero(above, axis=1)
        above |= equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room[:, None])
        columns[crossed] = np.nonzero(above)[1].reshape(-1, k)
        values[crossed] = np.take_along_axis(s, columns[crossed], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    return Top(np.take_along_axis(columns, order, axis=1), np.take_along_axis(values, order, axis=1), at_least_cut)


def _parse(name: str) -> tuple[str, int]:
    if name == "MRR":
        return "MRR", 0
    match = _CUT.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise UserError(f"unknown metric {name!r}: known are {', '.join(KNOWN_METRICS)} with k >= 1, such as nDCG@5")
    return match[1], int(match[2])


def _check_shapes(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray | None) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape or (mask is not None and mask.shape != scores.shape):
        shapes = f"scores {scores.shape}, labels {labels.shape}" + ("" if mask is None else f", mask {mask.shape}")
        raise UserError(f"{shapes}: all must have one shape [query, candidate]")
    if mask is not None and mask.dtype != np.bool_:
        raise UserError(f"mask has dtype {mask.dtype}: expected bool, True where a candidate exists")
    for name, array in (("scores", scores), ("labels", labels)):
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name} have dtype {array.dtype}: expected real numbers")


def _clean(s: np.ndarray, rel: np.ndarray, mask: np.ndarray | None, first_row: int) -> tuple[np.ndarray, np.ndarray]:
    """One block with what the mask hides made harmless: score -inf, label 0."""
    if rel.dtype == np.bool_:
        rel = rel.view(np.uint8)
    if mask is not None:
        s, rel = np.where(mask, s, s.dtype.type(-np.inf)), np.where(mask, rel, rel.dtype.type(0))
    if np.isnan(s).any():
        query, column = np.argwhere(np.isnan(s))[0]
        raise UserError(
            f"score of query {query + first_row}, candidate {column} is NaN: mask candidates that do not exist, "
            "and give -inf to those that were not retrieved"
        )
    if rel.dtype.kind != "u" and not (rel.min() >= 0 and rel.max() < np.inf):  # False for NaN as well
        query, column = np.argwhere(~((rel >= 0) & (rel < np.inf)))[0]
        raise UserError(
            f"label {rel[query, column]} of query {query + first_row}, candidate {column}: labels are finite and >= 0"
        )
    return s, rel


def _gains(rel: np.ndarray, gain: str) -> np.ndarray:
    rel = rel.astype(np.float64)
    if gain == "linear":
        return rel
    if rel.max(initial=0) > 64:
        raise UserError(
            f'label {rel.max():g} with gain="exponential" (2^label - 1): grades up to 64 make sense, or "linear"'
        )
    return np.exp2(rel) - 1


def _ideal_labels(rel: np.ndarray, depth: int) -> np.ndarray:
    """The `depth` highest labels of each row, descending: [row, depth]."""
    highest = rel.max(initial=0)
    if (
        rel.dtype.kind in "iu" and highest <= _MAX_COUNTED_LABEL
    ):  # the label at a position = how many grades reach so far
        ideal = np.zeros((len(rel), depth), np.int64)
        for grade in range(1, int(highest) + 1):
            ideal += np.count_nonzero(rel >= grade, axis=1)[:, None] > np.arange(depth)
        return ideal
    n = rel.shape[1]
    return -np.sort(-np.partition(rel.astype(np.float64), n - depth, axis=1)[:, n - depth :], axis=1)


@dataclass(frozen=True)
class _Positions:
    """Of the tie group at each of the first `depth` positions: arrays [query, depth]."""

    start: np.ndarray  # position of the group's first member
    size: np.ndarray  # members, those behind the cut included
    gain: np.ndarray  # mean gain of a member
    relevant: np.ndarray  # relevant members


def _positions(s: np.ndarray, rel: np.ndarray, depth: int, *, ties: str, gain: str, relevant_from: float) -> _Positions:
    top = select_top(s, depth)
    values = top.values
    own = np.take_along_axis(rel, top.columns, axis=1)
    retrieved = values > -np.inf
    gains = np.where(retrieved, _gains(own, gain), 0.0)
    relevant = np.where(retrieved, own >= relevant_from, False).astype(np.float64)
    place = np.broadcast_to(np.arange(depth), values.shape)
    if ties == "stable":
        return _Positions(place, np.ones_like(gains), gains, relevant)

    first = np.ones(values.shape, bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    start = np.maximum.accumulate(np.where(first, place, 0), axis=1)
    group = (start + np.arange(len(values))[:, None] * depth).ravel()

    def per_group(weights: np.ndarray) -> np.ndarray:
        return np.bincount(group, weights.ravel(), minlength=group.size)[group].reshape(values.shape)

    size, gain_sum, relevant = per_group(np.ones(values.shape)), per_group(gains), per_group(relevant)
    crossed = np.flatnonzero((top.at_least_cut > depth) & retrieved[:, -1])
    if crossed.size:  # the group at the cut has members behind it
        cut = values[crossed, -1:]
        equal, labels, at_cut = s[crossed] == cut, rel[crossed], values[crossed] == cut
        for target, total in (
            (size, np.count_nonzero(equal, axis=1)),
            (gain_sum, np.where(equal, _gains(labels, gain), 0).sum(axis=1)),
            (relevant, np.count_nonzero(equal & (labels >= relevant_from), axis=1)),
        ):
            target[crossed] = np.where(at_cut, total[:, None], target[crossed])
    return _Positions(start, size, gain_sum / size, relevant)


def _block_metrics(
    s: np.ndarray,
    rel: np.ndarray,
    cutoffs: Mapping[str, tuple[str, int]],
    depth: int,
    *,
    ties: str,
    gain: str,
    relevant_from: float,
) -> dict[str, np.ndarray]:
    relevant_total = np.count_nonzero(rel >= relevant_from, axis=1).astype(np.float64)
    relevant_total[relevant_total == 0] = np.nan  # NaN spreads to every metric of the query
    undefined = np.where(np.isnan(relevant_total), np.nan, 0.0)
    out = {}
    if depth:
        at = _positions(s, rel, depth, ties=ties, gain=gain, relevant_from=relevant_from)
        discount = 1 / np.log2(np.arange(2, depth + 2))
        dcg = np.cumsum(at.gain * discount, axis=1)
        found = np.cumsum(at.relevant / at.size, axis=1)
    ideal_dcg = None
    for name, (kind, k) in cutoffs.items():
        last = min(k, depth) - 1
        if kind == "nDCG":
            if ideal_dcg is None:
                ideal_dcg = np.cumsum(_gains(_ideal_labels(rel, depth), gain) * discount, axis=1)
                ideal_dcg[ideal_dcg == 0] = np.nan
            out[name] = dcg[:, last] / ideal_dcg[:, last]
        elif kind == "precision":
            out[name] = found[:, last] / k + undefined
        elif kind == "recall":
            out[name] = found[:, last] / relevant_total
        elif kind == "hit":
            out[name] = _hit(at, last) + undefined
        else:
            out[name] = _reciprocal_rank(s, rel >= relevant_from, ties=ties) + undefined
    return out


def _hit(at: _Positions, last: int) -> np.ndarray:
    """P(relevant candidate at positions 0..last): sure above the group at the cut, hypergeometric in it: [query]."""
    size, relevant, start = at.size[:, last], at.relevant[:, last], at.start[:, last]
    drawn = last + 1 - start
    miss = np.ones(len(size))
    for i in range(int(drawn.max(initial=0))):  # at most k factors
        miss = np.where(i < drawn, miss * np.maximum(size - relevant - i, 0) / np.maximum(size - i, 1), miss)
    above = ((at.relevant > 0) & (np.arange(at.size.shape[1]) < start[:, None])).any(axis=1)
    return np.where(above, 1.0, 1.0 - miss)


def _reciprocal_rank(s: np.ndarray, relevant: np.ndarray, *, ties: str) -> np.ndarray:
    best = np.where(relevant, s, s.dtype.type(-np.inf)).max(axis=1)[:, None]
    above = np.count_nonzero(s > best, axis=1)
    equal = s == best
    first = equal & relevant
    if ties == "stable":
        before = np.count_nonzero(equal & (np.arange(s.shape[1]) < first.argmax(axis=1)[:, None]), axis=1)
        rr = 1 / (above + before + 1.0)
    else:
        size, hits = np.count_nonzero(equal, axis=1), np.count_nonzero(first, axis=1)
        rr = 1 / (above + 1.0)
        tied = np.flatnonzero((hits > 0) & (hits < size) & (best[:, 0] > -np.inf))
        if tied.size:
            rr[tied] = _expected_reciprocal_rank(above[tied], size[tied], hits[tied])
    return np.where(best[:, 0] > -np.inf, rr, 0.0)


def _expected_reciprocal_rank(above: np.ndarray, size: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """E[1 / rank of the first of `hits` relevant among `size` equals that stand behind `above` others]: [query].

    P(first relevant is the i-th of the group) = C(size - i, hits - 1) / C(size, hits), by its recurrence over i.
    """
    cases, back = np.unique(np.stack([above, size, hits], axis=1), axis=0, return_inverse=True)
    above, size, hits = cases.T.astype(np.float64)
    longest = int((size - hits).max()) + 1
    out = np.empty(len(cases))
    step = max(1, _BLOCK // longest)
    for lo in range(0, len(cases), step):
        a, m, r = above[lo : lo + step, None], size[lo : lo + step, None], hits[lo : lo + step, None]
        i = np.arange(1, longest, dtype=np.float64)
        ratio = np.maximum(m - i - r + 1, 0) / np.maximum(m - i, 1)
        probability = np.concatenate([r / m, r / m * np.cumprod(ratio, axis=1)], axis=1)
        out[lo : lo + step] = (probability / (a + np.arange(1, longest + 1))).sum(axis=1)
    return out[back.ravel()]
