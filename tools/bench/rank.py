"""siglip-jax bench rank: `rank_metrics` on arrays in memory, beside pytrec_eval and others that are installed.

siglip-jax bench rank
siglip-jax bench rank --queries=50000 --ties=expected

pytrec_eval gets dicts, made chunk by chunk so that they fit; its time is given with and without making them. Where ranx
and ir_measures are installed, they get the first chunk, and their time is scaled to all queries. The metrics are those
that trec_eval has, the tie rule its own (docid) unless --ties says otherwise; values of the first chunk are compared.
Before, the paired difference in all of these metrics is timed: by query, by user, and by user and query item.
"""

from __future__ import annotations

import functools
import importlib.util
import resource
import sys
from collections.abc import Callable
from typing import Any

from absl import flags

METRICS = ("nDCG@5", "nDCG", "precision@1", "recall@5", "hit@5", "MRR", "MAP")
_IR_MEASURES = {"precision": "P", "recall": "R", "hit": "Success", "MRR": "RR", "MAP": "AP"}
_RANX = {"nDCG": "ndcg", "hit": "hit_rate", "MRR": "mrr", "MAP": "map"}


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("queries", 1_000_000, "Queries.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("candidates", 30, "Candidates of each.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("chunk", 20_000, "Queries whose dicts are held at once.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("levels", 1 << 24, "Different scores: few make many ties.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("ties", "docid", ["docid", "expected", "stable"], "Our tie rule.", flag_values=values)
    flags.DEFINE_multi_string("metrics", list(METRICS), "Of those trec_eval has; repeat for several.", values)


def main(values: flags.FlagValues) -> None:
    import numpy as np

    from eval.metrics import docid_ranks, has_ties, rank_metrics
    from eval.metrics.metric_names import trec_name
    from eval.statistics import difference_columns
    from siglip_jax.errors import UserError
    from tools.bench import measuring

    for name in values.metrics:
        if trec_name(name) is None:
            raise UserError(f"--metrics={name}: trec_eval has no such metric; expected one such as nDCG@5 or MAP")
    random = np.random.default_rng(0)
    shape = (values.queries, values.candidates)
    scores = random.integers(0, values.levels, shape, dtype=np.int32).astype(np.float32)
    labels = random.choice(np.arange(4, dtype=np.uint8), shape, p=[0.85, 0.08, 0.05, 0.02])
    labels[:, 0] = 3  # every query has something relevant
    docids = [f"d{i}" for i in range(values.candidates)]
    ranks = docid_ranks(docids) if values.ties == "docid" else None
    print(f"{measuring.machine()}; {values.queries:,} queries x {values.candidates}, {', '.join(values.metrics)}")
    tied = float(has_ties(scores, k=values.candidates).mean())
    print(f"{100 * tied:.1f} % of the queries have ties; rule {values.ties}; arrays {_peak_mib():.0f} MiB resident")

    options = dict(metrics=values.metrics, ties=values.ties, docids=ranks)
    ours, seconds = measuring.timed(lambda: rank_metrics(scores, labels, **options))
    peak = f"{_peak_mib():.0f}"
    other = rank_metrics(scores[:, ::-1], labels, **options)
    users = random.integers(0, max(1, values.queries // 4), values.queries)
    columns = np.stack([ours[name] - other[name] for name in values.metrics], axis=1)
    items = np.minimum(random.zipf(1.2, values.queries), values.queries)  # a few are asked for most
    ways: dict[str, Any] = {
        "queries": None,
        "users, 4 queries each": users,
        "users and query items": {"user": users, "query_item": items},
    }
    print("paired difference to another ranking, all metrics at once:")
    for title, clusters in ways.items():
        compare = functools.partial(difference_columns, columns, clusters=clusters, together=True)
        print(f"  by {title}: {measuring.timed(compare)[1]:.2f} s")
    rows = [["rank_metrics", f"{seconds:.2f}", "1.0", f"{values.queries / seconds:,.0f}", peak]]
    peers: dict[str, Callable[..., tuple[dict[str, Any], float, float]]] = {
        "pytrec_eval": _pytrec_eval,
        "ir_measures": _ir_measures,
        "ranx": _ranx,
    }
    for name, run in peers.items():
        if importlib.util.find_spec(name) is None:
            rows.append([f"{name}: not installed", *["-"] * 4])
            continue
        starts = range(0, values.queries if name == "pytrec_eval" else 1, values.chunk)
        building = computing = 0.0
        for start in starts:
            chunk = slice(start, start + values.chunk)
            found, built, computed = run(scores[chunk], labels[chunk], docids, values.metrics)
            building, computing = building + built, computing + computed
            if start == 0 and name == "pytrec_eval" and values.ties == "docid":
                _compare(found, {metric: ours[metric][chunk] for metric in values.metrics})
        scale = values.queries / min(values.queries, len(starts) * values.chunk)
        peak = f"{_peak_mib():.0f}"
        for title, taken in ((f"{name} with its dicts", building + computing), ("  without", computing)):
            rows.append([title, *_figures(taken * scale, seconds, values.queries), peak])
    print(measuring.table(["", "seconds", "x ours", "queries/s", "peak RSS MiB so far"], rows))


def _figures(taken: float, ours: float, queries: int) -> list[str]:
    return [f"{taken:.2f}", f"{taken / ours:.1f}", f"{queries / taken:,.0f}"]


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _dicts(scores: Any, labels: Any, docids: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """qrels and run as these libraries take them."""
    names = [f"q{q}" for q in range(len(scores))]
    qrels = {q: dict(zip(docids, row, strict=True)) for q, row in zip(names, labels.tolist(), strict=True)}
    run = {q: dict(zip(docids, row, strict=True)) for q, row in zip(names, scores.tolist(), strict=True)}
    return qrels, run


def _pytrec_eval(scores: Any, labels: Any, docids: list[str], metrics: list[str]) -> tuple[dict, float, float]:
    import numpy as np
    import pytrec_eval

    from eval.metrics.metric_names import trec_name
    from tools.bench import measuring

    names = {metric: trec_name(metric) or "" for metric in metrics}

    def build() -> tuple[Any, dict[str, Any]]:
        qrels, run = _dicts(scores, labels, docids)
        return pytrec_eval.RelevanceEvaluator(qrels, set(names.values())), run

    (evaluator, run), building = measuring.timed(build)
    found, computing = measuring.timed(lambda: evaluator.evaluate(run))
    values = {m: np.array([found[f"q{q}"][key] for q in range(len(scores))]) for m, key in names.items()}
    return values, building, computing


def _ir_measures(scores: Any, labels: Any, docids: list[str], metrics: list[str]) -> tuple[dict, float, float]:
    import ir_measures

    from tools.bench import measuring

    measures = [ir_measures.parse_measure(_renamed(metric, _IR_MEASURES)) for metric in metrics]
    (qrels, run), building = measuring.timed(lambda: _dicts(scores, labels, docids))
    _, computing = measuring.timed(lambda: list(ir_measures.iter_calc(measures, qrels, run)))
    return {}, building, computing


def _ranx(scores: Any, labels: Any, docids: list[str], metrics: list[str]) -> tuple[dict, float, float]:
    import ranx

    from tools.bench import measuring

    def build() -> tuple[Any, Any]:
        qrels, run = _dicts(scores, labels, docids)
        return ranx.Qrels(qrels), ranx.Run(run)

    (qrels, run), building = measuring.timed(build)
    names = [_renamed(metric, _RANX) for metric in metrics]
    ranx.evaluate(qrels, run, names)  # compiles
    _, computing = measuring.timed(lambda: ranx.evaluate(qrels, run, names))
    return {}, building, computing


def _renamed(metric: str, table: dict[str, str]) -> str:
    kind, at, k = metric.partition("@")
    return table.get(kind, kind) + at + k


def _compare(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    import numpy as np

    error = max(float(np.abs(theirs[metric] - ours[metric]).max()) for metric in ours)
    print(f"largest difference to pytrec_eval over the first {len(next(iter(ours.values()))):,} queries: {error:.1e}")
