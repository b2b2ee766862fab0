"""What paired differences allow to conclude: better, worse, no worse, undecided or too few, by how much, how sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats

from eval.statistics.intervals import Difference
from siglip_jax.errors import UserError

FEW_CLUSTERS = 10  # effective ones, below which no interval is to be trusted (`siglip-jax bench verdicts`)
POWER = 0.8
_POINTS = 4000
_WAYS = {"query_item": "query items", "query": "queries"}


@dataclass(frozen=True)
class Conclusion:
    """Of "a ranks better than b"."""

    verdict: str  # see `verdict_of`
    difference: float  # mean of a - b over queries
    low: float  # of the interval that decides: of one comparison, or of all that were made together
    high: float
    p: float  # likewise
    minimum_detectable: float  # the difference that such data would show, see `minimum_detectable_effect`
    text: str  # all of it in one line


def verdict_of(difference: Difference, *, margin: float | None = None) -> str:
    """What the interval that holds for all comparisons made together allows to say of a.

    "not measured"; "too few": the queries, or those in which a and b differ, weigh as fewer than FEW_CLUSTERS clusters;
    "better" or "worse": the interval leaves out 0; "no worse": with a margin, it ends above -margin; else "undecided".
    """
    low, high = difference.low_all, difference.high_all
    if not np.isfinite([difference.mean, low, high]).all():
        return "not measured"
    if low == high == 0 or (low <= 0 <= high and difference.standard_error == 0):
        return "no worse" if margin is not None else "undecided"  # query by query the same
    if difference.degrees + 1 < FEW_CLUSTERS:
        return "too few"
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "no worse" if margin is not None and low > -margin else "undecided"


def conclusion(
    a: str,
    b: str,
    difference: Difference,
    *,
    metric: str,
    means: tuple[float, float] | None = None,
    effective: Mapping[str, float] | None = None,
    confidence: float = 0.95,
    power: float = POWER,
    margin: float | None = None,
) -> Conclusion:
    """One plain line about two rankings, and its parts.

    Args:
      a, b: names of the new and the old ranking.
      difference: of a - b, with the same confidence.
      metric: its name in the report.
      means: of a and of b, where they are to be told.
      effective: {way: effective clusters} of the queries, as `Clusters.effective` gives them.
      margin: by how much a may be worse and still do; see `verdict_of`.

    Raises:
      UserError: confidence, power or margin out of range.
    """
    if margin is not None and not (np.isfinite(margin) and margin > 0):
        raise UserError(f"margin={margin}: expected a number above 0, by how much the metric may fall")
    error, degrees = difference.standard_error, difference.degrees
    least = minimum_detectable_effect(
        error, degrees=degrees, level=difference.level, power=power, confidence=confidence
    )
    verdict = verdict_of(difference, margin=margin)
    low, high, p = difference.low_all, difference.high_all, difference.p_all
    if verdict == "not measured":
        text = f"{_capital(a)} and {b} were not compared in {metric}: {_why_not(difference)}."
    elif low == high == 0:
        text, least = f"{_capital(a)} and {b} are equal in {metric}, query by query.", np.nan
    else:
        claim = {
            "better": f"{_capital(a)} ranks better than {b}",
            "worse": f"{_capital(a)} ranks worse than {b}",
            "no worse": f"{_capital(a)} ranks no worse than {b}, up to {margin}",
            "undecided": f"Undecided whether {a} ranks better than {b}",
            "too few": f"Too few to say whether {a} ranks better than {b}",
        }[verdict]
        values = metric if means is None else f"{metric} {means[0]:.3f} against {means[1]:.3f}"
        many = difference.comparisons > 1
        text = (
            f"{claim}: {values}, difference {signed(difference.mean)} ({100 * confidence:g} % interval "
            f"{signed(low)} to {signed(high)}, {_chance(p)}"
            f"{f', both corrected for {difference.comparisons} comparisons' if many else ''})."
        )
        if verdict == "undecided":
            text += f" A true difference of {least:.3f} would be found with a chance of {100 * power:g} %."
        if verdict == "too few":
            text += f" {_too_few(difference, effective or {})}"
    return Conclusion(verdict, difference.mean, low, high, p, least, text)


def chance_of_finding(effect: float, standard_error: float, *, degrees: float = np.inf, level: float = 0.05) -> float:
    """The power against a true difference: how often p is at most `level`, both sides."""
    return _power(effect / standard_error, _spreads(degrees), _reach(degrees, level))


def _power(away: float, spreads: np.ndarray, reach: float) -> float:
    """How often |z + away| / spread is at least `reach`: Student's noncentral t, as a mean over what the error may be.

    scipy's own distribution of that name is NaN in places.
    """
    normal = scipy.stats.norm
    return float((normal.sf(reach * spreads - away) + normal.cdf(-reach * spreads - away)).mean())


def _spreads(degrees: float) -> np.ndarray:
    """What a standard error of so many degrees of freedom may be, in units of the true one: equally likely points."""
    if np.isinf(degrees):
        return np.ones(1)
    degrees = max(degrees, 1)
    return np.sqrt(scipy.stats.chi2.ppf((np.arange(_POINTS) + 0.5) / _POINTS, degrees) / degrees)


def _reach(degrees: float, level: float) -> float:
    law = scipy.stats.norm if np.isinf(degrees) else scipy.stats.t(max(degrees, 1))
    return float(law.isf(level / 2))


def minimum_detectable_effect(
    standard_error: float,
    *,
    degrees: float = np.inf,
    level: float | None = None,
    power: float = POWER,
    confidence: float = 0.95,
) -> float:
    """The true difference that would be found with the given power. NaN where the error is.

    Args:
      standard_error, degrees, level: of the `Difference` that such data gave, so that the rule is the one by which the
        next verdict is reached: clustered, and corrected for the comparisons made together.
      level: 1 - confidence for None.
    """
    if not (0 < power < 1 and 0 < confidence < 1):
        raise UserError(f"power={power}, confidence={confidence}: expected both between 0 and 1")
    level = 1 - confidence if level is None else level
    if not np.isfinite(standard_error) or standard_error == 0:
        return float(standard_error)
    spreads, reach = _spreads(degrees), _reach(degrees, level)
    if power <= level:  # found by chance as often
        return 0.0
    furthest = 4.0
    while _power(furthest, spreads, reach) < power:
        furthest *= 2
    found = scipy.optimize.brentq(lambda away: _power(away, spreads, reach) - power, 0.0, furthest, xtol=1e-6)
    return float(found * standard_error)


def _why_not(difference: Difference) -> str:
    if not difference.queries:
        return "no query has a value in both"
    return "all queries belong to one cluster, which leaves no interval"


def weight_in_words(queries: int, effective: Mapping[str, float]) -> str:
    """Such as "9,000 queries weigh as 939 users and 23 query items"."""
    said = " and ".join(f"{number:,.{0 if number >= 99.95 else 1}f} {plural(way)}" for way, number in effective.items())
    return f"{queries:,} queries weigh as {said}"


def plural(way: str) -> str:
    """Of the name of a way in which queries depend on each other."""
    return _WAYS.get(way, f"{way}s")


def _too_few(difference: Difference, effective: Mapping[str, float]) -> str:
    if difference.effective_clusters < FEW_CLUSTERS:
        known = effective or {"independent cluster": difference.effective_clusters}
        weight = weight_in_words(difference.queries, known)
        return f"The {weight}; an interval over fewer than {FEW_CLUSTERS} is not reliable."
    return (
        f"The queries in which the two differ weigh as {difference.degrees + 1:.1f} independent ones; an interval over "
        f"fewer than {FEW_CLUSTERS} is not reliable."
    )


def _chance(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p {p:.4f}" if p < 0.001 else f"p {p:.3f}"


def signed(value: float) -> str:
    """A difference to three digits: "+0.012", "−0.003"."""
    return unsigned_zero(f"{value:+.3f}").replace("-", "−")


def unsigned_zero(text: str) -> str:
    """What rounds to zero has no sign: "-0.000" is no number, and "+0.000" says which way nothing points."""
    return text if text.strip("+-0.") else text.lstrip("+-")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
