"""One entry adds a resize: to the preprocessing, its files, Hugging Face's and the export."""

import io
import json

import numpy as np
import PIL.Image
import pytest

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing, graph_resize
from siglip_jax.preprocessing.images import resize_image
from siglip_jax.preprocessing.resize_table import FIXED_PROCESSOR, RESIZES, Resize
from siglip_jax.weights.processor import read_processor, write_processor


def centre_square(image, size, fields, out):
    """The largest square in the middle, resized."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return resize_image(image[top : top + side, left : left + side], size, method="bilinear", out=out)


def centre_square_in_graph(tf, image, fields):
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width)
    square = tf.image.crop_to_bounding_box(image, (height - side) // 2, (width - side) // 2, side, side)
    return graph_resize.resize(tf, square, fields.image_size, kernel="bilinear")


CENTRE_SQUARE = Resize(
    apply=centre_square,
    in_graph=centre_square_in_graph,
    huggingface_instead="squash the whole image, which gives other embeddings of all that are not square",
)


def encoded(height, width) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def by_pil(data: bytes, size) -> np.ndarray:
    image = PIL.Image.open(io.BytesIO(data))
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize(size[::-1], PIL.Image.Resampling.BILINEAR))


@pytest.mark.parametrize("shape", [(30, 50), (61, 20), (16, 12)])
def test_one_entry_adds_a_resize(monkeypatch, tmp_path, shape):
    monkeypatch.setitem(RESIZES, "centre_square", CENTRE_SQUARE)
    preprocessing = Preprocessing(image_size=(16, 12), resize="centre_square")
    data = encoded(*shape)
    want = by_pil(data, (16, 12))
    np.testing.assert_array_equal(preprocessing.image(data), want)
    batch = np.zeros((2, 16, 12, 3), np.uint8)
    assert preprocessing.image(data, out=batch[1]).base is batch
    np.testing.assert_array_equal(batch[1], want)
    preprocessing.save(tmp_path)
    assert Preprocessing.load(tmp_path) == preprocessing
    (note,) = write_processor(preprocessing, tmp_path / "hf")
    assert note.startswith("resize: centre_square is unknown to transformers; it will squash the whole image, which")
    with pytest.raises(UserError, match=r"expected one of bilinear, .*centre_square"):
        preprocessing.replace(resize="centre")


def test_a_result_that_was_not_written_to_out_is_copied_there(monkeypatch):
    """And a view of the decoded image, whose memory the next one takes, is copied as well."""
    corner = Resize(apply=lambda image, size, fields, out: image[: size[0], : size[1]])
    monkeypatch.setitem(RESIZES, "corner", corner)
    preprocessing = Preprocessing(image_size=(4, 4), resize="corner")
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (200, 0, 0)).save(buffer, "JPEG")
    first = preprocessing.image(buffer.getvalue())
    kept = first.copy()
    out = np.zeros((4, 4, 3), np.uint8)
    assert preprocessing.image(buffer.getvalue(), out=out) is out
    np.testing.assert_array_equal(out, kept)
    black = io.BytesIO()
    PIL.Image.new("RGB", (8, 8)).save(black, "JPEG")
    preprocessing.image(black.getvalue())
    np.testing.assert_array_equal(first, kept)
    with pytest.raises(TypeError, match=r"resize 'corner' gave uint8 \[2, 4, 3\]; expected uint8 \[4, 4, 3\]"):
        preprocessing.image(PIL.Image.new("RGB", (8, 2)))


def test_a_resize_that_hugging_face_has_is_read_and_written(monkeypatch, tmp_path):
    nearest = Resize(
        apply=lambda image, size, fields, out: np.asarray(PIL.Image.fromarray(image).resize(size[::-1], 0)),
        huggingface=(FIXED_PROCESSOR, 0),
    )
    monkeypatch.setitem(RESIZES, "nearest", nearest)
    preprocessing = Preprocessing(image_size=(16, 16), resize="nearest")
    assert write_processor(preprocessing, tmp_path) == []
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["resample"] == 0
    assert read_processor(tmp_path, text_length=64, vocab_size=400) == preprocessing
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": FIXED_PROCESSOR, "resample": 5})
    )
    with pytest.raises(UserError, match=r"resample=5; expected 0 \(nearest\) or 2 \(bilinear\) or 3 \(bicubic\)"):
        read_processor(tmp_path, text_length=64, vocab_size=400)


def test_the_export_has_it_or_refuses(monkeypatch, tiny_model, tmp_path):
    tf = pytest.importorskip("tensorflow")
    from siglip_jax.export import image_graph, savedmodel

    monkeypatch.setitem(RESIZES, "centre_square", CENTRE_SQUARE)
    preprocessing = tiny_model.preprocessing.replace(resize="centre_square", image_size=(16, 12))
    for shape in ((30, 50), (61, 20), (16, 12)):
        data = encoded(*shape)
        found = image_graph.decode_and_resize(tf, tf.constant(data), preprocessing).numpy()
        np.testing.assert_allclose(found, by_pil(data, (16, 12)), atol=1)
    monkeypatch.setitem(RESIZES, "centre_square", Resize(apply=centre_square))
    model = tiny_model.replace(preprocessing=tiny_model.preprocessing.replace(resize="centre_square"))
    with pytest.raises(
        UserError, match=r"resize='centre_square' cannot be written in a graph; expected one of .*bilin"
    ):
        savedmodel.export_saved_model(model, tmp_path / "export")
