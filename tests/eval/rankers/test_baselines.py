"""Baseline embeddings."""

import numpy as np
import pytest

from eval.rankers.baselines import raw_pixels
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches


def pictures(n, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_raw_pixels_equal_the_definition_in_float64():
    images = pictures(1100)  # more than one block
    x = raw_pixels(images)
    want = images.reshape(1100, -1).astype(np.float64)
    want -= want.mean(axis=0)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, want, atol=1e-6)


def test_equal_pictures_stay_equal_to_the_last_bit():
    images = pictures(1200, 7)
    images[[600, 1111]] = images[3]
    x = raw_pixels(images)
    np.testing.assert_array_equal(x[600], x[3])
    np.testing.assert_array_equal(x[1111], x[3])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(2).astype(np.float32), "expected uint8"),
        (pictures(2)[..., 0], "expected uint8"),
        (Patches(np.zeros((2, 4, 12), np.uint8), np.ones((2, 2), np.int32)), "images are Patches: expected uint8"),
        (np.repeat(pictures(1), 5, axis=0), "image 0 equals the mean"),
    ],
)
def test_errors(images, message):
    with pytest.raises(UserError, match=message):
        raw_pixels(images)
