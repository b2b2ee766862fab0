"""How many users find an effect, and which effect so many users find; for one planned look, and for many."""

from __future__ import annotations

import math
from statistics import NormalDist

import scipy.optimize

from eval.experiments.effects import Looks, sequence_radius
from eval.statistics.significance import chance_of_finding
from siglip_jax.errors import UserError

_MOST = 1e13  # users


def power_of(users: float, *, variance: float, effect: float, share: float = 0.5, look: Looks, scale: float) -> float:
    """The chance that a true effect is found with so many users.

    At one look by the noncentral t with Welch's degrees of freedom, both variants having one variance. With many looks
    it is the chance at that number of users alone; looks before it can only find it earlier.

    Args:
      users: of control and treatment together; `share` of them are the treatment's.
      variance: of the metric, a user.
      scale: of the confidence sequence, in the metric's units.
    """
    treated, others = share * users, (1 - share) * users
    error = math.sqrt(variance / treated + variance / others)
    level = 1 - look.confidence
    if look.looks == "many":
        normal, reach = NormalDist(), sequence_radius(error, scale=scale, alpha=level) / error
        return normal.cdf(abs(effect) / error - reach) + normal.cdf(-abs(effect) / error - reach)
    a, b = variance / treated, variance / others
    freedom = (a + b) ** 2 / (a**2 / (treated - 1) + b**2 / (others - 1))
    return chance_of_finding(abs(effect), error, degrees=freedom, level=level)


def users_needed(
    *, variance: float, effect: float, share: float = 0.5, power: float = 0.8, look: Looks, scale: float
) -> float:
    """Users of both variants together that find `effect` with this power; infinite where nobody has so many.

    Raises:
      UserError: an effect of 0, no variance, or a power or share outside (0, 1).
    """
    _check(variance, share, power)
    if not effect or not math.isfinite(effect):
        raise UserError(f"effect {effect:g}: expected one that is not 0")

    def missing(users: float) -> float:
        return power_of(users, variance=variance, effect=effect, share=share, look=look, scale=scale) - power

    low = 4 / min(share, 1 - share)
    if missing(low) >= 0:
        return low
    high = 2 * low
    while missing(high) < 0:
        high *= 2
        if high > _MOST:
            return math.inf
    return float(scipy.optimize.brentq(missing, high / 2, high, xtol=1e-6, rtol=1e-12))


def effect_found(
    users: float, *, variance: float, share: float = 0.5, power: float = 0.8, look: Looks, scale: float
) -> float:
    """The smallest effect that so many users find with this power."""
    _check(variance, share, power)
    error = math.sqrt(variance / (share * users) + variance / ((1 - share) * users))

    def missing(effect: float) -> float:
        return power_of(users, variance=variance, effect=effect, share=share, look=look, scale=scale) - power

    high = error
    while missing(high) < 0:
        high *= 2
    return float(scipy.optimize.brentq(missing, 0, high))


def _check(variance: float, share: float, power: float) -> None:
    if not (0 < variance < math.inf and 0 < share < 1 and 0 < power < 1):
        raise UserError(
            f"variance {variance:g}, share {share:g}, power {power:g}: expected a variance above 0, and a share and a "
            "power between 0 and 1"
        )
