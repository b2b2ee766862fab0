"""The ranking metrics: one entry each in METRICS, which names, errors, reports, bench and tests are derived from.

To add one, write an entry (docs/adding.md). Its `reference` is the definition for one query without ties, in plain
Python; the tests compare `from_ranking` with its mean over every order of the equal scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics.formulas import Candidates, Ranking
from siglip_jax.errors import UserError

FORMS = ("", "@k", "(p)", "(p)@k")  # how the name of a metric goes on


@dataclass(frozen=True)
class Metric:
    """A parsed name: nDCG@5 is Metric("nDCG", 5)."""

    kind: str  # key of METRICS
    k: int | None  # None: the whole ranking
    p: float | None = None  # of names with a parameter, such as RBP(0.8)

    @property
    def cutoff(self) -> int:
        """k of a name that has one."""
        if self.k is None:
            raise UserError(f"metric {self.kind} without @k has no cutoff")
        return self.k

    @property
    def parameter(self) -> float:
        """p of a name that has one."""
        if self.p is None:
            raise UserError(f"metric {self.kind} without (p) has no parameter")
        return self.p


@dataclass(frozen=True, kw_only=True)
class OneQuery:
    """A query without ties, as references read it.

    Attributes:
      labels: of what was retrieved, in ranking order.
      all_labels: of every candidate, those not retrieved too, in any order.
      relevant_from, max_grade: as for `rank_metrics`.
      gain: label -> gain, linear or exponential.
    """

    labels: Sequence[float]
    all_labels: Sequence[float]
    relevant_from: float
    max_grade: float
    gain: Callable[[float], float]

    @property
    def hits(self) -> list[bool]:
        """Whether what stands at each position is relevant."""
        return [label >= self.relevant_from for label in self.labels]

    @property
    def relevant_count(self) -> int:
        """R: how many candidates are relevant, retrieved or not."""
        return sum(label >= self.relevant_from for label in self.all_labels)


@dataclass(frozen=True, kw_only=True)
class Definition:
    """All that is known of a metric. It has `from_ranking`, or `from_candidates` where no order is needed.

    Higher is better: comparisons call an encoder better whose metric is higher. Turn a distance or a number of steps
    round before you add it, as MRR does with the rank of the first hit.

    Attributes:
      forms: {how the name goes on: trec_eval's name, None where it has none}. "" is the whole ranking, "@k" cut off at
        k, "(p)" and "(p)@k" have a number between 0 and 1. trec_eval's name of a form with "@k" gets _k behind it.
      from_ranking: rankings of n queries -> float64 [n], exact under the tie rule.
      from_candidates: the same from candidates in the order in which they came.
      reference: of one query without ties; called where something is relevant, or always, see below.
      uses_gain: whether the gain counts; reports then call it nDCG_exp under the exponential one.
      needs_max_grade: whether the highest grade that labels can have must be declared.
      undefined_without_relevant: NaN where nothing is relevant; otherwise the formula says itself where it is NaN.
    """

    forms: Mapping[str, str | None]
    reference: Callable[[OneQuery, Metric], float]
    from_ranking: Callable[[Ranking, Metric], np.ndarray] | None = None
    from_candidates: Callable[[Candidates, Metric], np.ndarray] | None = None
    uses_gain: bool = False
    needs_max_grade: bool = False
    undefined_without_relevant: bool = True

    def __post_init__(self) -> None:
        if (self.from_ranking is None) == (self.from_candidates is None):
            raise UserError("a metric's Definition: expected either from_ranking or from_candidates")
        if wrong := [form for form in self.forms if form not in FORMS]:
            raise UserError(f"a metric's Definition: form {wrong[0]!r}; expected some of {', '.join(map(repr, FORMS))}")


def _ndcg(ranking: Ranking, metric: Metric) -> np.ndarray:
    return ranking.total(ranking.gain, metric.k, ranking.discount) / ranking.ideal_dcg(metric.k)


def _ndcg_reference(query: OneQuery, metric: Metric) -> float:
    def dcg(labels: Sequence[float]) -> float:
        return sum(query.gain(label) / math.log2(i + 2) for i, label in enumerate(labels[: metric.k]))

    ideal = dcg(sorted(query.all_labels, reverse=True))
    return dcg(query.labels) / ideal if ideal else math.nan


def _map_reference(query: OneQuery, metric: Metric) -> float:
    hits = query.hits
    precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))][: metric.k]
    return sum(value for value, hit in zip(precisions, hits, strict=False) if hit) / query.relevant_count


def _err_reference(query: OneQuery, metric: Metric) -> float:
    """Chapelle et al. 2009, algorithm 1."""
    found, going_on = 0.0, 1.0
    for i, label in enumerate(query.labels[: metric.k]):
        stop = (2**label - 1) / 2**query.max_grade
        found += going_on * stop / (i + 1)
        going_on *= 1 - stop
    return found


def _rbp(ranking: Ranking, metric: Metric) -> np.ndarray:
    p = metric.parameter
    return (1 - p) * ranking.total(ranking.relevant, metric.k, p ** np.arange(ranking.cut(metric.k)))


def _rbp_reference(query: OneQuery, metric: Metric) -> float:
    p = metric.parameter
    return (1 - p) * sum(p**i for i, hit in enumerate(query.hits[: metric.k]) if hit)


def _rprec(ranking: Ranking, metric: Metric) -> np.ndarray:
    first = ranking.relevant * (ranking.rank <= ranking.relevant_count[:, None])
    return ranking.total(first, metric.k) / ranking.relevant_count


METRICS: dict[str, Definition] = {
    "nDCG": Definition(
        forms={"@k": "ndcg_cut", "": "ndcg"},
        from_ranking=_ndcg,
        reference=_ndcg_reference,
        uses_gain=True,
        undefined_without_relevant=False,
    ),
    "precision": Definition(
        forms={"@k": "P"},
        from_ranking=lambda ranking, metric: ranking.total(ranking.relevant, metric.k) / metric.cutoff,
        reference=lambda query, metric: sum(query.hits[: metric.k]) / metric.cutoff,
    ),
    "recall": Definition(
        forms={"@k": "recall"},
        from_ranking=lambda ranking, metric: ranking.total(ranking.relevant, metric.k) / ranking.relevant_count,
        reference=lambda query, metric: sum(query.hits[: metric.k]) / query.relevant_count,
    ),
    "hit": Definition(
        forms={"@k": "success"},
        from_ranking=lambda ranking, metric: ranking.hit(metric.k),
        reference=lambda query, metric: float(any(query.hits[: metric.k])),
    ),
    "MRR": Definition(
        forms={"": "recip_rank", "@k": None},
        from_candidates=lambda candidates, metric: candidates.reciprocal_rank(metric.k),
        reference=lambda query, metric: next((1 / (i + 1) for i, hit in enumerate(query.hits[: metric.k]) if hit), 0.0),
    ),
    "MAP": Definition(
        forms={"": "map", "@k": "map_cut"},
        from_ranking=lambda ranking, metric: (
            ranking.total(ranking.precision_at_relevant, metric.k) / ranking.relevant_count
        ),
        reference=_map_reference,
    ),
    "ERR": Definition(
        forms={"@k": None},
        from_ranking=lambda ranking, metric: ranking.total(ranking.stops(metric.k), metric.k, 1 / ranking.rank),
        reference=_err_reference,
        needs_max_grade=True,
    ),
    "RBP": Definition(
        forms={"(p)": None, "(p)@k": None},
        from_ranking=_rbp,
        reference=_rbp_reference,
    ),
    "Rprec": Definition(
        forms={"": "Rprec"},
        from_ranking=_rprec,
        reference=lambda query, metric: sum(query.hits[: query.relevant_count]) / query.relevant_count,
    ),
}
