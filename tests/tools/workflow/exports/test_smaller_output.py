"""Smaller embeddings of an export beside the library's own reductions and stores."""

import json

import numpy as np
import pytest

from eval.embeddings import read_store, write_store
from eval.embeddings.encoders.savedmodel_encoder import SavedModelEncoder
from eval.embeddings.reduction import Spec, load
from eval.embeddings.store_shards import ShardRows
from input_pipeline.dataset import open_split
from siglip_jax.errors import UserError
from siglip_jax.export import verify_export
from tools.workflow.embedding import description_of
from tools.workflow.exports import export as workflow
from tools.workflow.exports.export_target import check_target
from tools.workflow.exports.smaller_output import FOLDER, SmallerOutput

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def store(tiny_model, shop_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "train"
    rows = open_split(shop_dataset, "train")[:]
    vectors = tiny_model.encode_image([row["image"] for row in rows])
    manifest = {"model": description_of(tiny_model, name="tiny"), "preprocessing": None, "dataset": {}}
    write_store(folder, [([row["id"] for row in rows], vectors)], manifest=manifest)
    return folder


@pytest.mark.parametrize("spec", ["pca:6", "pca:6+int8", "truncate:5", "truncate:5+int8", "int8"])
def test_the_graph_gives_what_stores_and_indexes_hold(tiny_model, store, spec):
    spec = Spec.parse(spec)
    smaller = SmallerOutput.of(spec, tiny_model, store=store)
    vectors = read_store(store).vectors
    found = smaller.graph(vectors.shape[1]).in_graph(tf, tf.constant(vectors))
    expected = vectors if smaller.reduction is None else smaller.reduction(vectors)
    if not spec.int8:
        assert found["embedding"].dtype == tf.float32
        np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
        return
    rows = ShardRows.of([str(k) for k in range(len(vectors))], expected, dtype="int8")
    assert found["embedding"].dtype == tf.int8
    np.testing.assert_allclose(found["scale"], rows.scales, rtol=1e-6)
    difference = np.abs(found["embedding"].numpy().astype(int) - rows.numbers)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_an_export_of_fewer_and_shorter_numbers(tiny_model, store, shop_dataset, tmp_path, monkeypatch, capsys):
    # In this process: TensorFlow is here already, and that it needs no library of ours is tested elsewhere.
    monkeypatch.setattr(workflow, "check_golden", verify_export.verify)
    options = {"dataset": shop_dataset, "split": "test", "reduce": "pca:6", "store": store}
    workflow.export(tiny_model, check_target(tmp_path / "small", output_dtype="int8", **options))
    said = capsys.readouterr().out
    assert "; the smaller embedding itself " in said
    folder = tmp_path / "small"
    manifest = json.loads((folder / "siglip_jax.json").read_text())
    assert manifest["output"].startswith("embedding: int8 [n, 6], -127 to 127; scale: float32 [n]")
    assert (manifest["reduction"], manifest["ranking"]["limit"]) == ("pca:6", 0.01)
    assert manifest["ranking"]["smaller"].keys() == {"difference", "low", "high"}
    reduction = load(folder / "assets.extra" / FOLDER)
    rows = open_split(shop_dataset, "test")[:8]
    expected = reduction(tiny_model.encode_image([row["image"] for row in rows]))
    given = np.stack([tiny_model.preprocessing.image(row["image"]) for row in rows])
    encoder = SavedModelEncoder(str(folder))  # `embed` and `search` with the export as the model
    found = encoder.encode_image(given)
    assert (np.sum(found * expected, axis=1) / np.linalg.norm(found, axis=1)).min() > 0.999
    whole = tf.saved_model.load(str(folder)).signatures["scores"]
    ids = tiny_model.preprocessing.text([row["title"] for row in rows])
    logits = whole(image_bytes=tf.constant([row["image"] for row in rows]), ids=tf.constant(ids))["logits"].numpy()
    image, text = tiny_model.encode_image([row["image"] for row in rows]), tiny_model.encode_text(ids)
    np.testing.assert_allclose(logits, tiny_model.logits(image, text), atol=0.2)


def test_what_does_not_fit(tiny_model, store, tmp_path):
    with pytest.raises(UserError, match="choose a width up to"):
        SmallerOutput.of(Spec.parse("truncate:999"), tiny_model, store=None)
    other = tiny_model.replace(params={**tiny_model.params, "img": tiny_model.params["txt"]})
    with pytest.raises(UserError, match="is of tiny, not of --model"):
        SmallerOutput.of(Spec.parse("pca:4"), other, store=store)
    assert SmallerOutput.of(Spec("", 0, False), tiny_model, store=None) is None
