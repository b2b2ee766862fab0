"""What an export changes of the ranking, beside the mean over queries in plain numpy."""

import json

import numpy as np
import pytest

from eval.comparison.items import Items
from siglip_jax.errors import UserError
from siglip_jax.export import verify_export
from tools.workflow.exports.ranking_check import RankingSample, rules_by_attributes, told

N = 40


def sample(**changes) -> RankingSample:
    rng = np.random.default_rng(0)
    kinds = np.arange(N) % 4
    vectors = rng.normal(size=(N, 8)) + 3 * np.eye(4, 8)[kinds]
    columns = {"type": [f"t{kind}" for kind in kinds], "sku": [str(k) for k in range(N)], "shop": ["one"] * N}
    items = Items(ids=columns["sku"], titles=[f"title {k}" for k in range(N)], columns=columns, rows=list(range(N)))
    fields = {
        "items": items, "rules": rules_by_attributes(items), "gain": "linear", "signature": "pixels",
        "inputs": {"pixels": vectors}, "expected": vectors.astype(np.float32), "whole": None, "of": "images",
    }  # fmt: skip
    return RankingSample(**fields | changes)


def answered(given: RankingSample, answers: np.ndarray, folder, max_change=0.01):
    calls = given.write(folder, runtime="savedmodel")
    parts = np.split(answers, np.cumsum([len(call.expected) for call in calls])[:-1])
    np.savez(folder / verify_export.ANSWERS, **{str(number): part for number, part in enumerate(parts)})
    return given.compare(folder, calls, max_change=max_change)


def ndcg(vectors) -> float:
    """Of the nearest five, one type being relevant, by hand."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    first = np.argsort(-scores, axis=1)[:, :5] % 4 == (np.arange(N) % 4)[:, None]
    discounts = 1 / np.log2(np.arange(2, 7))
    return float((first @ discounts / discounts.sum()).mean())


def test_the_rules_are_attributes_that_items_share():
    assert sample().rules == [{"gain": 1, "agree": ("type",)}]


def test_equal_embeddings_change_nothing(tmp_path):
    given = sample()
    found = answered(given, given.expected, tmp_path)
    assert (found["difference"], found["low"], found["high"]) == (0, 0, 0)
    assert found["model"] == found["export"] == pytest.approx(ndcg(given.expected), abs=1e-6)
    assert json.loads(json.dumps(found)) == found
    assert told(found).startswith("nDCG@5 of 40 items by their images: model 0.")
    assert "smaller" not in found


def test_a_change_is_told_with_its_interval_and_beyond_the_limit_refused(tmp_path):
    given = sample()
    noisy = given.expected + np.random.default_rng(1).normal(size=given.expected.shape, scale=2).astype(np.float32)
    found = answered(given, noisy, tmp_path, max_change=1.0)
    assert found["difference"] == pytest.approx(ndcg(noisy) - ndcg(given.expected), abs=1e-5)
    assert found["low"] < found["difference"] < found["high"] < 0
    with pytest.raises(UserError, match=r"nDCG@5 of 40 items .* which is more than --max_change=0.01: it is not kept"):
        answered(given, noisy, tmp_path)


def test_what_a_smaller_embedding_costs_is_told_beside(tmp_path):
    given = sample(whole=sample().expected)
    small = given.expected[:, :2]
    found = answered(sample(expected=small, whole=given.expected), small, tmp_path)
    assert found["difference"] == 0
    assert found["smaller"]["difference"] == pytest.approx(ndcg(small) - ndcg(given.expected), abs=1e-5)
    assert "the smaller embedding itself -0." in told(found)


def test_nothing_relevant_is_no_measurement(tmp_path):
    given = sample(rules=[{"gain": 1, "agree": ("sku",)}])
    found = answered(given, given.expected, tmp_path)
    assert told(found).endswith("was not measured: no item of the sample has a relevant one")


def test_pictures_of_many_sizes_are_asked_one_by_one(tmp_path):
    images = [np.zeros((1, 3 + k % 5, 4, 3), np.uint8) for k in range(N)]
    calls = sample(signature="images", inputs={"images": images}).write(tmp_path, runtime="onnx")
    assert [call.inputs["images"].shape for call in calls] == [image.shape for image in images]
    with np.load(tmp_path / verify_export.ARRAYS) as arrays:
        assert arrays["7/images"].shape == images[7].shape
