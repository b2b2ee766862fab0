"""Every protocol against a plain loop that hands one query after the other to pytrec_eval, and the planted faults."""

import importlib.util

import numpy as np
import pytest
import pytrec_eval

from eval.logs import Live, Queries
from eval.protocols import Measures, rank_live, rerank_lists
from eval.protocols.exposure import Propensity
from eval.protocols.full_catalogue import rank_live_indexed, reachable
from eval.protocols.logged_lists import LOGGED_ORDER
from eval.protocols.user_profiles import Pairs, leave_one_out, popularity, split_time, time_split
from eval.rankers import VectorRanker
from eval.rankers.baselines import PopularityRanker, RandomRanker
from eval.rankers.item_to_item import CooccurrenceRanker
from eval.report.trec import TrecWriter, query_names, read_qrels, read_run
from eval.search import Neighbours, build_index
from eval.search.exact_index import ExactIndex
from eval.search.recall import check_found, recall_of_allowed, search_allowed
from siglip_jax.errors import UserError

needs_scann = pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="ScaNN is not installed")
METRICS = {
    "nDCG@5": "ndcg_cut_5",
    "precision@1": "P_1",
    "hit@5": "success_5",
    "recall@10": "recall_10",
    "MRR": "recip_rank",
}
MEASURES = Measures(tuple(METRICS), gain="linear")
N = 60


def some_queries(seed=0, q=40, *, n=N, longest=12, placed=True):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, longest, q)
    items = rng.integers(0, n, q)
    lists = [
        rng.permutation(np.delete(np.arange(n), item))[:length] for item, length in zip(items, lengths, strict=True)
    ]
    m = int(lengths.sum())
    return Queries(
        ids=np.array([f"q {i}" for i in range(q)], object),
        list_ids=np.array(["", "list/1"] * (q // 2), object),
        users=rng.integers(0, 7, q),
        times=np.sort(rng.integers(0, 1000, q)),
        items=items,
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        candidates=np.concatenate(lists),
        gains=rng.choice([0, 0, 0, 1, 3], m).astype(np.float32),
        positions=np.concatenate([np.arange(length) for length in lengths]) if placed else np.full(m, -1),
    )


def vectors(seed=0, n=N, d=8):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def unit(v):
    v = v.astype(np.float64)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def oracle(qrels: dict, run: dict) -> dict[str, float]:
    """One query through pytrec_eval; NaN where nothing is relevant."""
    if not any(qrels.values()):
        return dict.fromkeys(METRICS, np.nan)
    named = {"q": {str(item): int(gain) for item, gain in qrels.items()}}
    scored = {"q": {str(item): float(score) for item, score in run.items()}}
    keys = {key.replace("_5", ".5").replace("_10", ".10").replace("P_1", "P.1") for key in METRICS.values()}
    found = pytrec_eval.RelevanceEvaluator(named, keys).evaluate(scored)["q"]
    return {name: found[key] for name, key in METRICS.items()}


def agrees(ranked, expected):
    for name in METRICS:
        np.testing.assert_allclose(ranked.metrics[name], [e[name] for e in expected], atol=1e-6, err_msg=name)


# --- logged lists -----------------------------------------------------------------------------------------------------


def test_lists_are_ranked_as_by_pytrec_eval(monkeypatch):
    queries, v = some_queries(), vectors()
    monkeypatch.setattr("eval.protocols.logged_lists.BLOCK", 50)  # several blocks
    found = rerank_lists(queries, [VectorRanker("v", v)], measures=MEASURES)
    assert list(found) == [LOGGED_ORDER, "v"]
    score = unit(v) @ unit(v).T
    by_vector, by_order = [], []
    for i in range(len(queries)):
        part = slice(queries.starts[i], queries.starts[i + 1])
        items, gains = queries.candidates[part], queries.gains[part]
        qrels = dict(zip(items, gains, strict=True))
        by_vector.append(oracle(qrels, {item: score[queries.items[i], item] for item in items}))
        by_order.append(oracle(qrels, dict(zip(items, -queries.positions[part].astype(float), strict=True))))
    agrees(found["v"], by_vector)
    agrees(found[LOGGED_ORDER], by_order)


def test_a_list_without_all_positions_has_no_logged_order():
    queries = some_queries()
    chosen = int(queries.owner[queries.gains > 0][0])
    positions = queries.positions.copy()
    positions[queries.starts[chosen]] = -1
    partly = Queries(**{**vars(queries), "positions": positions})
    row = VectorRanker("v", vectors())
    found = rerank_lists(partly, [row], measures=MEASURES)
    whole = rerank_lists(queries, [row], measures=MEASURES)
    undefined = np.isnan(found[LOGGED_ORDER].metrics["MRR"]) & ~np.isnan(whole[LOGGED_ORDER].metrics["MRR"])
    assert np.flatnonzero(undefined).tolist() == [chosen]
    np.testing.assert_array_equal(found["v"].metrics["MRR"], whole["v"].metrics["MRR"])
    assert LOGGED_ORDER not in rerank_lists(some_queries(placed=False), [row], measures=MEASURES)


def test_position_weights_against_a_loop():
    queries, v = some_queries(3), vectors(3)
    propensity = Propensity(power=1.5, clip=6)
    found = rerank_lists(queries, [VectorRanker("v", v)], measures=MEASURES, propensity=propensity)["v"].exposure
    score = unit(v) @ unit(v).T
    weights, gains, values = [], [], []
    for i in range(len(queries)):
        part = range(queries.starts[i], queries.starts[i + 1])
        mine = [score[queries.items[i], queries.candidates[k]] for k in part]
        for place, k in enumerate(part):
            if queries.gains[k] > 0:
                rank = 1 + sum(s > mine[place] for s in mine)
                values.append((1 / np.log2(1 + rank) if rank <= 5 else 0, 1 / rank))
                gains.append(queries.gains[k])
                weights.append(queries.gains[k] * min(6, (1 + queries.positions[k]) ** 1.5))
    w, g = np.array(weights, float), np.array(gains, float)
    assert found["samples"] == len(w)
    assert found["effective_samples"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert found["clipped"] == sum((1 + queries.positions[queries.gains > 0]) ** 1.5 > 6)
    for column, name in enumerate(("nDCG@5", "MRR")):
        value = np.array([v[column] for v in values])
        assert found["metrics"][name]["weighted"] == pytest.approx((w @ value) / w.sum())
        assert found["metrics"][name]["plain"] == pytest.approx((g @ value) / g.sum())
    flat = rerank_lists(queries, [VectorRanker("v", v)], measures=MEASURES, propensity=Propensity(power=0))[
        "v"
    ].exposure
    assert flat["metrics"]["MRR"]["weighted"] == pytest.approx(found["metrics"]["MRR"]["plain"])
    assert (
        rerank_lists(some_queries(placed=False), [VectorRanker("v", v)], measures=MEASURES, propensity=propensity)[
            "v"
        ].exposure
        is None
    )
    with pytest.raises(UserError, match=r"clip=0\.5"):
        Propensity(clip=0.5)


def test_position_weights_undo_position_bias():
    """Taps thinned by position: weighted by the true propensity, the mean is that of all the taps there would be."""
    rng = np.random.default_rng(0)
    q, k = 6000, 10
    lists = np.tile(np.arange(1, k + 1), (q, 1))
    lists = rng.permuted(lists, axis=1)  # item j at a random place
    would = rng.random((q, k)) < np.where(lists <= 3, 0.6, 0.1)  # whom it suits depends on the item alone
    taps = would & (rng.random((q, k)) < 1 / (1 + np.arange(k)))
    order = rng.random(N).astype(np.float32)
    row = PopularityRanker(order)

    def evaluate(gains):
        queries = Queries(
            *(np.arange(q).astype(object), np.full(q, "", object), np.arange(q), np.arange(q), np.zeros(q, np.int64)),
            starts=np.arange(q + 1) * k,
            candidates=lists.ravel(),
            gains=gains.ravel().astype(np.float32),
            positions=np.tile(np.arange(k), q),
        )
        return rerank_lists(queries, [row], measures=MEASURES, propensity=Propensity(1, 100))

    truth = evaluate(would)["popularity"].exposure["metrics"]["MRR"]["plain"]
    biased = evaluate(taps)
    assert biased["popularity"].exposure["metrics"]["MRR"]["weighted"] == pytest.approx(truth, abs=0.02)
    logged = biased[LOGGED_ORDER].exposure["metrics"]["MRR"]
    assert logged["plain"] > logged["weighted"] + 0.1  # what the old ranker put first looks better than it is


def test_a_constant_scorer_is_no_better_than_chance():
    """The planted fault: the logged order is kept among equals by many libraries, and looks like a good ranker."""
    queries = some_queries(1, q=3000)
    gains = (np.random.default_rng(1).random(len(queries.gains)) < 1 / (1 + queries.positions)).astype(np.float32)
    queries = Queries(**{**vars(queries), "gains": gains})
    constant = VectorRanker("constant", np.ones((N, 4), np.float32))
    found = rerank_lists(queries, [constant, RandomRanker(N)], measures=MEASURES)
    means = {row: np.nanmean(found[row].metrics["nDCG@5"]) for row in found}
    assert means[LOGGED_ORDER] > means["random"] + 0.1
    assert means["constant"] == pytest.approx(means["random"], abs=0.02)
    assert found["constant"].tied.all()


# --- the whole catalogue ----------------------------------------------------------------------------------------------


def live_for(seed=0, n=N):
    rng = np.random.default_rng(seed)
    since = rng.integers(0, 800, n)
    return Live(since, since + rng.integers(100, 900, n), "drawn")


def test_retrieval_is_ranked_among_live_items_alone(monkeypatch):
    monkeypatch.setattr("eval.protocols.full_catalogue.BLOCK", 5 * N)
    live, v = live_for(), vectors()
    given = some_queries(2)
    queries = reachable(given, live)
    assert (
        queries.dropped["not live at query time"]["candidates"] == len(given.candidates) - len(queries.candidates) > 0
    )
    found = rank_live(queries, [VectorRanker("v", v)], live=live, measures=MEASURES)["v"]
    score = unit(v) @ unit(v).T
    expected = []
    for i in range(len(given)):
        t, asked = given.times[i], given.items[i]
        there = [j for j in range(N) if live.since[j] <= t < live.until[j] and j != asked]
        gains = dict(
            zip(
                *(getattr(given, f)[given.starts[i] : given.starts[i + 1]] for f in ("candidates", "gains")),
                strict=True,
            )
        )
        expected.append(oracle({j: gains.get(j, 0) for j in there}, {j: score[asked, j] for j in there}))
    agrees(found, expected)


@needs_scann
def test_scann_beside_exact():
    live, v = live_for(), vectors()
    queries = reachable(some_queries(2), live)
    row = VectorRanker("v", v)
    exact = rank_live(queries, [row], live=live, measures=MEASURES)["v"]
    by_index = rank_live_indexed(queries, row, live=live, measures=MEASURES, options={"mode": "brute_force"})
    np.testing.assert_allclose(by_index.index_recall, 1)
    for name in METRICS:
        np.testing.assert_allclose(by_index.metrics[name], exact.metrics[name], atol=1e-9)


class Lossy(ExactIndex):
    """Forgets every third item."""

    def _search(self, queries, k):
        scores = self.scorer.scores(queries)
        scores[:, ::3] = -np.inf
        order = np.argsort(-scores, axis=1)[:, :k]
        values = np.take_along_axis(scores, order, axis=1)
        return np.where(values > -np.inf, order, -1), values


class Phantom(ExactIndex):
    """Pads its results as ScaNN does: row 0 and NaN."""

    def _search(self, queries, k):
        rows, scores = super()._search(queries, k)
        rows[:, -2:], scores[:, -2:] = 0, np.nan
        return rows, scores


def test_recall_of_an_index_that_forgets():
    live, row = live_for(), VectorRanker("v", vectors())
    queries = reachable(some_queries(2), live)
    index = Lossy(row.vectors(), [str(i) for i in range(N)], {})
    found = rank_live_indexed(queries, row, live=live, measures=MEASURES, options={}, index=index)
    score = unit(row.vectors()) @ unit(row.vectors()).T
    expected = []
    for i in range(len(queries)):
        t = queries.times[i]
        there = [j for j in range(N) if live.since[j] <= t < live.until[j] and j != queries.items[i]]
        best = sorted(there, key=lambda j: -score[queries.items[i], j])[:10]
        if best:
            assert found.index_recall[i] == pytest.approx(np.mean([j % 3 > 0 for j in best]))
        part = slice(queries.starts[i], queries.starts[i + 1])
        gains = dict(zip(queries.candidates[part], queries.gains[part], strict=True))
        run = {j: score[queries.items[i], j] for j in there if j % 3 > 0}
        expected.append(oracle({j: gains.get(j, 0) for j in there}, run) if run else dict.fromkeys(METRICS, 0.0))
        if not any(gains.values()):
            expected[-1] = dict.fromkeys(METRICS, np.nan)
    agrees(found, expected)  # what was not returned counts as not retrieved


def test_phantom_items_of_an_index_are_found():
    live, row = Live(np.zeros(N), np.full(N, 2000), "all"), VectorRanker("v", vectors())
    index = Phantom(row.vectors(), [str(i) for i in range(N)], {})
    with pytest.raises(UserError, match=r"phantom items.*score that is not theirs"):
        rank_live_indexed(some_queries(), row, live=live, measures=MEASURES, options={}, index=index)
    exact = unit(vectors()) @ unit(vectors()).T
    rows = np.argsort(-exact, axis=1)[:, :4]
    scores = np.take_along_axis(exact, rows, axis=1)
    check_found(rows, scores, exact)
    check_found(np.where(rows == rows[:, -1:], -1, rows), scores, exact)  # padding is no item
    for place, row, said in (((0, 1), rows[0, 0], "1 twice"), ((0, 1), N, "1 that do not exist")):
        wrong = rows.copy()
        wrong[place] = row
        with pytest.raises(UserError, match=said):
            check_found(wrong, scores, exact)


def test_an_index_is_asked_until_enough_is_allowed():
    v = vectors()
    index = build_index(v, [str(i) for i in range(N)])
    mask = np.random.default_rng(0).random((N, N)) < 0.05
    rows, scores = search_allowed(index, v, mask, k=5)
    exact = np.where(mask, unit(v) @ unit(v).T, -np.inf)
    for i in range(N):
        count = min(5, mask[i].sum())
        np.testing.assert_array_equal(rows[i, :count], np.argsort(-exact[i])[:count])
        assert (rows[i, count:] == -1).all()
    np.testing.assert_allclose(recall_of_allowed(rows, exact, k=5)[mask.any(axis=1)], 1)
    assert isinstance(index.search(v, k=1), Neighbours)
    assert (scores[rows < 0] == -np.inf).all()


# --- user profiles ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("profile", ["mean", "last"])
@pytest.mark.parametrize("split", ["leave_one_out", "time_split"])
def test_profiles_against_a_loop(split, profile):
    pairs, v, at = some_pairs(), vectors(), 700
    live = Live(np.zeros(N), np.full(N, 5000), "all")
    made = (
        leave_one_out(pairs, profile=profile) if split == "leave_one_out" else time_split(pairs, at=at, profile=profile)
    )
    queries, history, held_out = made
    queries = reachable(queries, live, history)
    cosine = VectorRanker("v", v)
    counts = popularity(pairs, ~held_out, N)
    rows = [cosine, PopularityRanker(counts)]
    found = rank_live(queries, rows, live=live, measures=MEASURES, history=history)

    expected = {}
    for user in range(12):
        mine = [k for k in range(len(pairs)) if pairs.users[k] == user]
        liked = [k for k in mine if pairs.gains[k] > 0]
        if split == "leave_one_out":
            targets, before = liked[-1:], [k for k in mine if liked and k < liked[-1]]
        else:
            targets, before = [k for k in liked if pairs.times[k] >= at], [k for k in mine if pairs.times[k] < at]
        profile_items = [pairs.items[k] for k in before if pairs.gains[k] > 0]
        if not targets or not profile_items:
            continue
        profile_items = profile_items[-1:] if profile == "last" else profile_items
        taste = unit(v)[profile_items].mean(axis=0)
        seen = {pairs.items[k] for k in before}
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
    by_index = rank_live_indexed(
        queries, cosine, live=live, measures=MEASURES, history=history, options={},
        index=build_index(cosine.vectors(), [str(i) for i in range(N)]),
    )  # fmt: skip
    for name in METRICS:
        np.testing.assert_allclose(by_index.metrics[name], found["v"].metrics[name], atol=1e-9)


def test_items_with_one_picture_tie_in_profiles_too():
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


def test_cooccurrence_against_sets():
    pairs = some_pairs()
    row = CooccurrenceRanker(pairs.users, pairs.items, N)
    fans = [set(pairs.users[pairs.items == item]) for item in range(N)]
    expected = np.array(
        [[len(a & b) / np.sqrt(len(a) * len(b)) if a and b else 0 for b in fans] for a in fans], np.float32
    )
    np.testing.assert_allclose(row.scores(np.arange(N)), expected, atol=1e-6)
    listed = np.random.default_rng(0).integers(-1, N, (N, 5))
    want = np.where(listed >= 0, np.take_along_axis(expected, np.maximum(listed, 0), axis=1), -np.inf)
    np.testing.assert_allclose(row.scores(np.arange(N), listed), want, atol=1e-6)
    with pytest.raises(UserError, match="pairs of rows"):
        CooccurrenceRanker(np.array([0]), np.array([N]), N)


# --- TREC files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["lists", "retrieval"])
def test_trec_files_give_pytrec_eval_the_same_numbers(tmp_path, protocol):
    """With ties too, under trec_eval's own rule; ids with blanks and slashes, a row with a name no file may have."""
    v = np.round(vectors(d=2))  # many items of one direction
    v[~v.any(axis=1)] = 1
    live = Live(np.zeros(N), np.full(N, 2000), "all")
    queries = some_queries(4)
    items = [f"item {i} / {i % 7}" for i in range(N)]
    names = query_names(queries)
    writer = TrecWriter(str(tmp_path), queries, names=names, items=items, protocol=protocol)
    rows = [VectorRanker("new ../ model", v), PopularityRanker(np.arange(N) // 9)]
    with writer:
        if protocol == "lists":
            found = rerank_lists(queries, rows, measures=MEASURES, sink=writer)
        else:
            found = rank_live(queries, rows, live=live, measures=MEASURES, sink=writer)
    qrels = read_qrels(tmp_path / "qrels.txt")
    relevant = np.bincount(queries.owner[queries.gains > 0], minlength=len(queries)) > 0
    assert set(qrels) == {name for name, there in zip(names, relevant, strict=True) if there}
    for row, file in {"new ../ model": "run.new-model.txt", "popularity": "run.popularity.txt"}.items():
        run = read_run(tmp_path / file)
        keys = {key.replace("_5", ".5").replace("_10", ".10").replace("P_1", "P.1") for key in METRICS.values()}
        theirs = pytrec_eval.RelevanceEvaluator(qrels, keys).evaluate(run)
        assert set(theirs) == set(qrels)
        if found[row].tied.any():  # the file's scores, ranked here by trec_eval's rule
            ours = docid_metrics(qrels, run)
            for query, values in theirs.items():
                for name, key in METRICS.items():
                    assert ours[query][name] == pytest.approx(values[key], abs=1e-9), (row, name)
        for query in np.flatnonzero(relevant & ~found[row].tied):
            for name, key in METRICS.items():
                if name != "MRR" and name != "recall@10":  # ties behind the deepest cutoff of has_ties are not these
                    assert found[row].metrics[name][query] == pytest.approx(theirs[names[query]][key], abs=1e-9)


def docid_metrics(qrels, run):
    from eval.metrics import rank_metrics

    found = {}
    for query, scored in run.items():
        items = sorted({*scored, *qrels[query]})
        scores = np.array([[scored.get(item, -np.inf) for item in items]])
        labels = np.array([[qrels[query].get(item, 0) for item in items]])
        got = rank_metrics(scores, labels, metrics=tuple(METRICS), ties="docid", docids=np.array(items))
        found[query] = {name: float(values[0]) for name, values in got.items()}
    return found


def test_trec_refuses_what_the_format_cannot_say(tmp_path):
    queries = some_queries()
    half = Queries(**{**vars(queries), "gains": queries.gains / 2})
    args = {"names": query_names(queries), "items": [str(i) for i in range(N)], "protocol": "p"}
    with pytest.raises(UserError, match=r"gain (0\.5|1\.5); qrels hold whole grades"):
        TrecWriter(str(tmp_path / "t"), half, **args)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes.txt"):
        TrecWriter(str(tmp_path), queries, **args)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_age_of_items_in_days():
    day = 86_400_000_000
    live = Live(np.array([0, 3 * day, np.iinfo(np.int64).min]), np.full(3, np.iinfo(np.int64).max), "as given")
    ages = live.age(np.array([0, 1, 1, 2]), np.array([2 * day, 3 * day + day // 2, day, 5 * day]))
    np.testing.assert_array_equal(ages, [2.0, 0.5, -2.0, np.nan])
