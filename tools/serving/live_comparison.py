"""Two encoders on the same live queries: a share of them is answered by the candidate as well, after the answer."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.search.selection import Selection
from siglip_jax.errors import UserError
from tools.serving.encode_queue import Busy
from tools.serving.generations import Standing
from tools.serving.served import Query

DEPTH = 10  # items of an answer that are compared
PERSISTENCE = 0.9  # p of the rank-biased overlap: the first ten places have 86 % of the weight
AT_ONCE = 4  # comparisons under way; what comes meanwhile is counted and left out
_LATENCIES = 2000  # newest, of which p50 and p99 are taken


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Items in both of two lists, over the length of the longer; 1 for two empty ones."""
    return len(set(one) & set(other)) / max(len(one), len(other)) if one or other else 1.0


def rank_biased_overlap(one: Sequence[str], other: Sequence[str], *, p: float = PERSISTENCE) -> float:
    """RBO_EXT of Webber, Moffat and Zobel (2010, equation 23), from 0 to 1, down to the end of the shorter list.

    Both empty: 1; one of them: 0.
    """
    depth = min(len(one), len(other))
    if depth == 0:
        return float(len(one) == len(other))
    shared = [len(set(one[:d]) & set(other[:d])) for d in range(1, depth + 1)]
    weighted = sum(x / d * p**d for d, x in enumerate(shared, 1))
    return shared[-1] / depth * p**depth + (1 - p) / p * weighted


@dataclasses.dataclass
class _Figures:
    asked: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    overlap: float = 0.0  # sums
    rbo: float = 0.0
    empty: int = 0
    failed: int = 0
    left_out: int = 0
    seconds: dict[str, collections.deque[float]] = dataclasses.field(
        default_factory=lambda: {side: collections.deque(maxlen=_LATENCIES) for side in ("active", "candidate")}
    )


class LiveComparison:
    """Of one event loop.

    Args:
      share: of the queries, from 0 to 1.
      seconds: that the candidate may take.
      observe: called with overlap, rank-biased overlap and the candidate's seconds of each.
    """

    def __init__(self, *, share: float, seconds: float, observe: Callable[[float, float, float], None]):
        self._share, self._seconds, self._observe = share, seconds, observe
        self._random = random.Random(0)
        self._figures: dict[tuple[str, str], _Figures] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(
        self, standing: Standing, query: Query, selection: Selection, found: dict[str, Any], seconds: float
    ) -> None:
        """A query that the active generation answered in so many seconds; the candidate's turn is a task of its own."""
        if standing.candidate is None or self._random.random() >= self._share:
            return
        figures = self._of(standing)
        if len(self._tasks) >= AT_ONCE:
            figures.left_out += 1
            return
        task = asyncio.create_task(self._compare(standing, query, selection, found, seconds, figures))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def described(self, standing: Standing) -> dict[str, Any]:
        """Of the two generations that stand now; UserError where there is no candidate."""
        if standing.candidate is None:
            raise UserError("no candidate to compare with; start the server with --candidate")
        figures = self._of(standing)
        count = sum(figures.asked.values())
        sides = {"active": standing.active, "candidate": standing.candidate}
        return {
            **{side: {**each.described(), **_latency(figures.seconds[side])} for side, each in sides.items()},
            "share": self._share,
            "queries": {kind: figures.asked[kind] for kind in ("item", "image", "text")},
            "k": DEPTH,
            "overlap": figures.overlap / count if count else None,
            "rank_biased_overlap": figures.rbo / count if count else None,
            "p": PERSISTENCE,
            "empty": figures.empty,
            "failed": figures.failed,
            "left_out": figures.left_out,
        }

    def _of(self, standing: Standing) -> _Figures:
        assert standing.candidate is not None
        pair = standing.active.name, standing.candidate.name
        if pair not in self._figures:
            self._figures = {pair: _Figures()}  # of the two that stand now, and no longer of others
        return self._figures[pair]

    async def _compare(
        self,
        standing: Standing,
        query: Query,
        selection: Selection,
        found: dict[str, Any],
        seconds: float,
        figures: _Figures,
    ) -> None:
        assert standing.candidate is not None
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                other = await standing.candidate.answer(query, selection)
        except Busy:
            figures.left_out += 1
            return
        except (UserError, TimeoutError):  # an item that the candidate has not, or a text without a text tower
            figures.failed += 1
            return
        took = time.perf_counter() - began
        ids = [[item["id"] for item in answer["items"][:DEPTH]] for answer in (found, other)]
        if not any(ids):  # such as behind a filter that nothing passes: no encoder has a say
            figures.empty += 1
            return
        shared, ranked = overlap(*ids), rank_biased_overlap(*ids)
        figures.asked[query.kind] += 1
        figures.overlap += shared
        figures.rbo += ranked
        figures.seconds["active"].append(seconds)
        figures.seconds["candidate"].append(took)
        self._observe(shared, ranked, took)


def _latency(seconds: Sequence[float]) -> dict[str, Any]:
    if not seconds:
        return {"p50_ms": None, "p99_ms": None}
    low, high = np.percentile(seconds, (50, 99))
    return {"p50_ms": round(1e3 * float(low), 3), "p99_ms": round(1e3 * float(high), 3)}
