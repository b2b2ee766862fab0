"""What the exported graph reads: PIL's pixels of every kind that it takes, one line with the row for every other."""

import io

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_jax.export import graph_formats, image_graph
from siglip_jax.preprocessing import MAX_IMAGE_PIXELS, Preprocessing, decode_image
from siglip_jax.preprocessing.image_formats import SERVED, unserved

tf = pytest.importorskip("tensorflow")
KINDS = (*SERVED, "TIFF", "AVIF", "PPM", "JPEG2000")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
SIZE = Preprocessing(image_size=(8, 8))


def picture(mode: str, height: int, width: int, seed: int) -> PIL.Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return PIL.Image.fromarray(rng.integers(0, 2**16, (height, width)).astype(np.uint16))
    if mode in ("P", "1"):
        image = PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        return image.quantize(16) if mode == "P" else image.convert("1")
    pixels = rng.integers(0, 256, (height, width, len(mode)), np.uint8)
    bands = [PIL.Image.fromarray(pixels[..., band]) for band in range(len(mode))]
    return PIL.Image.merge(mode, bands) if len(mode) > 1 else bands[0]


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def reason():
    graph = tf.function(
        lambda data: graph_formats.reason_not_to_decode(tf, data),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    return lambda data: graph(data).numpy().decode()


@pytest.fixture(scope="module")
def decode():
    graph = tf.function(
        lambda data: image_graph._decode(tf, data, at_least=None),
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )
    return lambda data: graph(data).numpy()


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    mode=st.sampled_from(MODES),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 9),
    options=st.sampled_from(
        [{}, {"transparency": 3}, {"lossless": True}, {"interlace": 1}, {"several": True}, {"comment": b"x" * 300}]
    ),
)
def test_pils_pixels_or_a_reason(reason, decode, kind, mode, height, width, seed, options):
    image, options = picture(mode, height, width, seed), dict(options)
    if options.pop("several", False):
        options = {"save_all": True, "append_images": [picture(mode, height, width, seed + 1)]}
    try:
        data = encoded(image, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError):
        return  # PIL cannot write it
    why = unserved(data)
    assert reason(data) == why
    if not why:
        np.testing.assert_allclose(decode(data), decode_image(data), atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (300, 7), (5, 2000)])
def test_sizes_are_read_from_the_header(reason, monkeypatch, kind, size):
    data = encoded(PIL.Image.new("RGB", size), kind)
    assert reason(data) == ""
    monkeypatch.setattr(graph_formats, "MAX_IMAGE_PIXELS", size[0] * size[1] - 1)
    low = graph_formats.reason_not_to_decode(tf, tf.constant(data)).numpy().decode()
    assert low == f"a picture of {size[0]}x{size[1]} pixels; the limit is {size[0] * size[1] - 1} pixels"


def test_the_limit_is_that_of_training(reason):
    """12000 x 12000 pixels in 450 kB."""
    data = encoded(PIL.Image.new("1", (12000, 12000)), "PNG", compress_level=9)
    assert reason(data) == f"a picture of 12000x12000 pixels; the limit is {MAX_IMAGE_PIXELS} pixels"


def test_an_animated_webp_is_never_decoded(reason):
    """TensorFlow 2.20 writes beyond its memory there."""
    first, second = (PIL.Image.new("RGB", (9, 7), colour) for colour in ("red", "blue"))
    data = encoded(first, "WEBP", save_all=True, append_images=[second])
    assert reason(data).startswith("an animated WEBP; ")


def test_a_bad_row_is_named(tmp_path):
    image = picture("RGB", 20, 30, 0)
    good = [encoded(image, kind) for kind in SERVED]
    serve = tf.function(
        lambda data: image_graph.decode_rows(tf, data, {"": SIZE})[""],
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    np.testing.assert_allclose(serve(good), SIZE.batch([SIZE.image(data) for data in good]), atol=1)
    png = encoded(picture("RGB", 90, 90, 1), "PNG")
    for bad, why in {
        b"": "a picture of another format",
        b"<html>": "a picture of another format",
        encoded(image, "TIFF"): "a picture in TIFF; expected JPEG, PNG, WEBP, GIF or BMP",
        encoded(image, "JPEG")[:200]: "damaged, it cannot be decoded",
        png[: len(png) // 2]: "damaged, it cannot be decoded",
        b"\xff\xd8\xff": "damaged, it cannot be decoded",
        b"RIFF\0\0\0\0WEBP": "damaged, it cannot be decoded",
        b"GIF8": "a GIF with transparency",
    }.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"picture 2: {why}"):
            serve([good[0], good[1], bad, good[2]])
        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"picture 0: {why}.*\. picture 1: {why}"):
            serve([bad, bad])
