"""Protocol "logged-list re-ranking": the list that was shown, in the order of each ranker.

What the old ranker did not show is not asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from eval.logs import Queries
from eval.protocols.exposure import Exposure, Propensity
from eval.protocols.measures import BLOCK, Collected, Measures, Ranked, Sink, check_row_names
from eval.rankers import Ranker

LOGGED_ORDER = "logged order"


def rerank_lists(
    queries: Queries,
    rows: Sequence[Ranker],
    *,
    measures: Measures,
    propensity: Propensity | None = None,
    sink: Sink | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Ranked]:
    """Protocol "logged-list re-ranking": {row name: Ranked}, "logged order" first where the log has positions.

    A list that misses the position of any item has no logged order (NaN).

    Args:
      queries: candidates are rows of the catalogue.
      propensity: for the position-weighted column, None to leave it out.
      progress: called with (queries done, q).
    """
    check_row_names(rows, LOGGED_ORDER)
    placed = bool((queries.positions >= 0).any())
    names = [*([LOGGED_ORDER] if placed else []), *(row.name for row in rows)]
    collected = {name: Collected(len(queries), measures) for name in names}
    exposures = {name: Exposure(propensity, measures.metrics, measures.ties) for name in names if propensity}
    for lo, hi in _blocks(queries.lengths):
        candidates, gains, positions = queries.padded(lo, hi)
        mask = candidates >= 0
        at = np.arange(lo, hi)
        for name, row in ((LOGGED_ORDER, None), *((row.name, row) for row in rows)):
            if name not in collected:
                continue
            if row is None:
                scores = np.where(mask, -positions.astype(np.float32), np.float32(-np.inf))
                unplaced = np.asarray((mask & (positions < 0)).any(axis=1))
            else:
                scores, unplaced = row.scores(queries.items[lo:hi], candidates), np.zeros(hi - lo, bool)
            collected[name].take(at, scores, gains, mask, undefined=unplaced)
            if propensity:
                known = np.where(unplaced[:, None], -1, positions)
                exposures[name].add(scores, gains, known, mask)
            if sink is not None:
                sink(name, at, np.where(unplaced[:, None], -1, candidates), scores)
        if progress is not None:
            progress(hi, len(queries))
    results = {name: exposures[name].result() if propensity else None for name in names}
    return {name: collected[name].ranked(exposure=results[name]) for name in names}


def _blocks(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of queries whose padded lists have about BLOCK places."""
    lo = longest = 0
    for i, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if i > lo and longest * (i + 1 - lo) > BLOCK:
            yield lo, i
            lo, longest = i, length
    if lo < len(lengths):
        yield lo, len(lengths)
