"""Protocol "full-catalogue retrieval, attribute agreement": every item is a query against all the others.

Relevance comes from the catalogue's own attributes (`eval.protocols.relevance`). Exact scores are the headline; the
same vectors through ScaNN are measured beside them, since an approximate index moves the metric by more than a better
encoder does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics.topk import select_top
from eval.protocols.measures import Collected, Measures, Ranked, Sink, check_ranker_names
from eval.protocols.protocol import Progress, RankingProtocol
from eval.protocols.relevance import Relevance
from eval.rankers import Ranker, VectorRanker
from eval.search import build_index
from eval.search.recall import check_found, only_found, recall_of, without_self
from siglip_jax.errors import UserError

ATTRIBUTE_AGREEMENT = "full-catalogue retrieval, attribute agreement"
DEFAULT_MEASURES = Measures()
_LEAST_DEPTH = 5  # neighbours that an index is asked for at least


@dataclasses.dataclass(frozen=True)
class AttributeAgreement(RankingProtocol):
    """Ranks the whole catalogue for each of its items, the item itself left out.

    Items with byte-equal vectors (relisted images) score exactly equal, so the tie rule applies to them.

    Attributes:
      relevance: of n >= 2 items for each other.
      chunk: queries scored at once; memory is about 30 bytes * chunk * n beside the vectors.

    Example:
      protocol = AttributeAgreement(AttributeRelevance(rules, attributes), Measures(("nDCG@5",)))
      protocol.rank([VectorRanker("new", vectors)])["new"].metrics["nDCG_exp@5"]  # float64 [n]
    """

    relevance: Relevance
    measures: Measures = DEFAULT_MEASURES
    chunk: int = 512
    name = ATTRIBUTE_AGREEMENT

    def __post_init__(self) -> None:
        if len(self) < 2:
            raise UserError(f"{len(self)} items: ranking them for each other needs 2 or more")
        if not self.measures.metrics:
            raise UserError('no metric to rank by: expected at least one, such as "nDCG@5"')
        if self.chunk < 1:
            raise UserError(f"chunk={self.chunk}: expected at least 1")

    def __len__(self) -> int:
        return len(self.relevance)

    @property
    def query_items(self) -> np.ndarray:
        return np.arange(len(self))

    def candidate_counts(self) -> np.ndarray:
        return np.full(len(self), len(self) - 1)

    def rank(
        self,
        rankers: Sequence[Ranker],
        *,
        sink: Sink | None = None,
        sink_depth: int = 1000,
        progress: Progress | None = None,
    ) -> dict[str, Ranked]:
        """See `RankingProtocol`."""
        check_ranker_names(rankers)
        collected = {ranker.name: Collected(len(self), self.measures) for ranker in rankers}
        for items in self._chunks(progress):
            labels = self._labels(items)
            for ranker in rankers:
                scores = self._scores(ranker, items)
                collected[ranker.name].take(items, scores, labels)
                if sink is not None:
                    best = select_top(scores, min(sink_depth, len(self)))
                    sink(ranker.name, items, np.where(best.values > -np.inf, best.columns, -1), best.values)
        return {name: gathered.ranked() for name, gathered in collected.items()}

    def rank_indexed(self, ranker: VectorRanker, options: Mapping[str, Any]) -> Ranked:
        """See `RankingProtocol`; ideal DCG and recall still know all relevant items."""
        n, scorer = len(self), ranker.scorer
        index = build_index(ranker.vectors(), [str(item) for item in range(n)], backend="scann", **options)
        deepest = min(self.measures.deepest, n - 1)
        depth = min(n - 1, max(self.measures.index_depth, _LEAST_DEPTH))
        collected, recall = Collected(n, self.measures), np.empty(n)
        for items in self._chunks():
            exact = self._scores(ranker, items)
            found = without_self(index.search(scorer.rows(items), k=depth + 1), items)
            check_found(found.rows, found.scores, exact)
            recall[items] = recall_of(found, scorer, items, k=deepest, scores=exact)
            collected.take(items, only_found(found.rows, found.scores, n), self._labels(items))
        return collected.ranked(index_recall=recall)

    def first_results(self, query: int, ranker: Ranker, *, depth: int) -> list[tuple[int, float]]:
        """See `RankingProtocol`."""
        items = np.array([query])
        best = select_top(self._scores(ranker, items), min(depth, len(self) - 1)).columns[0]
        labels = self.relevance.labels(items)[0]
        return [(int(item), int(labels[item])) for item in best]

    def _chunks(self, progress: Progress | None = None) -> Iterator[np.ndarray]:
        """Runs of items, int64 [b]."""
        for lo in range(0, len(self), self.chunk):
            items = np.arange(lo, min(lo + self.chunk, len(self)))
            yield items
            if progress is not None:
                progress(int(items[-1]) + 1, len(self))

    def _labels(self, items: np.ndarray) -> np.ndarray:
        """[b, n], 0 for the item itself, whatever the relevance says."""
        labels = np.array(self.relevance.labels(slice(items[0], items[-1] + 1)))
        labels[np.arange(len(items)), items] = 0
        return labels

    def _scores(self, ranker: Ranker, items: np.ndarray) -> np.ndarray:
        """float32 [b, n], -inf for the item itself."""
        scores = ranker.scores(items)
        if scores.shape != (len(items), len(self)):
            raise UserError(
                f"row {ranker.name!r} scores {scores.shape[1]} items: expected the {len(self)} of the relevance"
            )
        scores[np.arange(len(items)), items] = -np.inf
        return scores


def rank_catalogue(ranker: np.ndarray | Ranker, relevance: Relevance, measures: Measures = DEFAULT_MEASURES) -> Ranked:
    """`AttributeAgreement` of one ranker, or of vectors, real [n, dimension].

    Raises:
      UserError: sizes that differ, a NaN, infinite or zero vector, no metric.
    """
    protocol = AttributeAgreement(relevance, measures)
    if isinstance(ranker, np.ndarray):
        if ranker.ndim != 2 or len(ranker) != len(relevance):
            raise UserError(f"vectors {list(ranker.shape)} for {len(relevance)} items: expected [{len(relevance)}, d]")
        ranker = VectorRanker("", ranker)
    return protocol.rank([ranker])[ranker.name]
