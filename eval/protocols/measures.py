"""What is computed of each ranking, and what every protocol gives for each ranker."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from eval.metrics import has_ties, rank_metrics, report_name
from eval.metrics.metric_names import has_uncut, max_cutoff, needs_max_grade
from eval.rankers import Ranker
from siglip_jax.errors import UserError

BLOCK = 1 << 21  # candidates scored at once

DEFAULT_METRICS = ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10")
_UNCUT_DEPTH = 100  # how far an approximate index is asked where a metric has no cutoff


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is computed of each ranking; as for `eval.metrics.ranking.rank_metrics`."""

    metrics: Sequence[str] = DEFAULT_METRICS
    gain: str = "exponential"
    ties: str = "expected"
    relevant_from: float = 1
    max_grade: float | None = None

    @property
    def primary(self) -> str:
        """The report's name of the first metric, which the headline is about."""
        return report_name(self.metrics[0], gain=self.gain)

    @property
    def deepest(self) -> int:
        """The largest cutoff, 1 where no metric has one."""
        return max(1, max_cutoff(self.metrics))

    @property
    def primary_depth(self) -> int:
        """The cutoff of the first metric; 100 where it has none."""
        return max_cutoff(self.metrics[:1]) or _UNCUT_DEPTH

    @property
    def index_depth(self) -> int:
        """How many results to ask an approximate index for: metrics without a cutoff look at the first 100."""
        return max(self.deepest, _UNCUT_DEPTH if has_uncut(self.metrics) else 0)

    @property
    def needed_max_grade(self) -> float | None:
        """The highest grade there can be, where a metric (ERR) depends on it."""
        return self.max_grade if needs_max_grade(self.metrics) else None

    def of(self, scores: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """{metric: float64 [b]}, by the names given, of scores, labels and mask [b, k].

        Labels below 0 count as 0: these metrics know nothing worse than not relevant.
        """
        return rank_metrics(
            scores,
            np.maximum(labels, 0),
            mask,
            metrics=self.metrics,
            gain=self.gain,
            ties=self.ties,
            relevant_from=self.relevant_from,
            max_grade=self.max_grade,
        )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One ranker over q queries.

    Attributes:
      metrics: {report name: float64 [q]}, NaN where the query has nothing relevant.
      tied: bool [q], equal scores within or across the deepest cutoff.
      index_recall: float64 [q], share of the exact best that an approximate index found; None if exact.
      exposure: see `eval.protocols.exposure.Exposure.result`; None where not computed.
      off_policy: see `eval.protocols.off_policy.chance_lists.ChanceLists.results`; None where chance had no say in
        any list.
    """

    metrics: dict[str, np.ndarray]
    tied: np.ndarray
    index_recall: np.ndarray | None = None
    exposure: dict[str, Any] | None = None
    off_policy: dict[str, Any] | None = None


class Sink(Protocol):
    """Takes each block of rankings, to write them as TREC runs, say."""

    def __call__(self, ranker: str, queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> None:
        """ranker: its name; queries int64 [b]; candidates int64 [b, k], -1 where none; scores real [b, k]."""


class Collected:
    """Gathers what one ranker measures, block by block."""

    def __init__(self, queries: int, measures: Measures):
        self._measures, self._tied = measures, np.zeros(queries, bool)
        self._values = {name: np.full(queries, np.nan) for name in measures.metrics}

    def take(
        self,
        at: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        undefined: np.ndarray | None = None,
    ) -> None:
        """Scores, labels and mask [b, k] of queries `at` [b]; `undefined` (bool [b]) are left NaN."""
        tied = has_ties(scores, mask, k=self._measures.deepest)
        for name, values in self._measures.of(scores, labels, mask).items():
            self._values[name][at] = values if undefined is None else np.where(undefined, np.nan, values)
        self._tied[at] = tied if undefined is None else tied & ~undefined

    def ranked(self, **more: Any) -> Ranked:
        """What was gathered; `more` are further fields of Ranked."""
        named = {report_name(name, gain=self._measures.gain): values for name, values in self._values.items()}
        return Ranked(named, self._tied, **more)


def check_ranker_names(rankers: Sequence[Ranker], *taken: str) -> None:
    """Raises a UserError where two rankers have one name, or one has a name that is taken."""
    names = [*taken, *(ranker.name for ranker in rankers)]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two rows are named {repeated!r}: give each a name of its own")
