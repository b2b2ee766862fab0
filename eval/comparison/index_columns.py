"""The ScaNN columns of a comparison: what an approximate index changes of each ranker, beside its recall."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.comparison.comparison_table import Certainty, compare_rows
from eval.protocols import Ranked
from eval.search.recall import LEAST_RECALL

_EXACT = "exact: "  # before a ranker's name, for its exact figures in the same table


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """How an approximate index is asked, and when its column is shown.

    Attributes:
      scann: options of `eval.search.build_index`, such as {"mode": "ah"}; None for no index.
      allow_low_recall: show a column though its recall is under `eval.search.recall.LEAST_RECALL`.
    """

    scann: Mapping[str, Any] | None = None
    allow_low_recall: bool = False


@dataclasses.dataclass(frozen=True)
class IndexColumns:
    """Of the rankers that were searched with an index.

    Attributes:
      recall: {ranker: share of the exact neighbours that were found}.
      refused: {ranker: its recall} of those whose columns are not shown.
      metrics: {ranker: {metric: estimate}}, without those.
      change: {ranker: {metric: estimate of ScaNN minus exact, paired by query}}, likewise.
    """

    recall: dict[str, float]
    refused: dict[str, float]
    metrics: dict[str, dict[str, Any]]
    change: dict[str, dict[str, Any]]

    def of(self, ranker: str, *, k: int) -> dict[str, Any]:
        """The parts of a report's row, see `eval.report.report_page`; k: of the recall."""
        return {
            "scann": self.metrics.get(ranker),
            "scann_change": self.change.get(ranker),
            "scann_recall": {f"recall@{k}": self.recall[ranker]} if ranker in self.recall else None,
            "scann_refused": ranker in self.refused,
        }


def index_columns(
    exact: Mapping[str, Ranked],
    approximate: Mapping[str, Ranked],
    *,
    allow_low_recall: bool,
    certainty: Certainty,
) -> IndexColumns:
    """Compares the rankers of `approximate` with those of the same name in `exact`, over the same queries.

    Args:
      exact, approximate: {ranker: what it measured}.
      allow_low_recall: see `SearchOptions`.
    """
    recall = {
        name: float(np.nanmean(found.index_recall))
        for name, found in approximate.items()
        if found.index_recall is not None
    }
    refused = {name: value for name, value in recall.items() if value < LEAST_RECALL and not allow_low_recall}
    shown = [name for name in approximate if name not in refused]
    if not shown:
        return IndexColumns(recall, refused, {}, {})
    table = compare_rows(
        {
            **{name: approximate[name].metrics for name in shown},
            **{_EXACT + name: exact[name].metrics for name in shown},
        },
        pairs=[(name, _EXACT + name) for name in shown],
        certainty=certainty,
    )
    change: dict[str, dict[str, Any]] = {name: {} for name in shown}
    for cell in table["differences"]:
        change[cell["a"]][cell["metric"]] = {key: cell[key] for key in ("mean", "low", "high", "p")}
    metrics = {row["name"]: row["metrics"] for row in table["rows"] if row["name"] in change}
    return IndexColumns(recall, refused, metrics, change)
