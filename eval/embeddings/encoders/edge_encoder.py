"""Where in the picture edges run in which direction, as an embedding: shape and texture without colour. No network.

A histogram of oriented gradients (Dalal and Triggs 2005), without their blocks: the square root evens out contrast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.embeddings.encoders.pixel_encoder import numbers_of
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

PREFIX = "edges:"
MOST_NUMBERS = 4096
_CELL = 10  # pixels along each side of a cell
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
# Added to each sum, which an edge of full contrast through a cell brings to about 10: a blank picture then has no
# direction more than another, and yet a vector that is not zero.
_NO_EDGE = 0.01


class EdgeEncoder:
    """`edges:HEIGHTxWIDTHxDIRECTIONS`, such as edges:8x6x8: in each of 8 x 6 cells, gradients by 8 directions.

    The picture is resized to 10 pixels a cell and made grey. Each pixel adds the length of its gradient to its cell,
    shared out between the two nearest directions; a direction and its opposite are one. The embedding is the square
    root of the sums.

    Attributes:
      preprocessing: of the pictures that `encode_image` takes.
      description: name and formula, for manifests.
    """

    in_graph_keeps = None

    def __init__(self, name: str):
        """UserError: a name without three numbers, fewer than two directions, or too many numbers."""
        self._shape = numbers_of(
            name, prefix=PREFIX, count=3, expected="edges:HEIGHTxWIDTHxDIRECTIONS, such as edges:8x6x8"
        )
        height, width, directions = self._shape
        if directions < 2 or np.prod(self._shape) > MOST_NUMBERS:
            raise UserError(
                f"--model={name}: expected at least 2 directions and {MOST_NUMBERS} numbers in all, such as 8x6x8"
            )
        self.preprocessing = Preprocessing(image_size=(_CELL * height, _CELL * width))
        self.description: dict[str, Any] = {"name": name, "formula": "square root of oriented gradients, formula 1"}

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, 10 height, 10 width, 3] -> float32 [n, height * width * directions], cell by cell."""
        height, width, directions = self._shape
        levels = images.astype(np.float32) / np.float32(255)
        grey = sum(np.float32(share) * levels[..., channel] for channel, share in enumerate(_GREY))
        down, right = np.gradient(grey, axis=(1, 2))
        length = np.hypot(down, right)
        place = np.arctan2(down, right) / np.pi * directions  # half a turn is one round
        lower = np.floor(place)
        share = place - lower
        sums = np.empty((len(images), height, width, directions), np.float32)
        for direction in range(directions):
            at = np.where(lower % directions == direction, 1 - share, 0)
            at += np.where((lower + 1) % directions == direction, share, 0)
            cells = (at * length).reshape(len(images), height, _CELL, width, _CELL)
            sums[..., direction] = cells.sum(axis=(2, 4), dtype=np.float32)
        return np.sqrt(sums + np.float32(_NO_EDGE)).reshape(len(images), -1)

    def in_graph(self, tf: Any, images: Any) -> Any:
        """`encode_image` in TensorFlow's operations, see `siglip_jax.export.signatures.GraphEncoder`."""
        height, width, directions = self._shape
        grey = tf.reduce_sum(images / 255 * tf.constant(_GREY), axis=-1)
        down, right = _slopes(tf, grey), tf.transpose(_slopes(tf, tf.transpose(grey, [0, 2, 1])), [0, 2, 1])
        length = tf.sqrt(down * down + right * right)
        place = tf.math.atan2(down, right) / np.float32(np.pi) * directions
        lower = tf.floor(place)
        share, number = (place - lower)[..., None], tf.cast(lower, tf.int32)[..., None]
        each = tf.range(directions)
        at = tf.where(tf.math.floormod(number, directions) == each, 1 - share, 0.0)
        at += tf.where(tf.math.floormod(number + 1, directions) == each, share, 0.0)
        cells = tf.reshape(at * length[..., None], [-1, height, _CELL, width, _CELL, directions])
        sums = tf.reduce_sum(cells, axis=[2, 4])
        return tf.reshape(tf.sqrt(sums + _NO_EDGE), [-1, height * width * directions])


def _slopes(tf: Any, grey: Any) -> Any:
    """np.gradient along axis 1 of float32 [n, h, w]."""
    inner = (grey[:, 2:] - grey[:, :-2]) / 2
    return tf.concat([grey[:, 1:2] - grey[:, :1], inner, grey[:, -1:] - grey[:, -2:-1]], axis=1)
