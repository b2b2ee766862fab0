"""The metrics of one block of queries, from the labels in ranking order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eval import ties
from eval.metric_names import Metric
from eval.sorting import Piece, ranked_pieces
from siglip_jax.errors import UserError

_MAX_COUNTED_LABEL = 16  # integer labels up to this are counted, not sorted, for the ideal ranking
_MAX_EXPONENT = 64


@dataclass(frozen=True)
class Rules:
    """How labels count and how equal scores are ordered; as for `eval.metrics.rank_metrics`."""

    expected: bool  # over a random order of equal scores; otherwise they stay in column order
    gain: str
    relevant_from: float
    max_grade: float | None


def block_metrics(
    scores: np.ndarray, labels: np.ndarray, metrics: Mapping[str, Metric], rules: Rules, *, block: int
) -> dict[str, np.ndarray]:
    """{name: float64 [row]}, NaN where nothing is relevant. scores: float [row, column], no NaN; labels >= 0."""
    columns = labels.shape[1]
    relevant_total = np.count_nonzero(labels >= rules.relevant_from, axis=1).astype(np.float64)
    relevant_total[relevant_total == 0] = np.nan  # NaN spreads to every metric of the query
    out = {name: np.zeros(len(scores)) for name in metrics}
    in_order = {name: metric for name, metric in metrics.items() if metric.kind != "MRR"}
    if in_order:
        depth = max(columns if metric.k is None else min(metric.k, columns) for metric in in_order.values())
        for piece in ranked_pieces(scores, labels, depth, whole_groups=rules.expected):
            for name, values in _piece_metrics(piece, in_order, rules, relevant_total[piece.rows], depth).items():
                out[name][piece.rows] = values
    for name, metric in metrics.items():
        if metric.kind == "nDCG":
            out[name] /= _ideal_dcg(labels, min(metric.k or columns, columns), rules.gain)
            continue
        if metric.kind == "MRR":  # needs no order
            relevant = labels >= rules.relevant_from
            out[name] = _reciprocal_rank(scores, relevant, k=metric.k, expected=rules.expected, block=block)
        out[name][np.isnan(relevant_total)] = np.nan
    return out


def _piece_metrics(
    piece: Piece, metrics: Mapping[str, Metric], rules: Rules, relevant_total: np.ndarray, depth: int
) -> dict[str, np.ndarray]:
    kinds = {metric.kind for metric in metrics.values()}
    labels, width = piece.labels, piece.labels.shape[1]
    tied = np.flatnonzero(~piece.first.all(axis=1)) if rules.expected else np.empty(0, np.int64)
    groups = ties.TieGroups.of(piece.first[tied]) if tied.size else None
    relevant = (labels >= rules.relevant_from).astype(np.float64)  # at each position; its expectation in tied rows
    own = relevant[tied]
    gains = gains_of(labels, rules.gain) if "nDCG" in kinds else np.empty((len(labels), 0))
    precisions = np.empty((len(labels), 0))
    if "MAP" in kinds:
        precisions = relevant * np.cumsum(relevant, axis=1) / np.arange(1, width + 1)
    stops = survival = np.empty((len(labels), 0))
    if "ERR" in kinds:
        stops = _satisfied(labels, rules.max_grade)
        survival = np.ones((len(labels), width))
        np.cumprod(1 - stops[:, :-1], axis=1, out=survival[:, 1:])
    if groups is not None:
        relevant[tied] = groups.means(own)
        if "nDCG" in kinds:
            gains[tied] = groups.means(gains[tied])
        if "MAP" in kinds:
            precisions[tied] = ties.expected_precisions(groups, own)
        if "ERR" in kinds:
            k = max(m.k or width for m in metrics.values() if m.kind == "ERR")
            begins = groups.begin // width, groups.start
            survival[tied] = groups.spread(survival[tied][begins])
            stops[tied, : min(k, width)] = ties.expected_stops(groups, stops[tied], k)

    out = {}
    discount = 1 / np.log2(np.arange(2, depth + 2))
    rank = np.arange(1, width + 1)
    for name, metric in metrics.items():
        k = min(metric.k or depth, depth)
        if metric.kind == "nDCG":
            out[name] = (gains[:, :k] * discount[:k]).sum(axis=1)
        elif metric.kind == "precision":
            out[name] = relevant[:, :k].sum(axis=1) / metric.k
        elif metric.kind == "recall":
            out[name] = relevant[:, :k].sum(axis=1) / relevant_total
        elif metric.kind == "hit":
            out[name] = relevant[:, :k].any(axis=1).astype(np.float64)
            if groups is not None:
                out[name][tied] = ties.expected_hit(groups, own, k)
        elif metric.kind == "MAP":
            out[name] = precisions[:, :k].sum(axis=1) / relevant_total
        elif metric.kind == "ERR":
            out[name] = (stops[:, :k] * survival[:, :k] / rank[:k]).sum(axis=1)
        elif metric.kind == "RBP":
            persistence = metric.persistence or 0.0
            out[name] = (1 - persistence) * (relevant[:, :k] * persistence ** np.arange(k)).sum(axis=1)
        else:
            within = rank[:k] <= relevant_total[:, None]
            out[name] = (relevant[:, :k] * within).sum(axis=1) / relevant_total
    return out


def gains_of(labels: np.ndarray, gain: str) -> np.ndarray:
    """Gain of each label for nDCG: float64, a fresh array. UserError on labels too large for the exponential one."""
    values = labels.astype(np.float64)
    if gain == "linear":
        return values
    if values.max(initial=0) > _MAX_EXPONENT:
        raise UserError(
            f'label {values.max():g} with gain="exponential" (2^label - 1): grades up to {_MAX_EXPONENT} make sense, '
            'or "linear"'
        )
    return np.exp2(values) - 1


def _satisfied(labels: np.ndarray, max_grade: float | None) -> np.ndarray:
    """R of ERR, (2^label - 1) / 2^max_grade: the chance that a reader stops at such a candidate."""
    return (np.exp2(labels.astype(np.float64)) - 1) / 2.0 ** (max_grade or 0)


def _ideal_dcg(labels: np.ndarray, k: int, gain: str) -> np.ndarray:
    """DCG@k of the labels sorted, NaN where all are 0: float64 [row]."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    highest = labels.max(initial=0)
    if labels.dtype.kind in "iu" and highest <= _MAX_COUNTED_LABEL:
        # Every grade adds its gain over the one below to as many first positions as labels reach it.
        up_to = np.concatenate([[0.0], np.cumsum(discount)])
        gains = gains_of(np.arange(int(highest) + 1), gain)
        ideal = np.zeros(len(labels))
        for grade in range(1, int(highest) + 1):
            reached = np.minimum(np.count_nonzero(labels >= grade, axis=1), k)
            ideal += (gains[grade] - gains[grade - 1]) * up_to[reached]
    else:
        n = labels.shape[1]
        best = -np.sort(-np.partition(labels.astype(np.float64), n - k, axis=1)[:, n - k :], axis=1)
        ideal = (gains_of(best, gain) * discount).sum(axis=1)
    ideal[ideal == 0] = np.nan
    return ideal


def _reciprocal_rank(
    scores: np.ndarray, relevant: np.ndarray, *, k: int | None, expected: bool, block: int
) -> np.ndarray:
    best = np.where(relevant, scores, scores.dtype.type(-np.inf)).max(axis=1)[:, None]
    above = np.count_nonzero(scores > best, axis=1)
    equal = scores == best
    first = equal & relevant
    if expected:
        size, hits = np.count_nonzero(equal, axis=1), np.count_nonzero(first, axis=1)
        rank = above + 1.0
    else:
        rank = above + 1.0
        several = np.flatnonzero(np.count_nonzero(equal, axis=1) > 1)
        earlier = np.arange(scores.shape[1]) < first[several].argmax(axis=1)[:, None]
        rank[several] += np.count_nonzero(equal[several] & earlier, axis=1)
    found = 1 / rank
    if k is not None:
        found[rank > k] = 0
    if expected:
        tied = np.flatnonzero((hits > 0) & (hits < size) & (best[:, 0] > -np.inf))
        if tied.size:
            found[tied] = ties.expected_reciprocal_rank(above[tied], size[tied], hits[tied], k=k, block=block)
    return np.where(best[:, 0] > -np.inf, found, 0.0)
