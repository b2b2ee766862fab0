"""What paired differences allow to conclude: better, worse or undecided, by how much, how sure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from eval.statistics.bootstrap import Difference
from siglip_jax.errors import UserError

FEW_CLUSTERS = 30  # effective ones, below which a bootstrap over clusters is too sure of itself


@dataclass(frozen=True)
class Conclusion:
    """Of "a ranks better than b"."""

    verdict: str  # "better", "worse", "undecided" or "not measured"
    difference: float  # mean of a - b over queries
    low: float
    high: float
    p: float
    adjusted_p: float  # for the number of comparisons made; p itself where there was one
    minimum_detectable: float  # the difference that such data would show, see `minimum_detectable_effect`
    text: str  # all of it in one line


def conclusion(
    a: str,
    b: str,
    difference: Difference,
    *,
    metric: str,
    means: tuple[float, float] | None = None,
    adjusted_p: float | None = None,
    comparisons: int = 1,
    confidence: float = 0.95,
    power: float = 0.8,
) -> Conclusion:
    """One plain line about two rankings, and its parts.

    The verdict is "better" or "worse" only where the interval excludes 0 and the (adjusted) p is at most
    1 - confidence.

    Args:
      a, b: names of the new and the old ranking.
      difference: of a - b, from `paired_bootstrap` or `difference_columns` with the same confidence.
      metric: its name in the report.
      means: of a and of b, where they are to be told.
      adjusted_p: p corrected for many comparisons, as `holm` gives it; `comparisons` is their number.

    Raises:
      UserError: several comparisons without adjusted_p; confidence or power out of range.
    """
    if comparisons > 1 and adjusted_p is None:
        raise UserError(
            f"conclusion from one of {comparisons} comparisons: give adjusted_p, as eval.statistics.significance.holm"
        )
    least = minimum_detectable_effect(difference.standard_error, power=power, confidence=confidence)
    p = difference.p if adjusted_p is None else adjusted_p
    low, high = difference.low, difference.high
    if not np.isfinite([difference.mean, low, high, p]).all():
        verdict = "not measured"
        text = f"{_capital(a)} and {b} were not compared in {metric}: {_why_not(difference)}."
    else:
        sure = p <= 1 - confidence + 1e-12
        verdict = "better" if sure and low > 0 else "worse" if sure and high < 0 else "undecided"
        claim = f"Undecided whether {a} ranks better than {b}"
        if verdict != "undecided":
            claim = f"{_capital(a)} ranks {verdict} than {b}"
        values = metric if means is None else f"{metric} {means[0]:.3f} against {means[1]:.3f}"
        chance = f"p {_chance(difference.p)}"
        if comparisons > 1:
            chance += f", {_chance(p)} corrected for {comparisons} comparisons"
        text = (
            f"{claim}: {values}, difference {_signed(difference.mean)} "
            f"({100 * confidence:g} % interval {_signed(low)} to {_signed(high)}; {chance})."
        )
        if low == high == difference.mean == 0 and not difference.standard_error:
            text = f"{_capital(a)} and {b} are equal in {metric}, query by query."
            least = np.nan
        elif verdict == "undecided":
            text += f" A true difference of {least:.3f} would be found with a chance of {100 * power:g} %."
        if difference.effective_clusters < FEW_CLUSTERS:
            text += (
                f" The {difference.queries:,} queries weigh as {difference.effective_clusters:.1f} independent "
                "clusters: too few to trust the interval."
            )
    return Conclusion(verdict, difference.mean, low, high, difference.p, p, least, text)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected for their number: the chance of any false finding stays below the level (Holm 1979).

    Args:
      p: [comparison]; NaN (not measured) stays NaN and does not count.

    Raises:
      UserError: a value outside [0, 1].
    """
    p = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    if p.ndim != 1 or ((p[known] < 0) | (p[known] > 1)).any():
        raise UserError(f"p-values {p.tolist()}: expected numbers from 0 to 1, one a comparison")
    order = known[np.argsort(p[known], kind="stable")]
    out = np.full(len(p), np.nan)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return out


def minimum_detectable_effect(standard_error: float, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """The true difference that a two-sided test at 1 - confidence finds with the given power: normal approximation.

    With the clustered standard error of `Difference`, clusters count as they should. NaN where the error is.
    """
    if not (0 < power < 1 and 0 < confidence < 1):
        raise UserError(f"power={power}, confidence={confidence}: expected both between 0 and 1")
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)) * standard_error


def _why_not(difference: Difference) -> str:
    if not difference.queries:
        return "no query has a value in both"
    return "all queries belong to one cluster, which leaves no interval"


def _chance(p: float) -> str:
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
