"""A ranking metric of your own: F1@k, the harmonic mean of precision@k and recall@k.

python examples/own_metric.py

docs/adding.md says where the same entry goes in the library.
"""

import numpy as np

from eval.metrics import mean_metrics
from eval.metrics.metric_table import METRICS, Definition
from eval.protocols import AttributeAgreement, AttributeRelevance, Measures
from eval.rankers import VectorRanker
from eval.rankers.baselines import RandomRanker

METRICS["F1"] = Definition(
    forms={"@k": None},  # trec_eval has no name for it
    from_ranking=lambda ranking, metric: (
        2 * ranking.total(ranking.relevant, metric.k) / (metric.cutoff + ranking.relevant_count)
    ),
    reference=lambda query, metric: 2 * sum(query.hits[: metric.k]) / (metric.cutoff + query.relevant_count),
)

NAMES = ("F1@1", "F1@5", "precision@5", "recall@5")


def main(items: int = 400, colours: int = 20, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    colour = rng.integers(0, colours, items)
    vectors = rng.normal(size=(colours, 16))[colour] + rng.normal(size=(items, 16))  # items of a colour lie together
    relevance = AttributeRelevance([{"gain": 1, "agree": ["colour"]}], {"colour": [str(each) for each in colour]})
    protocol = AttributeAgreement(relevance, Measures(NAMES))
    print(f"{'':8}" + "".join(f"{name:>13}" for name in NAMES))
    for name, ranked in protocol.rank([RandomRanker(items), VectorRanker("vectors", vectors)]).items():
        means = mean_metrics(ranked.metrics)
        print(f"{name:8}" + "".join(f"{means[metric]['mean']:13.3f}" for metric in NAMES))


if __name__ == "__main__":
    main()
