"""Counts, means and covariances of what users did, and ratios of means with their variance by the delta method.

Users are randomised, so a user is the unit: clicks per impression is a ratio of two means over users, whose variance
follows from the covariance of the two (Deng, Knoblich and Lu 2018). Rows of events never count as independent.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from siglip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class UserMoments:
    """Of the users of one variant: how many, float64 means [k], and covariances [k, k] with n - 1 below."""

    n: int
    mean: np.ndarray
    cov: np.ndarray


@dataclasses.dataclass(frozen=True)
class Measured:
    """A metric in one variant: its value, and the variance that one user adds, so that value has variance / n.

    effective: (sum of numerators)^2 / sum of their squares: how many users the numerator rests on.
    """

    value: float
    variance: float
    n: int
    effective: float = np.inf


def moments(columns: np.ndarray) -> UserMoments:
    """Of float64 [user, k].

    Raises:
      UserError: fewer than two users, or values that are not finite.
    """
    columns = np.asarray(columns, np.float64)
    if columns.ndim != 2 or len(columns) < 2:
        raise UserError(f"moments of {list(columns.shape)}: expected [user, column] of two users or more")
    if not np.isfinite(columns).all():
        raise UserError("a metric is infinite or NaN for some user; expected finite numbers")
    mean = columns.mean(axis=0)
    centred = columns - mean
    return UserMoments(len(columns), mean, centred.T @ centred / (len(columns) - 1))


def joined(a: UserMoments, b: UserMoments) -> UserMoments:
    """Of the users of both together."""
    n = a.n + b.n
    apart = a.mean - b.mean
    between = np.outer(apart, apart) * a.n * b.n / n
    cov = (a.cov * (a.n - 1) + b.cov * (b.n - 1) + between) / (n - 1)
    return UserMoments(n, (a.n * a.mean + b.n * b.mean) / n, cov)


def ratio(of: UserMoments, numerator: int, denominator: int) -> tuple[float, np.ndarray]:
    """(mean of a column by that of another, its gradient with respect to the means [k]); NaN where nothing is below."""
    gradient = np.zeros(len(of.mean))
    below = of.mean[denominator]
    if below == 0:
        return float("nan"), gradient
    value = of.mean[numerator] / below
    gradient[numerator] += 1 / below
    gradient[denominator] -= value / below
    return float(value), gradient


def sample(of: UserMoments, numerator: int = 0, denominator: int = 1) -> Measured:
    """A ratio of two columns, by the delta method."""
    value, gradient = ratio(of, numerator, denominator)
    variance = float(gradient @ of.cov @ gradient)
    square = of.cov[numerator, numerator] * (of.n - 1) + of.n * of.mean[numerator] ** 2  # sum of squares
    effective = (of.n * of.mean[numerator]) ** 2 / square if square > 0 else 0.0
    return Measured(value, max(variance, 0.0), of.n, float(effective))


@dataclasses.dataclass(frozen=True)
class Adjustment:
    """What a covariate from before the experiment did: metric - theta (covariate - its mean over all users).

    correlation: of metric and covariate over all users; the variance falls by its square.
    reduction: 1 - the variance of the difference, adjusted by unadjusted.
    """

    theta: float
    correlation: float
    reduction: float


def adjusted(control: UserMoments, treatment: UserMoments) -> tuple[Measured, Measured, Adjustment]:
    """CUPED (Deng, Xu, Kohavi and Walker 2013), for ratios of columns 0 and 1 with the covariate's in 2 and 3.

    theta is that of all users together. A covariate that is the same for every user changes nothing.
    """
    total = joined(control, treatment)
    _, gradient = ratio(total, 0, 1)
    before, slope = ratio(total, 2, 3)
    spread = float(slope @ total.cov @ slope)
    together = float(gradient @ total.cov @ slope)
    usable = np.isfinite(before) and spread > 0
    theta = together / spread if usable else 0.0
    own = float(gradient @ total.cov @ gradient)
    correlation = together / np.sqrt(spread * own) if usable and own > 0 else 0.0
    out, plain = [], []
    for variant in (control, treatment):
        raw = sample(variant)
        plain.append(raw)
        here, fall = ratio(variant, 2, 3)
        if theta == 0 or not np.isfinite(here):
            out.append(raw)
            continue
        _, rise = ratio(variant, 0, 1)
        variance = (rise - theta * fall) @ variant.cov @ (rise - theta * fall)
        out.append(Measured(raw.value - theta * (here - before), max(float(variance), 0.0), raw.n, raw.effective))
    was = sum(each.variance / each.n for each in plain)
    now = sum(each.variance / each.n for each in out)
    return out[0], out[1], Adjustment(theta, float(correlation), 1 - now / was if was > 0 else 0.0)
