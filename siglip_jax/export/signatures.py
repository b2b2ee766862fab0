"""The signatures of an exported image tower, in TensorFlow's operations; the module comes as `tf`.

All give "embedding", unit-norm float32 [n, d], and take batches of any size from 1.

    serving_default   image    string [n]              encoded pictures, `image_formats.SERVED`
    pixels            pixels   float32 [n, h, w, 3]    what the tower takes
    features          by name  float32 [n, numbers]    an adapter's stored vectors

An adapter that is joined with its encoders has all three, "pixels" by name and of uint8: a picture for each encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from siglip_jax.export.image_graph import decode_rows
from siglip_jax.preprocessing import MAX_IMAGE_PIXELS, Preprocessing
from siglip_jax.preprocessing.image_formats import SERVED

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

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")], autograph=False)
    def serving_default(image: Any) -> dict[str, Any]:
        resized = decode_rows(tf, image, {"": preprocessing})[""]
        low, high = preprocessing.value_range
        return embedding(resized * ((high - low) / 255) + low)

    return {"serving_default": serving_default, "pixels": pixels}


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

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")], autograph=False)
    def serving_default(image: Any) -> dict[str, Any]:
        return joined(decode_rows(tf, image, preprocessings))

    return {"serving_default": serving_default, "pixels": pixels}


def described(dimensions: dict[str, int], encoders: Mapping[str, GraphEncoder] | None) -> dict[str, str]:
    """What a manifest says of the signatures, of an adapter where there are `dimensions`."""
    formats = f"{', '.join(SERVED)} (WEBP from TensorFlow 2.20 on)"
    bytes_in = {"serving_default": f"image: string [n], {formats}, at most {MAX_IMAGE_PIXELS} pixels each"}
    if not dimensions:
        return bytes_in | {"pixels": "float32 [n, h, w, 3]"}
    vectors = {"features": ", ".join(f"{name}: float32 [n, {numbers}]" for name, numbers in dimensions.items())}
    if not encoders:
        return vectors
    sizes = {name: encoders[name].preprocessing.image_size for name in dimensions}
    pictures = (f"{name}: uint8 [n, {height}, {width}, 3]" for name, (height, width) in sizes.items())
    return bytes_in | {"pixels": ", ".join(pictures)} | vectors
