"""How an experiment came along: the interval at the end of each day, and whether the effect wears off."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.stats

from eval.experiments.effects import Looks, compare
from eval.experiments.experiment_metrics import ExperimentMetric
from eval.experiments.experiment_users import ExperimentUsers
from eval.experiments.moments import UserMoments, moments, ratio
from eval.experiments.read_out import UNDECIDED, compare_users

WEARS_OFF, GROWS = "wears off", "grows"


def sequences(
    users: ExperimentUsers, metrics: list[ExperimentMetric], *, look: Looks, cuped: bool = True, most: int = 400
) -> list[dict[str, Any]]:
    """The effect as it stood at the end of each day, relative to the control, with both kinds of interval.

    Returns:
      [{"metric", "treatment", "points": [{"day": int, "date", "users", "relative", "low", "high": of the sequence,
        "one_low", "one_high": of a single look}], "first_day": the first date on which the sequence excluded 0}]
    """
    many, one = dataclasses.replace(look, looks="many"), dataclasses.replace(look, looks="one")
    out = []
    lines: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for day, sums in _cumulative(users, most):
        there = users.exposed <= day
        for metric in metrics:
            for treatment in range(1, len(users.variants)):
                found = compare_users(users, metric, treatment, cuped=cuped, sums=sums, among=there)
                if found is None or found.few:
                    continue
                always, once = (compare(found.control, found.treatment, each) for each in (many, one))
                lines.setdefault((metric.name, treatment), []).append(
                    {
                        "day": day,
                        "date": users.days[day],
                        "users": int(there.sum()),
                        "relative": always.relative,
                        "low": always.relative_low,
                        "high": always.relative_high,
                        "one_low": once.relative_low,
                        "one_high": once.relative_high,
                    }
                )
    for (name, treatment), points in lines.items():
        sure = [p["date"] for p in points if p["low"] > 0 or p["high"] < 0]
        out.append(
            {
                "metric": name,
                "treatment": users.variants[treatment],
                "points": points,
                "first_day": sure[0] if sure else None,
            }
        )
    return out


def novelty(users: ExperimentUsers, metrics: list[ExperimentMetric], *, look: Looks) -> list[dict[str, Any]]:
    """Whether the lift of a user's later days differs from that of the first days.

    The days since a user's first exposure are cut where half of all events lie, so that a new thing's charm, which is
    each user's own, is not mixed with who came when. The change is of the lifts, late minus early, by the delta method
    over users, at one look.

    Returns:
      [{"metric", "treatment", "cut": days, "early", "late": relative effects, "change", "low", "high", "p", "verdict"}]
    """
    since = users.day - users.exposed[users.user]
    weight = np.bincount(since, sum((np.abs(v) for v in users.sums.values()), np.zeros(len(since))))
    if len(weight) < 2 or not weight.sum():
        return []
    cut = int(np.searchsorted(np.cumsum(weight), weight.sum() / 2)) + 1
    cut = min(cut, len(weight) - 1)
    halves = [users.totals(since < cut), users.totals(since >= cut)]
    stayed = (len(users.days) - 1 - users.exposed) >= cut  # whoever has later days at all
    out = []
    for metric in metrics:
        columns = np.concatenate([metric.columns(half) for half in halves], axis=1)
        for treatment in range(1, len(users.variants)):
            arms = [columns[(users.variant == place) & stayed] for place in (0, treatment)]
            if min(map(len, arms)) < 2:
                continue
            found = _change([moments(arm) for arm in arms], look)
            out.append({"metric": metric.name, "treatment": users.variants[treatment], "cut": cut, **found})
    return out


def _change(arms: list[UserMoments], look: Looks) -> dict[str, Any]:
    """Lift of columns 2/3 minus lift of columns 0/1, control first."""
    values, variance = [], 0.0
    parts = []
    for arm in arms:
        (early, rise), (late, later) = ratio(arm, 0, 1), ratio(arm, 2, 3)
        values.append((early, late))
        parts.append((rise, later))
    (c0, c1), (t0, t1) = values
    nothing = {"early": None, "late": None, "change": None, "low": None, "high": None, "p": None, "verdict": UNDECIDED}
    if not (c0 and c1 and np.isfinite([c0, c1, t0, t1]).all()):
        return nothing
    lifts = (t0 / c0 - 1, t1 / c1 - 1)
    gradients = (
        parts[0][0] * (t0 / c0**2) - parts[0][1] * (t1 / c1**2),  # of the control's means
        parts[1][1] / c1 - parts[1][0] / c0,
    )
    for arm, gradient in zip(arms, gradients, strict=True):
        variance += float(gradient @ arm.cov @ gradient) / arm.n
    if not variance > 0:
        return nothing
    error, change = float(np.sqrt(variance)), lifts[1] - lifts[0]
    reach = float(scipy.stats.norm.isf((1 - look.confidence) / 2)) * error
    p = 2 * float(scipy.stats.norm.sf(abs(change) / error))
    verdict = UNDECIDED
    if p <= 1 - look.confidence:
        verdict = WEARS_OFF if change * lifts[0] < 0 else GROWS
    return {
        "early": lifts[0],
        "late": lifts[1],
        "change": change,
        "low": change - reach,
        "high": change + reach,
        "p": p,
        "verdict": verdict,
    }


def _cumulative(users: ExperimentUsers, most: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(day, users' sums up to its end); the rows of `users` lie by day."""
    running = {key: np.zeros(len(users)) for key in users.sums}
    ends = np.searchsorted(users.day, np.arange(len(users.days)), side="right")
    begin = 0
    for day, end in enumerate(ends[:most]):
        rows = slice(begin, end)
        for key, values in users.sums.items():
            np.add.at(running[key], users.user[rows], values[rows])
        begin = end
        yield day, running
