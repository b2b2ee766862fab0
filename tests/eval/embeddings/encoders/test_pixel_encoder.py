"""Coarse pixels against their definition in float64, and as a store."""

import hypothesis.extra.numpy
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.embeddings.encoders.encoder_table import open_network
from eval.embeddings.encoders.pixel_encoder import PixelEncoder
from siglip_jax.errors import UserError

RNG = np.random.default_rng(0)


def images(encoder, count=3):
    return RNG.integers(0, 256, (count, *encoder.preprocessing.image_size, 3), dtype=np.uint8)


def test_pixels_are_means_of_areas():
    encoder = PixelEncoder("pixels:3x2")
    assert encoder.preprocessing.image_size == (12, 8)  # height first
    given_images = images(encoder)
    found = encoder.encode_image(given_images)
    assert (found.shape, found.dtype) == ((3, 18), np.float32)
    for image, vector in zip(given_images.astype(np.float64), found, strict=True):
        want = [
            (image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4, channel].mean() - 127.53125) / 127.5
            for y in range(3)
            for x in range(2)
            for channel in range(3)
        ]
        np.testing.assert_allclose(vector, want, atol=1e-6)


def test_pixels_of_a_picture():
    """An area of the picture, through the resize: a red half above a white one."""
    picture = PIL.Image.new("RGB", (60, 80), "white")
    picture.paste("red", (0, 0, 60, 40))
    encoder = PixelEncoder("pixels:4x3")
    rows = encoder.encode_image(encoder.preprocessing.image(picture)[None]).reshape(4, 3, 3)
    np.testing.assert_allclose(rows[0], [[1, -1, -1]] * 3, atol=1e-3)
    np.testing.assert_allclose(rows[3], [[1, 1, 1]] * 3, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(hypothesis.extra.numpy.arrays(np.uint8, (1, 8, 4, 3), elements=st.integers(126, 129)))
def test_no_picture_is_zero(image):
    """Not even one whose mean is the grey in the middle."""
    assert PixelEncoder("pixels:2x1").encode_image(image).all()
    assert PixelEncoder("pixels:2x1").encode_image(np.full_like(image, 127) + np.arange(8)[:, None, None] % 2).all()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pixels:", "expected pixels:HEIGHTxWIDTH, such as pixels:16x12"),
        ("pixels:16", "expected pixels:HEIGHTxWIDTH"),
        ("pixels:0x12", "expected pixels:HEIGHTxWIDTH"),
        ("pixels:16x12x3", "expected pixels:HEIGHTxWIDTH"),
        ("pixels:1600x1200", "expected at most 4096"),
    ],
)
def test_names_that_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        open_network(name)
