"""The object that a search answers with."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.search import build_index
from eval.search.answers import Answers
from eval.search.selection import Selection
from siglip_jax.errors import UserError

VECTORS = np.array([[1, 0], [0.8, 0.6], [1, 0], [0, 1], [-1, 0]], np.float32)
IDS = ["a", "b", "twin of a", "d", "e"]
KNOWN = {"b": ("A shirt", {"colour": "red"})}


@pytest.mark.parametrize(
    ("k", "least", "expected"),
    [
        (2, -math.inf, [("twin of a", 1.0), ("b", 0.8)]),
        (9, -math.inf, [("twin of a", 1.0), ("b", 0.8), ("d", 0.0), ("e", -1.0)]),
        (9, 0.5, [("twin of a", 1.0), ("b", 0.8)]),
        (9, 1.1, []),
    ],
)
def test_an_item_is_left_out_of_its_own_answer_and_its_twin_is_not(k, least, expected):
    index = build_index(VECTORS, IDS)
    found = Answers(index, KNOWN).of_item("a", Selection(k=k, least=least))
    assert [(each["id"], each["score"]) for each in found["items"]] == [
        (item, pytest.approx(score, abs=1e-6)) for item, score in expected
    ]
    texts = {each["id"]: (each["title"], each["attributes"]) for each in found["items"]}
    assert texts == {item: KNOWN.get(item, ("", {})) for item, _ in expected}


def test_equal_builds_have_one_generation_and_others_another(tmp_path):
    def saved(name, vectors, encoder):
        index = build_index(vectors, IDS)
        index.encoder = encoder
        assert index.generation == ""
        index.save(tmp_path / name)
        return index.generation

    first = saved("1", VECTORS, {"model": {"name": "m"}})
    assert saved("2", VECTORS, {"model": {"name": "m"}}) == first
    others = {saved("3", VECTORS[::-1], {"model": {"name": "m"}}), saved("4", VECTORS, {"model": {"name": "n"}})}
    assert len({first, *others}) == 3


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(2, 40), scanned=st.sampled_from([0, 5, 1000]))
def test_filters_keep_the_exact_top_k(data, count, scanned):
    """Against all cosines in float64, whatever passes and whether those that pass are scanned or asked for."""
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors, ids = random.normal(size=(count, 3)).astype(np.float32), [f"i{row}" for row in range(count)]
    known = {item: ("", {"colour": str(random.integers(4)), "size": str(random.integers(3))}) for item in ids[1:]}
    where = {
        name: set(data.draw(st.lists(st.sampled_from("0123"), min_size=1)))
        for name in data.draw(st.lists(st.sampled_from(["colour", "size"]), unique=True, min_size=1))
    }
    k, item = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(ids))
    answers = Answers(build_index(vectors, ids), known)
    with mock.patch("eval.search.answers.SCANNED", scanned):
        found = answers.of_item(item, Selection(k=k, where=where))["items"]
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    cosine = dict(zip(ids, unit @ unit[ids.index(item)], strict=True))
    passing = [
        each
        for each in ids
        if each != item and all(known.get(each, ("", {}))[1].get(name) in values for name, values in where.items())
    ]
    best = sorted((cosine[each] for each in passing), reverse=True)[:k]
    np.testing.assert_allclose([each["score"] for each in found], best, atol=2e-6)
    assert {each["id"] for each in found} <= set(passing)
    for each in found:
        assert each["score"] == pytest.approx(cosine[each["id"]], abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), pictures=st.lists(st.integers(1, 4), min_size=2, max_size=12))
def test_an_item_is_found_once_by_its_nearest_picture(data, pictures):
    """Against all cosines in float64, with and without a filter and groups of the items."""
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = [(f"i{item}", number) for item, count in enumerate(pictures) for number in range(1, count + 1)]
    ids = [item if number == 1 else f"{item}#{number}" for item, number in rows]
    vectors = random.normal(size=(len(rows), 3)).astype(np.float32)
    known = {f"i{item}": (f"title {item}", {"colour": str(item % 2)}) for item in range(len(pictures))}
    index = build_index(vectors, ids)
    index.encoder = {"pool": {"how": "each", "by": None}}
    where = data.draw(st.sampled_from([{}, {"colour": {"1"}}]))
    group_by, k = data.draw(st.sampled_from([None, "colour"])), data.draw(st.integers(1, 14))
    asked = data.draw(st.integers(0, len(ids) - 1))
    own = rows[asked][0]
    found = Answers(index, known).of_item(ids[asked], Selection(k=k, where=where, group_by=group_by))["items"]
    cosines = unit_rows64(vectors) @ unit_rows64(vectors)[asked]
    best = {}
    for row in np.argsort(-cosines):
        item, number = rows[row]
        if item != own and (not where or known[item][1]["colour"] == "1"):
            best.setdefault(item, (cosines[row], number))
    if group_by:
        first = {}
        for item in best:
            if known[item][1]["colour"] != known[own][1]["colour"]:
                first.setdefault(known[item][1]["colour"], item)
        best = {item: best[item] for item in first.values()}
    expected = list(best.items())[:k]
    assert [(each["id"], each["picture"]) for each in found] == [(item, number) for item, (_, number) in expected]
    np.testing.assert_allclose([each["score"] for each in found], [cosine for _, (cosine, _) in expected], atol=2e-6)
    assert all((each["title"], each["attributes"]) == known[each["id"]] for each in found)


def test_values_that_no_item_has_are_named():
    answers = Answers(build_index(VECTORS, IDS), KNOWN)
    found = answers.of_item("a", Selection(where={"colour": {"red", "purpel"}}))
    assert ([each["id"] for each in found["items"]], found["unmatched"]) == (["b"], {"colour": ["purpel"]})
    assert "unmatched" not in answers.of_item("a", Selection(where={"colour": {"red"}}))


def test_a_filter_on_an_attribute_that_nothing_has_is_an_error():
    with pytest.raises(UserError, match="no item has this attribute; there are colour"):
        Answers(build_index(VECTORS, IDS), KNOWN).of_item("a", Selection(k=1, where={"taste": {"sour"}}))


def unit_rows64(vectors):
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def number_of(text):
    """By a rule of its own: digits, with a point in them."""
    return float(text) if text.replace(".", "", 1).replace("-", "", 1).isdigit() else None


PRICES = ["1", "2.5", "10", "-3", "1e1", "cheap", "1..3", "nan", "9"]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ranges_let_numbers_through_and_nothing_else(data):
    prices = data.draw(st.lists(st.sampled_from(PRICES), min_size=2, max_size=12))
    low, high = sorted(data.draw(st.tuples(*[st.sampled_from([-3.0, 0.0, 1.0, 2.5, 9.5, 10.0])] * 2)))
    entry = data.draw(st.sampled_from([f"{low}..{high}", f"..{high}", f"{low}.."]))
    low, high = (-math.inf if entry.startswith("..") else low), (math.inf if entry.endswith("..") else high)
    wanted = {"cheap"} if data.draw(st.booleans()) else set()
    ids = [f"i{row}" for row in range(len(prices) + 1)]
    known = {item: ("", {"price": price}) for item, price in zip(ids[1:], prices, strict=True)}
    values = [float(price) for price in prices if number_of(price) is not None or price == "1e1"]
    answers = Answers(build_index(np.ones((len(ids), 2), np.float32), ids), known)
    if not values:
        with pytest.raises(UserError, match="no value of it is a number"):
            answers.of_item("i0", Selection(k=20, where={"price": {entry}}))
        return
    found = answers.of_item("i0", Selection(k=20, where={"price": {entry, *wanted}}))["items"]
    expected = [
        price
        for price in prices
        if price in wanted or ((number_of(price) is not None or price == "1e1") and low <= float(price) <= high)
    ]
    assert sorted(each["attributes"]["price"] for each in found) == sorted(expected)


def test_a_value_that_looks_like_a_range_is_that_value():
    known = {"b": ("", {"size": "1..3"}), "d": ("", {"size": "2"}), "e": ("", {"size": "7"})}
    answers = Answers(build_index(VECTORS, IDS), known)

    def found(*entries):
        return {each["id"] for each in answers.of_item("a", Selection(where={"size": entries}))["items"]}

    assert found("1..3") == {"b"}
    assert found("1..4") == {"d"}
    assert found("1..3", "..2") == {"b", "d"}
    assert found("8") == set()
    for entry, said in (("9..8", "lower end first"), ("a..b", "no range of numbers"), ("..", "no range of numbers")):
        with pytest.raises(UserError, match=said):
            found(entry)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(2, 60), scanned=st.sampled_from([0, 1000]))
def test_groups_give_their_best_item_and_k_of_them(data, count, scanned):
    """Groups of any size, one of nearly everything among them, against all cosines in float64."""
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors, ids = random.normal(size=(count, 3)).astype(np.float32), [f"i{row}" for row in range(count)]
    sizes = random.zipf(1.3, size=count) % data.draw(st.integers(1, count))
    group = {item: str(size) for item, size in zip(ids, sizes, strict=True) if random.random() < 0.8}
    known = {item: ("", {"product": group[item], "new": str(random.integers(2))}) for item in group}
    filtered = data.draw(st.booleans()) and any(texts["new"] == "1" for _, texts in known.values())
    k, item = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(ids))
    if not known:
        return
    chosen = Selection(k=k, group_by="product", where={"new": {"1"}} if filtered else {})
    with mock.patch("eval.search.answers.SCANNED", scanned):
        found = Answers(build_index(vectors, ids), known).of_item(item, chosen)["items"]
    unit = unit_rows64(vectors)
    best = {}
    for each, score in zip(ids, unit @ unit[ids.index(item)], strict=True):
        passes = not filtered or known.get(each, ("", {"new": "0"}))[1]["new"] == "1"
        own = each == item or (item in group and group.get(each) == group[item])
        if passes and not own:
            name = group.get(each, f"alone {each}")
            best[name] = max(best.get(name, -2), score)
    np.testing.assert_allclose([each["score"] for each in found], sorted(best.values(), reverse=True)[:k], atol=2e-6)
    names = [group.get(each["id"], f"alone {each['id']}") for each in found]
    assert len(set(names)) == len(names)


def test_few_groups_are_all_found():
    ids = [f"i{row}" for row in range(500)]
    known = {item: ("", {"product": "big" if row < 498 else "small"}) for row, item in enumerate(ids[1:])}
    vectors = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    vectors[-1] = -vectors[0]  # the only one of the other group is the last of all
    found = Answers(build_index(vectors, ids), known).of_item("i0", Selection(k=2, group_by="product"))["items"]
    assert [each["attributes"]["product"] for each in found] == ["big", "small"]
    with pytest.raises(UserError, match="group_by 'colour': no item has this attribute; there are product"):
        Answers(build_index(vectors, ids), known).of_item("i0", Selection(group_by="colour"))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(2, 50), block=st.sampled_from([1, 7, 1024]))
def test_near_duplicates_are_left_out_and_counted(data, count, block):
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    centres = random.normal(size=(max(1, count // 5), 3))
    vectors = centres[random.integers(len(centres), size=count)] + random.normal(size=(count, 3)) * 0.05
    vectors, ids = vectors.astype(np.float32), [f"i{row}" for row in range(count)]
    k, item = data.draw(st.integers(1, 12)), data.draw(st.sampled_from(ids))
    least = data.draw(st.sampled_from([0.5, 0.98, 0.999, 1.0]))
    with mock.patch("eval.search.selection._BLOCK", block):
        found = Answers(build_index(vectors, ids)).of_item(item, Selection(k=k, collapse=least))
    unit = unit_rows64(vectors)
    cosines = unit @ unit.T
    own = ids.index(item)
    shown: list[int] = []
    alike: dict[int, int] = {}
    for row in sorted(set(range(count)) - {own}, key=lambda row: -cosines[own, row]):
        if near := [other for other in shown if cosines[other, row] >= least - 1e-6]:
            alike[near[0]] += 1
        elif len(shown) < k:
            shown.append(row)
            alike[row] = 0
        if len(shown) == k:
            break
    assert [each["id"] for each in found["items"]] == [ids[row] for row in shown]
    assert [each["collapsed"] for each in found["items"]] == [alike[row] for row in shown]
    assert found["collapsed"] == sum(alike.values())


@settings(max_examples=80, deadline=None)
@given(data=st.data(), count=st.integers(2, 60), diversity=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_diversity_is_maximal_marginal_relevance(data, count, diversity):
    """Each choice has the largest gain, in float64, after those before it; the candidates are the best 5 k."""
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors, ids = random.normal(size=(count, 3)).astype(np.float32), [f"i{row}" for row in range(count)]
    k = data.draw(st.integers(1, 12))
    query = random.normal(size=(1, 3))
    found = Answers(build_index(vectors, ids)).of_vector(query, Selection(k=k, diversity=diversity))["items"]
    unit = unit_rows64(vectors)
    scores = unit @ unit_rows64(query)[0]
    pool = np.argsort(-scores)[: 5 * k]
    shown = [ids.index(each["id"]) for each in found]
    assert len(set(shown)) == len(shown) == min(k, count)
    for place, row in enumerate(shown):
        nearest = (unit @ unit[shown[:place]].T).max(axis=1) if place else np.zeros(count)
        gain = (1 - diversity) * scores - diversity * nearest
        left = [other for other in pool if other not in shown[:place]]
        assert row in left
        assert gain[row] >= max(gain[other] for other in left) - 1e-5
    if diversity == 0:
        np.testing.assert_allclose([each["score"] for each in found], np.sort(scores)[::-1][:k], atol=2e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"k": 0}, {"diversity": -0.1}, {"diversity": math.nan}, {"collapse": 0}, {"collapse": 1.1}, {"least": math.nan}],
)
def test_selections_that_are_none(wrong):
    with pytest.raises(UserError, match="expected"):
        Selection(**wrong)
