"""The read-out of an experiment as one dict: sample ratio first, then each metric's lift, then what else to know.

A dict of JSON's own types; an effect is {"mean", "low", "high", "p", "error", "relative", "relative_low",
"relative_high"}, treatment minus control; None where it was not measured or has no bound.
  title, control, sentence: str;  sentences, notes, warnings: [str];  variants: [str], the control first
  users: {variant: int};  days: [ISO date];  looks, confidence, lift: of `effects.Looks`
  sample_ratio: {"users", "expected", "p", "alpha", "ok"};  left_out: {reason: {"users", "example"}}
  metrics: [{"metric", "definition", "treatment", "guardrail", "lower_is_better", "margin", "relative_margin",
    "control", "treated": the plain values, "effect", "p_holm", "level", "verdict", "no_worse": {"p", "low"} or None,
    "cuped": {"correlation", "reduction"} or None, "effective": float}]
  sequences, novelty: of `by_day`;  segments: of `by_segment`;  heavy: of `heavy`
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from eval.experiments.effects import Effect, Looks, compare, holm_levels, no_worse
from eval.experiments.experiment_metrics import ExperimentMetric
from eval.experiments.experiment_users import ExperimentUsers
from eval.experiments.moments import Adjustment, Measured, adjusted, moments, sample
from eval.experiments.sample_ratio import ALPHA, sample_ratio
from siglip_jax.errors import UserError

FEW_USERS, FEW_EFFECTIVE = 100, 20  # below these no interval from a normal distribution can be trusted
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
HOLDS, BROKEN = "no worse", "broken"
TOO_FEW, NOT_MEASURED, NO_VERDICT = "too few", "not measured", "no verdict"


@dataclasses.dataclass(frozen=True)
class Compared:
    """A metric in two variants as it is judged."""

    control: Measured
    treatment: Measured
    plain: tuple[float, float]
    cuped: Adjustment | None

    @property
    def few(self) -> bool:
        return any(s.n < FEW_USERS or s.effective < FEW_EFFECTIVE for s in (self.control, self.treatment))


def compare_users(
    users: ExperimentUsers,
    metric: ExperimentMetric,
    treatment: int,
    *,
    cuped: bool = True,
    sums: dict[str, np.ndarray] | None = None,
    among: np.ndarray | None = None,
) -> Compared | None:
    """The samples of a metric in the control and a treatment; None where one of them has fewer than two users.

    Args:
      sums: {key: [u]}, the users' totals when absent; `among` bool [u] limits the users.
    """
    columns = metric.columns(users.totals() if sums is None else sums)
    if cuped and has_covariate(users, metric):
        columns = np.concatenate([columns, metric.covariate_columns(users.before)], axis=1)
    arms = []
    for place in (0, treatment):
        chosen = users.variant == place if among is None else (users.variant == place) & among
        if chosen.sum() < 2:
            return None
        arms.append(moments(columns[chosen]))
    raw = tuple(sample(arm) for arm in arms)
    if columns.shape[1] == 2:
        return Compared(raw[0], raw[1], (raw[0].value, raw[1].value), None)
    control, treated, how = adjusted(*arms)
    return Compared(control, treated, (raw[0].value, raw[1].value), how)


def has_covariate(users: ExperimentUsers, metric: ExperimentMetric) -> bool:
    """A log has it of every metric, a table of users where a column is named."""
    return bool(users.before) and (bool(users.days) or metric.covariate is not None)


def read_out(
    users: ExperimentUsers,
    metrics: list[ExperimentMetric],
    *,
    look: Looks,
    split: dict[str, float] | None = None,
    ratio_alpha: float = ALPHA,
    cuped: bool = True,
) -> dict[str, Any]:
    """Everything but sequences, segments and heavy users.

    Args:
      split: {variant: designed share}; equal shares when absent.

    Raises:
      UserError: no metric, or a split of other variants.
    """
    if not metrics:
        raise UserError("no metric to compare the variants in")
    ratio = sample_ratio(users.counts(), split or dict.fromkeys(users.variants, 1.0), alpha=ratio_alpha)
    rows, goals = [], []
    for treatment in range(1, len(users.variants)):
        for metric in metrics:
            found = compare_users(users, metric, treatment, cuped=cuped)
            rows.append((metric, treatment, found))
            if metric.margin is None:
                goals.append(len(rows) - 1)
    p = np.array(
        [np.nan if f is None or f.few else compare(f.control, f.treatment, look).p for _, _, f in rows], np.float64
    )
    holm, levels = np.full(len(rows), np.nan), np.full(len(rows), 1 - look.confidence)
    holm[goals], levels[goals] = holm_levels(p[goals], alpha=1 - look.confidence)
    out = []
    for i, (metric, treatment, found) in enumerate(rows):
        effect = None if found is None else compare(found.control, found.treatment, look, alpha=levels[i])
        margin = _no_worse(found, metric, look)
        verdict = _verdict(metric, found, effect, margin, holm[i], look) if ratio.ok else NO_VERDICT
        out.append(
            {
                "metric": metric.name,
                "definition": metric.definition,
                "treatment": users.variants[treatment],
                "guardrail": metric.margin is not None,
                "lower_is_better": metric.lower_is_better,
                "margin": metric.margin,
                "relative_margin": metric.relative_margin,
                "control": found.plain[0] if found else None,
                "treated": found.plain[1] if found else None,
                "effect": dataclasses.asdict(effect) if effect else None,
                "p_holm": float(holm[i]),
                "level": float(levels[i]),
                "no_worse": margin,
                "verdict": verdict,
                "cuped": {"correlation": found.cuped.correlation, "reduction": found.cuped.reduction}
                if found and found.cuped
                else None,
                "effective": min(found.control.effective, found.treatment.effective) if found else 0.0,
            }
        )
    return {
        "control": users.variants[0],
        "variants": list(users.variants),
        "users": users.counts(),
        "days": list(users.days),
        "looks": look.looks,
        "confidence": look.confidence,
        "lift": look.lift,
        "sample_ratio": dataclasses.asdict(ratio),
        "left_out": {reason: dict(found) for reason, found in users.left_out.items()},
        "metrics": out,
        "simulated": users.simulated,
        "notes": list(users.notes),
        "warnings": list(users.warnings),
    }


def _no_worse(found: Compared | None, metric: ExperimentMetric, look: Looks) -> dict[str, float] | None:
    if found is None or metric.margin is None:
        return None
    control, treatment = found.control, found.treatment
    if metric.lower_is_better:  # the same question of the negated metric; its relative margin is one of its size
        control, treatment = (dataclasses.replace(s, value=-s.value) for s in (control, treatment))
        margin = metric.margin * abs(control.value) if metric.relative_margin else metric.margin
        if not margin > 0:
            return None
        p, low = no_worse(control, treatment, look, margin=margin, relative=False)
    else:
        p, low = no_worse(control, treatment, look, margin=metric.margin, relative=metric.relative_margin)
    return {"p": p, "low": low}


def _verdict(
    metric: ExperimentMetric,
    found: Compared | None,
    effect: Effect | None,
    margin: dict[str, float] | None,
    p_holm: float,
    look: Looks,
) -> str:
    if found is None or effect is None or not np.isfinite(effect.mean):
        return NOT_MEASURED
    if found.few:
        return TOO_FEW
    if not effect.error > 0:
        return NOT_MEASURED
    sign = -1 if metric.lower_is_better else 1
    if metric.margin is not None:
        if margin is None:
            return NOT_MEASURED
        if margin["low"] > 0:
            return HOLDS
        limit = metric.margin * abs(found.control.value) if metric.relative_margin else metric.margin
        best = effect.high if sign > 0 else -effect.low
        return BROKEN if best < -limit else UNDECIDED
    if not p_holm <= 1 - look.confidence:
        return UNDECIDED
    return BETTER if sign * effect.mean > 0 else WORSE
