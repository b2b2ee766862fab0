"""A histogram of colours against its definition pixel by pixel, CIELAB against known values, and as a store."""

import numpy as np
import pytest

from eval.embeddings.encoders.colour_encoder import ColourEncoder, lab
from eval.embeddings.encoders.encoder_table import open_network
from siglip_jax.errors import UserError

RNG = np.random.default_rng(0)


def images(encoder, count=3):
    return RNG.integers(0, 256, (count, *encoder.preprocessing.image_size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("srgb", "want"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 128, 0), (46.23, -51.70, 49.90)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((128, 128, 128), (53.59, 0, 0)),
        ((2, 2, 2), (0.55, 0, 0)),
    ],
)
def test_lab_of_known_colours(srgb, want):
    np.testing.assert_allclose(lab(np.array(srgb, np.uint8)), want, atol=0.02)


def test_colours_are_a_soft_histogram():
    """One pixel after the other: its shares are those of linear interpolation along each axis."""
    encoder = ColourEncoder("colours:3x5x4")
    given_images = images(encoder, 2)
    found = encoder.encode_image(given_images)
    assert (found.shape, found.dtype) == ((2, 60), np.float32)
    axes = [np.linspace(0, 100, 3), np.linspace(-60, 60, 5), np.linspace(-60, 60, 4)]
    for image, vector in zip(given_images, found, strict=True):
        histogram = np.zeros((3, 5, 4))
        for colour in lab(image.reshape(-1, 3)):
            shares = [
                [np.interp(v, axis, row) for row in np.eye(len(axis))] for v, axis in zip(colour, axes, strict=True)
            ]
            histogram += np.einsum("i,j,k->ijk", *shares)
        np.testing.assert_allclose(vector, np.sqrt(histogram / histogram.sum()).ravel(), atol=1e-6)


@pytest.mark.parametrize("level", [0, 127, 255])
def test_one_colour_has_a_direction(level):
    vectors = ColourEncoder("colours:6x7x7").encode_image(np.full((2, 32, 32, 3), level, np.uint8))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("colours:6x7", "expected colours:LxAxB"),
        ("colours:hsv", "expected colours:LxAxB"),
        ("colours:1x7x7", "at least 2 bins"),
        ("colours:99x99x99", "4096 in all"),
    ],
)
def test_names_that_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        open_network(name)
