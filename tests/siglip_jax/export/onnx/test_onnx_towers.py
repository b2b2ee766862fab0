"""Towers as ONNX, run by onnxruntime, beside the model itself."""

import dataclasses
import json

import jax
import numpy as np
import PIL.Image
import pytest

from siglip_jax import model as models
from siglip_jax.errors import UserError
from siglip_jax.export.onnx.onnx_graph import METADATA
from siglip_jax.export.onnx.onnx_towers import INPUTS, PRECISIONS, TOWERS, export_tower
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import TwoTowers
from siglip_jax.preprocessing import Preprocessing

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
LEAST = {"float32": 1 - 1e-6, "float16": 0.9999, "int8": 0.99}


def run(path, rows):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {session.get_inputs()[0].name: rows})[0]


def a_model(**changes):
    """Of random weights, none of which is zero or one; 34 pixels are not a multiple of 8."""
    sizes = {
        "image_size": (34, 32),
        "patch_size": 8,
        "image": TowerSize(width=32, depth=2, mlp_dim=48, heads=4),
        "text": TowerSize(width=16, depth=3, mlp_dim=32, heads=2, gelu="exact"),
        "vocab_size": 50,
        "text_length": 8,
    }
    model, rng = models.init(TwoTowers(Architecture(**sizes | changes)), None, seed=0), np.random.default_rng(0)
    add = lambda x: np.asarray(x + 0.2 * rng.normal(size=x.shape), np.float32)  # noqa: E731
    return model.replace(params=jax.tree.map(add, model.params))


@pytest.fixture(scope="module")
def model():
    return a_model()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tower", TOWERS)
def test_equals_the_model(model, tower, precision, tmp_path):
    rng = np.random.default_rng(1)
    rows = {
        "image": rng.uniform(-1, 1, (65, 34, 32, 3)).astype(np.float32),
        "text": rng.integers(0, 50, (65, 8)).astype(np.int32),
    }[tower]
    expected = model.encode_image(rows) if tower == "image" else model.encode_text(rows)
    path = tmp_path / "tower.onnx"
    export_tower(model, path, tower=tower, precision=precision)
    for count in (1, 65):
        z = run(path, rows[:count])
        assert (z.dtype, z.shape) == (np.float32, expected[:count].shape)
        assert (z * expected[:count]).sum(axis=1).min() >= LEAST[precision]
        if precision == "float32":
            np.testing.assert_allclose(z, expected[:count], atol=2e-6)
    written = onnx.load(path)
    assert (written.opset_import[0].version, written.graph.input[0].name) == (17, INPUTS[tower][0])
    (entry,) = (each for each in written.metadata_props if each.key == METADATA)
    assert json.loads(entry.value)["precision"] == precision
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="exists already"):
        export_tower(model, path, tower=tower)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_takes_decoded_pictures_of_any_size(model, precision, tmp_path):
    preprocessing = Preprocessing(image_size=(34, 32), resize="bicubic", value_range=(-0.5, 2.0), text_length=8)
    model, rng = model.replace(preprocessing=preprocessing), np.random.default_rng(2)
    export_tower(model, tmp_path / "images.onnx", precision=precision, takes="images")
    for shape in ((3, 50, 90, 3), (1, 1, 1, 3), (2, 34, 32, 3)):
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        expected = model.encode_image(preprocessing.images([PIL.Image.fromarray(image) for image in images]))
        z = run(tmp_path / "images.onnx", images)
        assert (z * expected).sum(axis=1).min() >= LEAST[precision] - 1e-5  # a level here and there


def test_fewer_bits_are_fewer_bytes(model, tmp_path):
    sizes = []
    for precision in ("float32", "float16"):
        export_tower(model, tmp_path / precision, precision=precision)
        sizes.append((tmp_path / precision).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_without_a_text_head(tmp_path):
    model = a_model(text_head=False, text=TowerSize(width=32, depth=1, mlp_dim=16, heads=2))
    export_tower(model, tmp_path / "text.onnx", tower="text")
    ids = np.arange(24, dtype=np.int32).reshape(3, 8)
    np.testing.assert_allclose(run(tmp_path / "text.onnx", ids), model.encode_text(ids), atol=2e-6)


def test_titles_of_an_adapter(adapter, tmp_path):
    export_tower(adapter.model, tmp_path / "text.onnx", tower="text")
    ids = np.arange(9, dtype=np.int32).reshape(3, 3)
    np.testing.assert_allclose(run(tmp_path / "text.onnx", ids), adapter.model.encode_text(ids), atol=2e-6)
    with pytest.raises(UserError, match="this model is an adapter; expected a model of pictures"):
        export_tower(adapter.model, tmp_path / "image.onnx")


def test_naflex_is_refused_by_name(model, tmp_path):
    architecture = dataclasses.replace(model.architecture, image_size=(32, 32), naflex=True)
    model = model.replace(module=TwoTowers(architecture))
    for takes in ("pixels", "images"):
        with pytest.raises(UserError, match="of NaFlex pictures, whose sizes differ; expected a model of pictures of"):
            export_tower(model, tmp_path / "a.onnx", takes=takes)


def test_what_is_not_written(model, tmp_path, monkeypatch):
    for option in ({"tower": "both"}, {"precision": "int4"}):
        with pytest.raises(UserError, match=f"--{next(iter(option))}="):
            export_tower(model, tmp_path / "a.onnx", **option)
    with pytest.raises(UserError, match="--tower=text with --takes='images'; expected one of ids"):
        export_tower(model, tmp_path / "a.onnx", tower="text", takes="images")
    with pytest.raises(UserError, match="no preprocessing, so no resize; expected --takes=pixels"):
        export_tower(model, tmp_path / "a.onnx", takes="images")
    scaled = Preprocessing(image_size=(34, 32), resize="bilinear_scaled_decode", text_length=8)
    with pytest.raises(UserError, match="with resize='bilinear_scaled_decode'; expected one of bilinear, bicubic"):
        export_tower(model.replace(preprocessing=scaled), tmp_path / "a.onnx", takes="images")
    monkeypatch.setattr("siglip_jax.export.onnx.onnx_graph.MAX_BYTES", 1000)
    with pytest.raises(UserError, match="one ONNX file holds 1000: choose --precision=float16"):
        export_tower(model, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
