"""User profiles against a plain loop over each user's events, with pytrec_eval."""

import dataclasses

import numpy as np
import pytest

from eval.logs import Live
from eval.protocols import FullCatalogue, Measures
from eval.protocols.full_catalogue import reachable
from eval.protocols.user_profiles import Pairs, leave_one_out, popularity, split_time, time_split
from eval.rankers import VectorRanker
from eval.rankers.baselines import PopularityRanker
from eval.search import build_index
from siglip_jax.errors import UserError

METRICS = {
    "nDCG@5": "ndcg_cut_5",
    "precision@1": "P_1",
    "hit@5": "success_5",
    "recall@10": "recall_10",
    "MRR": "recip_rank",
}
MEASURES = Measures(tuple(METRICS), gain="linear")
N = 60


def some_pairs(seed=0, users=12, n=N):
    """By user, then time, as read_pairs has them; some users too new or too old for a split."""
    rng = np.random.default_rng(seed)
    parts = []
    for user in range(users):
        count = 1 if user == 5 else int(rng.integers(2, 15))
        times = np.sort(rng.integers(400 * (user % 3), 1000 + 300 * (user % 2), count))
        parts.append((np.full(count, user), rng.permutation(n)[:count], times, rng.choice([0, 1, 2], count)))
    users_, items, times, gains = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pairs(users_, items, times, gains.astype(np.float32))


@pytest.mark.parametrize(("profile", "coarse"), [("mean", 1), ("last", 1), ("mean", 250)])
@pytest.mark.parametrize("split", ["leave_one_out", "time_split"])
def test_profiles_against_a_loop(split, profile, coarse, vectors, unit, oracle, agrees):
    """Where times are coarse, several events of a user are of one instant: none of them comes before the others."""
    pairs, v, at = some_pairs(), vectors(), 700
    pairs = dataclasses.replace(pairs, times=pairs.times // coarse * coarse)
    live = Live(np.zeros(N), np.full(N, 5000), "all")
    made = (
        leave_one_out(pairs, profile=profile) if split == "leave_one_out" else time_split(pairs, at=at, profile=profile)
    )
    queries, history, held_out = made
    queries = reachable(queries, live, history)
    cosine = VectorRanker("v", v)
    counts = popularity(pairs, ~held_out, N)
    rankers = [cosine, PopularityRanker(counts)]
    protocol = FullCatalogue(queries=queries, live=live, measures=MEASURES, history=history)
    found = protocol.rank(rankers)

    expected = {}
    for user in range(12):
        mine = [k for k in range(len(pairs)) if pairs.users[k] == user]
        liked = [k for k in mine if pairs.gains[k] > 0]
        if split == "leave_one_out":
            targets, before = liked[-1:], [k for k in mine if liked and pairs.times[k] < pairs.times[liked[-1]]]
        else:
            targets, before = [k for k in liked if pairs.times[k] >= at], [k for k in mine if pairs.times[k] < at]
        profile_items = [pairs.items[k] for k in before if pairs.gains[k] > 0]
        if not targets or not profile_items:
            continue
        profile_items = profile_items[-1:] if profile == "last" else profile_items
        taste = unit(v)[profile_items].mean(axis=0)
        at_once = [k for k in mine if k not in targets and pairs.times[k] == pairs.times[targets[-1]]]
        seen = {pairs.items[k] for k in [*before, *(at_once if split == "leave_one_out" else [])]}
        there = [j for j in range(N) if j not in seen]
        gains = {pairs.items[k]: pairs.gains[k] for k in targets}
        qrels = {j: gains.get(j, 0) for j in there}
        expected[user] = oracle(qrels, {j: unit(v)[j] @ taste for j in there})
    assert sorted(queries.users) == sorted(expected)
    agrees(found["v"], [expected[user] for user in queries.users])
    assert sum(queries.left_out.values()) == 12 - len(expected) > 0
    if split == "leave_one_out":
        assert (queries.lengths == 1).all()
        np.testing.assert_array_equal(counts.sum(), (pairs.gains > 0).sum() - held_out.sum())
    index = build_index(cosine.vectors(), [str(i) for i in range(N)])
    by_index = protocol.rank_indexed(cosine, {}, index=index)
    for name in METRICS:
        np.testing.assert_allclose(by_index.metrics[name], found["v"].metrics[name], atol=1e-9)


@pytest.mark.parametrize("split", ["leave_one_out", "time_split"])
def test_repeats_are_asked_for_and_stay_candidates(split, vectors, unit, oracle, agrees):
    """A user who buys one thing every time: without repeats it is found once, and then left out."""
    users, times = np.repeat([0, 1], 6), np.tile(np.arange(6), 2) * 100
    items = np.array([7, 7, 9, 8, 9, 7, 3, 3, 4, 6, 3, 5])
    pairs, v = Pairs(users, items, times, np.ones(12, np.float32)), vectors()
    made = leave_one_out(pairs, repeats=True) if split == "leave_one_out" else time_split(pairs, at=400, repeats=True)
    queries, history, _ = made
    live = Live(np.zeros(N), np.full(N, 5000), "all")
    queries = reachable(queries, live, history)
    found = FullCatalogue(queries=queries, live=live, measures=MEASURES, history=history).rank([VectorRanker("v", v)])
    asked = {"leave_one_out": ([7], [5]), "time_split": ([9, 7], [3, 5])}[split]
    liked = ([7, 9, 8], [3, 4, 6])  # each once
    expected = []
    for user in (0, 1):
        taste = unit(v)[liked[user]].mean(axis=0)
        expected.append(oracle({j: int(j in asked[user]) for j in range(N)}, {j: unit(v)[j] @ taste for j in range(N)}))
    agrees(found["v"], [expected[user] for user in queries.users])


def test_items_with_one_picture_tie_in_profiles_too(vectors):
    v = vectors()
    v[N // 2 :] = v[: N // 2]
    queries, history, _ = leave_one_out(some_pairs())
    scores = history.scores(VectorRanker("v", v), np.arange(len(queries)), n=N)
    np.testing.assert_array_equal(scores[:, : N // 2], scores[:, N // 2 :])


def test_no_user_to_split():
    pairs = some_pairs()
    with pytest.raises(UserError, match="no user with a liked item both before and held out"):
        time_split(pairs, at=0)
    with pytest.raises(UserError, match="profile='first'"):
        leave_one_out(pairs, profile="first")
    only_late = leave_one_out(pairs, since=900)
    assert (only_late[0].times >= 900).all()
    assert only_late[0].left_out["last liked item before the window"] > 0
    at = split_time(pairs)
    assert np.mean(pairs.times < at) <= 0.8 < np.mean(pairs.times <= at) + 0.02


def test_users_whose_times_do_not_tell_what_came_first_are_counted():
    pairs = Pairs(np.array([0, 0, 1, 1, 2]), np.arange(5), np.array([7, 7, 7, 8, 7]), np.ones(5, np.float32))
    queries, _, _ = leave_one_out(pairs)
    assert queries.users.tolist() == [1]
    assert queries.left_out == {"all liked at one instant": 1, "no liked item before": 1}
    with pytest.raises(UserError, match=r"2 all liked at one instant.*finer times"):
        leave_one_out(dataclasses.replace(pairs, times=np.full(5, 7)))
