"""Retrieval between pictures and titles against a ranking of every query by hand."""

import itertools

import numpy as np
import pytest

from eval.protocols.cross_modal import cross_modal_retrieval, retrieval_names
from siglip_jax.errors import UserError


def by_hand(asked, searched, groups, *, cutoffs):
    """Means over all queries and, for each, over all orders of equal scores."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (asked.astype(np.float64), searched)]
    scores = np.round(unit[0] @ unit[1].T, 5)  # equal vectors score equal
    found = {name: [] for name in (*(f"recall@{k}" for k in cutoffs), "MRR")}
    for query, row in enumerate(scores):
        ranks = []
        levels = sorted(set(row), reverse=True)
        for orders in itertools.product(*(itertools.permutations(np.flatnonzero(row == level)) for level in levels)):
            order = list(itertools.chain(*orders))
            ranks.append(1 + min(place for place, item in enumerate(order) if groups[item] == groups[query]))
        ranks = np.array(ranks, np.float64)
        for k in cutoffs:
            found[f"recall@{k}"].append(np.mean(ranks <= k))
        found["MRR"].append(np.mean(1 / ranks))
    return {name: np.mean(values) for name, values in found.items()}


@pytest.mark.parametrize("chunk", [4, 512])
def test_against_every_order_of_equal_scores(chunk):
    rng = np.random.default_rng(3)
    groups = np.array([0, 1, 2, 0, 3, 4, 3])
    titles = rng.normal(size=(5, 4))[groups]  # equal titles, equal vectors
    pictures = titles + rng.normal(size=(7, 4))
    pictures[4] = pictures[1]  # one picture under two titles
    found = cross_modal_retrieval(pictures, 3 * titles, groups, cutoffs=(1, 3), chunk=chunk)
    assert list(found) == retrieval_names((1, 3))
    for way, (asked, searched) in {
        "image_to_text": (pictures, titles),
        "text_to_image": (titles, pictures),
    }.items():
        for name, value in by_hand(asked, searched, groups, cutoffs=(1, 3)).items():
            np.testing.assert_allclose(found[f"{way}/{name}"], value, rtol=1e-9, err_msg=f"{way}/{name}")
    assert len({round(value, 6) for value in found.values()}) > 4  # nothing is trivially 0 or 1


def test_equal_titles_are_no_errors():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 5)
    titles = rng.normal(size=(20, 8))[groups]
    pictures = titles + 0.01 * rng.normal(size=(100, 8))
    assert set(cross_modal_retrieval(pictures, titles, groups).values()) == {1.0}
    # Were each row its own only match, a title would find its picture among the first in one case of five.
    strict = cross_modal_retrieval(pictures, titles, np.arange(100))
    np.testing.assert_allclose(strict["image_to_text/recall@1"], 0.2)
    np.testing.assert_allclose(strict["text_to_image/recall@1"], 0.2, atol=0.15)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((3, 2), (4, 2), (3,)), {}, "expected"),
        (((3, 2), (3, 2), (4,)), {}, "expected"),
        (((0, 2), (0, 2), (0,)), {}, "at least one item"),
        (((3, 2), (3, 2), (3,)), {"chunk": 0}, "chunk=0"),
        (((3, 2), (3, 2), (3,)), {"cutoffs": (0,)}, "unknown metric"),
        (((3, 2), (3, 2), (3,)), {"ties": "lucky"}, "lucky"),
    ],
)
def test_faulty_input_is_refused(shapes, options, message):
    image, text, groups = (np.ones(shape) for shape in shapes)
    with pytest.raises(UserError, match=message):
        cross_modal_retrieval(image, text, groups, **options)
