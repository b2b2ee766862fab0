"""Temperature and bias fitted to embeddings, against Newton's method, the library's loss and closed forms."""

import math

import numpy as np
import pytest

from siglip_jax.losses import sigmoid_loss
from siglip_jax.training.start import temperature


@pytest.mark.parametrize("same_group", ["positive", "mean", "ignore", "negative"])
def test_losses_are_those_of_the_library(same_group, embeddings):
    image, text, groups = embeddings(noise=1.0)
    pairs = temperature.labelled(image, text, groups, same_group=same_group)
    expected = sigmoid_loss(image, text, np.log(7.0), -2.0, groups=groups, same_group=same_group)
    np.testing.assert_allclose(pairs.losses(7.0, -2.0).mean(), expected, rtol=1e-5)
    if same_group == "positive":
        found = temperature.Histogram.of([pairs])
        np.testing.assert_allclose(found.loss(7.0, -2.0), expected, rtol=1e-5)


def test_ignored_pairs_are_in_no_histogram(embeddings):
    image, text, groups = embeddings(noise=1.0)
    pairs = temperature.labelled(image, text, groups, same_group="ignore")
    found = temperature.Histogram.of([pairs])
    assert found.positives[1].sum() == 48
    assert found.negatives[1].sum() == 48 * 48 - 48 - 16  # 8 titles occur twice
    np.testing.assert_allclose(found.loss(7.0, -2.0), pairs.losses(7.0, -2.0).mean(), rtol=1e-6)


def test_fit_against_newton_on_the_exact_similarities(embeddings):
    batches = [temperature.labelled(*embeddings(noise=1.5, seed=seed)) for seed in range(3)]
    scale, bias = temperature.fit(temperature.Histogram.of(batches), scale=10.0, which="both")
    x = np.concatenate([batch.similarity.ravel() for batch in batches])
    y = np.concatenate([batch.positive.ravel() for batch in batches]).astype(np.float64)
    at, features = np.array([1.0, -2.0]), np.stack([x, np.ones_like(x)])
    for _ in range(50):  # logistic regression
        p = 1 / (1 + np.exp(-(at @ features)))
        at = at - np.linalg.solve((features * p * (1 - p)) @ features.T, features @ (p - y))
    assert 1 < at[0] < 200
    np.testing.assert_allclose([scale, bias], at, rtol=1e-4)
    kept, bias = temperature.fit(temperature.Histogram.of(batches), scale=10.0, which="bias")
    assert kept == 10.0
    p = 1 / (1 + np.exp(-(10 * x + bias)))
    np.testing.assert_allclose(p.sum(), y.sum(), rtol=1e-4)  # the derivative by b is zero


@pytest.mark.parametrize("n", [4, 64, 1024])
def test_bias_of_pairs_that_say_nothing_is_the_prior(n):
    """open_clip #650: b near log(p / (1 - p)) with p = 1 / batch, shifted by what all similarities share."""
    image = np.tile(np.array([[0.6, 0.8]], np.float32), (n, 1))
    text = np.tile(np.array([[1.0, 0.0]], np.float32), (n, 1))
    found = temperature.Histogram.of([temperature.labelled(image, text, np.arange(n))])
    scale, bias = temperature.fit(found, scale=10.0, which="bias")
    p = 1 / n
    np.testing.assert_allclose(bias, math.log(p / (1 - p)) - scale * 0.6, rtol=1e-5)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p)) * n
    np.testing.assert_allclose([found.loss(scale, bias), found.constant_loss()], entropy, rtol=1e-6)


def test_a_scale_stays_within_bounds(embeddings):
    perfect = temperature.Histogram.of([temperature.labelled(*embeddings(n=16, titles=16, noise=0.0))])
    scale, _ = temperature.fit(perfect, scale=10.0, which="both")
    assert scale == pytest.approx(200, rel=1e-6)
    image, text, groups = embeddings(noise=0.5)
    opposed = temperature.Histogram.of([temperature.labelled(-image, text, groups)])
    scale, _ = temperature.fit(opposed, scale=10.0, which="both")
    assert scale == pytest.approx(1, rel=1e-6)


def test_large_batches_are_sampled(monkeypatch, embeddings):
    image, text, groups = embeddings(n=64, titles=50, noise=1.0)
    monkeypatch.setattr(temperature, "MAX_PAIRS", 64 * 16)
    pairs = temperature.labelled(image, text, groups)
    whole = image.astype(np.float64) @ text.astype(np.float64).T
    np.testing.assert_array_equal(pairs.similarity, whole[::4])
    np.testing.assert_array_equal(pairs.positive, (groups[:, None] == groups)[::4])


def test_batches_of_one_title_cannot_be_fitted(embeddings):
    image, text, _ = embeddings(noise=1.0)
    found = temperature.Histogram.of([temperature.labelled(image, text, np.zeros(48, np.int32))])
    with pytest.raises(ValueError, match="no positive or no negative"):
        temperature.fit(found, scale=10.0, which="bias")
