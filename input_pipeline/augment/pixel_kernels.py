"""Changes to every pixel of a batch, in place, in machine code.

numpy takes five to twenty times as long, for most of them longer than decoding the picture, and much of that for fresh
memory. The module takes a second to import: `augment` and `colour` import it when needed.
"""

from __future__ import annotations

import numba
import numpy as np

from siglip_jax.preprocessing.numba_jit import compiled

_IMAGES = numba.uint8[:, :, :, ::1]
_PIXELS = numba.uint8[:, ::1]


@compiled(numba.void(_IMAGES, numba.boolean[::1]))
def mirror(images: np.ndarray, chosen: np.ndarray) -> None:
    """The chosen ones of uint8 [b, h, w, 3], left to right."""
    count, height, width, _ = images.shape
    for k in range(count):
        if not chosen[k]:
            continue
        for y in range(height):
            row = images[k, y]
            for x in range(width // 2):
                other = width - 1 - x
                for c in range(3):
                    row[x, c], row[other, c] = row[other, c], row[x, c]


@compiled(numba.void(_IMAGES, numba.int64[:, ::1], numba.int64[:, ::1]))
def move(images: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
    """Pixel (i, j) of uint8 [b, h, w, 3] becomes the one that was at (y[b, i], x[b, j])."""
    count, height, width, _ = images.shape
    before = np.empty((height, width, 3), np.uint8)
    for k in range(count):
        before[:] = images[k]
        for i in range(height):
            row, source = images[k, i], before[y[k, i]]
            for j in range(width):
                for c in range(3):
                    row[j, c] = source[x[k, j], c]


@compiled(numba.int64[::1](_PIXELS))
def channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Of uint8 [n, 3], int64 [3]."""
    sums = np.zeros(3, np.int64)
    for k in range(len(pixels)):
        for c in range(3):
            sums[c] += pixels[k, c]
    return sums


@compiled(numba.void(_PIXELS, numba.float32[:, ::1], numba.float32))
def recolour(pixels: np.ndarray, matrix: np.ndarray, offset: float) -> None:
    """uint8 [n, 3] times float32 [3, 3] plus the offset, in float32, cut to 0 ... 255 and rounded half to even."""
    for k in range(len(pixels)):
        red, green, blue = np.float32(pixels[k, 0]), np.float32(pixels[k, 1]), np.float32(pixels[k, 2])
        for c in range(3):
            level = red * matrix[c, 0] + green * matrix[c, 1] + blue * matrix[c, 2] + offset
            pixels[k, c] = np.uint8(np.rint(min(max(level, np.float32(0)), np.float32(255))))
