"""What takes the rankings of a protocol block by block (`eval.protocols.measures.Sink`)."""

from __future__ import annotations

import numpy as np

from eval.protocols.measures import Sink


class FirstLists:
    """The first k of every ranking: `lists`, {ranker: int32 [q, k]}, item rows, -1 where a list is shorter."""

    def __init__(self, queries: int, *, k: int):
        self._queries, self._k = queries, k
        self.lists: dict[str, np.ndarray] = {}

    def __call__(self, ranker: str, queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> None:
        """Candidates best first, as protocols over the whole catalogue give them."""
        if ranker not in self.lists:
            self.lists[ranker] = np.full((self._queries, self._k), -1, np.int32)
        self.lists[ranker][queries, : candidates.shape[1]] = candidates[:, : self._k]


class Several:
    """Hands each ranking to all of several sinks, so deep as each wants it."""

    def __init__(self, *sinks: tuple[Sink, int]):
        self._sinks = sinks
        self.depth = max((depth for _, depth in sinks), default=1)

    def __call__(self, ranker: str, queries: np.ndarray, candidates: np.ndarray, scores: np.ndarray) -> None:
        for sink, depth in self._sinks:
            sink(ranker, queries, candidates[:, :depth], scores[:, :depth])
