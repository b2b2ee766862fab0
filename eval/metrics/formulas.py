"""The metrics of one block of queries, from the labels in ranking order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eval.metrics import ties
from eval.metrics.cumulative import accumulate, by_position, counts, total
from eval.metrics.metric_names import Metric
from eval.metrics.sorting import Piece, ranked_pieces
from eval.metrics.ties import TieGroups
from siglip_jax.errors import UserError

_MAX_COUNTED_LABEL = 16  # integer labels up to this are counted, not sorted, for the ideal ranking
_MAX_EXPONENT = 64


@dataclass(frozen=True)
class Rules:
    """How labels count and how equal scores are ordered; as for `eval.metrics.ranking.rank_metrics`."""

    expected: bool  # over a random order of equal scores; otherwise they stay in column order
    gain: str
    relevant_from: float
    max_grade: float | None


def block_metrics(
    scores: np.ndarray, labels: np.ndarray, metrics: Mapping[str, Metric], rules: Rules, *, block: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{name: float64 [row]}, NaN where nothing is relevant, and the number of relevant candidates: int [row].

    scores: float [row, column], no NaN; labels: [row, column] >= 0.
    """
    columns = labels.shape[1]
    by_column = by_position(labels)
    relevant = by_column >= rules.relevant_from
    relevant_total = counts(relevant)
    nothing = relevant_total == 0
    out = {name: np.zeros(len(scores)) for name in metrics}
    in_order = {name: metric for name, metric in metrics.items() if metric.kind != "MRR"}
    if in_order:
        depth = max(columns if metric.k is None else min(metric.k, columns) for metric in in_order.values())
        for piece in ranked_pieces(scores, labels, depth, groups=rules.expected):
            some = np.maximum(relevant_total[piece.rows], 1)
            for name, values in _piece_metrics(piece, in_order, rules, some, depth).items():
                out[name][piece.rows] = values
    scores_by_column = by_position(scores) if len(in_order) < len(metrics) else scores
    for name, metric in metrics.items():
        if metric.kind == "nDCG":
            out[name] /= _ideal_dcg(by_column, min(metric.k or columns, columns), rules.gain)
            continue
        if metric.kind == "MRR":  # needs no order
            out[name] = _reciprocal_rank(scores_by_column, relevant, k=metric.k, expected=rules.expected, block=block)
        out[name][nothing] = np.nan
    return out, relevant_total


def _piece_metrics(
    piece: Piece, metrics: Mapping[str, Metric], rules: Rules, relevant_total: np.ndarray, depth: int
) -> dict[str, np.ndarray]:
    """Everything linear in what stands at a position is a sum over `at_...`; tied rows have the expectation there."""
    kinds = {metric.kind for metric in metrics.values()}
    labels, width = piece.labels, piece.labels.shape[1]
    groups = None if piece.first is None else TieGroups.of(piece.first)
    rank = np.arange(1, width + 1)
    own = at_relevant = (labels >= rules.relevant_from).astype(np.float64)
    at_gain = at_precision = at_stop = at_relevant
    if groups is not None:
        at_relevant = by_position(groups.means(own))
    if "nDCG" in kinds:
        at_gain = gains_of(labels, rules.gain)
        if groups is not None:
            at_gain = by_position(groups.means(at_gain))
    if "MAP" in kinds:
        if groups is None:
            at_precision = own * accumulate(np.add, own) / rank
        else:
            at_precision = by_position(ties.expected_precisions(groups, own))
    if "ERR" in kinds:
        deepest = max(metric.k or width for metric in metrics.values() if metric.kind == "ERR")
        at_stop = _stops(labels, groups, rules.max_grade or 0, deepest)

    out = {}
    discount = 1 / np.log2(np.arange(2, depth + 2))
    for name, metric in metrics.items():
        k = min(metric.k or depth, depth)
        if metric.kind == "nDCG":
            out[name] = total(at_gain, k, discount)
        elif metric.kind == "precision":
            out[name] = total(at_relevant, k) / metric.k
        elif metric.kind == "recall":
            out[name] = total(at_relevant, k) / relevant_total
        elif metric.kind == "hit" and groups is not None:
            out[name] = ties.expected_hit(groups, own, k)
        elif metric.kind == "hit":
            out[name] = (total(own, k) > 0).astype(np.float64)
        elif metric.kind == "MAP":
            out[name] = total(at_precision, k) / relevant_total
        elif metric.kind == "ERR":
            out[name] = total(at_stop, k, 1 / rank)
        elif metric.kind == "RBP":
            persistence = metric.persistence or 0.0
            out[name] = (1 - persistence) * total(at_relevant, k, persistence ** np.arange(k))
        else:
            out[name] = total(at_relevant * (rank <= relevant_total[:, None]), k) / relevant_total
    return out


def _stops(labels: np.ndarray, groups: TieGroups | None, max_grade: float, k: int) -> np.ndarray:
    """P(a reader stops at a position), for the first k at least: float64 [row, width].

    A candidate satisfies with R = (2^label - 1) / 2^max_grade (Chapelle et al. 2009).
    """
    stop = (np.exp2(labels.astype(np.float64)) - 1) / 2.0**max_grade
    reach = np.ones_like(stop)
    reach[:, 1:] = accumulate(np.multiply, 1 - stop[:, :-1])
    if groups is None:
        return stop * reach
    begins = groups.begin // groups.shape[1], groups.start
    return by_position(groups.spread(reach[begins]) * ties.expected_stops(groups, stop, k))


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
            reached = np.minimum(counts(labels >= grade), k)
            ideal += (gains[grade] - gains[grade - 1]) * up_to[reached]
    else:
        n = labels.shape[1]
        best = -np.sort(-np.partition(labels.astype(np.float64), n - k, axis=1)[:, n - k :], axis=1)
        ideal = total(gains_of(best, gain), k, discount)
    ideal[ideal == 0] = np.nan
    return ideal


def _reciprocal_rank(
    scores: np.ndarray, relevant: np.ndarray, *, k: int | None, expected: bool, block: int
) -> np.ndarray:
    best = np.where(relevant, scores, scores.dtype.type(-np.inf)).max(axis=1)[:, None]
    above = counts(scores > best)
    equal = scores == best
    rank = above + 1.0
    size = counts(equal)
    several = np.flatnonzero(size > 1)
    if not expected and several.size:
        earlier = np.arange(scores.shape[1]) < (equal[several] & relevant[several]).argmax(axis=1)[:, None]
        rank[several] += counts(equal[several] & earlier)
    found = 1 / rank
    if k is not None:
        found[rank > k] = 0
    if expected and several.size:
        hits = counts(equal[several] & relevant[several])
        some = (hits > 0) & (hits < size[several]) & (best[several, 0] > -np.inf)
        tied, hits = several[some], hits[some]
        if tied.size:
            found[tied] = ties.expected_reciprocal_rank(above[tied], size[tied], hits, k=k, block=block)
    return np.where(best[:, 0] > -np.inf, found, 0.0)
