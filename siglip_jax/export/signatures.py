"""The signatures of an exported image tower, in TensorFlow's operations; the module comes as `tf`.

All give "embedding", unit-norm float32 [n, d], and take batches of any size from 1.

    serving_default   image    string [n]              JPEG or PNG
    pixels            pixels   float32 [n, h, w, 3]    what the tower takes
    features          by name  float32 [n, numbers]    an adapter's stored vectors
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from siglip_jax.export.image_graph import decode_and_resize
from siglip_jax.preprocessing import Preprocessing

Embedding = Callable[[Any], dict[str, Any]]  # of a batch of what the tower takes


def picture_signatures(tf: Any, preprocessing: Preprocessing, embedding: Embedding) -> dict[str, Any]:
    """Of a tower of pictures."""
    height, width = preprocessing.image_size

    # autograph=False: nothing here is Python control flow, and AutoGraph would try to rewrite JAX itself.
    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 3], tf.float32, name="pixels")], autograph=False)
    def pixels(pixels: Any) -> dict[str, Any]:
        return embedding(pixels)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image")], autograph=False)
    def serving_default(image: Any) -> dict[str, Any]:
        resized = tf.map_fn(
            lambda encoded: decode_and_resize(tf, encoded, preprocessing),
            image,
            fn_output_signature=tf.TensorSpec([height, width, 3], tf.float32),
        )
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


def described(model_inputs: dict[str, int]) -> dict[str, str]:
    """What a manifest says of the signatures, of an adapter where there are inputs by name."""
    if model_inputs:
        return {"features": ", ".join(f"{name}: float32 [n, {numbers}]" for name, numbers in model_inputs.items())}
    return {"serving_default": "image: string [n], JPEG or PNG", "pixels": "float32 [n, h, w, 3]"}
