"""The difference of two variants: Welch's t, or a confidence sequence that may be looked at every day.

* **one look**: Student's t with Welch's degrees of freedom. It holds for the one read-out that was planned.
* **many looks**: the asymptotic confidence sequence from a normal mixture (Robbins 1970; Johari, Koomen, Pekelis and
  Walsh 2022; Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024). With error e and a scale s for effects,
  |estimate| <= sqrt(e^2 (e^2 + s^2) / s^2 (log((e^2 + s^2) / e^2) - 2 log alpha)) holds at all looks together, and it
  is about 1.55 times as wide as one look's interval where the effect is about s. The scale is fixed before the data:
  the lift that is expected, so it stays the same where users' sums grow with the days.

Relative intervals are the lifts r that the same test of treatment - (1 + r) control does not reject (Fieller 1954), so
that they exclude 0 exactly where the interval of the difference does.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import scipy.stats

from eval.experiments.moments import Measured
from siglip_jax.errors import UserError

LOOKS = ("many", "one")


@dataclasses.dataclass(frozen=True)
class Looks:
    """How a difference is judged.

    Attributes:
      looks: "many", a confidence sequence; "one", Welch's t.
      lift: expected relative effect, the scale of the sequence.
      confidence: of intervals.
    """

    looks: str = "many"
    lift: float = 0.05
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.looks not in LOOKS:
            raise UserError(f"looks={self.looks!r}; expected one of {', '.join(LOOKS)}")
        if not 0 < self.confidence < 1 or not 0 < self.lift < math.inf:
            raise UserError(
                f"confidence={self.confidence:g}, expected lift {self.lift:g}: expected a confidence between 0 and 1 "
                "and a lift above 0, such as 0.05"
            )


@dataclasses.dataclass(frozen=True)
class Effect:
    """Treatment minus control, relative to control too; NaN where it is not defined, infinite where not bounded."""

    mean: float
    low: float
    high: float
    p: float
    error: float
    relative: float
    relative_low: float
    relative_high: float


def compare(control: Measured, treatment: Measured, look: Looks, *, alpha: float | None = None) -> Effect:
    """The difference of two variants.

    Args:
      alpha: of this interval, where several comparisons share the level; 1 - look.confidence when absent.
    """
    level = 1 - look.confidence if alpha is None else alpha
    mean = treatment.value - control.value
    error, freedom = _error(control, treatment)
    relative = mean / abs(control.value) if control.value else math.nan
    if not (math.isfinite(mean) and error > 0):
        return Effect(mean, math.nan, math.nan, math.nan, error, relative, math.nan, math.nan)
    scale = look.lift * abs(control.value)
    if look.looks == "one":
        times, p = float(scipy.stats.t.isf(level / 2, freedom)), 2 * float(scipy.stats.t.sf(abs(mean) / error, freedom))
    elif scale > 0:
        times, p = sequence_radius(error, scale=scale, alpha=level) / error, sequence_p(mean, error, scale=scale)
    else:
        times, p = math.inf, 1.0
    low, high = _relative(control, treatment, times)
    if control.value < 0:  # a lift is upwards there too
        low, high = -high, -low
    return Effect(mean, mean - times * error, mean + times * error, p, error, relative, low, high)


def no_worse(
    control: Measured, treatment: Measured, look: Looks, *, margin: float, relative: bool
) -> tuple[float, float]:
    """(p of "treatment lies `margin` or more below control", the lower end of its interval that decides).

    With a relative margin m the two sides are treatment and (1 - m) control, whose difference has the variance of
    treatment + (1 - m)^2 control. The level is the two-sided interval's: half of it at one look.

    Raises:
      UserError: a margin that is not above 0, or a relative one that is 1 or more.
    """
    if not 0 < margin < (1 if relative else math.inf):
        raise UserError(f"margin {margin:g}: expected a number above 0{', a relative one below 1' if relative else ''}")
    share = 1 - margin if relative else 1.0
    base = Measured(share * control.value, share**2 * control.variance, control.n)
    shift = 0.0 if relative else margin
    mean = treatment.value - base.value + shift
    error, freedom = _error(base, treatment)
    if not (math.isfinite(mean) and error > 0):
        return math.nan, math.nan
    level = 1 - look.confidence
    if look.looks == "one":
        reach = float(scipy.stats.t.isf(level / 2, freedom)) * error
        return float(scipy.stats.t.sf(mean / error, freedom)), mean - reach
    scale = look.lift * abs(control.value)
    if not scale > 0:
        return 1.0, -math.inf
    p = sequence_p(mean, error, scale=scale) if mean > 0 else 1.0
    return p, mean - sequence_radius(error, scale=scale, alpha=level)


def sequence_radius(error: float, *, scale: float, alpha: float) -> float:
    """Half the width of the confidence sequence at a look with this standard error."""
    e, s = error**2, scale**2
    return math.sqrt(e * (e + s) / s * (math.log((e + s) / e) - 2 * math.log(alpha)))


def sequence_p(mean: float, error: float, *, scale: float) -> float:
    """p that stays valid at every look: the inverse of the mixture's likelihood ratio, at most 1."""
    e, s = error**2, scale**2
    log_ratio = 0.5 * math.log(e / (e + s)) + mean**2 * s / (2 * e * (e + s))
    return math.exp(-max(log_ratio, 0.0))


def holm_levels(p: np.ndarray, *, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """(adjusted p [m], the level of each one's interval [m]) of Holm's step-down procedure (1979).

    A comparison is found where its adjusted p is at most alpha, and exactly there its interval at its level excludes
    "no difference": from the first that is not found on, all have that one's level. NaN does not count and stays NaN.
    """
    p = np.asarray(p, np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    left = np.arange(len(order), 0, -1)
    out, levels = np.full(len(p), np.nan), np.full(len(p), alpha)
    out[order] = np.minimum(np.maximum.accumulate(p[order] * left), 1)
    each = alpha / left
    missed = np.flatnonzero(p[order] > each)
    if missed.size:
        each[missed[0] :] = each[missed[0]]
    levels[order] = each
    return out, levels


def _error(a: Measured, b: Measured) -> tuple[float, float]:
    """(standard error of the difference, Welch's degrees of freedom)."""
    first, second = a.variance / a.n, b.variance / b.n
    below = first**2 / (a.n - 1) + second**2 / (b.n - 1)
    return math.sqrt(first + second), (first + second) ** 2 / below if below > 0 else math.nan


def _relative(control: Measured, treatment: Measured, times: float) -> tuple[float, float]:
    """The lifts r where |treatment - (1 + r) control| <= times its error; infinite where control may be 0."""
    c, t = control.value, treatment.value
    square = times**2
    a = c * c - square * control.variance / control.n
    b = c * t
    d = t * t - square * treatment.variance / treatment.n
    inside = b * b - a * d
    if not (a > 0 and inside >= 0):
        return -math.inf, math.inf
    root = math.sqrt(inside)
    return (b - root) / a - 1, (b + root) / a - 1
