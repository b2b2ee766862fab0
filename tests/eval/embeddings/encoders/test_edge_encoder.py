"""Oriented gradients against their definition pixel by pixel, and as a store."""

import numpy as np
import PIL.Image
import pytest

from eval.embeddings.encoders.edge_encoder import EdgeEncoder
from eval.embeddings.encoders.encoder_table import open_network
from siglip_jax.errors import UserError

RNG = np.random.default_rng(0)


def images(encoder, count=3):
    return RNG.integers(0, 256, (count, *encoder.preprocessing.image_size, 3), dtype=np.uint8)


def test_edges_by_their_definition():
    encoder = EdgeEncoder("edges:2x1x3")
    assert encoder.preprocessing.image_size == (20, 10)
    (image,) = given = images(encoder, 1)
    grey = image.astype(np.float64) @ [0.299, 0.587, 0.114] / 255
    down, right = np.gradient(grey)
    sums = np.zeros((2, 3))
    for y in range(20):
        for x in range(10):
            angle = np.degrees(np.arctan2(down[y, x], right[y, x])) % 180
            # The directions are at 0, 60 and 120 degrees; 180 is 0 again.
            shares = [max(0, 1 - min(abs(angle - at), 180 - abs(angle - at)) / 60) for at in (0, 60, 120)]
            sums[y // 10] += np.hypot(down[y, x], right[y, x]) * np.array(shares)
    found = encoder.encode_image(given)
    assert (found.shape, found.dtype) == ((1, 6), np.float32)
    np.testing.assert_allclose(found[0], np.sqrt(sums + 0.01).ravel(), rtol=1e-5)


def test_an_edge_is_in_its_cell_and_direction():
    picture = PIL.Image.new("RGB", (20, 20), "white")
    picture.paste("black", (0, 0, 5, 10))  # upright inside the first cell, level at its lower end
    encoder = EdgeEncoder("edges:2x2x4")
    cells = encoder.encode_image(encoder.preprocessing.image(picture)[None]).reshape(4, 4)
    assert cells[0].argmax() == 0  # the gradient of an upright edge runs to the right
    assert cells[2].argmax() == 2
    np.testing.assert_allclose(cells[[1, 3]], 0.1, atol=1e-6)  # none


def test_a_blank_picture_has_no_direction_and_is_not_zero():
    vectors = EdgeEncoder("edges:8x6x8").encode_image(np.full((1, 80, 60, 3), 77, np.uint8))
    np.testing.assert_allclose(vectors, 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("edges:8x6", "expected edges:HEIGHTxWIDTHxDIRECTIONS"),
        ("edges:8x6x1", "at least 2 directions"),
        ("edges:99x99x9", "4096 numbers in all"),
    ],
)
def test_names_that_are_refused(name, said):
    with pytest.raises(UserError, match=said):
        open_network(name)
