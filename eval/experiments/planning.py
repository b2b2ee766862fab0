"""How long an experiment must run: users and days, from the variance that a log shows.

A plan asks what an experiment of d days would have been, had it begun at each of several days of the log: which users
came within d days, and how much they differ. Its covariate is what those users did before. Both vary with d: more days
bring more users, and more of each user.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.experiments.effects import Looks
from eval.experiments.event_log import DAY, Events, sums_of
from eval.experiments.experiment_metrics import ExperimentMetric, check_terms
from eval.experiments.moments import adjusted, moments, sample
from eval.experiments.power import effect_found, users_needed
from eval.logs.log_times import FIRST, LAST
from eval.report import report_text
from siglip_jax.errors import UserError

_STEPS = (1, 2, 3, 5, 7, 10, 14, 21, 28, 42, 56)
_LEAST_USERS = 100
_WIDTH = 110


@dataclasses.dataclass(frozen=True)
class PlannedTest:
    """What is planned.

    Attributes:
      lift: the relative effect to find.
      shares: of the users, control first, in any unit.
      power: the chance to find it.
      comparisons: that share the level; Bonferroni, which is no less than Holm needs.
      traffic: the share of all users that take part.
    """

    lift: float
    shares: tuple[float, ...] = (1.0, 1.0)
    power: float = 0.8
    comparisons: int = 1
    traffic: float = 1.0
    look: Looks = dataclasses.field(default_factory=lambda: Looks(looks="one"))

    def __post_init__(self) -> None:
        if not (0 < abs(self.lift) < math.inf and 0 < self.power < 1 and 0 < self.traffic <= 1):
            raise UserError(
                f"lift {self.lift:g}, power {self.power:g}, traffic {self.traffic:g}: expected a lift that is not 0, a "
                "power between 0 and 1, and a share of the users up to 1"
            )
        if len(self.shares) < 2 or not all(0 < share < math.inf for share in self.shares):
            raise UserError(f"split {list(self.shares)}: expected a share above 0 for two variants or more")


def plan(
    events: Events,
    metrics: Sequence[ExperimentMetric],
    test: PlannedTest,
    *,
    since: int | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Users and days of each metric.

    Args:
      since, until: microseconds since 1970, of the events that are looked at; None for no bound.

    Returns:
      {"first", "last": ISO dates of the log, "lift", "power", "confidence", "comparisons", "shares", "looks",
       "metrics": [{"metric", "definition", "value", "needed": users with CUPED, "needed_plain": without, "days": or
         None where the log's length does not tell, "days_estimated": bool, "reduction": of the variance,
         "lengths": [{"days", "users", "value", "lift": that so many users find, "lift_plain": without CUPED}]}]}

    Raises:
      UserError: an action that no event has, or a log of less than two days or too few users.
    """
    check_terms(metrics, events.actions, what="action")
    first, last = events.sql.one(
        f"select min(time), max(time) from events where time >= {FIRST if since is None else since} "
        f"and time < {LAST if until is None else until}"
    )
    if first is None:
        raise UserError("plan: no event between --start and --end")
    total = (last - first) // DAY + 1
    if total < 2:
        raise UserError(f"plan: the log is of {total} day; expected two or more, to see how users come back")
    lengths = [d for d in _STEPS if d <= total // 2] or [1]
    smallest = min(test.shares[1:]) / (test.shares[0] + min(test.shares[1:]))
    pair = (test.shares[0] + min(test.shares[1:])) / sum(test.shares)  # of all users, in the smallest comparison
    level = (1 - test.look.confidence) / test.comparisons
    look = dataclasses.replace(test.look, confidence=1 - level, lift=abs(test.lift))
    found: dict[str, list[dict[str, Any]]] = {metric.name: [] for metric in metrics}
    for days in lengths:
        start = last + 1 - days * DAY  # the last days of the log, with all before for the covariate
        users, sums, before = sums_of(
            events, metrics, start=start, end=last + 1, since=max(first, start - 2 * days * DAY)
        )
        if users < _LEAST_USERS:
            continue
        for metric in metrics:
            columns = np.concatenate([metric.columns(sums), metric.covariate_columns(before)], axis=1)
            arm = moments(columns)
            plain, (_, _, how) = sample(arm), adjusted(arm, arm)
            if not (plain.value and plain.variance > 0):
                continue
            scale = abs(test.lift * plain.value)
            counted = users * test.traffic * pair
            variances = (plain.variance * (1 - how.correlation**2), plain.variance)
            needs, finds = [], []
            for variance in variances:
                given: dict[str, Any] = {
                    "variance": variance,
                    "share": smallest,
                    "power": test.power,
                    "look": look,
                    "scale": scale,
                }
                needs.append(users_needed(effect=scale, **given) / pair)
                finds.append(effect_found(max(counted, 8.0), **given) / abs(plain.value))
            found[metric.name].append(
                {
                    "days": days,
                    "users": round(users * test.traffic),
                    "value": plain.value,
                    "lift": finds[0],
                    "lift_plain": finds[1],
                    "needed": needs[0],
                    "needed_plain": needs[1],
                    "reduction": how.correlation**2,
                }
            )
    return {
        "first": str(np.datetime64(first, "us").astype("datetime64[D]")),
        "last": str(np.datetime64(last, "us").astype("datetime64[D]")),
        "lift": test.lift,
        "power": test.power,
        "confidence": test.look.confidence,
        "comparisons": test.comparisons,
        "shares": list(test.shares),
        "looks": test.look.looks,
        "traffic": test.traffic,
        "metrics": [_of_metric(metric, found[metric.name]) for metric in metrics],
    }


def _of_metric(metric: ExperimentMetric, lengths: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"metric": metric.name, "definition": metric.definition, "lengths": lengths}
    if not lengths:
        nothing = dict.fromkeys(("value", "needed", "needed_plain", "reduction", "days"))
        return {**head, **nothing, "days_estimated": False}
    enough = next((each for each in lengths if each["users"] >= each["needed"]), None)
    best = enough or lengths[-1]
    days: int | None = best["days"]
    if enough is None and len(lengths) > 1:
        # Users of the longest length and the one before say how fast new ones come; the variance stays.
        before = lengths[-2]
        rate = (best["users"] - before["users"]) / (best["days"] - before["days"])
        missing = best["needed"] - best["users"]
        days = math.ceil(best["days"] + missing / rate) if rate > 0 and math.isfinite(missing) else None
    elif enough is None:
        days = None
    return {
        **head,
        **{key: best[key] for key in ("value", "needed", "needed_plain", "reduction")},
        "days": days,
        "days_estimated": enough is None,
    }


def offline_difference(report: dict[str, Any]) -> str:
    """The first difference of a ranking report, in words.

    Raises:
      UserError: the JSON is none of `siglip-jax rank`.
    """
    primary, differences = report.get("primary_metric"), report.get("differences")
    first = next((d for d in differences or [] if d.get("metric") == primary), None)
    if not first or first.get("mean") is None:
        raise UserError("the report has no difference of two rankers; expected the .json of siglip-jax rank")
    relative = first.get("relative")
    share = f" ({report_text.signed_percent(relative)})" if relative is not None else ""
    low, high = report_text.decisive(first)
    ends = f", interval {report_text.signed(low)} to {report_text.signed(high)}" if low is not None else ""
    return (
        f"Offline, {first['a']} has {report_text.signed(first['mean'])}{share} {primary} beside {first['b']}{ends}. "
        "How much of it shows online differs from shop to shop: plan for the smallest lift that would matter."
    )


def format_plan(made: dict[str, Any], *, offline: str = "") -> str:
    """For the terminal; offline: a sentence for the end."""
    head = (
        f"To find a lift of {100 * made['lift']:+g} % with a chance of {100 * made['power']:g} %, at "
        f"{100 * made['confidence']:g} % confidence"
        + (f" over {made['comparisons']} comparisons" if made["comparisons"] > 1 else "")
        + (", looking every day" if made["looks"] == "many" else ", at one look")
        + f"; variance of the log, {made['first']} to {made['last']}:"
    )
    lines = [*textwrap.wrap(head, _WIDTH), ""]
    table = [["metric", "value", "users", "without CUPED", "variance less", "days"]]
    for row in made["metrics"]:
        days = "–" if row["days"] is None else f"{row['days']:,}" + (" (estimated)" if row["days_estimated"] else "")
        table.append(
            [
                row["metric"],
                _number(row["value"]),
                _count(row["needed"]),
                _count(row["needed_plain"]),
                "–" if row["reduction"] is None else f"{100 * row['reduction']:.0f} %",
                days,
            ]
        )
    lines += report_text.align(table)
    table = [["lift found after", "days", "users", "lift", "without CUPED"]]
    for row in made["metrics"]:
        for each in row["lengths"]:
            ends = (f"{100 * each['lift']:.1f} %", f"{100 * each['lift_plain']:.1f} %")
            table.append([row["metric"], str(each["days"]), f"{each['users']:,}", *ends])
    said = ["", *textwrap.wrap(offline, _WIDTH)] if offline else []
    return "\n".join([*lines, "", *report_text.align(table), *said])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _count(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{math.ceil(value):,}"
