"""Queries for people to look at: where the new ranker gains and loses most, and what each ranks first there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.protocols import RankingProtocol
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
class ShownItems:
    """Names for what is shown."""

    ids: Sequence[str]
    titles: Sequence[str]


def example_queries(
    chosen: np.ndarray,
    protocol: RankingProtocol,
    rankers: Mapping[str, Ranker],
    items: ShownItems,
    *,
    values: Mapping[str, np.ndarray] | None = None,
    depth: int = 5,
) -> list[dict[str, Any]]:
    """What each ranker ranks first, as `eval.report.report_page` shows it; profiles have no image and are left out.

    Args:
      chosen: int64 [shown], queries of the protocol.
      values: {ranker: float64 [q]}, a metric to show beside them.

    Returns:
      [{"query": id, "title", "systems": [{"name", "results": [{"id", "title", "gain"}, ...]}, ...], and "values"
      where there are values: {ranker: float}}, ...].
    """

    def results(query: int, ranker: Ranker) -> list[dict[str, Any]]:
        first = protocol.first_results(query, ranker, depth=depth)
        return [{"id": items.ids[item], "title": items.titles[item], "gain": gain} for item, gain in first]

    shown: list[dict[str, Any]] = []
    for query in chosen:
        item = int(protocol.query_items[query])
        if item < 0:
            continue
        systems = [{"name": name, "results": results(int(query), ranker)} for name, ranker in rankers.items()]
        shown.append({"query": items.ids[item], "title": items.titles[item], "systems": systems})
        if values is not None:
            shown[-1]["values"] = {name: float(value[query]) for name, value in values.items()}
    return shown
