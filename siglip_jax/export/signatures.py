"""The signatures of exported towers, in TensorFlow's operations; the module comes as `tf`.

All but the last give "embedding", unit-norm float32 [n, d] or what `smaller_graph` makes of it, and take batches of any
size from 1.

    serving_default   image_bytes   string [n]              encoded pictures, `image_formats.SERVED`
    pixels            pixels        float32 [n, h, w, 3]    what the tower takes
    patches           pixels, shape float32 [n, N, values] and int32 [n, 2], what a NaFlex tower takes: `Patches`
    features          by name       float32 [n, numbers]    an adapter's stored vectors
    text_ids          ids           int32 [n, length]       token ids
    text              text          string [n]              titles
    scores            image_bytes, and ids or text          "logits" float32 [n, m]: exp(t) <image, text> + b

An adapter that is joined with its encoders has all three, "pixels" by name and of uint8: a picture for each encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from siglip_jax.export.image_graph import decode_rows
from siglip_jax.preprocessing import MAX_IMAGE_PIXELS, Patches, Preprocessing
from siglip_jax.preprocessing.image_formats import SERVED

IMAGE_BYTES = "image_bytes"  # TensorFlow Serving's REST writes bytes as {"b64": ...}, and such names end in _bytes
Embedding = Callable[[Any], dict[str, Any]]  # of a batch of what the tower takes


class GraphEncoder(Protocol):
    """An encoder that can be written in TensorFlow's operations.

    Attributes:
      preprocessing: of the pictures that it takes.
      description: for the manifest.
      in_graph: (tf, float32 [n, h, w, 3] of whole numbers 0 to 255) -> float32 [n, d].
      in_graph_keeps: what holds its variables and is saved with the graph; None where there are none.
    """

    preprocessing: Preprocessing
    description: dict[str, Any]
    in_graph_keeps: Any

    def in_graph(self, tf: Any, images: Any, /) -> Any: ...


def picture_signatures(tf: Any, preprocessing: Preprocessing, embedding: Embedding) -> dict[str, Any]:
    """Of a tower of pictures."""
    height, width = preprocessing.image_size

    # autograph=False: nothing here is Python control flow, and AutoGraph would try to rewrite JAX itself.
    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.float32, name="pixels")], autograph=False)
    def pixels(pixels: Any) -> dict[str, Any]:
        return embedding(pixels)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)], autograph=False)
    def serving_default(image_bytes: Any) -> dict[str, Any]:
        resized = decode_rows(tf, image_bytes, {"": preprocessing})[""]
        low, high = preprocessing.value_range
        return embedding(resized * ((high - low) / 255) + low)

    return {"serving_default": serving_default, "pixels": pixels}


def patch_signatures(tf: Any, preprocessing: Preprocessing, embedding: Embedding) -> dict[str, Any]:
    """Of a tower of NaFlex pictures."""
    most, values = preprocessing.row_shape
    low, high = preprocessing.value_range
    specs = [
        tf.TensorSpec([None, most, values], tf.float32, name="pixels"),
        tf.TensorSpec([None, 2], tf.int32, name="shape"),
    ]

    @tf.function(input_signature=specs, autograph=False)
    def patches(pixels: Any, shape: Any) -> dict[str, Any]:
        fits = tf.reduce_all(shape >= 1) & tf.reduce_all(shape <= most)
        fits &= tf.reduce_all(tf.reduce_prod(shape, axis=1) <= most)
        check = tf.debugging.Assert(fits, [f"shape: expected rows and columns of patches, {most} at most together"])
        with tf.control_dependencies([check]):
            return embedding(Patches(tf.identity(pixels), tf.identity(shape)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)], autograph=False)
    def serving_default(image_bytes: Any) -> dict[str, Any]:
        pixels, shape = decode_rows(tf, image_bytes, {"": preprocessing})[""]
        exists = tf.sequence_mask(tf.reduce_prod(shape, axis=1), most, dtype=tf.float32)[..., None]
        return embedding(Patches(pixels * ((high - low) / 255) + low * exists, shape))

    return {"serving_default": serving_default, "patches": patches}


def feature_signatures(tf: Any, dimensions: dict[str, int], embedding: Embedding) -> dict[str, Any]:
    """Of an adapter, {name: numbers} of whose vectors are `dimensions`."""
    specs = {name: tf.TensorSpec([None, numbers], tf.float32, name=name) for name, numbers in dimensions.items()}

    @tf.function(input_signature=[specs], autograph=False)
    def features(vectors: Any) -> dict[str, Any]:
        return embedding(dict(vectors))

    return {"features": features}


def encoder_signatures(
    tf: Any, encoders: Mapping[str, GraphEncoder], dimensions: dict[str, int], embedding: Embedding
) -> dict[str, Any]:
    """Of an adapter behind the encoders of all its inputs, by name."""
    preprocessings = {name: encoders[name].preprocessing for name in dimensions}
    sizes = {name: (*preprocessing.image_size, 3) for name, preprocessing in preprocessings.items()}

    def joined(pictures: dict[str, Any]) -> dict[str, Any]:
        vectors = {name: encoders[name].in_graph(tf, pictures[name]) for name in dimensions}
        return embedding({name: tf.ensure_shape(x, [None, dimensions[name]]) for name, x in vectors.items()})

    specs = {name: tf.TensorSpec([None, *size], tf.uint8, name=name) for name, size in sizes.items()}

    @tf.function(input_signature=[specs], autograph=False)
    def pixels(pictures: Any) -> dict[str, Any]:
        return joined({name: tf.cast(picture, tf.float32) for name, picture in pictures.items()})

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)], autograph=False)
    def serving_default(image_bytes: Any) -> dict[str, Any]:
        return joined(decode_rows(tf, image_bytes, preprocessings))

    return {"serving_default": serving_default, "pixels": pixels}


def text_signatures(
    tf: Any, length: int, embedding: Embedding, tokenize: Callable[[Any], Any] | None
) -> dict[str, Any]:
    """Of a text tower that takes `length` ids; `tokenize`: string [n] -> int32 [n, length], None without strings."""

    @tf.function(input_signature=[tf.TensorSpec([None, length], tf.int32, name="ids")], autograph=False)
    def text_ids(ids: Any) -> dict[str, Any]:
        return embedding(ids)

    if tokenize is None:
        return {"text_ids": text_ids}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")], autograph=False)
    def text(text: Any) -> dict[str, Any]:
        return embedding(tokenize(text))

    return {"text_ids": text_ids, "text": text}


def score_signature(tf: Any, signatures: Mapping[str, Any], *, t: Any, b: Any) -> dict[str, Any]:
    """Logits of every picture with every text, of whole embeddings; t, b: float32 [1], log temperature and bias."""
    of_text = signatures.get("text", signatures["text_ids"])
    (spec,) = of_text.input_signature
    pictures = tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)

    @tf.function(input_signature=[pictures, spec], autograph=False)
    def scores(image_bytes: Any, texts: Any) -> dict[str, Any]:
        image, text = signatures["serving_default"](image_bytes), of_text(texts)
        cosines = tf.matmul(image["embedding"], text["embedding"], transpose_b=True)
        return {"logits": tf.exp(t) * cosines + b}

    return {"scores": scores}


def described(
    names: Collection[str],
    dimensions: Mapping[str, int],
    encoders: Mapping[str, GraphEncoder] | None,
    *,
    text_length: int,
    patches: tuple[int, ...] = (),
) -> dict[str, str]:
    """What a manifest says of the signatures `names`, of an adapter where there are `dimensions`.

    `patches` is (N, values) of a NaFlex model.
    """
    formats = f"{', '.join(SERVED)} (WEBP from TensorFlow 2.20 on)"
    pictures = f"{IMAGE_BYTES}: string [n], {formats}, at most {MAX_IMAGE_PIXELS} pixels each"
    pixels = "pixels: float32 [n, h, w, 3]"
    if encoders:
        sizes = {name: encoders[name].preprocessing.image_size for name in dimensions}
        pixels = ", ".join(f"{name}: uint8 [n, {height}, {width}, 3]" for name, (height, width) in sizes.items())
    ids, strings = f"ids: int32 [n, {text_length}]", "text: string [n], needs tensorflow-text"
    said = {
        "serving_default": pictures,
        "pixels": pixels,
        "patches": "pixels: float32 [n, {}, {}], zeros where there is no patch; shape: int32 [n, 2], how many rows and "
        "columns of patches".format(*patches or ("N", "values")),
        "features": ", ".join(f"{name}: float32 [n, {numbers}]" for name, numbers in dimensions.items()),
        "text_ids": ids,
        "text": strings,
        "scores": f"{pictures}; {strings if 'text' in names else ids}",
    }
    return {name: said[name] for name in names}
