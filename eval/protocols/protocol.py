"""What every protocol is: some queries, and what each ranker makes of them."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from eval.protocols.measures import Measures, Ranked, Sink
from eval.rankers import Ranker, VectorRanker

Progress = Callable[[int, int], None]  # (queries done, queries)


class RankingProtocol(abc.ABC):
    """What is asked of every ranker, and what counts as right. The q queries are numbered from 0.

    Attributes:
      name: the protocol, in words; no table has rows of two.
      measures: what is computed of each ranking.
      whole_catalogue: whether the candidates of a query are items of the whole catalogue. Only then can an index be
        asked, and only then do the first results show what a ranker is like; a list that was shown is given.
    """

    name: str
    measures: Measures
    whole_catalogue: ClassVar[bool] = True

    @abc.abstractmethod
    def __len__(self) -> int:
        """q."""

    @property
    @abc.abstractmethod
    def query_items(self) -> np.ndarray:
        """int64 [q], the item row of each query; -1 where a query is no item (a user's profile)."""

    @abc.abstractmethod
    def candidate_counts(self) -> np.ndarray:
        """int64 [q], how many candidates each query has."""

    @abc.abstractmethod
    def rank(
        self,
        rankers: Sequence[Ranker],
        *,
        sink: Sink | None = None,
        sink_depth: int = 1000,
        progress: Progress | None = None,
    ) -> dict[str, Ranked]:
        """{ranker name: what it measures}, exact.

        Args:
          sink: takes each block of rankings, the first `sink_depth` results best first (shown lists whole, as shown).
          progress: called with (queries done, q) after each block.

        Raises:
          UserError: two rankers of one name, or a ranker of other items.
        """

    def rank_indexed(self, ranker: VectorRanker, options: Mapping[str, Any]) -> Ranked | None:
        """The same by an approximate index; what it does not return counts as not retrieved. None: nothing to search.

        Args:
          options: of `eval.search.build_index` for ScaNN.

        Raises:
          UserError: the index returned what is no neighbour (`eval.search.recall.check_found`), ScaNN is not installed.
        """
        return None

    def metrics_of(self, ranker: Ranker) -> dict[str, np.ndarray]:
        """{report name: float64 [q]} of one ranker."""
        return self.rank([ranker])[ranker.name].metrics

    @abc.abstractmethod
    def first_results(self, query: int, ranker: Ranker, *, depth: int) -> list[tuple[int, float]]:
        """(item row, gain) of what a ranker puts first of the query's candidates, for people to look at."""
