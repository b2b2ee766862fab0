"""What is computed of each ranking, and what a protocol over logs gives for each ranker."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from eval.metrics import has_ties, rank_metrics, report_name
from eval.metrics.metric_names import max_cutoff
from eval.rankers import Ranker
from siglip_jax.errors import UserError

BLOCK = 1 << 21  # candidates scored at once

LOGGED_LISTS = "logged-list re-ranking"
RETRIEVAL = "full-catalogue retrieval, logged queries"
LEAVE_ONE_OUT = "leave-one-out, user profiles against the catalogue"
TIME_SPLIT = "time split, user profiles against the catalogue"


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is computed of each ranking; as for `eval.metrics.ranking.rank_metrics`."""

    metrics: Sequence[str]
    gain: str = "exponential"
    ties: str = "expected"
    relevant_from: float = 1
    max_grade: float | None = None

    def of(self, scores: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        return rank_metrics(
            scores,
            labels,
            mask,
            metrics=self.metrics,
            gain=self.gain,
            ties=self.ties,
            relevant_from=self.relevant_from,
            max_grade=self.max_grade,
        )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """One row of the comparison over q queries.

    Attributes:
      metrics: {report name: float64 [q]}, NaN where the query has nothing relevant.
      tied: bool [q], equal scores within or across the deepest cutoff.
      index_recall: float64 [q], share of the exact best that an approximate index found; None if exact.
      exposure: see `eval.protocols.exposure.Exposure.result`; None where not computed.
    """

    metrics: dict[str, np.ndarray]
    tied: np.ndarray
    index_recall: np.ndarray | None = None
    exposure: dict[str, Any] | None = None


class Sink(Protocol):
    """Takes each block of rankings, to write them as TREC runs, say."""

    def __call__(self, row: str, queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> None:
        """queries int64 [b]; candidates int64 [b, k], -1 where none; scores real [b, k]."""


class Collected:
    def __init__(self, queries: int, measures: Measures):
        self._measures, self._tied = measures, np.zeros(queries, bool)
        self._values = {name: np.full(queries, np.nan) for name in measures.metrics}
        self._deepest = max(1, max_cutoff(measures.metrics))

    def take(
        self,
        at: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray,
        *,
        undefined: np.ndarray | None = None,
    ) -> None:
        tied = has_ties(scores, mask, k=self._deepest)
        for name, values in self._measures.of(scores, labels, mask).items():
            self._values[name][at] = values if undefined is None else np.where(undefined, np.nan, values)
        self._tied[at] = tied if undefined is None else tied & ~undefined

    def ranked(self, **more: Any) -> Ranked:
        named = {report_name(name, gain=self._measures.gain): values for name, values in self._values.items()}
        return Ranked(named, self._tied, **more)


def check_row_names(rows: Sequence[Ranker], *taken: str) -> None:
    names = [*taken, *(row.name for row in rows)]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two rows are named {repeated!r}: give each a name of its own")
