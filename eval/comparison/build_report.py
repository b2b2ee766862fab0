"""The report of a comparison, whatever the protocol: the dict that `eval.report` writes as page, table and JSON."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.comparison import log_notes
from eval.comparison.choose_rankers import RankersToCompare
from eval.comparison.comparison_table import Certainty, compare_rows
from eval.comparison.conclusions import beyond_table, conclude
from eval.comparison.dimension_ladder import measure_ladder
from eval.comparison.index_columns import IndexColumns, index_columns
from eval.comparison.protocol_result import LISTED, ProtocolResult
from eval.protocols.off_policy.estimators import ESTIMATORS, LEAST_EFFECTIVE
from eval.rankers import VectorRanker
from eval.report.example_queries import ShownItems, example_queries, largest_changes
from eval.statistics import DecisionRules, Slicing, mean_columns, measure_slices
from eval.statistics.significance import FEW_CLUSTERS, plural
from siglip_jax import __version__
from siglip_jax.errors import UserError


def build_report(
    result: ProtocolResult,
    compared: RankersToCompare,
    *,
    title: str,
    loss_curve: Sequence[Mapping[str, float]] = (),
    provenance: Mapping[str, Any] | None = None,
    grid: int = 8,
    changes: int = 6,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    rules: DecisionRules | None = None,
) -> dict[str, Any]:
    """The report, as `eval.report.report_page` describes it.

    Args:
      result: of these rankers; it may have more, such as the logged order.
      loss_curve: metrics of the training steps of `compared.new`.
      provenance: more of where the numbers come from.
      grid: how many queries, drawn by `seed`, to show with what every ranker puts first.
      changes: how many of the largest gains, and of the largest losses, to show.
      seed: also of the draws that correct for several comparisons.
      options: "samples" and "confidence" of `Certainty`, where they are not its own.
      rules: that decide, in report names of metrics.

    Raises:
      UserError: neither `compared.new` nor `compared.against` ever found anything.
    """
    protocol, new, against = result.protocol, compared.new, compared.against
    _check_hits(result, new, against)
    rules = rules or DecisionRules()
    certainty = Certainty(result.queries.clusters, seed=seed, **(options or {})).over(len(protocol))
    table = compare_rows(
        result.metrics, pairs=_pairs(result, compared), tied=result.tied, certainty=certainty, margin=rules.margin
    )
    conclusion = conclude(result.metrics, new=new, against=against, certainty=certainty, rules=rules)
    indexed = index_columns(
        result.exact, result.indexed, allow_low_recall=result.search.allow_low_recall, certainty=certainty
    )
    gains, losses = _largest_changes(result, compared, count=changes, seed=seed)
    report = {
        "title": title,
        "protocol": protocol.name,
        "gain": protocol.measures.gain,
        **result.parts.head,
        "primary_metric": protocol.measures.primary,
        **conclusion,
        "new": new,
        "against": against,
        "confidence": certainty.confidence,
        "similarity": compared.similarity,
        "rows": _rows(table, result, compared, indexed),
        "differences": table["differences"],
        "ladders": _ladders(result, compared, certainty),
        "slices": _slices(result, compared, certainty, result.queries.slicings),
        "trend": _trend(result, compared, certainty),
        "beyond": _beyond(result, compared, certainty),
        "off_policy": _off_policy(result, compared, certainty),
        "loss_curve": [{"step": line["step"], "loss": line["loss"]} for line in loss_curve if "loss" in line],
        "gains": gains,
        "losses": losses,
        "grid": _grid(result, compared, count=grid, seed=seed),
        **result.parts.tail,
        "provenance": {
            **result.parts.source,
            "intervals": {
                "clusters": list(result.queries.clusters), "confidence": certainty.confidence,
                "samples": certainty.samples, "seed": seed,
            },
            "ScaNN": "not run" if result.search.scann is None else dict(result.search.scann),
            **(provenance or {}),
        },
    }  # fmt: skip
    refused = log_notes.of_refused(indexed.refused, k=protocol.measures.deepest)
    unmeasured = log_notes.of_unmeasured(result.metrics, relevant_from=protocol.measures.relevant_from)
    report["warnings"] = [*report["warnings"], *refused, *unmeasured, *_few(conclusion["weights"])]
    report["notes"] = [*report.get("notes", []), *compared.notes]
    return report


def _check_hits(result: ProtocolResult, new: str, against: str) -> None:
    """Refuses a comparison of two rankers that never found anything: their difference of 0 would be no finding."""
    primary, values = result.protocol.measures.primary, result.values
    known = ~np.isnan(values[new]) & ~np.isnan(values[against])
    if known.any() and not values[new][known].any() and not values[against][known].any():
        raise UserError(
            f"{primary} of {new} and of {against} is 0 in all {int(known.sum()):,} queries: neither ever puts a "
            "relevant item so far up, so nothing can be said of them; look deeper, with "
            "--config.evaluation.metrics=\"('nDCG@100','recall@100')\", or give more queries"
        )


def _few(weights: Mapping[str, float]) -> list[str]:
    """Said first where the queries come from too few users or items."""
    few = [f"{weight:.1f} {plural(way)}" for way, weight in weights.items() if weight < FEW_CLUSTERS]
    if not few:
        return []
    weight = " and ".join(few)
    return [
        f"The queries weigh as {weight}, fewer than {FEW_CLUSTERS}: intervals are not reliable, nothing is concluded."
    ]


def _pairs(result: ProtocolResult, compared: RankersToCompare) -> list[tuple[str, str]]:
    """`new` with each other ranker: `against` first, then from the last to the first, its own reductions last."""
    new, against = compared.new, compared.against
    others = [name for name in reversed(list(result.exact)) if name not in (new, against)]
    return [(new, other) for other in (against, *sorted(others, key=lambda name: name.startswith(f"{new}, ")))]


def _rows(
    table: Mapping[str, Any], result: ProtocolResult, compared: RankersToCompare, indexed: IndexColumns
) -> list[dict[str, Any]]:
    """A line for each ranker."""
    return [
        {
            "name": row["name"],
            "exact": row["metrics"],
            **indexed.of(row["name"], k=result.protocol.measures.deepest),
            "tie_rate": row["tie_rate"],
            "bytes_per_item": compared.bytes_per_item.get(row["name"]),
            **result.parts.of_ranker.get(row["name"], {}),
        }
        for row in table["rows"]
    ]


def _ladders(result: ProtocolResult, compared: RankersToCompare, certainty: Certainty) -> list[dict[str, Any]]:
    primary = result.protocol.measures.primary

    def rank(vectors: np.ndarray) -> np.ndarray:
        return result.protocol.metrics_of(VectorRanker("", vectors))[primary]

    return [
        measure_ladder(ladder, rank, ranker=name, metric=primary, full=result.values[name], certainty=certainty)
        for name, ladder in compared.ladders.items()
    ]


def _trend(result: ProtocolResult, compared: RankersToCompare, certainty: Certainty) -> dict[str, Any] | None:
    """`new` against `against` in the order of time; None where all queries are of one day or week."""
    trend = result.queries.trend
    if trend is None or len(trend.labels) < 2:
        return None
    found = _slices(result, compared, certainty, [trend])
    if found is not None:
        found["slices"].sort(key=lambda row: trend.labels.index(row["label"]))
    return found


def _slices(
    result: ProtocolResult, compared: RankersToCompare, certainty: Certainty, slicings: Sequence[Slicing]
) -> dict[str, Any] | None:
    """`new` against `against` in parts of the queries; None where nothing tells the queries apart."""
    if not slicings:
        return None
    new, against = (result.values[name] for name in (compared.new, compared.against))
    sliced = measure_slices(slicings, new, against, **certainty.of_means())
    return {**sliced, "new": compared.new, "base": compared.against, "metric": result.protocol.measures.primary}


def _beyond(result: ProtocolResult, compared: RankersToCompare, certainty: Certainty) -> dict[str, Any] | None:
    """What the first lists are like; None where candidates are given, since their variety is not the ranker's doing."""
    if not result.first_lists:
        return None
    return beyond_table(
        result.first_lists,
        items=len(compared.items.ids),
        k=LISTED,
        attributes=result.attributes,
        popularity=result.popularity,
        certainty=certainty,
    )


def _off_policy(result: ProtocolResult, compared: RankersToCompare, certainty: Certainty) -> dict[str, Any] | None:
    """What each ranker would have earned; None where chance had no say in the lists."""
    found = {name: ranked.off_policy for name, ranked in result.exact.items() if ranked.off_policy}
    if not found:
        return None
    new, against = found.get(compared.new), found.get(compared.against)
    columns: dict[tuple[str | None, str], np.ndarray]  # None for the difference
    columns = {(name, key): values for name, each in found.items() for key, values in each["values"].items()}
    if new and against:
        columns |= {(None, key): new["values"][key] - against["values"][key] for key in ESTIMATORS}
    intervals = mean_columns(np.stack(list(columns.values()), axis=1), **certainty.of_means())
    cells = {
        place: {"mean": each.mean, "low": each.low, "high": each.high, "queries": each.queries}
        for place, each in zip(columns, intervals, strict=True)
    }
    return {
        "estimators": list(ESTIMATORS),
        "depth": next(iter(found.values()))["depth"],
        "lists": cells[next(iter(cells))]["queries"],
        "rows": {
            name: {
                key: cells[name, key]
                | {"effective": each["effective"][key], "enough": each["effective"][key] >= LEAST_EFFECTIVE}
                for key in ESTIMATORS
            }
            for name, each in found.items()
        },
        "difference": {key: cells[None, key] for key in ESTIMATORS} if new and against else None,
    }


def _largest_changes(
    result: ProtocolResult, compared: RankersToCompare, *, count: int, seed: int
) -> list[list[dict[str, Any]]]:
    """Examples of the largest gains, and of the largest losses, of `new` against `against`."""
    names = (compared.against, compared.new)
    values = {name: result.values[name] for name in names}
    rankers = {name: compared.rankers[name] for name in names if name in compared.rankers}
    shown = ShownItems(compared.items.ids, compared.items.titles)
    return [
        example_queries(chosen, result.protocol, rankers, shown, values=values)
        for chosen in largest_changes(
            values[compared.new],
            values[compared.against],
            groups=next(iter(result.queries.clusters.values())),
            count=count,
            seed=seed,
        )
    ]


def _grid(result: ProtocolResult, compared: RankersToCompare, *, count: int, seed: int) -> list[dict[str, Any]]:
    """Examples that were not chosen by how any ranker did."""
    values = result.values[compared.new]
    drawn = np.random.default_rng(seed).permutation(len(values))
    chosen = drawn[~np.isnan(values[drawn])][:count]
    shown = ShownItems(compared.items.ids, compared.items.titles)
    return example_queries(chosen, result.protocol, compared.rankers, shown)


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {"siglip-jax": __version__, "python": platform.python_version()}
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scann"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
