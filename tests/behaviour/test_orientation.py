"""One rule for EXIF orientations on every way that a picture takes: training, encoding, serving, export."""

import io
import types

import numpy as np
import PIL.Image
import pytest

from eval.embeddings.stored_rows import update_differences
from eval.search.updates import check_same_encoder
from input_pipeline.loader.examples import Recipe
from siglip_jax.errors import UserError
from siglip_jax.export import image_graph
from siglip_jax.preprocessing import Preprocessing
from tools.workflow.embedding import image_encoder
from tools.workflow.query_encoder import QueryEncoder

KINDS = {"JPEG": "RGB", "CMYK JPEG": "CMYK", "PNG": "RGB", "WEBP": "RGB"}


@pytest.fixture(scope="module")
def pictures():
    """{(kind, orientation): encoded}; a red band at the top, blue at its left: no two orientations look alike."""
    pixels = np.full((24, 40, 3), 255, np.uint8)
    pixels[:8], pixels[:8, :16] = (200, 0, 0), (0, 0, 200)
    found = {}
    for kind, mode in KINDS.items():
        for orientation in range(1, 9):
            exif, file = PIL.Image.Exif(), io.BytesIO()
            exif[0x0112] = orientation
            PIL.Image.fromarray(pixels).convert(mode).save(file, kind.split()[-1], exif=exif, quality=95)
            found[kind, orientation] = file.getvalue()
            assert PIL.Image.open(io.BytesIO(file.getvalue())).getexif().get(0x0112) == orientation
    return found


def same_for_all(pictures, look) -> None:
    found = {key: look(data) for key, data in pictures.items()}
    for (kind, orientation), pixels in found.items():
        np.testing.assert_array_equal(pixels, found[kind, 1], f"{kind}, {orientation}")


def test_training_encoding_and_serving_see_the_stored_pixels(tiny_model, pictures):
    preprocessing = tiny_model.preprocessing
    scaled = preprocessing.replace(resize="bilinear_scaled_decode", image_size=(8, 8))
    server = QueryEncoder(image_encoder(tiny_model, name="m"), None, "m", {})

    def trained(data):
        out = np.zeros((1, *preprocessing.row_shape), np.uint8)
        Recipe(preprocessing=preprocessing).picture({"image": data}, 0, 0, out, 0)
        return out[0]

    def opened(data):
        return preprocessing.image(PIL.Image.open(io.BytesIO(data)))

    for look in (preprocessing.image, scaled.image, opened, trained, server.pixels):
        same_for_all(pictures, look)
    for data in pictures.values():
        np.testing.assert_array_equal(trained(data), preprocessing.image(data))
        np.testing.assert_array_equal(server.pixels(data), preprocessing.image(data))
    some = [pictures["JPEG", 6], PIL.Image.open(io.BytesIO(pictures["JPEG", 6])), pictures["JPEG", 1]]
    vectors = tiny_model.encode_image(some)
    np.testing.assert_allclose(vectors, vectors[[2, 2, 2]], atol=1e-6)


def test_the_graph_of_an_export_sees_them_too(tiny_model, pictures):
    tf = pytest.importorskip("tensorflow")

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def graph(data):
        return image_graph.decode_and_resize(tf, data, tiny_model.preprocessing)

    jpeg, cmyk = ("JPEG", "CMYK JPEG")
    served = {key: data for key, data in pictures.items() if key[0] != cmyk}
    same_for_all(served, lambda data: graph(data).numpy())
    near = graph(pictures[jpeg, 6]).numpy() - tiny_model.preprocessing.image(pictures[jpeg, 6])
    assert np.abs(near).max() <= 2  # decoders


def test_the_rule_is_named_in_what_is_stored(tmp_path):
    preprocessing = Preprocessing(image_size=(8, 8))
    with pytest.raises(UserError, match="exif='turned'; expected one of ignored"):
        preprocessing.replace(exif="turned")
    stored = preprocessing.to_json()
    assert stored["exif"] == "ignored"
    preprocessing.save(tmp_path)
    path = tmp_path / "preprocessing.json"
    path.write_text(path.read_text().replace(',\n "exif": "ignored"', ""))  # as files were before the rule had a name
    assert "exif" not in path.read_text()
    assert Preprocessing.load(tmp_path) == preprocessing
    model = {"name": "m", "image_tower_sha256": "0"}
    older, newer = ({"model": model, "preprocessing": fields} for fields in (dict(stored), stored))
    del older["preprocessing"]["exif"]
    assert not update_differences(newer, older)
    index = types.SimpleNamespace(encoder=older)
    check_same_encoder(index, newer, store="s")
    newer["preprocessing"] = {**stored, "exif": "turned"}  # of a later version
    assert update_differences(newer, older)
    with pytest.raises(UserError, match="cannot be"):
        check_same_encoder(index, newer, store="s")
