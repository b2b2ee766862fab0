"""The table of a comparison: means with intervals for each ranker, paired differences for each pair."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import mean_metrics
from eval.statistics import bootstrap_columns, difference_columns
from eval.statistics.bootstrap import Interval
from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Bootstrap:
    """How sure a mean is: what the intervals and tests of `eval.statistics` are computed with.

    Attributes:
      clusters: [query], who is drawn as a whole (title group, user); None draws single queries.
      samples: how many times; also sign flips of a test.
      confidence: of the intervals.
      seed: equal seeds give equal intervals.
    """

    clusters: np.ndarray | None = None
    samples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """As `eval.statistics.bootstrap_columns` and its like take them."""
        return dict(vars(self))


def compare_rows(
    rows: Mapping[str, Mapping[str, np.ndarray]],
    *,
    pairs: Sequence[tuple[str, str]] = (),
    tied: Mapping[str, np.ndarray] | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, Any]:
    """The comparison table: means with intervals per row, paired differences per pair; JSON values only (NaN is None).

    Args:
      rows: {row name: {metric: float64 [query]}}, all with the same metrics over the same queries.
      pairs: (a, b) row names to report a - b for, the new one first.
      tied: {row name: bool [query]} for the tie rate, where known.
      bootstrap: of the intervals and the sign-flip test.

    Returns:
      {"queries", "clusters", "samples", "confidence", "seed", "metrics": [name],
       "rows": [{"name", "tie_rate", "metrics": {name: {"mean", "low", "high", "queries", "left_out",
          "effective_clusters", "standard_error"}}}],
       "differences": [{"a", "b", "metric", "p", "relative", and what a metric of a row has}]}, one per pair and
      metric; "relative" is the mean of a - b over the mean of b on the queries both have.

    Raises:
      UserError: no row, no metric, rows of other metrics or lengths, an unknown row in `pairs` or `tied`.
    """
    names, queries = _check(rows, pairs=pairs, tied=tied or {})
    clusters = bootstrap.clusters
    table = {row: np.stack([values[name] for name in names], axis=1) for row, values in rows.items()}
    intervals = iter(bootstrap_columns(np.concatenate(list(table.values()), axis=1), **bootstrap.options()))
    return {
        "queries": queries,
        "clusters": queries if clusters is None else len(np.unique(clusters)),
        "samples": bootstrap.samples,
        "confidence": bootstrap.confidence,
        "seed": bootstrap.seed,
        "metrics": names,
        "rows": [
            {
                "name": row,
                "tie_rate": float(np.mean(tied[row])) if tied is not None and row in tied else None,
                "metrics": {name: _plain(next(intervals)) for name in names},
            }
            for row in table
        ],
        "differences": _differences(rows, names, pairs, bootstrap) if pairs else [],
    }


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
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """a - b of each pair in each metric, on the queries that both have."""
    columns = np.stack([rows[a][name] - rows[b][name] for a, b in pairs for name in names], axis=1)
    differences = iter(difference_columns(columns, **bootstrap.options()))
    cells = []
    for a, b in pairs:
        both = {name: np.where(np.isnan(rows[a][name]), np.nan, rows[b][name]) for name in names}
        for name, against in mean_metrics(both).items():
            difference = next(differences)
            relative = difference.mean / against["mean"] if against["mean"] else float("nan")
            cells.append({"a": a, "b": b, "metric": name, **_plain(difference), "relative": _number(relative)})
    return cells


def _plain(interval: Interval) -> dict[str, Any]:
    """JSON values of an interval; "clusters" is said once for the table."""
    return {key: _number(value) for key, value in vars(interval).items() if key != "clusters"}


def _number(value: float) -> float | int | None:
    return None if np.isnan(value) else value
