"""Queries for people to look at: where the new row gains and loses most, and what each row ranks first there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.topk import select_top
from eval.protocols.relevance import Relevance
from eval.rankers import Ranker


def largest_changes(
    new: np.ndarray, against: np.ndarray, *, groups: np.ndarray | None = None, count: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Queries of the largest gains and of the largest losses of `new`: int64 [at most count] each, largest first.

    Equal differences are drawn by `seed`, not taken from the head of the catalogue, and a group is shown once: a
    product listed ten times would fill the page. Queries without a value or a difference are in neither.

    Args:
      new, against: float64 [query], one metric; NaN where a query has nothing relevant.
      groups: [query], such as `title_groups`; None for single queries.
    """
    difference = new - against
    groups = np.arange(len(new)) if groups is None else groups
    drawn = np.random.default_rng(seed).permutation(len(new))

    def largest(sign: int) -> np.ndarray:
        size = sign * difference
        candidates = drawn[size[drawn] > 0]  # NaN is not
        ordered = candidates[np.argsort(-size[candidates], kind="stable")]
        _, first = np.unique(groups[ordered], return_index=True)
        return ordered[np.sort(first)[:count]].astype(np.int64)

    return largest(1), largest(-1)


@dataclasses.dataclass(frozen=True)
class Items:
    """Names for what is shown."""

    ids: Sequence[str]
    titles: Sequence[str]


def catalogue_examples(
    queries: np.ndarray, rows: Mapping[str, Ranker], relevance: Relevance, items: Items, *, depth: int = 5
) -> list[dict[str, Any]]:
    """What each row ranks first of the whole catalogue, the query item left out, as `eval.report.report_page` shows it.

    Args:
      queries: int64 [shown], item rows.

    Returns:
      [{"query": id, "title", "systems": [{"name", "results": [{"id", "title", "gain"}, ...]}, ...]}, ...].
    """
    if not len(queries):
        return []
    own = (np.arange(len(queries)), queries)
    labels = relevance.labels(queries)
    found = {}
    for name, row in rows.items():
        scores = row.scores(queries)
        scores[own] = -np.inf
        found[name] = select_top(scores, min(depth, scores.shape[1] - 1)).columns

    def results(name: str, place: int) -> list[dict[str, Any]]:
        return [
            {"id": items.ids[item], "title": items.titles[item], "gain": int(labels[place, item])}
            for item in found[name][place]
        ]

    return [
        {
            "query": items.ids[query],
            "title": items.titles[query],
            "systems": [{"name": name, "results": results(name, place)} for name in rows],
        }
        for place, query in enumerate(queries)
    ]
