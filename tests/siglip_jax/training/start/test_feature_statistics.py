"""What an adapter starts with, against numpy over all rows at once."""

import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.models.architecture import FeatureSize
from siglip_jax.training.start import feature_statistics
from siglip_jax.training.start.feature_statistics import feature_start

ROWS = np.arange(90)


def size(base: int) -> FeatureSize:
    return FeatureSize(inputs={"pixels": 4, "cnn": 7}, base=base, head=2, mlp_dim=3)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(90, 7)) @ np.diag([9, 5, 3, 1, 0.1, 1e-6, 0]) + 100
    return {"cnn": mixed.astype(np.float32), "pixels": rng.random((90, 4), np.float32)}


def taker(vectors):
    return lambda rows: {name: each[rows] for name, each in vectors.items()}


def base_of(vectors, weights):
    """Unit rows of the inputs without their means, side by side, float64."""
    parts = []
    for name, weight in zip(("cnn", "pixels"), weights, strict=True):
        x = vectors[name].astype(np.float64)
        x = x - x.mean(axis=0)
        parts.append(weight * x / np.linalg.norm(x, axis=1, keepdims=True))
    return np.concatenate(parts, axis=1)


def test_statistics_are_those_of_all_rows(vectors, monkeypatch):
    monkeypatch.setattr(feature_statistics, "STRETCH_BYTES", 11 * 8 * 13)  # 13 rows at a time
    found = feature_start(size(11), taker(vectors), ROWS, strength=0.5, weights={"pixels": 2})
    both = np.concatenate([vectors["cnn"], vectors["pixels"]], axis=1).astype(np.float64)
    np.testing.assert_allclose(found.parameters["mean"], both.mean(axis=0), rtol=1e-6)
    deviation = both.std(axis=0)
    least = 1e-2 * np.sqrt((deviation[:7] ** 2).mean())
    np.testing.assert_allclose(found.parameters["scale"], np.maximum(deviation, [least] * 7 + [0] * 4), rtol=1e-5)
    assert found.parameters["weight"].tolist() == [1, 2]
    assert found.parameters["strength"].tolist() == [0.5]
    assert "projection" not in found.parameters
    assert (found.kept, found.rows) == (1.0, 90)


@pytest.mark.parametrize("width", [10, 5])
def test_the_projection_keeps_what_an_svd_keeps(vectors, monkeypatch, width):
    monkeypatch.setattr(feature_statistics, "STRETCH_BYTES", 11 * 8 * 13)
    found = feature_start(size(width), taker(vectors), ROWS, strength=1, weights={"pixels": 0.5})
    columns = found.parameters["projection"].astype(np.float64)
    np.testing.assert_allclose(columns.T @ columns, np.eye(width), atol=1e-6)
    base = base_of(vectors, (1, 0.5))
    left, values, right = np.linalg.svd(base, full_matrices=False)
    kept = (left[:, :width] * values[:width]) @ right[:width]
    projected = base @ columns
    np.testing.assert_allclose(projected @ projected.T, kept @ kept.T, atol=1e-5)
    assert found.kept == pytest.approx((values[:width] ** 2).sum() / (values**2).sum(), rel=1e-6)
    assert found.kept > (0.9999999 if width == 10 else 0.9)


def test_of_many_rows_some_are_looked_at(vectors, monkeypatch):
    monkeypatch.setattr(feature_statistics, "MAX_ROWS", 30)
    found = feature_start(size(11), taker(vectors), ROWS, strength=1)
    assert found.rows == 30
    np.testing.assert_allclose(found.parameters["mean"][:7], vectors["cnn"][::3].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"cnn": np.zeros((90, 7))}, {}, "feature cnn: all vectors are equal"),
        ({"cnn": np.full((90, 7), np.nan)}, {}, "feature cnn: 90 of 90 vectors hold NaN"),
        ({"cnn": np.zeros((90, 6))}, {}, r"feature cnn: vectors of \[90, 6\]; expected \[n, 7\]"),
        ({}, {"weights": {"cm": 1}}, "no feature 'cm'; there are cnn, pixels"),
        ({}, {"weights": {"cnn": 0, "pixels": 0}}, "all 0"),
        ({}, {"rows": ROWS[:0]}, "no training row has all features"),
    ],
    ids=str,
)
def test_bad_features_are_refused(vectors, change, options, message):
    with pytest.raises(UserError, match=message):
        feature_start(size(5), taker(vectors | change), **{"rows": ROWS, "strength": 1, **options})


def test_too_many_numbers_to_project_are_refused(vectors, monkeypatch):
    monkeypatch.setattr(feature_statistics, "MAX_PROJECTED", 10)
    with pytest.raises(UserError, match="11 numbers are too many to project to 5; the limit is 10"):
        feature_start(size(5), taker(vectors), ROWS, strength=1)
    feature_start(size(11), taker(vectors), ROWS, strength=1)
