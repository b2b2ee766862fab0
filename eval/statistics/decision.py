"""Rules that are set before looking, what they decide, and the line for the memo.

"No worse than -0.005, sure" is non-inferiority: the interval that holds for all comparisons ends above -margin. That a
difference is not significant says nothing of the kind. A guardrail is a metric that must not fall by more than its
margin while another one is improved; all must hold, so none is corrected for there being others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.statistics.intervals import Difference
from eval.statistics.significance import signed, verdict_of
from siglip_jax.errors import UserError

SURE, NOT_SURE, BROKEN = "sure", "not sure", "broken"
TAKE, KEEP, OPEN = "take", "keep", "open"


@dataclasses.dataclass(frozen=True)
class DecisionRules:
    """What is asked of a new ranking.

    Attributes:
      margin: by how much the first metric may fall; None where it has to rise.
      guardrails: {metric: by how much it may fall}.
    """

    margin: float | None = None
    guardrails: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        margins = {**self.guardrails, **({} if self.margin is None else {"margin": self.margin})}
        for name, margin in margins.items():
            if not (np.isfinite(margin) and margin > 0):
                raise UserError(f"{name}={margin}: expected a number above 0, by how much the metric may fall")


def holds(difference: Difference, margin: float) -> str:
    """Whether a is no worse than -margin: SURE, BROKEN (it surely is worse than that) or NOT_SURE."""
    if verdict_of(difference) in ("not measured", "too few"):
        return NOT_SURE
    return SURE if difference.low_all > -margin else BROKEN if difference.high_all < -margin else NOT_SURE


def decide(
    differences: Mapping[str, Difference], *, new: str, against: str, rules: DecisionRules, confidence: float
) -> dict[str, Any]:
    """{"memo": one line, "decision": None without rules, else {"choice": TAKE, KEEP or OPEN, "margin", "margin_held",
    "guardrails": [{"metric", "margin", "mean", "low", "high", "held"}]}}.

    TAKE where the first metric is better, or with a margin surely no worse than that, and all guardrails are SURE. KEEP
    where it is worse, or the margin or a guardrail is BROKEN.

    Args:
      differences: {metric: new minus against}, the metric that decides first.
      confidence: of their intervals.

    Raises:
      UserError: a guardrail that is not among them.
    """
    if unknown := [name for name in rules.guardrails if name not in differences]:
        raise UserError(f"guardrail {unknown[0]!r}: no such metric was measured; there are {', '.join(differences)}")
    primary, difference = next(iter(differences.items()))
    verdict = verdict_of(difference, margin=rules.margin)
    guardrails: list[dict[str, Any]] = [
        {
            "metric": name,
            "margin": margin,
            **{key: _number(value) for key, value in _decisive(differences[name]).items()},
            "held": holds(differences[name], margin),
        }
        for name, margin in rules.guardrails.items()
    ]
    memo = f"{new} against {against}, {primary}: {_in_words(difference, confidence)}, {verdict}"
    if rules.margin is None:
        first = {"better": SURE, "worse": BROKEN}.get(verdict, NOT_SURE)
    else:
        first = holds(difference, rules.margin)
        memo += f" (no worse than {signed(-rules.margin)}: {first})"
    for line in guardrails:
        name = line["metric"]
        memo += (
            f"; guardrail {name}: {_in_words(differences[name])}, no worse than {signed(-line['margin'])}: "
            f"{line['held']}"
        )
    found = [first, *(line["held"] for line in guardrails)]
    choice = KEEP if BROKEN in found else OPEN if NOT_SURE in found else TAKE
    if rules.margin is None and not guardrails:
        return {"memo": f"{memo}.", "decision": None}
    said = {TAKE: f"take {new}", KEEP: f"keep {against}", OPEN: "still open"}[choice]
    margin_held = None if rules.margin is None else first
    decision = {"choice": choice, "margin": rules.margin, "margin_held": margin_held, "guardrails": guardrails}
    return {"memo": f"{memo}. By the rules: {said}.", "decision": decision}


def _decisive(difference: Difference) -> dict[str, float]:
    return {"mean": difference.mean, "low": difference.low_all, "high": difference.high_all}


def _in_words(difference: Difference, confidence: float | None = None) -> str:
    if not np.isfinite(difference.low_all):
        return "not measured"
    level = "" if confidence is None else f"{100 * confidence:g} % "
    return f"{signed(difference.mean)} ({level}{signed(difference.low_all)} to {signed(difference.high_all)})"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
