"""A NaFlex model as a SavedModel: patches as the library cuts them, and sizes as it finds them."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from siglip_jax import model as models
from siglip_jax.export import image_graph, savedmodel
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.towers import TwoTowers
from siglip_jax.preprocessing import Preprocessing, graph_resize
from siglip_jax.preprocessing.images import naflex_size

tf = pytest.importorskip("tensorflow")
SIZES = [(40, 10), (13, 77), (30, 30), (1, 1), (1, 300), (24, 16), (7, 9), (300, 211)]


def png(height, width) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    tower = TowerSize(width=16, depth=1, mlp_dim=32, heads=2)
    architecture = Architecture(
        image_size=(24, 24), patch_size=8, image=tower, text=tower, vocab_size=11, text_length=3, naflex=True
    )
    preprocessing = Preprocessing(
        image_size=(24, 24), resize="naflex", patch_size=8, max_patches=9, text_length=3, value_range=(-1.0, 0.5)
    )
    return models.init(TwoTowers(architecture), preprocessing, seed=0)


def test_the_graph_finds_the_same_sizes():
    @tf.function(input_signature=[tf.TensorSpec([None, None, 3]), tf.TensorSpec([], tf.int32)], autograph=False)
    def graph(image, most):
        return tf.shape(graph_resize.naflex(tf, image, patch_size=16, max_patches=most))

    rng = np.random.default_rng(0)
    sizes = [*np.exp(rng.uniform(0, 7, (60, 2))).astype(int).tolist(), [1, 4000], [4000, 1], [16, 16], [256, 256]]
    for height, width in sizes:
        for most in (1, 7, 256):
            found = graph(np.zeros((height, width, 3), np.float32), most).numpy().tolist()
            assert tuple(found[:2]) == naflex_size(height, width, patch_size=16, max_patches=most), (height, width)


def test_bytes_patches_and_ids(model, tmp_path):
    pictures = [png(*size) for size in SIZES]
    expected, cut = model.encode_image(pictures), model.preprocessing.images(pictures)
    savedmodel.export_saved_model(model, tmp_path / "naflex")
    loaded = tf.saved_model.load(str(tmp_path / "naflex")).signatures
    assert set(loaded) == {"serving_default", "patches", "text_ids", "scores"}
    found = loaded["patches"](pixels=tf.constant(cut.pixels), shape=tf.constant(cut.shape))["embedding"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    rows = image_graph.decode_rows(tf, tf.constant(pictures), {"": model.preprocessing})[""]
    np.testing.assert_array_equal(rows[1].numpy(), cut.shape)
    whole = model.preprocessing.batch([model.preprocessing.image(each) for each in pictures])
    np.testing.assert_allclose(rows[0].numpy(), whole.pixels, atol=1)
    for some in (slice(0, 1), slice(None)):
        found = loaded["serving_default"](image_bytes=tf.constant(pictures[some]))["embedding"].numpy()
        assert np.sum(found * expected[some], axis=1).min() > 0.9999
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    found = loaded["text_ids"](ids=tf.constant(ids))["embedding"].numpy()
    np.testing.assert_allclose(found, model.encode_text(ids), atol=1e-5)
    for shape in ([[5, 2]], [[0, 3]], [[-3, -3]]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="9 at most together"):
            loaded["patches"](pixels=tf.constant(cut.pixels[:1]), shape=tf.constant(shape, tf.int32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="picture 1: a picture of another format"):
        loaded["serving_default"](image_bytes=tf.constant([pictures[0], b"no picture"]))
    manifest = json.loads((tmp_path / "naflex" / savedmodel.MANIFEST).read_text())
    assert manifest["signatures"]["patches"].startswith("pixels: float32 [n, 9, 192], zeros where")
    assert manifest["preprocessing"]["max_patches"] == 9
