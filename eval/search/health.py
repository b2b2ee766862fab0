"""How an index is after changes: what it holds, what it finds now and found when it was built, what to do."""

from __future__ import annotations

import dataclasses

import numpy as np

from eval.search.index import Index
from eval.search.live_index import LiveIndex
from eval.search.recall import better_options, measure_recall
from eval.search.updates import share_changed

DRIFT = 0.01  # of recall, from which something is said: 1000 sampled queries of 10 tell less apart


@dataclasses.dataclass(frozen=True)
class Health:
    """Counts of items; recall@k as recorded when the base was built and as measured now, None where it is not known."""

    items: int
    base: int
    delta: int
    dead: int
    share: float  # `share_changed`
    k: int
    built: float | None
    now: float | None
    target: float | None
    queries: int
    advice: list[str]


def measure_health(index: Index, *, compact_at: float, sample: int = 1000) -> Health:
    """Measures the recall now, over sampled live items, each left out of its own result. The index stays as it is.

    Args:
      compact_at: share of changed items from which the advice is to compact.
    """
    recorded = dict(index.measured)
    now, k, queries = None, recorded.get("k", 10), 0
    if len(index) > 1:
        measured = measure_recall(index, index.vectors_at(np.arange(len(index))), k=k, sample=sample)
        now, queries = measured["recall"], measured["queries"]
        index.measured = recorded
    base, delta, dead = len(index), 0, 0
    if isinstance(index, LiveIndex):
        base, delta, dead = len(index.base), len(index.delta), int(index.dead.sum())
    health = Health(
        items=len(index),
        base=base,
        delta=delta,
        dead=dead,
        share=share_changed(index),
        k=k,
        built=recorded.get("recall"),
        now=now,
        target=recorded.get("target"),
        queries=queries,
        advice=[],
    )
    better = f"build it again with --store and {better_options(index)}"
    return dataclasses.replace(health, advice=_advice(health, compact_at, better=better))


def _advice(health: Health, compact_at: float, *, better: str) -> list[str]:
    if not health.items:
        return ["every item is deleted, so nothing is found: --update puts items in"]
    found = []
    mend = "--compact" if health.share else better
    if health.share > compact_at:
        found.append(f"more than {compact_at:.0%} of the items came or went since the base was built: --compact")
    if health.target is not None and health.now is not None and health.now < health.target:
        found.append(f"recall is below its target of {health.target}: {mend}")
    elif health.built is not None and health.now is not None and health.now < health.built - DRIFT:
        found.append(f"recall fell by {health.built - health.now:.4f} since the base was built: {mend}")
    return found
