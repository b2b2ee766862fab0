"""TensorFlow Lite baselines: the quantisation arithmetic, and errors. A network runs where one is at hand."""

import os
import sys

import numpy as np
import pytest

from eval.tflite import TfliteEncoder, dequantise
from siglip_jax.errors import UserError


def test_dequantise():
    values = np.array([[0, 3, 255]], np.uint8)
    np.testing.assert_allclose(dequantise(values, {"quantization": (0.5, 3)}), [[-1.5, 0, 126]])
    floats = np.array([[0.25, -2]], np.float32)
    np.testing.assert_array_equal(dequantise(floats, {"quantization": (0.0, 0)}), floats)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UserError, match=r"siglip-jax\[tflite\]"):
        TfliteEncoder("net.tflite")


def test_not_a_network(tmp_path):
    pytest.importorskip("ai_edge_litert")
    path = tmp_path / "net.tflite"
    path.write_bytes(b"no network")
    with pytest.raises(UserError, match="not a TensorFlow Lite network"):
        TfliteEncoder(str(path))


@pytest.mark.skipif(not os.environ.get("TFLITE_NETWORK"), reason="TFLITE_NETWORK names no .tflite file")
def test_a_network_tells_pictures_apart():
    pytest.importorskip("ai_edge_litert")
    encoder = TfliteEncoder(os.environ["TFLITE_NETWORK"])
    height, width = encoder.preprocessing.image_size
    pictures = np.stack([np.zeros((height, width, 3)), np.full((height, width, 3), 255)]).astype(np.uint8)
    a, b, again = encoder.encode_image(np.concatenate([pictures, pictures[:1]]))
    np.testing.assert_array_equal(a, again)
    assert np.abs(a - b).max() > 0
