"""The metrics of one block of queries."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eval.metrics.formulas import Candidates, Ranking, Rules
from eval.metrics.metric_table import METRICS, Metric
from eval.metrics.sorting import ranked_pieces
from siglip_jax.errors import UserError


def block_metrics(
    scores: np.ndarray, labels: np.ndarray, metrics: Mapping[str, Metric], rules: Rules, *, block: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """{name: float64 [row]}, NaN where a metric is undefined, and the number of relevant candidates: int [row].

    scores: float [row, column], no NaN; labels: [row, column] >= 0.
    """
    columns = labels.shape[1]
    candidates = Candidates(scores, labels, rules, block=block)
    out = {name: np.zeros(len(scores)) for name in metrics}
    # Deepest first: what they need of a ranking serves the others.
    by_depth = sorted(metrics.items(), key=lambda item: item[1].k or math.inf, reverse=True)
    in_order = []
    for name, metric in by_depth:
        if (formula := METRICS[metric.kind].from_ranking) is not None:
            in_order.append((name, metric, formula))
    if in_order:
        depth = max(min(metric.k or columns, columns) for _, metric, _ in in_order)
        for piece in ranked_pieces(scores, labels, depth, groups=rules.expected):
            ranking = Ranking(piece, candidates, rules, depth=depth)
            for name, metric, formula in in_order:
                rows = len(out[name][piece.rows])
                out[name][piece.rows] = _computed(name, formula, ranking, metric, rows=rows)
    nothing = candidates.relevant_count == 0
    for name, metric in metrics.items():
        definition = METRICS[metric.kind]
        if definition.from_candidates is not None:
            out[name] = _computed(name, definition.from_candidates, candidates, metric, rows=len(scores))
        if definition.undefined_without_relevant:
            out[name][nothing] = np.nan
    return out, candidates.relevant_count


def _computed(
    name: str, formula: Callable[[Any, Metric], np.ndarray], source: Candidates | Ranking, metric: Metric, *, rows: int
) -> np.ndarray:
    """What a formula gives: a number for each query, or an error that names the metric."""
    try:
        values = np.asarray(formula(source, metric))
    except Exception as error:
        error.add_note(f"while computing the metric {name}")
        raise
    if values.shape != (rows,) or values.dtype.kind not in "fiub":
        raise UserError(
            f"metric {name}: its formula gave {values.dtype} {list(values.shape)}; expected a number for each of the "
            f"{rows} queries, [{rows}]"
        )
    return values
