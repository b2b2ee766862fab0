"""What a smaller embedding costs: bytes per item against the metric lost, paired by query with the full vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.embeddings.reduction import Reduction, Spec, fit, ladder_specs
from eval.statistics import bootstrap_columns, difference_columns
from input_pipeline.progress import progress

FULL = Spec("", 0, False)
METHODS = {"": "full width", "truncate": "truncation", "pca": "PCA"}


def ladder_reductions(vectors: np.ndarray, *, fitted_on: str, specs: Sequence[Spec] | None = None) -> list[Reduction]:
    """The rungs below the full float32 vectors, as `ladder_specs` says; all PCAs share one decomposition.

    Args:
      vectors: what the PCA is fitted on, real [n, dimension]. Widths above n - 1 are left out.
      fitted_on: which vectors these are, in a few words.
    """
    count, dimension = vectors.shape
    specs = ladder_specs(dimension) if specs is None else specs
    specs = [spec for spec in specs if spec.kind != "pca" or spec.width < count]
    widest = max((spec for spec in specs if spec.kind == "pca"), key=lambda spec: spec.width, default=None)
    pca = None if widest is None else fit(Spec("pca", widest.width, False), vectors, fitted_on=fitted_on)
    return [pca.narrowed(spec) if pca and spec.kind == "pca" else fit(spec, vectors) for spec in specs]


def measure_ladder(
    vectors: np.ndarray,
    reductions: Sequence[Reduction],
    rank: Callable[[np.ndarray], np.ndarray],
    *,
    row: str,
    metric: str,
    full: np.ndarray | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Ranks with every reduction of `vectors` and compares each with the full ones, on the same queries.

    Args:
      vectors: of the evaluated items, real [n, dimension].
      rank: vectors [n, width] -> the metric of every query, float64 [query].
      row, metric: names, for the report.
      full: what `rank(vectors)` gives, where it is known already.
      options: of `eval.statistics.bootstrap.difference_columns`: clusters, samples, confidence, seed.

    Returns:
      {"row", "metric", "dimension", "fitted_on", "rungs": [{"method", "width", "precision", "bytes", "mean", "low",
       "high", "difference": {"mean", "low", "high"} or None for the full vectors, "kept": mean over the full mean,
       "explained": of a PCA}]}, widest first.
    """
    dimension = vectors.shape[1]
    full = rank(vectors) if full is None else full
    watched = progress(reductions, total=len(reductions), label=f"ladder of {row}", unit="rungs")
    columns = [full, *(rank(reduction(vectors)) for reduction in watched)]
    values = np.stack(columns, axis=1)
    levels = bootstrap_columns(values, **(options or {}))
    losses: list[Any] = [None]
    if reductions:
        losses += difference_columns(values[:, 1:] - values[:, :1], **(options or {}))
    rungs: list[dict[str, Any]] = []
    for reduction, level, loss in zip([None, *reductions], levels, losses, strict=True):
        spec = FULL if reduction is None else reduction.spec
        explained = None if reduction is None or reduction.explained is None else float(reduction.explained[-1])
        rungs.append(
            {
                "method": METHODS[spec.kind],
                "width": spec.width or dimension,
                "precision": "int8" if spec.int8 else "float32",
                "bytes": spec.bytes_per_item(dimension),
                **_plain(level),
                "difference": None if loss is None else _plain(loss),
                "kept": level.mean / levels[0].mean if levels[0].mean else None,
                "explained": explained,
            }
        )
    fitted = next((one.fitted_on for one in reductions if one.fitted_on), "")
    rungs.sort(key=lambda rung: (-rung["width"], rung["method"] != METHODS["truncate"], -rung["bytes"]))
    return {"row": row, "metric": metric, "dimension": dimension, "fitted_on": fitted, "rungs": rungs}


def _plain(interval: Any) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
