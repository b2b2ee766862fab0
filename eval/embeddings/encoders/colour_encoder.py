"""How much of a picture has which colour, as an embedding: a histogram, blind to where. No network, no file."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from eval.embeddings.encoders.pixel_encoder import numbers_of
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing

PREFIX = "colours:"
MOST_BINS = 4096
_SIDE = 32  # pixels of the resized picture; more change no histogram of a product photo
_A_AND_B = 60.0  # the outermost bins of a and b: what is more colourful counts there
# sRGB (IEC 61966-2-1) to XYZ, each divided by that of white (D65), so that white is (1, 1, 1).
_XYZ = np.array(
    [[0.4123908, 0.3575843, 0.1804808], [0.2126390, 0.7151687, 0.0721923], [0.0193308, 0.1191948, 0.9505322]]
)
_XYZ /= _XYZ.sum(axis=1, keepdims=True)
_DARK = 216 / 24389


class ColourEncoder:
    """`colours:LxAxB`, such as colours:6x7x7: a joint histogram in CIELAB, in which equal distances look about equal.

    6 levels of lightness, 7 from green to red and 7 from blue to yellow: odd, so that greys have bins of their own.
    Each pixel is shared out between the 8 nearest bins by its distances (trilinear), so that a colour at an edge does
    not jump. The embedding is the square root of the shares: its inner product is the Bhattacharyya coefficient of two
    histograms, its norm is 1, and so it is never zero.

    Attributes:
      preprocessing: of the pictures that `encode_image` takes.
      description: name and formula, for manifests.
    """

    in_graph_keeps = None

    def __init__(self, name: str):
        """UserError: a name without three numbers of bins, fewer than two bins along one, or too many."""
        self._bins = numbers_of(
            name, prefix=PREFIX, count=3, expected="colours:LxAxB, bins of lightness, a and b, such as colours:6x7x7"
        )
        if min(self._bins) < 2 or np.prod(self._bins) > MOST_BINS:
            raise UserError(
                f"--model={name}: expected at least 2 bins along each and {MOST_BINS} in all, such as 6x7x7"
            )
        self.preprocessing = Preprocessing(image_size=(_SIDE, _SIDE))
        self.description: dict[str, Any] = {"name": name, "formula": "soft CIELAB histogram, square root, formula 1"}

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, 32, 32, 3] -> float32 [n, L * A * B], of norm 1."""
        pixels = lab(images.reshape(len(images), -1, 3))
        lowest, highest = np.array([0, -_A_AND_B, -_A_AND_B]), np.array([100, _A_AND_B, _A_AND_B])
        bins = np.array(self._bins)
        places = np.clip((pixels - lowest) / (highest - lowest), 0, 1) * (bins - 1)
        lower = np.minimum(places.astype(np.int64), bins - 2)
        share = places - lower  # of the upper of two bins
        size, counts = int(bins.prod()), np.zeros(len(images) * int(bins.prod()))
        strides, first = np.array([bins[1] * bins[2], bins[2], 1]), size * np.arange(len(images))[:, None]
        for corner in itertools.product((0, 1), repeat=3):
            weight = np.where(corner, share, 1 - share).prod(axis=-1)
            counts += np.bincount(
                (first + ((lower + corner) * strides).sum(axis=-1)).ravel(), weight.ravel(), minlength=len(counts)
            )
        return np.sqrt(counts.reshape(len(images), size) / pixels.shape[1]).astype(np.float32)

    def in_graph(self, tf: Any, images: Any) -> Any:
        """`encode_image` in TensorFlow's operations, see `siglip_jax.export.signatures.GraphEncoder`.

        A pixel's share of a bin is max(0, 1 - distance) along each axis, multiplied: the same, without 8 corners.
        """
        pixels, count = tf.cast(tf.reshape(images, [-1, _SIDE * _SIDE, 3]), tf.int32), _SIDE * _SIDE
        linear = tf.gather(tf.constant(_linear_levels()), pixels)
        x, y, z = (tf.reduce_sum(linear * row, axis=-1) for row in _XYZ)
        x, y, z = (tf.where(v > _DARK, tf.maximum(v, _DARK) ** (1 / 3), _dark_line(v)) for v in (x, y, z))
        axes = ((116 * y - 16, 0, 100), (500 * (x - y), -_A_AND_B, _A_AND_B), (200 * (y - z), -_A_AND_B, _A_AND_B))
        shares = []
        for (values, low, high), bins in zip(axes, self._bins, strict=True):
            places = tf.clip_by_value((values - low) / (high - low), 0, 1) * (bins - 1)
            distances = tf.abs(places[..., None] - tf.range(bins, dtype=tf.float64))
            shares.append(tf.maximum(1 - distances, 0))
        levels, a, b = self._bins
        both = tf.reshape(shares[0][..., None] * shares[1][:, :, None], [-1, count, levels * a])
        counts = tf.reshape(tf.matmul(both, shares[2], transpose_a=True), [-1, levels * a * b])
        return tf.cast(tf.sqrt(counts / count), tf.float32)


def lab(srgb: np.ndarray) -> np.ndarray:
    """uint8 sRGB [..., 3] -> CIELAB float64 [..., 3] of white point D65: L 0 to 100, a and b about -110 to 100."""
    linear = _linear_levels()[srgb]
    # Sums, not a matrix product, whose last bits depend on how many pixels there are.
    x, y, z = (linear[..., 0] * row[0] + linear[..., 1] * row[1] + linear[..., 2] * row[2] for row in _XYZ)
    x, y, z = (np.where(v > _DARK, np.cbrt(v), _dark_line(v)) for v in (x, y, z))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _linear_levels() -> np.ndarray:
    """float64 [256]: the light of each sRGB level."""
    levels = np.arange(256) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _dark_line(v: Any) -> Any:
    """What CIELAB has in the place of the cube root up to _DARK."""
    return (24389 / 27 * v + 16) / 116
