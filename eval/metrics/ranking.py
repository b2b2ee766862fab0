"""Ranking metrics of many queries at once, exact under tied scores.

Library after library gives another number to a tied ranking (candidate order, docid order, silence), so the rule is an
argument here and its default is the expectation over a random order of the equal scores (`eval.metrics.ties`). Names
are those of `eval.metrics.metric_names`; docs/guide/metrics.md defines each.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from eval.metrics.block_metrics import block_metrics
from eval.metrics.formulas import Rules
from eval.metrics.metric_names import (
    has_uncut,
    known_metrics,
    max_cutoff,
    needs_max_grade,
    parse_metric,
    report_name,
    trec_name,
)
from eval.metrics.threads import in_threads
from eval.metrics.topk import select_top
from siglip_jax.errors import UserError

__all__ = [
    "DEFAULT_METRICS",
    "QueryMetrics",
    "docid_ranks",
    "has_ties",
    "has_uncut",
    "known_metrics",
    "max_cutoff",
    "mean_metrics",
    "needs_max_grade",
    "rank_metrics",
    "report_name",
    "select_top",
    "trec_name",
]

DEFAULT_METRICS = ("nDCG@5", "MRR", "precision@1", "hit@5", "recall@5")
TIES = ("expected", "docid", "stable")
_BLOCK = 1 << 17  # elements of [query, candidate] worked on at once, by each thread: stays in its cache


class QueryMetrics(dict[str, np.ndarray]):
    """{metric: float64 [query]}, and how many queries there were.

    counts: {"queries", "without_relevant": no label reaches relevant_from, "missing": nothing was retrieved}.
    """

    def __init__(self, values: Mapping[str, np.ndarray], counts: Mapping[str, int]):
        super().__init__(values)
        self.counts = dict(counts)


def rank_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    ties: str = "expected",
    gain: str = "linear",
    relevant_from: float = 1,
    docids: np.ndarray | None = None,
    max_grade: float | None = None,
    without_relevant: str = "skip",
    missing: str = "zero",
) -> QueryMetrics:
    """Per-query ranking metrics of scored candidates.

    A score of ``-inf`` stands for "in the ground truth, not retrieved": such a candidate is in no ranking but counts in
    the ideal DCG and in recall's denominator (what an approximate index missed). Work goes block by block over a few
    threads: beside the arguments and the results, memory is some tens of MB a thread.

    Args:
      scores: [query, candidate] real numbers, higher is better; float32 and float64 are compared as given.
      labels: [query, candidate] graded relevance, finite, >= 0 (bool, integer or float).
      mask: [query, candidate] bool, True where a candidate exists; None for all. What it hides may hold anything.
      metrics: names out of `known_metrics`. precision@k divides by k even when fewer candidates exist, MAP@k by all
          relevant, nDCG discounts by log2(position + 1), all as in trec_eval.
      ties: "expected", the mean over all orders of equal scores; "docid", trec_eval's rule: scores rounded to
          float32, equal ones by descending docid; or "stable", equal scores in candidate order, which rewards a
          constant scorer whenever the candidates come in an order that means something.
      gain: of nDCG: "linear", rel (Järvelin and Kekäläinen 2002, trec_eval), or "exponential", 2^rel - 1 (Burges et
          al. 2005). Reports name the latter nDCG_exp@k, see `report_name`.
      relevant_from: the smallest label that counts as relevant for the binary metrics (trec_eval's relevance_level).
      docids: for ties="docid": [candidate] when all queries share their candidates, or [query, candidate]; strings,
          or integers that order as the strings do (`docid_ranks`; whole-number ids are no such integers).
      max_grade: for ERR: the highest grade the labels can have, not the highest met.
      without_relevant: a query with nothing relevant (for nDCG no label above 0, for the others none from
          relevant_from up) is "skip": NaN, left out of `mean_metrics` and counted there; "zero": 0; "error": refused.
      missing: a query of which nothing was retrieved (all candidates -inf) though something is relevant, which
          trec_eval drops from its means, is "zero": 0; "skip": NaN; "error": refused.

    Returns:
      {name: float64 [query]}, in the order asked for, with `.counts` of the queries.

    Raises:
      UserError: unknown metric or option; shapes that differ; a NaN score; a negative or non-finite label; a label
          above max_grade; docids absent, repeated or not asked for; what a rule "error" refuses.
    """
    parsed = {name: parse_metric(name) for name in metrics}
    _check_options({"ties": ties}, TIES)
    _check_options({"gain": gain}, ("linear", "exponential"))
    _check_options({"without_relevant": without_relevant, "missing": missing}, ("skip", "zero", "error"))
    if not relevant_from > 0:
        raise UserError(f"relevant_from={relevant_from!r} must be above 0: label 0 means not relevant")
    if needs_max_grade(metrics) and not (max_grade and 0 < max_grade <= 64):
        kind = next(parsed[name].kind for name in metrics if needs_max_grade((name,)))
        raise UserError(f"{kind} with max_grade={max_grade!r}: declare the highest grade labels can have, such as 3")
    scores, labels = np.asarray(scores), np.asarray(labels)
    mask = None if mask is None else np.asarray(mask)
    _check_shapes(scores, labels, mask)
    order = _docid_order(docids, scores.shape, ties)

    queries, candidates = scores.shape
    out = {name: np.full(queries, np.nan) for name in parsed}
    lacking, lost = np.ones(queries, bool), np.ones(queries, bool)
    rules = Rules(ties == "expected", gain, relevant_from, max_grade)

    def work(rows: slice) -> None:
        s, rel = _clean(scores[rows], labels[rows], None if mask is None else mask[rows], rows.start, max_grade)
        if order is not None:
            s, rel = order(rows, s, rel)
        values, relevant = block_metrics(s, rel, parsed, rules, block=_BLOCK)
        for name in parsed:
            out[name][rows] = values[name]
        lacking[rows] = relevant == 0
        lost[rows] = np.isneginf(s).all(axis=1)

    if candidates:
        step = max(1, _BLOCK // candidates)
        for _ in in_threads(work, [slice(lo, min(lo + step, queries)) for lo in range(0, queries, step)]):
            pass
    _apply_rules(out, lost, without_relevant=without_relevant, missing=missing)
    gone = int((lost & ~lacking).sum())
    return QueryMetrics(out, {"queries": queries, "without_relevant": int(lacking.sum()), "missing": gone})


def mean_metrics(per_query: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means over the queries that are not NaN: {name: {"mean", "queries", "left_out"}}; NaN when all are."""
    out = {}
    for name, values in per_query.items():
        known = values[~np.isnan(values)]
        mean = float(known.mean()) if known.size else float("nan")
        out[name] = {"mean": mean, "queries": int(known.size), "left_out": int(values.size - known.size)}
    return out


def has_ties(scores: np.ndarray, mask: np.ndarray | None = None, *, k: int) -> np.ndarray:
    """Whether equal scores stand within the first k positions or across the cut behind them: bool [query].

    The mean is the tie rate a report prints: where it is not 0, the tie rule has a say in every metric@k.
    """
    scores = np.asarray(scores)
    queries, candidates = scores.shape
    out = np.zeros(queries, bool)

    def work(rows: slice) -> None:
        s = scores[rows] if mask is None else np.where(mask[rows], scores[rows], -np.inf)
        if k + 1 < candidates:
            s = np.partition(s, candidates - k - 1, axis=1)[:, candidates - k - 1 :]
        s = np.sort(s, axis=1)
        out[rows] = ((s[:, 1:] == s[:, :-1]) & (s[:, 1:] > -np.inf)).any(axis=1)

    if candidates:
        step = max(1, _BLOCK // candidates)
        for _ in in_threads(work, [slice(lo, min(lo + step, queries)) for lo in range(0, queries, step)]):
            pass
    return out


def docid_ranks(docids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Where each string stands in the order of trec_eval's strcmp, from 0, equal ones equal: int64 of the same shape.

    Code points order as the bytes of UTF-8 do. For [query, candidate] lists, take it over the catalogue's ids once and
    look items up by row: integers are smaller and faster than strings.
    """
    ids = np.asarray(docids)
    if ids.dtype.kind not in "UST" and not (ids.dtype == object and all(isinstance(i, str) for i in ids.flat)):
        raise UserError(f"docids have dtype {ids.dtype}: expected strings, as a TREC file holds them")
    return np.unique(ids, return_inverse=True)[1].reshape(ids.shape)


def _check_shapes(scores: np.ndarray, labels: np.ndarray, mask: np.ndarray | None) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape or (mask is not None and mask.shape != scores.shape):
        shapes = f"scores {scores.shape}, labels {labels.shape}" + ("" if mask is None else f", mask {mask.shape}")
        raise UserError(f"{shapes}: all must have one shape [query, candidate]")
    if mask is not None and mask.dtype != np.bool_:
        raise UserError(f"mask has dtype {mask.dtype}: expected bool, True where a candidate exists")
    for name, array in (("scores", scores), ("labels", labels)):
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name} have dtype {array.dtype}: expected real numbers")


def _clean(
    s: np.ndarray, rel: np.ndarray, mask: np.ndarray | None, first_row: int, max_grade: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """One block with what the mask hides made harmless: score -inf, label 0."""
    if s.dtype not in (np.float32, np.float64):
        s = s.astype(np.float64)
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
    if max_grade is not None and rel.max() > max_grade:
        raise UserError(f"label {rel.max()} is above max_grade={max_grade}: declare the highest grade labels can have")
    return s, rel


def _check_options(given: Mapping[str, str], known: Sequence[str]) -> None:
    for name, value in given.items():
        if value not in known:
            raise UserError(f"{name}={value!r} is not known: use one of {', '.join(map(repr, known))}")


def _apply_rules(out: dict[str, np.ndarray], lost: np.ndarray, *, without_relevant: str, missing: str) -> None:
    """`lost`: bool [query], nothing retrieved. A query with nothing relevant falls under its own rule first."""
    for name, values in out.items():
        undefined = np.isnan(values)
        gone = lost & ~undefined
        if undefined.any() and without_relevant == "error":
            raise UserError(
                f"{name} of query {int(undefined.argmax())} is undefined, as of {int(undefined.sum())} of "
                f'{len(values)}: nothing is relevant there; without_relevant="skip" leaves such queries out, "zero" '
                "counts them 0"
            )
        if gone.any() and missing == "error":
            raise UserError(
                f"query {int(gone.argmax())} has nothing retrieved, as {int(gone.sum())} of {len(values)} have: "
                'missing="zero" counts such queries 0, "skip" leaves them out'
            )
        if missing == "skip":
            values[gone] = np.nan
        if without_relevant == "zero":
            values[undefined] = 0


def _docid_order(
    docids: np.ndarray | None, shape: tuple[int, ...], ties: str
) -> Callable[[slice, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """Puts candidates in descending docid order, so that a stable sort is trec_eval's; None for other rules."""
    if ties != "docid":
        if docids is not None:
            raise UserError(f'docids with ties={ties!r}: they decide ties="docid" only; leave them out')
        return None
    if docids is None:
        raise UserError('ties="docid" without docids: give one id a candidate, or use "expected"')
    ids = np.asarray(docids)
    if ids.shape not in (shape, shape[1:]):
        raise UserError(f"docids of shape {ids.shape}: expected {shape[1:]}, one a candidate, or {shape}")
    if ids.dtype.kind not in "iu" and ids.ndim == 1:
        ids = docid_ranks(ids)
    shared = None
    if ids.ndim == 1:
        shared = np.argsort(ids, kind="stable")[::-1]
        if (ids[shared][1:] == ids[shared][:-1]).any():
            raise UserError("docids are not unique: each candidate of a query has one of its own")

    def order(rows: slice, s: np.ndarray, rel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if s.dtype != np.float32:  # what is finite stays finite: -inf means not retrieved
            largest = np.finfo(np.float32).max
            s = np.where(np.isinf(s), s, np.clip(s, -largest, largest)).astype(np.float32)
        if shared is not None:
            return np.ascontiguousarray(s[:, shared]), np.ascontiguousarray(rel[:, shared])
        block = ids[rows] if ids.dtype.kind in "iu" else docid_ranks(ids[rows])
        by_docid = np.argsort(block, axis=1, kind="stable")[:, ::-1]
        return np.take_along_axis(s, by_docid, axis=1), np.take_along_axis(rel, by_docid, axis=1)

    return order
