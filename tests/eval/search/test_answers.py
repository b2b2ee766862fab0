"""The object that a search answers with."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.search import build_index
from eval.search.answers import Answers
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
    found = Answers(index, KNOWN).of_item("a", k=k, least=least)
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
        found = answers.of_item(item, k=k, where=where)["items"]
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


def test_a_filter_on_an_attribute_that_nothing_has_is_an_error():
    with pytest.raises(UserError, match="no item has this attribute; there are colour"):
        Answers(build_index(VECTORS, IDS), KNOWN).of_item("a", k=1, where={"taste": {"sour"}})
