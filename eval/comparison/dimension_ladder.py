"""What a smaller embedding costs: bytes per item against the metric lost, paired by query with the full vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.comparison.comparison_table import Certainty
from eval.embeddings.reduction import Reduction, Spec, fit, ladder_specs
from eval.statistics import difference_columns, mean_columns
from input_pipeline.progress import progress

FULL = Spec("", 0, False)
METHODS = {"": "full width", "truncate": "truncation", "pca": "PCA"}


@dataclasses.dataclass(frozen=True, eq=False)
class Ladder:
    """What to measure: vectors of the evaluated items, real [n, dimension], and reductions of them."""

    vectors: np.ndarray
    reductions: Sequence[Reduction]


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
    ladder: Ladder,
    rank: Callable[[np.ndarray], np.ndarray],
    *,
    ranker: str,
    metric: str,
    full: np.ndarray | None = None,
    certainty: Certainty,
) -> dict[str, Any]:
    """Ranks with every reduction of the vectors and compares each with the full ones, on the same queries.

    Args:
      rank: vectors [n, width] -> the metric of every query, float64 [query].
      ranker, metric: names, for the report.
      full: what `rank(ladder.vectors)` gives, where it is known already.

    Returns:
      {"row", "metric", "dimension", "fitted_on", "rungs": [{"method", "width", "precision", "bytes", "mean", "low",
       "high", "difference": {"mean", "low", "high"} or None for the full vectors, "kept": mean over the full mean,
       "explained": of a PCA}]}, widest first.
    """
    vectors, reductions, dimension = ladder.vectors, ladder.reductions, ladder.vectors.shape[1]
    full = rank(vectors) if full is None else full
    watched = progress(reductions, total=len(reductions), label=f"ladder of {ranker}", unit="rungs")
    columns = [full, *(rank(reduction(vectors)) for reduction in watched)]
    values = np.stack(columns, axis=1)
    levels = mean_columns(values, **certainty.of_means())
    losses: list[Any] = [None]
    if reductions:
        losses += difference_columns(values[:, 1:] - values[:, :1], **certainty.of_differences())
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
    return {"row": ranker, "metric": metric, "dimension": dimension, "fitted_on": fitted, "rungs": rungs}


def _plain(interval: Any) -> dict[str, float]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}
