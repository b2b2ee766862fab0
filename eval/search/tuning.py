"""The fastest ScaNN tree that finds enough: `siglip-jax index --target_recall`.

A build fixes the leaves alone; how many are read for a query and how many candidates are scored exactly is said with
the query. So there is one build for each number of leaves, and a sweep over the other two. Half of the sampled items
choose, the other half confirm: of many settings, one may reach the target on the first half by luck.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eval.embeddings.vectors import unit_rows
from eval.search import scann_index
from eval.search.index import Neighbours
from eval.search.recall import Truth
from eval.search.scann_index import ScannIndex
from siglip_jax.errors import UserError

LEAST_ITEMS = 1000  # exact search of fewer is faster than anything
SAMPLE = 1000  # queries that choose, and as many that confirm
LEAVES = (1.0, 2.0, 4.0)  # times sqrt(n)
SHARES = tuple(1.3**-step for step in range(26, -1, -1))  # of the leaves, that are read: a thousandth to all
REORDER = (40, 60, 90, 140, 220, 350, 640)  # candidates scored exactly
_CLEARLY = 0.8  # of the fastest so far: what is slower ends a sweep
_TIMED = 3  # searches, the fastest of which counts


def tuned_index(
    vectors: np.ndarray,
    ids: Sequence[str],
    *,
    target: float,
    k: int = 10,
    leaves: Sequence[int] | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> ScannIndex:
    """Builds the tree that answers batches fastest among those that find `target` of the k nearest.

    What is fast is found out here, on this machine: another one may choose otherwise.

    Args:
      vectors: real [n, dimension], any norm but 0.
      leaves: numbers of leaves to try; None for 1, 2 and 4 times sqrt(n).
      say: is given a line after each build.

    Returns:
      The index; its `measured` has recall (of the queries that confirm), k, queries, seed, target and curve: a list of
      {leaves, leaves_to_search, reorder, recall, queries_per_second, bytes} on the queries that choose.

    Raises:
      UserError: fewer than 1,000 items, a target outside 0 to 1, one that no setting reaches; as `build_index`.
    """
    n = len(vectors)
    if not 0 < target <= 1:
        raise UserError(f"target_recall={target}: expected a number above 0, at most 1")
    if n < LEAST_ITEMS:
        raise UserError(
            f"target_recall with {n} items: below {LEAST_ITEMS:,}, exact search is the fastest; leave it out"
        )
    unit = unit_rows(np.asarray(vectors), what="vector", ids=ids)
    truth = Truth.of(unit, k=k, sample=2 * SAMPLE, seed=seed)
    choosing, confirming = truth.part(slice(0, None, 2)), truth.part(slice(1, None, 2))
    curve: list[dict[str, Any]] = []
    best: tuple[float, float, ScannIndex] | None = None  # queries a second, recall that was confirmed
    for count in leaves or sorted({min(n, max(2, round(share * math.sqrt(n)))) for share in LEAVES}):
        built = scann_index.build(unit, ids, mode="tree", leaves=count)
        found = _sweep(built, choosing, target=target)
        curve += found
        reached = [line for line in found if line["recall"] >= target]
        for line in sorted(reached, key=lambda line: -line["queries_per_second"]):
            index = built.asking(leaves_to_search=line["leaves_to_search"], reorder=line["reorder"])
            if best is not None and line["queries_per_second"] <= best[0]:
                break
            if (recall := confirming.recall(index)) >= target:
                best = line["queries_per_second"], recall, index
                break
        say(f"{count} leaves: {len(found)} settings, {len(reached)} of them reach {target}")
    if best is None:
        most = max(line["recall"] for line in curve)
        raise UserError(
            f"target_recall={target}: no setting reached it, the best {most:.4f}; ask for less, or build an exact index"
        )
    _, recall, index = best
    index.measured = {
        "recall": recall, "k": truth.k, "queries": len(confirming.rows), "seed": seed, "target": target, "curve": curve
    }  # fmt: skip
    return index


def _sweep(built: ScannIndex, truth: Truth, *, target: float) -> list[dict[str, Any]]:
    """Lines of the curve: more and more leaves, until more of them are clearly slower than what reached the target."""
    leaves, lines, fastest = built.options["leaves"], [], 0.0
    for read in sorted({max(1, math.ceil(share * leaves)) for share in SHARES}):
        reached = [0.0]
        for reorder in reversed(REORDER):  # where many candidates do not reach it, fewer will not
            index = built.asking(leaves_to_search=read, reorder=reorder)
            seconds, found = _timed(index, truth)
            line = {"leaves": leaves, "leaves_to_search": read, "reorder": reorder}
            line |= {"recall": round(truth.recall_of(found), 5), "bytes": index.bytes_in_memory}
            line |= {"queries_per_second": round(len(truth.rows) / seconds, 1)}
            lines.append(line)
            if line["recall"] < target:
                break
            reached.append(line["queries_per_second"])
        if max(reached) < _CLEARLY * fastest:
            break
        fastest = max(fastest, *reached)
    return lines


def _timed(index: ScannIndex, truth: Truth) -> tuple[float, Neighbours]:
    seconds, queries = math.inf, truth.queries
    for _ in range(_TIMED):
        begin = time.perf_counter()
        found = index.search(queries, k=truth.k + 1)
        seconds = min(seconds, time.perf_counter() - begin)
    return seconds, found
