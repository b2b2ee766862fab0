"""Queries of a log for people to look at: what two rows rank first, with what was done of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.logs import Live, Queries
from eval.metrics.topk import select_top
from eval.protocols.full_catalogue import allowed, dense_labels
from eval.rankers import Ranker


def log_examples(
    chosen: np.ndarray,
    queries: Queries,
    rows: Mapping[str, Ranker],
    values: Mapping[str, np.ndarray],
    *,
    ids: Sequence[str],
    titles: Sequence[str],
    live: Live | None,
    depth: int = 5,
) -> list[dict[str, Any]]:
    """As `eval.report.report_page` shows them; none for profiles, which have no picture.

    Args:
      chosen: int64 [shown], queries.
      values: {row: float64 [q]}, of the primary metric.
      live: who is a candidate; None for the logged lists.
    """
    shown = []
    for query in chosen:
        item = int(queries.items[query])
        if item < 0:
            continue
        candidates, gains, _ = queries.padded(query, query + 1)
        if live is not None:
            at = np.array([query])
            gains = dense_labels(queries, at, len(ids))
            candidates = np.where(allowed(queries, at, live, None), np.arange(len(ids)), -1)
        systems = []
        for name, row in rows.items():
            scores = row.scores(queries.items[query : query + 1], candidates)
            top = select_top(scores, min(depth, scores.shape[1]))
            best = [column for column, score in zip(top.columns[0], top.values[0], strict=True) if score > -np.inf]
            results = [
                {"id": ids[candidates[0, k]], "title": titles[candidates[0, k]], "gain": float(gains[0, k])}
                for k in best
            ]
            systems.append({"name": name, "results": results})
        figures = {name: float(value[query]) for name, value in values.items()}
        shown.append({"query": ids[item], "title": titles[item], "systems": systems, "values": figures})
    return shown
