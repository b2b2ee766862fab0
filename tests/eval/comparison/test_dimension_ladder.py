"""The ladder of smaller embeddings: what it ranks with, what it costs, and what it says was lost."""

import numpy as np
import pytest

from eval.comparison.comparison_table import Certainty
from eval.comparison.dimension_ladder import Ladder, ladder_reductions, measure_ladder
from eval.statistics import paired_difference


def vectors(n, seed, d=48):
    """What matters lies in the first 20 directions of a rotated space."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(np.random.default_rng(9).standard_normal((d, d)))[0]
    return (rng.standard_normal((n, d)) * np.geomspace(1, 0.02, d)) @ turned


def nearest_agree(x):
    """Per query: whether the nearest other item is the one of the full vectors, in plain numpy."""

    def best(rows):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        scores = unit @ unit.T
        np.fill_diagonal(scores, -np.inf)
        return scores.argmax(axis=1)

    truth = best(x)
    return lambda rows: (best(rows.astype(np.float64)) == truth).astype(np.float64)


def test_ladder():
    x, train = vectors(400, 0), vectors(900, 1)
    rank = nearest_agree(x)
    reductions = ladder_reductions(train, fitted_on="900 training items")
    found = measure_ladder(Ladder(x, reductions), rank, ranker="trained", metric="hit", certainty=Certainty())
    rungs = {(r["method"], r["width"], r["precision"]): r for r in found["rungs"]}
    assert set(rungs) == {
        ("full width", 48, "float32"),
        ("full width", 48, "int8"),
        *((m, 32, p) for m in ("truncation", "PCA") for p in ("float32", "int8")),
    }
    assert found["dimension"] == 48
    assert found["fitted_on"] == "900 training items"
    assert [r["bytes"] for r in found["rungs"]][:2] == [192, 48]
    assert rungs["PCA", 32, "float32"]["bytes"] == 128
    assert rungs["full width", 48, "float32"]["difference"] is None
    assert rungs["PCA", 32, "float32"]["mean"] > rungs["truncation", 32, "float32"]["mean"] + 0.2
    assert 0.9 < rungs["PCA", 32, "float32"]["explained"] < 1
    for reduction in reductions:
        method = {"pca": "PCA", "truncate": "truncation", "": "full width"}[reduction.spec.kind]
        rung = rungs[method, reduction.spec.width or 48, "int8" if reduction.spec.int8 else "float32"]
        want = paired_difference(rank(reduction(x)), rank(x))
        assert rung["difference"] == pytest.approx({"mean": want.mean, "low": want.low, "high": want.high})
        assert rung["kept"] == pytest.approx(rank(reduction(x)).mean())


def test_few_vectors_leave_the_wide_components_out():
    specs = [r.spec for r in ladder_reductions(vectors(40, 0), fitted_on="")]
    assert {str(s) for s in specs} == {"int8", *(f"{k}:32{i}" for k in ("truncate", "pca") for i in ("", "+int8"))}
    assert {r.spec.kind for r in ladder_reductions(vectors(20, 0), fitted_on="")} == {"", "truncate"}
