"""Adapters of foreign networks: tiny ones against numpy, and errors. A real one runs where one is at hand."""

import importlib.util
import json
import os
import shutil
import sys

import numpy as np
import pytest
from etils import epath

from eval.embeddings.encoders.encoder_settings import Settings, describe
from eval.embeddings.encoders.encoder_table import ENCODERS, open_network
from eval.embeddings.encoders.onnx_encoder import OnnxEncoder
from eval.embeddings.encoders.tflite_encoder import TfliteEncoder, dequantise
from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from tools.workflow.embedding import embed, load_encoder


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


# --- ONNX -------------------------------------------------------------------------------------------------------------
# Two networks of 200 bytes: mean colour, times the matrix arange(12) - 3. One takes [2, 3, h, w], a fixed batch of
# pictures of any size; the other [n, 6, 5, 3] and shows the mean as a second output.


def mean_colours(pictures, *, mean=0, std=1, low=-1, high=1):
    pixels = (low + (high - low) * pictures.astype(np.float64) / 255 - mean) / std
    return pixels.mean(axis=(1, 2)) @ (np.arange(12) - 3).reshape(3, 4)


def network(tmp_path, golden, name, settings=None):
    path = tmp_path / name
    shutil.copy(golden / name, path)
    if settings is not None:
        (tmp_path / f"{name}.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return str(path)


def test_onnx_of_channels_first_and_a_fixed_batch(tmp_path, golden):
    pytest.importorskip("onnxruntime")
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    settings = {"image_size": [7, 4], "value_range": [0, 1], "mean": mean, "std": std, "resize": "bicubic"}
    encoder = OnnxEncoder(network(tmp_path, golden, "mean_colour_nchw.onnx", settings))
    assert encoder.preprocessing == Preprocessing(image_size=(7, 4), resize="bicubic", value_range=(0, 1))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 7, 4, 3), dtype=np.uint8)
    want = mean_colours(pictures, mean=np.array(mean), std=np.array(std), low=0)
    np.testing.assert_allclose(encoder.encode_image(pictures), want, rtol=1e-4, atol=1e-4)
    assert encoder.description["name"] == "mean_colour_nchw.onnx"


def test_onnx_of_channels_last_and_a_named_output(tmp_path, golden):
    pytest.importorskip("onnxruntime")
    encoder = OnnxEncoder(network(tmp_path, golden, "mean_colour_nhwc.onnx", {"output": "embedding"}))
    assert encoder.preprocessing.image_size == (6, 5)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    np.testing.assert_allclose(encoder.encode_image(pictures), mean_colours(pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mean_colour_nchw.onnx", None, "pictures of any size; say which"),
        ("mean_colour_nchw.onnx", {"image_size": [7, 4], "layout": "nhwc"}, "takes .*; expected pictures"),
        ("mean_colour_nhwc.onnx", None, "outputs are embedding, pooled; name the embedding"),
        ("mean_colour_nhwc.onnx", {"image_size": [7, 4]}, r"takes pictures of \[6, 5\].*says \[7, 4\]"),
        ("mean_colour_nhwc.onnx", {"means": 1}, "unknown field 'means'"),
        ("mean_colour_nhwc.onnx", {"std": [0, 1, 1]}, "expected no zero"),
        ("mean_colour_nhwc.onnx", {"mean": "0.5"}, "three numbers"),
        ("mean_colour_nhwc.onnx", {"image_size": "big", "output": "embedding"}, "image_size"),
        ("mean_colour_nhwc.onnx", {"resize": "naflex"}, "max_patches=0"),
        ("mean_colour_nhwc.onnx", "{", "not a JSON object"),
    ],
)
def test_onnx_that_cannot_be_fed(tmp_path, golden, name, settings, message):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=message):
        OnnxEncoder(network(tmp_path, golden, name, settings))


def test_no_onnx_network(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"no network")
    if importlib.util.find_spec("onnxruntime"):
        with pytest.raises(UserError, match="not an ONNX network"):
            OnnxEncoder(str(path))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"siglip-jax\[onnxruntime\]"):
        OnnxEncoder(str(path))


# --- SavedModel -------------------------------------------------------------------------------------------------------

FOREIGN = """
import sys, tensorflow as tf
class Net(tf.Module):
    def __init__(self):
        self.scale = tf.Variable(2.0)
    @tf.function(input_signature=[tf.TensorSpec([None, 6, 5, 3], tf.float32)])
    def __call__(self, x):
        return {"embedding": self.scale * tf.reduce_mean(x, axis=[1, 2], keepdims=True)}
tf.saved_model.save(Net(), sys.argv[1])
"""


@pytest.mark.slow
def test_a_foreign_saved_model(tmp_path, python):
    pytest.importorskip("tensorflow")
    folder = tmp_path / "net"
    done = python(FOREIGN, folder)
    assert done.returncode == 0, done.stderr
    (tmp_path / "net.json").write_text(json.dumps({"value_range": [0, 1]}))
    code = """
import sys, numpy as np
from tools.workflow.embedding import load_encoder
encoder = load_encoder(sys.argv[1])
pictures = np.load(sys.argv[2])
np.save(sys.argv[3], encoder.encode(pictures))
assert encoder.preprocessing.image_size == (6, 5)
"""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    np.save(tmp_path / "in.npy", pictures)
    done = python(code, folder, tmp_path / "in.npy", tmp_path / "out.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), 2 * pictures.mean(axis=(1, 2)) / 255, atol=1e-5)


@pytest.mark.slow
def test_our_own_export_is_an_encoder(tmp_path, python, tiny_model):
    pytest.importorskip("tensorflow")
    tiny_model.save(tmp_path / "model")
    code = """
import sys
import numpy as np, siglip_jax
from siglip_jax.export.savedmodel import export_saved_model
from tools.workflow.embedding import load_encoder
model = siglip_jax.load(sys.argv[1])
export_saved_model(model, sys.argv[2])
pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
encoder = load_encoder(sys.argv[2])
assert encoder.preprocessing == model.preprocessing.replace(tokenizer=None, **{
    name: getattr(encoder.preprocessing, name) for name in ("text_length", "pad_id", "lowercase", "punctuation")})
want = model.encode_image(model.preprocessing.to_float(pictures))
np.testing.assert_allclose(encoder.encode(pictures), want, atol=1e-5)
"""
    done = python(code, tmp_path / "model", tmp_path / "export")
    assert done.returncode == 0, done.stderr


# --- another kind -----------------------------------------------------------------------------------------------------


class MeanColour:
    """A network of one matrix in an .npy file: the mean colour times it."""

    def __init__(self, path):
        self._matrix = np.load(path)
        self._settings = Settings.beside(path).for_input([None, 6, 5, 3], network=path)
        self.preprocessing = self._settings.preprocessing
        self.description = describe(path, files.sha256(epath.Path(path)))

    def encode_image(self, images):
        return (self._settings.pixels(images).mean(axis=(1, 2)) @ self._matrix).astype(np.float32)


def test_one_entry_adds_an_encoder(monkeypatch, tmp_path, shop_dataset):
    monkeypatch.setitem(ENCODERS, ".npy", MeanColour)
    path = tmp_path / "net.npy"
    np.save(path, np.random.default_rng(0).normal(size=(3, 4)))
    (tmp_path / "net.npy.json").write_text('{"value_range": [0, 1]}')
    encoder = load_encoder(str(path))
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    want = images.mean(axis=(1, 2)) / 255 @ np.load(path)
    np.testing.assert_allclose(encoder.encode(images), want, rtol=1e-5)
    store = embed(encoder, dataset=shop_dataset, split="test", output=tmp_path / "store")
    assert store.vectors.shape == (len(store.ids), 4)
    assert store.manifest["model"] == {"name": "net.npy", "sha256": files.sha256(epath.Path(path))}


def test_a_folder_is_known_by_a_file_in_it(monkeypatch, tmp_path):
    monkeypatch.setitem(ENCODERS, "weights.npy", lambda folder: MeanColour(f"{folder}/weights.npy"))
    (tmp_path / "net").mkdir()
    assert open_network(str(tmp_path / "net")) is None
    np.save(tmp_path / "net" / "weights.npy", np.ones((3, 2)))
    assert load_encoder(str(tmp_path / "net")).encode(np.zeros((1, 6, 5, 3), np.uint8)).shape == (1, 2)


def test_the_suffix_decides(tmp_path):
    for name, message in (("net.onnx", "not an ONNX network"), ("net.tflite", "TensorFlow Lite|ai-edge-litert")):
        (tmp_path / name).write_bytes(b"no network")
        with pytest.raises(UserError, match=message):
            open_network(str(tmp_path / name))
