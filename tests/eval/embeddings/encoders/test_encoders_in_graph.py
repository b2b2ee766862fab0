"""Encoders written in TensorFlow's operations against what they compute in numpy."""

import numpy as np
import pytest

from eval.embeddings.encoders.encoder_table import open_network

tf = pytest.importorskip("tensorflow")


@pytest.mark.parametrize(
    "name", ["pixels:3x2", "colours:6x7x7", "colours:2x3x2", "edges:2x3x8", "edges:1x1x2"], ids=str
)
def test_the_graph_equals_numpy(name):
    encoder, rng = open_network(name), np.random.default_rng(0)
    height, width = encoder.preprocessing.image_size
    flat = np.broadcast_to(np.array([[0] * 3, [255] * 3, [128] * 3, [255, 0, 0]])[:, None, None], (4, height, width, 3))
    noise = rng.integers(0, 256, (3, height, width, 3))
    stripes = np.broadcast_to(np.arange(width)[:, None] % 2 * 255, (1, height, width, 3))
    images = np.concatenate([flat, noise, stripes, stripes[:, :, ::-1], noise // 128]).astype(np.uint8)
    graph = tf.function(
        lambda x: encoder.in_graph(tf, x),
        input_signature=[tf.TensorSpec([None, height, width, 3], tf.float32)],
        autograph=False,
    )
    for batch in (images, images[:1]):
        found, expected = graph(batch.astype(np.float32)).numpy(), encoder.encode_image(batch)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-5)
