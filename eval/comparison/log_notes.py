"""What a report over logs says in words: every count that a reader needs to judge the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.logs import Live, Queries
from eval.logs.log_times import iso
from eval.metrics import report_name
from eval.protocols.exposure import Propensity
from eval.protocols.logged_lists import LOGGED_ORDER
from eval.search.recall import LEAST_RECALL
from eval.simulate import PREFIX


def _listed(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def of_log(
    counts: Mapping[str, Any], protocol: str, *, since: int | None, until: int | None, training: str
) -> list[str]:
    """counts: of `eval.logs.log.Log`; training: what popularity and item-to-item learnt from."""
    skipped = f"; left out {_listed(counts['skipped'])}" if counts["skipped"] else "; no row left out"
    notes = [
        (
            f"Log: {counts['rows']:,} rows in {counts['files']:,} files, {counts['events']:,} events ("
            f"{_listed(counts['actions'])}) of {counts['users']:,} users on {counts['items']:,} items, "
            f"{counts['first']} to {counts['last']}{skipped}."
        ),
    ]
    if counts["unknown_items"]:
        notes.append(
            f"{counts['unknown_items']:,} items of the log ({counts['unknown_rows']:,} events) are not in the "
            f"catalogue, such as {counts['unknown_example']!r}."
            + (f" Many differ in {counts['unknown_cause']}." if counts["unknown_cause"] else "")
        )
    notes += [f"Assumed of the log: {line}." for line in counts["assumed"]]
    begin = "the begin" if since is None else iso(since)
    end = "the end" if until is None else iso(until)
    evaluated = "" if protocol == "time_split" else f"Evaluated from {begin} to {end}. "
    notes.append(f"{evaluated}Counted for popularity and item-to-item: {training}.")
    return notes


def of_queries(
    queries: Queries,
    sizes: np.ndarray,
    relevant: np.ndarray,
    *,
    live: Live,
    protocol: str,
) -> list[str]:
    """sizes, relevant: int64 [q], candidates of each query, and how many of them have a gain."""
    length = five_numbers(sizes)
    what = "List length" if protocol == "logged_lists" else "Candidates a query"
    found = relevant[relevant > 0]
    notes = [
        (
            f"{len(queries):,} queries of {len(np.unique(queries.users)):,} users. {what}: "
            f"median {length['median']:g}, "
            f"mean {length['mean']:.1f}, {length['least']:g} to {length['most']:g}. Relevant a query: mean "
            f"{float(found.mean()) if len(found) else 0:.2f} of those that have any."
        )
    ]
    if protocol != "logged_lists":
        without = f"; {live.unknown:,} items without a time are taken as always there" if live.unknown else ""
        notes.append(f"Live: {live.rule}{without}.")
    if protocol == "logged_lists" and (alike := int((found == sizes[relevant > 0]).sum())):
        notes.append(f"Lists of which every item was acted upon, so that any order is right: {alike:,}.")
    if against := int((queries.gains < 0).sum()):
        notes.append(
            f"Items of gain below 0: {against:,}. Ranking metrics count them as not relevant; what each row would have "
            "earned counts them in full."
        )
    if queries.left_out:
        notes.append(f"Queries left out: {_listed(queries.left_out)}.")
    for reason, count in queries.dropped.items():
        notes.append(
            f"Candidates left out, {reason}: {count['candidates']:,}, of which {count['relevant']:,} relevant."
        )
    return notes


def of_simulated(queries: Queries) -> list[str]:
    if any(str(query).startswith(PREFIX) for query in queries.ids):
        return ["The sessions of this log are simulated: they say nothing of any shop."]
    return []


def of_heavy(queries: Queries, heavy: Mapping[str, int]) -> list[str]:
    """heavy: of `eval.logs.queries.heavy_users`."""
    if not heavy:
        return []
    share = np.bincount(queries.users).max() / max(1, len(queries))
    named = ", ".join(f"{user} ({count:,} events)" for user, count in list(heavy.items())[:5])
    more = ", ..." if len(heavy) > 5 else ""
    return [
        (
            f"Users far above the others, kept: {named}{more}; the busiest user has {100 * share:.1f} % of the "
            "queries. Intervals take a user's queries together."
        )
    ]


def of_leakage(leaked: Mapping[str, str] | None, *, by: str) -> str:
    """by: what of the items was looked for."""
    if leaked is None:
        return "Leakage: not checked, no training split was given."
    if not leaked:
        return f"Leakage: no item shares its {by} with the training split."
    kinds = {kind: list(leaked.values()).count(kind) for kind in sorted(set(leaked.values()))}
    return f"Leakage: {len(leaked):,} items of the catalogue are in the training split (by {_listed(kinds)}), dropped."


def of_exposure(exposure: Mapping[str, dict[str, Any]], metric: str, propensity: Propensity) -> list[str]:
    if not exposure:
        return ["Position-weighted column: none, the log has no positions of what was acted upon."]
    first = next(iter(exposure.values()))
    name = report_name(metric, gain="linear")
    said = ", ".join(
        f"{row} {found['metrics'][metric]['weighted']:.3f} ({found['metrics'][metric]['plain']:.3f} unweighted)"
        for row, found in exposure.items()
    )
    return [
        (
            f"Sensitivity to position, not the headline: {name} of one acted-upon item at a time, weighted by gain / "
            f"propensity (unweighted: by gain), propensity (1 / (1 + position from 0))^{propensity.power:.3g} "
            f"({propensity.source}), its inverse clipped at "
            f"{propensity.clip:g} ({100 * first['clipped'] / first['samples']:.1f} % of them), self-normalised: "
            f"{said}. Effective sample size {first['effective_samples']:,.0f} of {first['samples']:,}."
        )
    ]


def of_chance(why_not: str) -> list[str]:
    return [f"Not estimated what each row would have earned: {why_not}."] if why_not else []


def of_logged_order(rows: Sequence[str], *, randomised: bool) -> dict[str, str]:
    """{row: what the table has to say of it}; randomised: whether chance put every list in its order."""
    if LOGGED_ORDER not in rows:
        return {}
    said = (
        "chance put these lists in order: what it scores above random is what positions alone earn, here for every row "
        "that agrees with them."
        if randomised
        else "profits from its own positions: what it put first was seen more, so acted upon more. A ranker that is as "
        "good scores lower than it here."
    )
    return {LOGGED_ORDER: said}


def of_absent(rows: Sequence[str]) -> list[str]:
    """rows: that a log without a training window cannot have."""
    if not rows:
        return []
    return [
        (
            f"No row {' or '.join(rows)}: no event of some worth before the evaluation window; give --from, so that "
            "the log before it can be counted."
        )
    ]


def of_unmeasured(metrics: Mapping[str, Mapping[str, np.ndarray]], *, relevant_from: float) -> list[str]:
    """Metrics that no row has; metrics: {row: {metric: float64 [q]}}."""
    rows = list(metrics.values())
    lacking = [name for name in rows[0] if all(np.isnan(row[name]).all() for row in rows)]
    if not lacking:
        return []
    return [
        (
            f"Not measured, shown as –: {', '.join(lacking)}. No query has an item of gain {relevant_from:g} or more, "
            "from which on an item counts as relevant there."
        )
    ]


def of_refused(recall: Mapping[str, float], *, k: int) -> list[str]:
    """recall: of the rows whose ScaNN column is not shown."""
    return [
        f"ScaNN of {name}: recall@{k} {value:.3f} is under {LEAST_RECALL}, so its column is refused; "
        "--allow_low_recall shows it."
        for name, value in recall.items()
    ]


def of_users(metric: str, means: Mapping[str, float]) -> str:
    listed = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    return f"Mean of {metric} over users instead of queries: {listed}."


def five_numbers(values: np.ndarray) -> dict[str, float]:
    quartiles = np.percentile(values, [0, 25, 50, 75, 100]) if len(values) else np.zeros(5)
    names = ("least", "quarter", "median", "three_quarters", "most")
    return {
        **dict(zip(names, map(float, quartiles), strict=True)),
        "mean": float(np.mean(values)) if len(values) else 0,
    }
