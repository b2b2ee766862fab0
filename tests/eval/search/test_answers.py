"""The object that a search answers with."""

import math

import numpy as np
import pytest

from eval.search import build_index
from eval.search.answers import item_answer

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
    found = item_answer(index, "a", k=k, known=KNOWN, least=least)
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
