"""Coarse pixels as an embedding: where in the picture which colour is. No network, no file, only a size in the name.

The simplest encoder there is: a row that every network should beat, and an input that tells an adapter what a network
of ImageNet does not keep, shape and colour as they are.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

PREFIX = "pixels:"
MOST_PIXELS = 4096  # 12,288 numbers an item; more is no summary of a picture
_FINER = 4  # pixels of the resized picture along each side of one coarse pixel
# Means of 16 levels are sixteenths. This grey lies between two of them, so that no number is zero, and no vector: a
# store refuses vectors without a direction.
_GREY = np.float32(127.5 + 1 / 32)


class PixelEncoder:
    """`pixels:HEIGHTxWIDTH`, such as pixels:16x12 for pictures that are 4 high and 3 wide: means of areas.

    The picture is resized to four times the size, bilinear with antialias, and means are taken over squares of 4 x 4
    pixels: of whole levels, and yet finer than whole levels. Grey is (nearly) 0, black -1 and white 1.

    Attributes:
      preprocessing: of the pictures that `encode_image` takes.
      description: name and formula, for manifests.
    """

    in_graph_keeps = None

    def __init__(self, name: str):
        """UserError: a name without a size, or with too large a one."""
        height, width = numbers_of(name, prefix=PREFIX, count=2, expected="pixels:HEIGHTxWIDTH, such as pixels:16x12")
        if height * width > MOST_PIXELS:
            raise UserError(f"--model={name}: {height * width} pixels; expected at most {MOST_PIXELS}, such as 16x12")
        self._size = height, width
        self.preprocessing = Preprocessing(image_size=(_FINER * height, _FINER * width))
        self.description: dict[str, Any] = {"name": name, "formula": "area means, minus grey, formula 1"}

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, 4 height, 4 width, 3] -> float32 [n, height * width * 3], row by row, red, green, blue."""
        height, width = self._size
        squares = images.reshape(len(images), height, _FINER, width, _FINER, 3)
        means = squares.mean(axis=(2, 4), dtype=np.float32)
        return ((means - _GREY) / np.float32(127.5)).reshape(len(images), -1)

    def in_graph(self, tf: Any, images: Any) -> Any:
        """`encode_image` in TensorFlow's operations, see `siglip_jax.export.signatures.GraphEncoder`."""
        height, width = self._size
        means = tf.reduce_mean(tf.reshape(images, [-1, height, _FINER, width, _FINER, 3]), axis=[2, 4])
        return tf.reshape((means - _GREY) / 127.5, [-1, height * width * 3])


def numbers_of(name: str, *, prefix: str, count: int, expected: str) -> tuple[int, ...]:
    """ "pixels:16x12" -> (16, 12); a UserError where it is not `count` whole numbers from 1 to 9999."""
    parts = name.removeprefix(prefix).split("x")
    if len(parts) != count or not all(re.fullmatch("[1-9][0-9]{0,3}", part) for part in parts):
        raise UserError(f"--model={name}: expected {expected}")
    return tuple(int(part) for part in parts)
