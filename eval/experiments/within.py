"""Within an experiment: effects in segments of the users, and users who carry much of a metric alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.experiments.effects import Looks, compare
from eval.experiments.experiment_metrics import ExperimentMetric
from eval.experiments.experiment_users import ExperimentUsers
from eval.experiments.read_out import BETTER, UNDECIDED, WORSE, compare_users
from eval.experiments.sample_ratio import sample_ratio

_MOST_LABELS = 30
_LEAST_USERS = 100
_HEAVY_FACTOR, _HEAVY_SHARE, _MOST_HEAVY = 10, 0.01, 10


def segments(
    users: ExperimentUsers,
    metrics: list[ExperimentMetric],
    *,
    look: Looks,
    split: dict[str, float] | None = None,
    cuped: bool = True,
) -> dict[str, Any]:
    """Effects in each segment; an interval at the level shared by all of them (Bonferroni) decides.

    Returns:
      {"rows": [{"segment", "label", "metric", "treatment", "users", "effect": relative {"mean", "low", "high"},
        "low_all", "high_all", "verdict", "ratio_p": of the sample ratio in it}], "small": how many were too small,
       "others": {segment: labels beyond the commonest}}
    """
    cells, small, others = [], 0, {}
    goals = [metric for metric in metrics if metric.margin is None]
    for name, labels in users.segments.items():
        found, counts = np.unique(labels.astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        if len(order) > _MOST_LABELS:
            others[name] = len(order) - _MOST_LABELS
        for label in found[order[:_MOST_LABELS]]:
            among = labels.astype(str) == label
            for metric in goals:
                for treatment in range(1, len(users.variants)):
                    compared = compare_users(users, metric, treatment, cuped=cuped, among=among)
                    if compared is None or compared.few:
                        small += 1
                    else:
                        cells.append((name, str(label), metric, treatment, among, compared))
    rows = []
    for name, label, metric, treatment, among, compared in cells:
        alone = compare(compared.control, compared.treatment, look)
        every = compare(compared.control, compared.treatment, look, alpha=(1 - look.confidence) / len(cells))
        counts = np.bincount(users.variant[among], minlength=len(users.variants)).tolist()
        here = dict(zip(users.variants, counts, strict=True))
        sign = -1 if metric.lower_is_better else 1
        ends = sorted((sign * every.low, sign * every.high))
        rows.append(
            {
                "segment": name,
                "label": label or "(none)",
                "metric": metric.name,
                "treatment": users.variants[treatment],
                "users": int(among.sum()),
                "effect": {"mean": alone.relative, "low": alone.relative_low, "high": alone.relative_high},
                "low_all": every.relative_low,
                "high_all": every.relative_high,
                "verdict": BETTER if ends[0] > 0 else WORSE if ends[1] < 0 else UNDECIDED,
                "ratio_p": sample_ratio(here, split or dict.fromkeys(users.variants, 1.0)).p
                if min(here.values())
                else 0.0,
            }
        )
    return {"rows": rows, "small": small, "others": others}


def heavy_users(users: ExperimentUsers, metrics: list[ExperimentMetric], *, look: Looks) -> list[dict[str, Any]]:
    """Users with more of a numerator than 10 times the 99th percentile of the others, and 1 % of all of it.

    They stay in. Beside them stands the lift without them.

    Returns:
      [{"metric", "users": [{"user", "variant", "amount", "share"}], "count", "without": {treatment: relative effect}}]
    """
    totals = users.totals()
    out: list[dict[str, Any]] = []
    if len(users) < _LEAST_USERS:
        return out
    for metric in metrics:
        amount = np.abs(metric.columns(totals)[:, 0])
        order = np.argsort(-amount, kind="stable")
        chosen: list[int] = []
        for place, user in enumerate(order[:1000]):
            others = amount[order[place + 1 :]]
            limit = _HEAVY_FACTOR * float(np.percentile(others, 99)) if others.size else np.inf
            if amount[user] <= limit or amount[user] < _HEAVY_SHARE * amount.sum() or metric.numerator.capped:
                break
            chosen.append(int(user))
        if not chosen:
            continue
        rest = np.ones(len(users), bool)
        rest[chosen] = False
        without = {}
        for treatment in range(1, len(users.variants)):
            compared = compare_users(users, metric, treatment, cuped=False, among=rest)
            if compared:
                without[users.variants[treatment]] = compare(compared.control, compared.treatment, look).relative
        out.append(
            {
                "metric": metric.name,
                "count": len(chosen),
                "users": [
                    {
                        "user": str(users.names[user]),
                        "variant": users.variants[users.variant[user]],
                        "amount": float(amount[user]),
                        "share": float(amount[user] / amount.sum()),
                    }
                    for user in chosen[:_MOST_HEAVY]
                ],
                "without": without,
            }
        )
    return out
