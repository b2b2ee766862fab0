"""Losses of prefixes against the formula in float64 numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.losses import sigmoid_loss
from siglip_jax.losses.matryoshka import prefix_losses, unit_prefix

T, B = 2.0, -3.0


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def dense(image, text, groups):
    """The sigmoid loss of unit rows, and its gradients by them, float64."""
    logits = np.exp(T) * image @ text.T + B
    sign = np.where(groups[:, None] == groups[None, :], 1.0, -1.0)
    by_logit = -sign * np.exp(-np.logaddexp(0, sign * logits)) / len(image) * np.exp(T)
    return np.logaddexp(0, -sign * logits).sum() / len(image), by_logit @ text, by_logit.T @ image


def through_prefix(x, by_unit):
    """The gradient by rows x [n, d] of one by their unit prefixes [n, w]: what is along the row has no say."""
    width = by_unit.shape[1]
    prefix = x[:, :width]
    norm = np.linalg.norm(prefix, axis=1, keepdims=True)
    along = np.sum(by_unit * prefix / norm, axis=1, keepdims=True) * prefix / norm
    return np.pad((by_unit - along) / norm, ((0, 0), (0, x.shape[1] - width)))


@pytest.mark.parametrize("widths", [(1, 3), (5,), (8,)])
def test_values_and_gradients_are_those_of_dense_losses(widths):
    rng = np.random.default_rng(0)
    image, text = (unit(rng.normal(size=(7, 8))).astype(np.float32) for _ in range(2))
    groups = np.array([0, 0, 1, 2, 3, 4, 2], np.int32)
    loss = functools.partial(sigmoid_loss, t=jnp.float32(T), b=jnp.float32(B), groups=groups, tile=3)
    found = prefix_losses(image, text, widths, loss)
    assert tuple(found) == widths
    exact = [x.astype(np.float64) for x in (image, text)]
    for width, value in found.items():
        expected, by_image, by_text = dense(*(unit(x[:, :width]) for x in exact), groups)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        one = jax.grad(lambda x, y, width=width: prefix_losses(x, y, (width,), loss)[width], argnums=(0, 1))
        for gradient, x, by_unit in zip(one(image, text), exact, (by_image, by_text), strict=True):
            np.testing.assert_allclose(gradient, through_prefix(x, by_unit), rtol=1e-4, atol=1e-5)


def test_prefixes_are_unit_vectors_of_the_same_dtype():
    x = np.float32([[3, 4, 12], [0, 0, 1], [1e-6, 0, 1]])
    assert unit_prefix(x, 2).tolist()[:2] == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    assert unit_prefix(x, 2)[2, 0] == pytest.approx(1, rel=1e-3)
    assert unit_prefix(jnp.asarray(x, jnp.bfloat16), 2).dtype == jnp.bfloat16
    assert np.isfinite(jax.grad(lambda x: unit_prefix(x, 2).sum())(jnp.asarray(x))).all()
    for width in (0, 4):
        with pytest.raises(ValueError, match=rf"width={width} of \(3, 3\); expected \[n, d\] and 1 to d"):
            unit_prefix(x, width)
