"""The table of a comparison: means with intervals for each ranker, paired differences for each pair."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import mean_metrics
from eval.statistics import Clusters, difference_columns, mean_columns, verdict_of
from eval.statistics.clusters import ClustersLike
from eval.statistics.intervals import SAMPLES, Interval
from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Certainty:
    """How sure a mean is: what the intervals and tests of `eval.statistics` are computed with.

    Attributes:
      clusters: [query], what depends on each other (title group, user), or {way: [query]}; None for single queries.
      samples: draws that correct for several comparisons made at once.
      confidence: of the intervals.
      seed: equal seeds give equal intervals.
    """

    clusters: ClustersLike = None
    samples: int = SAMPLES
    confidence: float = 0.95
    seed: int = 0

    def over(self, queries: int) -> "Certainty":
        """The same with its clusters made ready, once for all that is asked of these queries."""
        return dataclasses.replace(self, clusters=Clusters.of(self.clusters, queries))

    def of_means(self) -> dict[str, Any]:
        """As `eval.statistics.mean_columns` takes them."""
        return {"clusters": self.clusters, "confidence": self.confidence}

    def of_differences(self) -> dict[str, Any]:
        """As `eval.statistics.difference_columns` takes them."""
        return dict(vars(self))


def compare_rows(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    tied: Mapping[str, np.ndarray] | None = None,
    certainty: Certainty = Certainty(),
    margin: float | None = None,
) -> dict[str, Any]:
    """The comparison table: means with intervals per row, paired differences per pair; JSON values only (NaN is None).

    Args:
      rows: {row name: {metric: float64 [query]}}, all with the same metrics over the same queries.
      pairs: (a, b) row names to report a - b for, the new one first.
      tied: {row name: bool [query]} for the tie rate, where known.
      certainty: of the intervals and tests. All pairs are compared at once, metric by metric.
      margin: by how much a may be worse in the first metric, see `eval.statistics.verdict_of`.

    Returns:
      {"queries", "clusters": {way: how many}, "samples", "confidence", "seed", "metrics": [name],
       "rows": [{"name", "tie_rate", "metrics": {name: {"mean", "low", "high", "queries", "left_out",
          "effective_clusters", "standard_error", "degrees"}}}],
       "differences": [{"a", "b", "metric", "p", "relative", "verdict", and what a metric of a row has; of several pairs
          also "low_all", "high_all", "p_all"}]}, one per pair and metric; "relative" is the mean of a - b over the mean
      of b on the queries both have.

    Raises:
      UserError: no row, no metric, rows of other metrics or lengths, an unknown row in `pairs` or `tied`.
    """
    names, queries = _check(rows, pairs=pairs, tied=tied or {})
    certainty = certainty.over(queries)
    clusters = Clusters.of(certainty.clusters, queries)
    return {
        "queries": queries,
        "clusters": {name: part.groups for name, part in zip(clusters.names, clusters.ways, strict=True)},
        "samples": certainty.samples,
        "confidence": certainty.confidence,
        "seed": certainty.seed,
        "metrics": names,
        "rows": [
            {
                "name": row,
                "tie_rate": float(np.mean(tied[row])) if tied is not None and row in tied else None,
                "metrics": dict(zip(names, map(_plain, _means(values, names, certainty)), strict=True)),
            }
            for row, values in rows.items()
        ],
        "differences": _differences(rows, names, pairs, certainty, margin) if pairs else [],
    }


def _means(values: Mapping[str, np.ndarray], names: Sequence[str], certainty: Certainty) -> list[Interval]:
    return mean_columns(np.stack([values[name] for name in names], axis=1), **certainty.of_means())


def _check(
    rows: Mapping[str, Mapping[str, np.ndarray]], *, pairs: Sequence[tuple[str, str]], tied: Mapping[str, np.ndarray]
) -> tuple[list[str], int]:
    """(names of the metrics, how many queries there are); raises the errors of `compare_rows`."""
    if not rows:
        raise UserError("nothing to compare: expected at least one row of metrics")
    first, reference = next(iter(rows.items()))
    names = list(reference)
    if not names:
        raise UserError(f"row {first!r} has no metric: expected at least one to compare")
    queries = len(next(iter(reference.values()), ()))
    for row, values in rows.items():
        if list(values) != names or any(np.shape(column) != (queries,) for column in values.values()):
            raise UserError(f"rows {first!r} and {row!r} differ in metrics or queries: compare results of one run")
    for row in [*(row for pair in pairs for row in pair), *tied]:
        if row not in rows:
            raise UserError(f"unknown row {row!r}: rows are {', '.join(rows)}")
    return names, queries


def _differences(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    certainty: Certainty,
    margin: float | None,
) -> list[dict[str, Any]]:
    """a - b of each pair in each metric, on the queries that both have; pair by pair."""
    cells: dict[tuple[int, str], dict[str, Any]] = {}
    for name in names:
        columns = np.stack([rows[a][name] - rows[b][name] for a, b in pairs], axis=1)
        found = difference_columns(columns, **certainty.of_differences(), together=True)
        for k, ((a, b), difference) in enumerate(zip(pairs, found, strict=True)):
            both = {name: np.where(np.isnan(rows[a][name]), np.nan, rows[b][name])}
            base = mean_metrics(both)[name]["mean"]
            cell = {"a": a, "b": b, "metric": name, **_plain(difference), "p": _number(difference.p)}
            cell["relative"] = _number(difference.mean / base if base else float("nan"))
            cell["verdict"] = verdict_of(difference, margin=margin if name == names[0] else None)
            if difference.comparisons > 1:
                cell |= {key: _number(getattr(difference, key)) for key in ("low_all", "high_all", "p_all")}
            cells[k, name] = cell
    return [cells[k, name] for k in range(len(pairs)) for name in names]


def _plain(interval: Interval) -> dict[str, Any]:
    """JSON values of an interval; "clusters" is said once for the table."""
    names = [field.name for field in dataclasses.fields(Interval) if field.name != "clusters"]
    return {name: _number(getattr(interval, name)) for name in names}


def _number(value: float) -> float | int | None:
    return None if np.isnan(value) else value
