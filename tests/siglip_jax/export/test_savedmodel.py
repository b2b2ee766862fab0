"""The SavedModel against the model it came from: equal pixels, and the graph's own decoding and resizing."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from siglip_jax.errors import UserError
from siglip_jax.export import image_graph, savedmodel
from siglip_jax.preprocessing.images import FILLS
from siglip_jax.preprocessing.resize_table import RESIZES

tf = pytest.importorskip("tensorflow")
RESIZE: dict[str, dict[str, str]] = {  # of the table, so that a new entry is tested as well
    f"{name}, {fill}" if fill else name: {"resize": name, "fill": fill}
    for name, resize in RESIZES.items()
    if resize.in_graph is not None and not resize.uses_patches
    for fill in (FILLS if resize.uses_fill else ("",))
}


def smooth(height, width, bands=3, seed=0) -> np.ndarray:
    """A picture such as cameras make: JPEG decoders agree on it to the last bit or nearly so."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 4, bands), np.uint8)
    layers = [
        PIL.Image.fromarray(coarse[..., c]).resize((width, height), PIL.Image.Resampling.BICUBIC) for c in range(bands)
    ]
    return np.stack([np.asarray(layer) for layer in layers], axis=-1)


def encoded(pixels: np.ndarray | PIL.Image.Image, kind: str, **options) -> bytes:
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = {
    "odd JPEG": encoded(smooth(37, 53), "JPEG", quality=90),
    "tall JPEG": encoded(smooth(121, 33, seed=1), "JPEG"),
    "grey JPEG": encoded(smooth(40, 25, bands=1)[..., 0], "JPEG"),
    "progressive JPEG": encoded(smooth(64, 47, seed=2), "JPEG", progressive=True),
    "much shrunk JPEG": encoded(smooth(301, 203, seed=7), "JPEG", quality=92),
    "very tall JPEG": encoded(smooth(400, 39, seed=8), "JPEG"),
    "very wide JPEG": encoded(smooth(21, 333, seed=9), "JPEG", subsampling=1),
    "full chroma JPEG": encoded(smooth(50, 50, seed=3), "JPEG", subsampling=0),
    "PNG": encoded(smooth(29, 31, seed=4), "PNG"),
    "small PNG": encoded(smooth(7, 5, seed=5), "PNG"),
    "equal PNG": encoded(smooth(16, 16, seed=6), "PNG"),
    "alpha PNG": encoded(smooth(30, 41, bands=4), "PNG"),
    "palette PNG": encoded(PIL.Image.fromarray(smooth(30, 41)).quantize(64), "PNG"),
    "16-bit PNG": encoded(np.linspace(0, 65535, 30 * 20).astype(np.uint16).reshape(30, 20), "PNG"),
    "grey PNG": encoded(smooth(25, 40, bands=1)[..., 0], "PNG"),
}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "savedmodel"
    savedmodel.export_saved_model(tiny_model, folder, text="strings")
    return folder


def test_signatures(tiny_model, exported):
    loaded = tf.saved_model.load(str(exported))
    assert set(loaded.signatures) == {"serving_default", "pixels", "text_ids", "text", "scores"}
    d = tiny_model.architecture.embedding_dim
    pictures = list(PICTURES.values())
    for count in (1, 3):
        chosen = pictures[:count]
        expected = tiny_model.encode_image(chosen)
        z = loaded.signatures["serving_default"](image_bytes=tf.constant(chosen))["embedding"].numpy()
        assert (z.dtype, z.shape) == (np.float32, (count, d))
        assert np.sum(z * expected, axis=1).min() > 0.9999
        pixels = tiny_model.preprocessing.images(chosen)
        z = loaded.signatures["pixels"](pixels=tf.constant(pixels))["embedding"].numpy()
        np.testing.assert_allclose(z, expected, atol=1e-5)
        titles = [["Red Shirt!"], ["", "👟" * 9, "x" * 20_000]][count > 1]
        expected_text = tiny_model.encode_text(titles)
        z = loaded.signatures["text"](text=tf.constant(titles))["embedding"].numpy()
        np.testing.assert_allclose(z, expected_text, atol=1e-5)
        ids = tiny_model.preprocessing.text(titles)
        z = loaded.signatures["text_ids"](ids=tf.constant(ids))["embedding"].numpy()
        np.testing.assert_allclose(z, expected_text, atol=1e-5)
        both = {"image_bytes": tf.constant(chosen), "text": tf.constant(titles)}
        logits = loaded.signatures["scores"](**both)["logits"].numpy()
        np.testing.assert_allclose(logits, tiny_model.logits(expected, expected_text), atol=0.2)  # decoders differ
    manifest = json.loads((exported / savedmodel.MANIFEST).read_text())
    assert manifest["signatures"].keys() == loaded.signatures.keys()
    assert manifest["preprocessing"] == tiny_model.preprocessing.to_json()


@pytest.mark.parametrize("resize", RESIZE)
@pytest.mark.parametrize("size", [(16, 16), (24, 10)])
def test_the_graph_decodes_and_resizes_as_the_preprocessing(tiny_model, resize, size):
    preprocessing = tiny_model.preprocessing.replace(**RESIZE[resize], image_size=size)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def graph(data):
        return image_graph.decode_and_resize(tf, data, preprocessing)

    for name, picture in PICTURES.items():
        found, expected = graph(picture).numpy(), preprocessing.image(picture)
        np.testing.assert_array_equal(found, np.floor(found))
        np.testing.assert_allclose(found, expected, atol=1, err_msg=name)


@pytest.mark.parametrize("resize", ["bicubic", "bilinear_no_antialias", "bilinear_scaled_decode", "bilinear_pad, edge"])
def test_every_resize_and_range_is_exported(tiny_model, tmp_path, resize):
    preprocessing = tiny_model.preprocessing.replace(**RESIZE[resize], value_range=(0.0, 1.0))
    model = tiny_model.replace(preprocessing=preprocessing)
    savedmodel.export_saved_model(model, tmp_path / "export", text="none")
    loaded = tf.saved_model.load(str(tmp_path / "export"))
    assert loaded.signatures.keys() == {"serving_default", "pixels"}
    pictures = list(PICTURES.values())
    found = loaded.signatures["serving_default"](image_bytes=tf.constant(pictures))["embedding"].numpy()
    assert np.sum(found * model.encode_image(pictures), axis=1).min() > 0.9999


def test_refusals(tiny_model, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        savedmodel.export_saved_model(tiny_model, tmp_path)
    with pytest.raises(UserError, match="no known preprocessing"):
        savedmodel.export_saved_model(tiny_model.replace(preprocessing=None), tmp_path / "new")
    naflex = tiny_model.preprocessing.replace(resize="naflex", patch_size=8, max_patches=4)
    with pytest.raises(UserError, match="one of NaFlex pictures, the other not"):
        savedmodel.export_saved_model(tiny_model.replace(preprocessing=naflex), tmp_path / "new")
    assert not list(tmp_path.iterdir())  # complete or not at all

    with pytest.raises(UserError, match="--text='words'; expected one of ids"):
        savedmodel.export_saved_model(tiny_model, tmp_path / "new", text="words")
    json_tokenizer = tiny_model.preprocessing.replace(tokenizer=b"{}")
    with pytest.raises(UserError, match="TensorFlow has no operation; choose --text=ids"):
        savedmodel.export_saved_model(
            tiny_model.replace(preprocessing=json_tokenizer), tmp_path / "new", text="strings"
        )
    assert not list(tmp_path.iterdir())
