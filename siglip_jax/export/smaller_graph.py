"""Smaller embeddings in TensorFlow's operations: fewer numbers, one byte a number; the module comes as `tf`.

What `eval.embeddings.reduction` and the stores' int8 do, in the same order and types, so that an index over reduced
vectors is asked with the numbers it holds.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

LARGEST = 127  # of int8: symmetric, so that a vector and its opposite stay opposite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smaller:
    """What becomes of an embedding.

    Attributes:
      width: of the result.
      mean, components: of a PCA, float64 [d] and [d, width]; None where the first numbers are kept.
      int8: whole numbers -127 to 127, with "scale", float32 [n]: a vector is its numbers times its scale.
      described: for the manifest, such as {"reduction": "pca:64", "dimension": 768}; {} where all numbers are kept.
    """

    width: int
    mean: np.ndarray | None = None
    components: np.ndarray | None = None
    int8: bool = False
    described: dict[str, Any] = dataclasses.field(default_factory=dict)

    def in_graph(self, tf: Any, embedding: Any) -> dict[str, Any]:
        """float32 [n, d] of unit norm -> {"embedding": float32 [n, width] of unit norm}, or of int8 with "scale"."""
        x = tf.cast(embedding, tf.float64)
        if self.mean is not None and self.components is not None:
            # Variables would be in every signature's arguments; these are a few megabytes at most.
            x = tf.matmul(x - tf.constant(self.mean), tf.constant(self.components))
            x = tf.cast(tf.cast(x, tf.float32), tf.float64)
        else:
            x = x[:, : self.width]
        if self.described:
            x = tf.cast(tf.cast(x / tf.norm(x, axis=1, keepdims=True), tf.float32), tf.float64)
        if not self.int8:
            return {"embedding": tf.cast(x, tf.float32)}
        scale = tf.cast(tf.reduce_max(tf.abs(x), axis=1) / LARGEST, tf.float32)
        numbers = tf.clip_by_value(tf.round(x / tf.cast(scale, tf.float64)[:, None]), -LARGEST, LARGEST)
        return {"embedding": tf.cast(numbers, tf.int8), "scale": scale}

    @property
    def output(self) -> str:
        """Words for the manifest."""
        if not self.int8:
            return f"embedding: float32 [n, {self.width}], unit norm"
        return (
            f"embedding: int8 [n, {self.width}], -{LARGEST} to {LARGEST}; scale: float32 [n], largest number of the "
            f"vector / {LARGEST}; a vector is its embedding times its scale"
        )
