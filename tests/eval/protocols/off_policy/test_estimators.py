"""Estimates of what a ranker would have earned: exact over every order that could have been shown, and simulated."""

import itertools

import numpy as np
import pytest

from eval.logs import Queries
from eval.protocols import LoggedLists, Measures
from eval.protocols.exposure import Propensity
from eval.protocols.logged_lists import LOGGED_ORDER
from eval.protocols.off_policy.chance_lists import chance_lists
from eval.protocols.off_policy.estimators import ShownByChance, TargetOrder, estimate, shuffled
from eval.rankers.baselines import PopularityRanker, RandomRanker

WORTH = np.array([0.9, 0.2, 0.6, 0.1])  # of four items
SEEN = np.array([1.0, 0.6, 0.3, 0.2])  # of the places


def gains_of(order, *, interaction):
    """Expected gain at each place; with interaction, a good item makes the next ones less wanted."""
    gains = WORTH[list(order)] * SEEN
    if interaction:
        gains = gains * np.cumprod([1.0, *(1 - 0.5 * WORTH[list(order[:-1])])])
    return gains


def every_order(policy):
    """Each order of four items, its probability, and its marginal and joint probabilities by place."""
    orders = list(itertools.permutations(range(4)))
    chance = []
    for order in orders:  # Plackett and Luce: the next item in proportion to its weight among those left
        left, found = list(range(4)), 1.0
        for item in order:
            found *= policy[item] / sum(policy[other] for other in left)
            left.remove(item)
        chance.append(found)
    chance = np.array(chance)
    table = np.array(orders)
    marginal = np.array([[chance[table[:, k] == item].sum() for k, item in enumerate(order)] for order in orders])
    joint = np.array(
        [[chance[(table[:, : k + 1] == order[: k + 1]).all(axis=1)].sum() for k in range(4)] for order in orders]
    )
    return table, chance, marginal, joint


def test_expected_over_every_order_they_are_the_value_of_the_ranker():
    """Under a policy that prefers some items; scores tie, so the ranker itself has two orders."""
    table, chance, marginal, joint = every_order([1.0, 2.0, 0.5, 1.5])
    scores = np.array([0.5, 0.9, 0.5, 0.1])
    orders = [(1, 0, 2, 3), (1, 2, 0, 3)]
    for interaction, name in ((False, "independent"), (True, "reward interaction"), (False, "reward interaction")):
        gains = np.array([gains_of(order, interaction=interaction) for order in table])
        shown = ShownByChance(table, gains, marginal, joint)
        target = TargetOrder.of(scores[table], np.ones(table.shape, bool))
        for depth in (1, 3, 4):
            truth = np.mean([gains_of(order, interaction=interaction)[:depth].sum() for order in orders])
            values, _ = estimate(shown, target, depth=depth, clusters=np.arange(len(table)))
            assert chance @ values[name] == pytest.approx(truth, rel=1e-12)
    # Where items above matter, the independent one is not what it would have earned: that is its assumption.
    assert chance @ estimate(shown, target, depth=4, clusters=np.arange(24))[0]["independent"] > 0


def simulated(q, *, seed, policy=None):
    """Lists of the four items in random order, acted upon by chance: (shown, acted [q, 4])."""
    rng = np.random.default_rng(seed)
    if policy is None:
        order = rng.permuted(np.tile(np.arange(4), (q, 1)), axis=1)
        chances = shuffled(np.full(q, 4), 4)
    else:
        table, chance, marginal, joint = every_order(policy)
        drawn = rng.choice(len(table), q, p=chance)
        order, chances = table[drawn], (marginal[drawn], joint[drawn])
    acted = (rng.random((q, 4)) < WORTH[order] * SEEN).astype(float)
    return ShownByChance(order, acted, *chances)


@pytest.mark.parametrize("policy", [None, [1.0, 2.0, 0.5, 1.5]])
def test_every_estimator_is_unbiased_on_simulated_slates(policy):
    """Mean of 200 logs of 400 lists against the truth, in standard errors of that mean; and intervals cover."""
    scores = np.array([0.9, 0.1, 0.5, 0.3])
    truth = gains_of((0, 2, 3, 1), interaction=False)[:3].sum()
    found, inside = {}, {}
    for seed in range(200):
        shown = simulated(400, seed=seed, policy=policy)
        target = TargetOrder.of(scores[shown.items], shown.items >= 0)
        for name, values in estimate(shown, target, depth=3, clusters=np.arange(400))[0].items():
            mean, error = values.mean(), values.std(ddof=1) / 20
            found.setdefault(name, []).append(mean)
            inside.setdefault(name, []).append(abs(mean - truth) < 1.96 * error)
    spread = {}
    for name, means in found.items():
        spread[name] = np.std(means, ddof=1)
        assert abs(np.mean(means) - truth) < 3.5 * spread[name] / np.sqrt(200), name
        assert 0.89 < np.mean(inside[name]) <= 0.99, name
    assert spread["doubly robust"] < 0.95 * spread["independent"]
    assert spread["self-normalised"] < 1.05 * spread["independent"]


def queries_of(order, gains, **more):
    q, k = order.shape
    return Queries(
        *(np.arange(q).astype(object), np.full(q, "", object), np.arange(q), np.arange(q), np.full(q, 4)),
        starts=np.arange(q + 1) * k,
        candidates=order.ravel(),
        gains=gains.ravel().astype(np.float32),
        positions=np.tile(np.arange(k), q),
        **more,
    )


def test_probabilities_that_are_not_of_orders_are_refused():
    """Of the whole catalogue, as Open Bandit's, and of an order that was certain."""
    shown = simulated(200, seed=3)
    every = np.ones(shown.items.size)
    for chances, said in ((every / 80, "among more items"), (every, "hardly a say"), (every * np.nan, "no list has")):
        found, why_not = chance_lists(queries_of(shown.items, shown.gains, propensities=chances))
        assert found is None
        assert said in why_not
    found, why_not = chance_lists(queries_of(shown.items, shown.gains, propensities=every / 4))
    assert len(found) == 200
    assert why_not == ""
    assert chance_lists(queries_of(shown.items, shown.gains)) == (None, "")


def test_rounds_of_open_bandit():
    """A round is one item at one of three places, drawn from all items: the estimators of Saito et al. (2020)."""
    rng = np.random.default_rng(0)
    n, items = 3000, 12
    place, item = rng.integers(0, 3, n), rng.integers(0, items, n)
    click = (rng.random(n) < 0.02 * (1 + item) / (1 + place)).astype(float)
    best = np.array([11, 10, 9])  # what the policy puts at each place
    chosen = (item == best[place]).astype(float)
    shown = ShownByChance(*(v[:, None] for v in (item, click, np.full(n, 1 / items), np.full(n, 1 / items))))
    ones = np.ones((n, 1), bool)
    target = TargetOrder(chosen[:, None], chosen[:, None], np.zeros((n, 1), int), ones)
    values, effective = estimate(shown, target, depth=1, clusters=np.arange(n))
    weight = chosen * items
    assert values["independent"].mean() == pytest.approx((weight * click).mean())
    assert values["self-normalised"].mean() == pytest.approx((weight * click).sum() / weight.sum())
    assert effective["independent"] == pytest.approx(chosen.sum())
    truth = np.mean(0.02 * (1 + best) / (1 + np.arange(3)))
    assert abs(values["self-normalised"].mean() - truth) < 4 * values["self-normalised"].std() / np.sqrt(n)


def test_lists_of_a_log(monkeypatch):
    """A randomised bucket beside lists of unknown order: only the bucket counts, in blocks as in one."""
    shown = simulated(900, seed=1)
    bucket = np.arange(900) < 600
    queries = queries_of(shown.items, shown.gains, randomised=bucket)
    rankers = [PopularityRanker(np.array([0.9, 0.1, 0.5, 0.3, 0.0])), RandomRanker(5)]
    protocol = LoggedLists(queries=queries, measures=Measures(("nDCG@3",)), propensity=Propensity())
    found = protocol.rank(rankers)
    monkeypatch.setattr("eval.protocols.logged_lists.BLOCK", 400)
    again = protocol.rank(rankers)
    for name in found:
        for key, values in found[name].off_policy["values"].items():
            np.testing.assert_allclose(again[name].off_policy["values"][key], values)
            assert np.array_equal(np.isnan(values), ~bucket)
    truth = gains_of((0, 2, 3, 1), interaction=False)[:3].sum()
    for values in found["popularity"].off_policy["values"].values():
        assert np.nanmean(values) == pytest.approx(truth, abs=4 * np.nanstd(values) / np.sqrt(600))
    earned = shown.gains[:600, :3].sum(axis=1)
    for name in ("independent", "reward interaction"):
        np.testing.assert_allclose(found[LOGGED_ORDER].off_policy["values"][name][:600], earned)
    assert found[LOGGED_ORDER].off_policy["effective"]["independent"] == pytest.approx(600)
    assert 100 < found["popularity"].off_policy["effective"]["independent"] < 200  # each place fits one time in four
    unknown = LoggedLists(queries=queries_of(shown.items, shown.gains), measures=Measures(("nDCG@3",)))
    assert unknown.rank(rankers)["popularity"].off_policy is None
