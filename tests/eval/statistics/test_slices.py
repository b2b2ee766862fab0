"""Slices against loops and the intervals of their own queries, their order, and what planted weaknesses look like."""

import numpy as np
import pytest

from eval.statistics import Slicing, mean_columns, measure_slices
from eval.statistics.slices import MIN_CLUSTERS, by_age, by_band, by_popularity, by_value, by_volume
from siglip_jax.errors import UserError


def queries(n=3000, seed=0):
    """Users of 1 to 12 queries each, with a level of their own; every query of one of four kinds."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n), rng.integers(1, 13, n))[:n]
    level = rng.normal(0, 0.1, n)[users]
    new = np.clip(0.5 + level + rng.normal(0, 0.2, n), 0, 1)
    base = np.clip(0.45 + level + rng.normal(0, 0.2, n), 0, 1)
    return users, new, base, np.array(["a", "b", "c", ""])[rng.integers(0, 4, n)]


@pytest.mark.parametrize("ways", [("user",), ("user", "item")])
def test_means_and_intervals_are_those_of_the_slices_own_queries(ways):
    users, new, base, kinds = queries()
    both = {"user": users, "item": np.random.default_rng(5).geometric(0.01, len(users))}
    clusters = {way: both[way] for way in ways}
    new[5] = base[9] = np.nan
    found = measure_slices([by_value("kind", kinds)], new, base, clusters=clusters)
    assert found["measured"] == 3
    assert found["no_value"] == {"kind": int(((kinds == "") & ~np.isnan(new) & ~np.isnan(base)).sum())}
    for row in found["slices"]:
        inside = (kinds == row["label"]) & ~np.isnan(new) & ~np.isnan(base)
        assert row["queries"] == inside.sum()
        assert row["clusters"] == min(len(set(both[way][inside])) for way in ways)
        columns = np.stack([new, base, new - base], axis=1)[inside]
        own = {way: codes[inside] for way, codes in clusters.items()}
        for part, want in zip(("new", "base", "difference"), mean_columns(columns, clusters=own), strict=True):
            got = [row[part][end] for end in ("mean", "low", "high")]
            assert got == pytest.approx([want.mean, want.low, want.high])
        wide = row["difference"]
        assert wide["low_all"] < wide["low"] < wide["high"] < wide["high_all"]


def test_users_who_ask_much_widen_the_interval():
    users, new, base, _ = queries()
    one = [Slicing("all", ("all",), np.zeros(len(new), np.int64))]
    plain, clustered = (measure_slices(one, new, base, clusters=c)["slices"][0]["new"] for c in (None, users))
    assert clustered["high"] - clustered["low"] > 1.3 * (plain["high"] - plain["low"])


def test_the_weak_slice_leads_and_noise_does_not():
    rng = np.random.default_rng(1)
    sizes = {"good": 4000, "weak": 1500, "tiny": 60, "few": MIN_CLUSTERS - 1}
    kinds = np.repeat(list(sizes), list(sizes.values()))
    base = rng.uniform(size=len(kinds))
    new = base + rng.normal(0, 0.3, len(kinds))
    new += np.where(kinds == "weak", -0.06, 0.05)
    tiny = kinds == "tiny"  # a mean far below, of few and noisy queries
    noise = rng.normal(size=tiny.sum())
    new[tiny] = base[tiny] + noise - noise.mean() - 0.1
    found = measure_slices([by_value("kind", kinds)], new, base, min_queries=20)
    means = {row["label"]: row["difference"]["mean"] for row in found["slices"]}
    assert means["tiny"] < means["weak"] < means["good"]
    assert [row["label"] for row in found["slices"]] == ["weak", "good", "tiny"]
    verdicts = {row["label"]: row["verdict"] for row in found["slices"]}
    assert verdicts["weak"] == "worse"
    assert verdicts["good"] == "better"
    assert [row["label"] for row in found["small"]] == ["few"]
    ends = [row["difference"]["high_all"] for row in found["slices"]]
    assert ends == sorted(ends)
    alone = measure_slices([by_value("kind", kinds)], new)
    ends = [row["new"]["high"] for row in alone["slices"]]
    assert all(row["difference"] is None and row["verdict"] is None for row in alone["slices"])


def test_of_many_slices_without_an_effect_hardly_one_is_named():
    named = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        slicing = Slicing("noise", tuple(map(str, range(40))), rng.integers(0, 40, 6000))
        found = measure_slices([slicing], rng.normal(size=6000), rng.normal(size=6000))
        named += any(row["verdict"] != "undecided" for row in found["slices"])
    assert named <= 5  # 5 % of 30 is 1.5; one by one 40 slices would name nearly always


def test_values_beyond_the_most_are_one_slice():
    values = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"] * 2 + [""]
    slicing = by_value("v", values, most=2)
    assert slicing.labels == ("a", "b", "2 others")
    assert slicing.codes.tolist() == [0] * 5 + [1] * 4 + [2] * 5 + [-1]


def test_bands():
    prices = by_band("price", np.array([1.5, 9, 10, 99, np.nan, 1000]), edges=[0, 10, 100])
    assert prices.labels == ("0 to under 10", "10 to under 100", "100 and more")
    assert prices.codes.tolist() == [0, 0, 1, 1, -1, 2]
    whole = by_band("n", np.array([1, 2, 3, 8]), edges=[1, 2, 4])
    assert whole.labels == ("1", "2 to 3", "4 and more")
    rng = np.random.default_rng(0)
    fifths = by_band("x", rng.lognormal(size=5000))
    assert np.bincount(fifths.codes).tolist() == [1000] * 5
    assert by_band("same", np.full(9, 3.0)).labels == ("3",)
    assert by_age(np.array([-1, 0.5, 3, 6.99, 400])).codes.tolist() == [-1, 0, 1, 1, 5]
    assert by_age(np.array([400.0])).labels[1] == "1 to 6 days"
    volume = by_volume(np.array(["u", "v", "v", "w", *["x"] * 30]))
    assert volume.labels == ("1", "2 to 5", "6 to 20", "21 and more")
    assert volume.codes.tolist() == [0, 1, 1, 0, *[3] * 30]
    with pytest.raises(UserError, match="ascending"):
        by_band("x", np.ones(3), edges=[2, 1])


def test_head_and_tail():
    slicing = by_popularity(np.array([50, 30, 10, 5, 5, 0]))
    assert [slicing.labels[code] for code in slicing.codes] == ["head", *["tail"] * 4, "never seen"]
    equal = by_popularity(np.ones(4))
    assert set(equal.codes.tolist()) == {0}
    with pytest.raises(UserError, match="0 or more"):
        by_popularity(np.array([1, -1]))


def test_refusals():
    new = np.zeros(5)
    with pytest.raises(UserError, match="4 labels for 5 queries"):
        measure_slices([by_value("v", list("aabb"))], new)
    with pytest.raises(UserError, match="no slicing"):
        measure_slices([], new)
    with pytest.raises(UserError, match="infinite"):
        measure_slices([by_value("v", list("aabbc"))], np.full(5, np.inf))


@pytest.mark.slow
def test_a_million_queries_in_bounded_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    n = 1_000_000
    users, new, base = rng.integers(0, 200_000, n), rng.uniform(size=n), rng.uniform(size=n)
    slicings = [Slicing(f"s{i}", tuple(map(str, range(30))), rng.integers(0, 30, n)) for i in range(4)]
    tracemalloc.start()
    found = measure_slices(slicings, new, base, clusters=users)
    assert tracemalloc.get_traced_memory()[1] < 400 * n
    tracemalloc.stop()
    assert found["measured"] == 120
