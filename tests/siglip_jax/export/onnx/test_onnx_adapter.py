"""An adapter as ONNX, alone against its formula in float64, and behind two networks against numpy."""

import json
import sys

import numpy as np
import pytest

from siglip_jax import model as models
from siglip_jax.errors import UserError
from siglip_jax.export.onnx.onnx_adapter import OnnxNetwork, export_onnx
from siglip_jax.export.onnx.onnx_graph import METADATA
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.towers import TwoTowers


def run_onnx(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], inputs)[0]


def test_alone(adapter, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "adapter.onnx"
    export_onnx(adapter.model, path)
    for rows in (1, 9):  # any batch
        features = adapter.vectors(rows)
        z = run_onnx(path, features)
        np.testing.assert_allclose(z, adapter.by_the_formula(features), atol=1e-5)
        assert z.dtype == np.float32
    (entry,) = onnx.load(path).metadata_props
    assert (entry.key, json.loads(entry.value)["features"]) == (METADATA, {"cnn-2": 7, "pixels": 5})
    with pytest.raises(UserError, match="exists already"):
        export_onnx(adapter.model, path)


def of_networks(dtype="float32"):
    """An adapter of two inputs of 4 numbers, without a projection."""
    architecture = Architecture(
        image_size=(1, 1),
        patch_size=1,
        image=FeatureSize(inputs={"a": 4, "b": 4}, base=8, head=3, mlp_dim=8),
        text=TowerSize(width=8, depth=1, mlp_dim=8, heads=2),
        vocab_size=11,
        text_length=3,
    )
    return models.init(TwoTowers(architecture, dtype=dtype), None, seed=0)


def test_behind_two_networks(golden, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    # Mean colour times arange(12) - 3 as "embedding", and the mean itself as a second output.
    network = OnnxNetwork(path=str(golden / "mean_colour_nhwc.onnx"), output="embedding", description={"name": "it"})
    model = of_networks()
    export_onnx(model, tmp_path / "joined.onnx", encoders={"b": network, "a": network})
    rng = np.random.default_rng(0)
    pixels = {name: rng.uniform(-1, 1, (3, 6, 5, 3)).astype(np.float32) for name in "ab"}
    matrix = (np.arange(12) - 3).reshape(3, 4)
    vectors = {name: (x.mean(axis=(1, 2)) @ matrix).astype(np.float32) for name, x in pixels.items()}
    z = run_onnx(tmp_path / "joined.onnx", pixels)
    np.testing.assert_allclose(z, model.encode_image(vectors), atol=1e-5)


def test_refusals(adapter, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"siglip-jax\[onnx\]"):
        export_onnx(adapter.model, tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnx", sys)  # nothing of it is used before a refusal
    for model, encoders, message in (
        (tiny_model, None, "takes pictures; expected an adapter"),
        (of_networks("bfloat16"), None, "computes in bfloat16; expected float32"),
        (of_networks(), {"a": None}, "encoders for a; expected one for each of a, b, or none"),
    ):
        with pytest.raises(UserError, match=message):
            export_onnx(model, tmp_path / "a.onnx", encoders=encoders)
    assert not list(tmp_path.iterdir())
