"""Users needed and power against tea-tasting and statsmodels, and against each other."""

import math

import pytest

from eval.experiments.effects import Looks
from eval.experiments.moments import adjusted, joined, moments, sample
from eval.experiments.power import effect_found, power_of, users_needed
from siglip_jax.errors import UserError

ONE, MANY = Looks(looks="one"), Looks(looks="many")


def test_users_are_those_of_tea_tasting_and_statsmodels(golden_experiment, arms_of):
    a, b = map(moments, arms_of("taps", "shown"))
    total = sample(joined(a, b))
    effect = 0.1 * total.value
    found = users_needed(variance=total.variance, effect=effect, look=ONE, scale=effect)
    assert math.ceil(found) == golden_experiment["tea_tasting_users"]["ctr"]
    chance = power_of(5000, variance=total.variance, effect=effect, share=0.2, look=ONE, scale=effect)
    assert chance == pytest.approx(golden_experiment["tea_tasting_power_of_5000_one_in_five_treated"], rel=1e-6)
    users = users_needed(variance=1, effect=0.1, look=ONE, scale=0.1)
    assert users == pytest.approx(golden_experiment["statsmodels"]["users"], rel=1e-4)  # theirs pools the variance


def test_the_covariate_saves_as_many_users_as_in_tea_tasting(golden_experiment, arms_of):
    total = joined(*map(moments, arms_of("taps", "shown", "taps_before", "shown_before")))
    plain = sample(total)
    _, _, how = adjusted(total, total)
    effect = 0.1 * plain.value
    left = plain.variance * (1 - how.correlation**2)
    found = users_needed(variance=left, effect=effect, look=ONE, scale=effect)
    assert found == pytest.approx(golden_experiment["tea_tasting_users"]["ctr_cuped"], rel=1e-3)


@pytest.mark.parametrize("look", [ONE, MANY])
def test_users_effect_and_power_invert_each_other(look):
    users = users_needed(variance=2.0, effect=0.05, share=0.3, power=0.9, look=look, scale=0.05)
    given = {"variance": 2.0, "share": 0.3, "look": look, "scale": 0.05}
    assert power_of(users, effect=0.05, **given) == pytest.approx(0.9)
    assert effect_found(users, power=0.9, **given) == pytest.approx(0.05)


def test_what_cannot_be_planned():
    assert users_needed(variance=1, effect=1e-9, look=ONE, scale=1) == math.inf
    assert users_needed(variance=1e-9, effect=1, look=ONE, scale=1) == 8
    for wrong in ({"variance": 0.0}, {"effect": 0.0}, {"power": 1.0}, {"share": 0.0}):
        with pytest.raises(UserError):
            users_needed(**{"variance": 1.0, "effect": 0.1, "look": ONE, "scale": 0.1, **wrong})
