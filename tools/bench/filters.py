"""siglip-jax bench filters: filtered search at 50 %, 1 % and 0.01 % of the items, beside brute force.

siglip-jax bench filters
siglip-jax bench filters --items=100000 --dim=768 --backend=scann

Vectors are random, in clusters; each filter is one attribute, once as a value and once as a range of numbers. Recall is
that of the exact answer among the items that pass, in float64. A filter costs none of its own: where more pass than are
scanned, recall is the index's own, which the first line has.
"""

from __future__ import annotations

import time
from typing import Any

from absl import flags

SHARES = {"50 %": 2, "1 %": 100, "0.01 %": 10_000}  # of so many items, one passes


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("items", 1_000_000, "Items of the index.", lower_bound=20, flag_values=values)
    flags.DEFINE_integer("dim", 128, "Numbers of a vector.", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("queries", 100, "Queries, asked one at a time.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("k", 10, "Items of an answer.", lower_bound=1, flag_values=values)
    flags.DEFINE_string("backend", "exact", "As of siglip-jax index.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    from eval.search import build_index
    from eval.search.answers import Answers
    from eval.search.selection import Selection
    from tools.bench import measuring

    vectors, queries = _vectors(values.items, values.dim, values.queries)
    ids = [str(row) for row in range(values.items)]
    known = {item: ("", _attributes(row)) for row, item in enumerate(ids)}
    index, seconds = measuring.timed(lambda: build_index(vectors, ids, backend=values.backend))
    answers = Answers(index, known)
    _, reading = measuring.timed(lambda: answers.columns)
    print(
        f"{measuring.machine()}; {values.items:,} x {values.dim}, {values.backend}, k={values.k}; built in "
        f"{seconds:.1f} s, attributes read in {reading:.1f} s"
    )
    cases: list[tuple[str, dict[str, list[str]]]] = [("no filter", {})]
    for name, one_of in SHARES.items():
        cases += [(f"{name}, a value", {f"of {one_of}": ["0"]}), (f"{name}, a range", {f"of {one_of}": ["-0.5..0.5"]})]
    rows = []
    for name, where in cases:
        passing = answers.columns.rows_passing(where)
        selection = Selection(k=values.k, where=where)
        _, first = measuring.timed(lambda: answers.of_vector(queries[:1], selection))  # noqa: B023
        began = time.perf_counter()
        found = [answers.of_vector(query[None], selection) for query in queries]
        ours = (time.perf_counter() - began) / len(queries)
        began = time.perf_counter()
        exact = [_exact(vectors, query, passing, values.k) for query in queries]
        brute = (time.perf_counter() - began) / len(queries)
        recall = _recall(found, exact, vectors, queries)
        figures = f"{recall:.4f}", f"{1e3 * first:.2f}", f"{1 / ours:,.0f}", f"{1 / brute:,.0f}"
        rows.append([name, f"{len(passing):,}", *figures])
    print(measuring.table(["filter", "items pass", "recall", "first ms", "queries/s", "brute force/s"], rows))


def _attributes(row: int) -> dict[str, str]:
    """Values that are spread evenly, and not in the order of the rows."""
    return {f"of {one_of}": str(row * 7919 % one_of) for one_of in SHARES.values()}


def _vectors(items: int, dim: int, queries: int) -> tuple[Any, Any]:
    """Unit vectors float32 [items, dim] and [queries, dim], in clusters of about 100."""
    import numpy as np

    random = np.random.default_rng(0)
    centres = random.normal(size=(max(1, items // 100), dim)).astype(np.float32)
    found = []
    for count in (items, queries):
        rows = centres[random.integers(len(centres), size=count)]
        rows = rows + 0.7 * random.standard_normal((count, dim), dtype=np.float32)
        found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return found[0], found[1]


def _exact(vectors: Any, query: Any, passing: Any, k: int) -> Any:
    """Brute force: every item that passes is scored."""
    import numpy as np

    scores = (vectors if len(passing) == len(vectors) else vectors[passing]) @ query
    count = min(k, len(passing))
    return passing[np.argpartition(-scores, count - 1)[:count]] if count else passing


def _recall(found: list[dict[str, Any]], exact: list[Any], vectors: Any, queries: Any) -> float:
    """Share of the exact items found, by cosine in float64, so that equal items are interchangeable."""
    import numpy as np

    shares = []
    for answer, rows, query in zip(found, exact, queries, strict=True):
        worst = (vectors[rows].astype(np.float64) @ query).min() if len(rows) else np.inf
        own = vectors[[int(each["id"]) for each in answer["items"]]].astype(np.float64) @ query
        shares.append((own >= worst - 1e-6).sum() / max(1, len(rows)))
    return float(np.mean(shares))
