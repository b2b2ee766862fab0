"""Encoders that are joined with an adapter: from bytes to embeddings, and which cannot be."""

import json
import shutil

import numpy as np
import pytest

from siglip_jax import model as models
from siglip_jax.cli import main
from siglip_jax.errors import UserError
from siglip_jax.export.savedmodel import export_saved_model
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.towers import TwoTowers
from tools.workflow.adapters.export_encoders import open_encoders


def make_adapter(inputs, folder):
    """Saved to `folder`; its learned part is not zero."""
    size = FeatureSize(inputs=inputs, base=sum(inputs.values()), head=4, mlp_dim=8)
    architecture = Architecture(
        image_size=(1, 1),
        patch_size=1,
        image=size,
        text=TowerSize(width=8, depth=1, mlp_dim=8, heads=2),
        vocab_size=11,
        text_length=3,
    )
    model, rng = models.init(TwoTowers(architecture), None, seed=0), np.random.default_rng(0)
    linear = {"kernel": rng.normal(size=(size.numbers, 4)).astype(np.float32)}
    model = model.replace(params={**model.params, "img": {**model.params["img"], "linear": linear}})
    model.save(folder)
    return folder


NETWORK = """
import sys, tensorflow as tf
class Net(tf.Module):
    def __init__(self):
        self.matrix = tf.Variable(tf.reshape(tf.range(12.0), [3, 4]) - 3)
    @tf.function(input_signature=[tf.TensorSpec([None, 6, 5, 3], tf.float32)])
    def __call__(self, x):
        return {"embedding": tf.reduce_mean(tf.tanh(x), axis=[1, 2]) @ self.matrix}
tf.saved_model.save(Net(), sys.argv[1])
"""


@pytest.mark.slow
def test_a_saved_model_of_all_kinds(shop_dataset, tiny_model, tmp_path, python, capsys):
    pytest.importorskip("tensorflow")
    export_saved_model(tiny_model, tmp_path / "own")
    done = python(NETWORK, tmp_path / "net")
    assert done.returncode == 0, done.stderr
    (tmp_path / "net.json").write_text(json.dumps({"value_range": [0, 1], "mean": [0.5, 0.4, 0.3], "std": [1, 2, 3]}))
    sizes = {"cnn": 4, "own": tiny_model.architecture.embedding_dim, "pixels": 18, "colours": 18, "edges": 16}
    model = make_adapter(sizes, tmp_path / "model")
    networks = {"cnn": tmp_path / "net", "own": tmp_path / "own"}
    networks |= {"pixels": "pixels:3x2", "colours": "colours:2x3x3", "edges": "edges:2x2x4"}
    flags = [f"--encoder={name}={network}" for name, network in networks.items()]
    output = tmp_path / "joined"
    assert main(["export", f"--model={model}", f"--dataset={shop_dataset}", f"--output={output}", *flags]) == 0
    said = capsys.readouterr().out
    assert "pictures: largest error from pixels" in said  # which are within the limits, or it would not be there
    assert "smallest cosine from serving_default" in said
    manifest = json.loads((output / "siglip_jax.json").read_text())
    assert manifest["signatures"].keys() == {"serving_default", "pixels", "features", "text_ids", "scores"}
    assert {name: each["name"] for name, each in manifest["encoders"].items()} == {
        name: str(network).rsplit("/", 1)[-1] for name, network in networks.items()
    }


def test_one_onnx_file(shop_dataset, golden, tmp_path, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    shutil.copy(golden / "mean_colour_nhwc.onnx", tmp_path)
    (tmp_path / "mean_colour_nhwc.onnx.json").write_text('{"output": "embedding", "value_range": [0, 1]}')
    model, network = make_adapter({"cnn": 4}, tmp_path / "model"), tmp_path / "mean_colour_nhwc.onnx"
    flags = [f"--model={model}", f"--dataset={shop_dataset}", f"--encoder=cnn={network}"]
    assert main(["export", *flags, f"--output={tmp_path / 'joined.onnx'}"]) == 0
    assert f"ONNX file {tmp_path / 'joined.onnx'}, run without JAX" in capsys.readouterr().out
    assert main(["export", *flags, f"--output={tmp_path / 'joined'}"]) == 2
    assert "cannot be a part of a SavedModel; pass the SavedModel that it was made from" in capsys.readouterr().err
    assert not (tmp_path / "joined").exists()
    assert main(["export", *flags[:2], "--encoder=other=pixels:2x2", f"--output={tmp_path / 'joined'}"]) == 2
    assert "--encoder for other; expected --encoder=cnn=NETWORK, or none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("network", "savedmodel", "message"),
    [
        ("pixels:2x2", False, "which joins .onnx networks alone; export the adapter without --encoder"),
        ("some/folder", True, "no network of a known kind; expected a SavedModel's folder"),
    ],
)
def test_what_cannot_be_joined(network, savedmodel, message):
    with pytest.raises(UserError, match=f"--encoder=cnn={network}: .*{message}"):
        open_encoders({"cnn": network}, savedmodel=savedmodel)
