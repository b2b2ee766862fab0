"""What a table of comparisons allows to say, as the report's own words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.comparison.comparison_table import Bootstrap
from eval.metrics.beyond_accuracy import beyond_accuracy
from eval.statistics import bootstrap_columns, conclusion, holm, paired_bootstrap, simultaneous_intervals

BEYOND_NOTES = {
    "coverage": "share of the items that any list shows",
    "gini": "how unevenly items are shown, 0 all alike to 1",
    "diversity": "chance that two items of a list differ, in an attribute where one is named",
    "novelty": "mean surprise of the items shown, in bits",
}


def conclude(
    table: dict[str, Any],
    metrics: Mapping[str, Mapping[str, np.ndarray]],
    *,
    new: str,
    against: str,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """{"conclusion", "minimum_detectable"} of new against `against` in the first metric, for the report.

    Writes into the table's differences what corrects them for the number of rankers that `new` is compared with:
    p_holm, and low_all and high_all, the intervals of the first metric that hold all at once.

    Args:
      table: of `eval.comparison.comparison_table.compare_rows`, all pairs with `new` first.
      metrics: {ranker: {metric: float64 [query]}} that it was made of.
    """
    primary = table["metrics"][0]
    for metric in table["metrics"]:
        cells = [cell for cell in table["differences"] if cell["metric"] == metric]
        corrected = holm([np.nan if cell["p"] is None else cell["p"] for cell in cells])
        for cell, p in zip(cells, corrected, strict=True):
            cell["p_holm"] = None if np.isnan(p) else float(p)
    cells = [cell for cell in table["differences"] if cell["metric"] == primary]
    cell = next(cell for cell in cells if cell["b"] == against)
    _widen(cells, metrics, metric=primary, bootstrap=bootstrap)
    means = {row["name"]: row["metrics"][primary]["mean"] for row in table["rows"]}
    difference = paired_bootstrap(metrics[new][primary], metrics[against][primary], **bootstrap.options())
    found = conclusion(
        new,
        against,
        difference,
        metric=primary,
        means=None if None in (means[new], means[against]) else (means[new], means[against]),
        adjusted_p=np.nan if cell["p_holm"] is None else cell["p_holm"],
        comparisons=len(cells),
    )
    least = found.minimum_detectable
    return {"conclusion": found.text, "minimum_detectable": None if np.isnan(least) else float(least)}


def _widen(
    cells: Sequence[dict[str, Any]],
    metrics: Mapping[str, Mapping[str, np.ndarray]],
    *,
    metric: str,
    bootstrap: Bootstrap,
) -> None:
    """Writes simultaneous intervals into the differences of one metric, where there are several.

    They are of the same queries: a pair that lacks more of them than its first row does (a logged order without
    positions) has none.
    """
    pairs = [(cell, metrics[cell["a"]][metric], metrics[cell["b"]][metric]) for cell in cells]
    alike = [(cell, a - b) for cell, a, b in pairs if np.array_equal(np.isnan(a - b), np.isnan(a))]
    if len(alike) < 2:
        return
    columns = np.stack([difference for _, difference in alike], axis=1)
    for (cell, _), found in zip(alike, simultaneous_intervals(columns, **bootstrap.options()), strict=True):
        if not np.isnan(found.low):
            cell |= {"low_all": found.low, "high_all": found.high}


def beyond_table(
    lists: Mapping[str, np.ndarray],
    *,
    items: int,
    k: int,
    attributes: Mapping[str, Sequence[str]],
    bootstrap: Bootstrap,
    popularity: np.ndarray | None = None,
) -> dict[str, Any]:
    """The report's "beyond" part: coverage, evenness and variety of each ranker's first k.

    Args:
      lists: {ranker: int [query, k]}, item rows, -1 where a list is shorter.
      attributes: to measure variety by.
      popularity: [item] interactions before the queries, to measure novelty by.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, shown in lists.items():
        found = beyond_accuracy(shown, items=items, k=k, attributes=attributes, popularity=popularity)
        rows[name] = {}
        for metric, value in found.items():
            if isinstance(value, np.ndarray):
                (interval,) = bootstrap_columns(value[:, None], **bootstrap.options())
                rows[name][metric] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
            else:
                rows[name][metric] = value
    names = list(next(iter(rows.values())))
    notes = {key: note for key, note in BEYOND_NOTES.items() if any(name.startswith(key) for name in names)}
    return {"metrics": names, "rows": rows, "notes": notes}
