"""Resizing in machine code: PIL's antialiased filters, to the bit, and big_vision's bilinear without antialias.

PIL's own loops take two to five times as long as decoding the JPEG. No kept library resizes to the same pixels: OpenCV
and kornia-rs do not antialias with these filters, libvips places the samples elsewhere, fast_image_resize is off by up
to two grey levels (`siglip-jax bench input --libraries`). So Pillow's Resample.c is written out here for numba, in an
order that vectorises. Threads run at once: the GIL is released.

The module takes a second to import, and a few more the first time on a machine: `pictures` imports it when needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_BITS = 22  # of the fraction of a weight, as in Pillow: 32 bits less 8 of a pixel less 2 for sums and negative lobes
_BLOCK = 16  # rows that pass through the horizontal filter together
_LANES = 3 * _BLOCK
_WIDEST = 2**16  # source columns of a block that are laid side by side at a time: bounds the memory of a long strip

_PICTURE = numba.types.Array(numba.types.uint8, 3, "C", readonly=True)  # a writeable one is taken as well
_OUTPUT = numba.types.uint8[:, :, ::1]


def _compiled(*signatures: Any) -> Callable[[Any], Any]:
    """numba.njit, kept on disk where there is a folder to write to, next to the source or in the user's own cache."""

    njit: Any = numba.njit
    options = dict(nogil=True, boundscheck=False, error_model="numpy")

    def decorate(function: Any) -> Any:
        try:
            return njit(*signatures, cache=True, **options)(function)
        except RuntimeError:  # numba: no locator available
            return njit(*signatures, **options)(function)

    return decorate


@_compiled()
def _weights(old, new, bicubic):
    """Pillow's precompute_coeffs and normalize_coeffs_8bpc.

    Returns:
      For each of `new` samples its first source pixel, the number of them, and their weights times 2**_BITS:
      int64 [new], int64 [new], int32 [new, most].
    """
    scale = old / new
    stretch = max(scale, 1.0)
    reach = (2.0 if bicubic else 1.0) * stretch
    most = int(np.ceil(reach)) * 2 + 2
    first, count = np.empty(new, np.int64), np.empty(new, np.int64)
    fixed, weights = np.zeros((new, most), np.int32), np.empty(most, np.float64)
    for x in range(new):
        center = (x + 0.5) * scale
        low, high = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), old)
        first[x], count[x] = low, high - low
        total = 0.0
        for k in range(high - low):
            distance = abs((k + low - center + 0.5) * (1.0 / stretch))
            weight = 0.0
            if not bicubic:
                weight = max(1.0 - distance, 0.0)
            elif distance < 1.0:  # Keys' cubic with a = -0.5
                weight = (1.5 * distance - 2.5) * distance * distance + 1.0
            elif distance < 2.0:
                weight = (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5
            weights[k] = weight
            total += weight
        for k in range(high - low):
            weight = weights[k] / total * (1 << _BITS)
            fixed[x, k] = int(weight + 0.5) if weight >= 0 else int(weight - 0.5)
    return first, count, fixed


@_compiled()
def _along_width(image, out, bicubic):
    """[height, W, 3] -> [height, w, 3].

    The pixels of _BLOCK rows that share a column are laid side by side first, so that their sums are one vector.
    """
    width, bits, half = out.shape[1], np.int32(_BITS), np.int32(1 << (_BITS - 1))
    first, count, weights = _weights(image.shape[1], width, bicubic)
    strip = min(max(_WIDEST * width // image.shape[1], 1), width)  # columns of `out` at a time, all of most pictures
    span = 0
    for start in range(0, width, strip):
        last = min(start + strip, width) - 1
        span = max(span, first[last] + count[last] - first[start])
    turned, filtered = np.empty((span, _LANES), np.uint8), np.empty((strip, _LANES), np.uint8)
    sums = np.empty(_LANES, np.int32)
    for top in range(0, image.shape[0], _BLOCK):
        rows = min(_BLOCK, image.shape[0] - top)
        for start in range(0, width, strip):
            columns = min(strip, width - start)
            origin = first[start]
            used = first[start + columns - 1] + count[start + columns - 1] - origin
            for r in range(rows):
                row = image[top + r]
                for x in range(used):
                    turned[x, 3 * r] = row[origin + x, 0]
                    turned[x, 3 * r + 1] = row[origin + x, 1]
                    turned[x, 3 * r + 2] = row[origin + x, 2]
            for x in range(columns):
                for i in range(_LANES):
                    sums[i] = half
                place, taps = first[start + x] - origin, count[start + x]
                for k in range(0, taps, 2):
                    weight, pixels = weights[start + x, k], turned[place + k]
                    other, others = weights[start + x, k + 1], turned[place + min(k + 1, taps - 1)]
                    for i in range(_LANES):
                        sums[i] += np.int32(pixels[i]) * weight + np.int32(others[i]) * other
                levels = filtered[x]
                for i in range(_LANES):
                    levels[i] = np.uint8(min(max(sums[i] >> bits, np.int32(0)), np.int32(255)))
            for r in range(rows):
                row = out[top + r]
                for x in range(columns):
                    row[start + x, 0] = filtered[x, 3 * r]
                    row[start + x, 1] = filtered[x, 3 * r + 1]
                    row[start + x, 2] = filtered[x, 3 * r + 2]


@_compiled()
def _along_height(image, out, bicubic):
    """[H, width, 3] -> [h, width, 3]."""
    first, count, weights = _weights(image.shape[0], out.shape[0], bicubic)
    lanes, bits, half = 3 * out.shape[1], np.int32(_BITS), np.int32(1 << (_BITS - 1))
    source, target = image.reshape(image.shape[0], lanes), out.reshape(out.shape[0], lanes)
    sums = np.empty(lanes, np.int32)
    for y in range(out.shape[0]):
        for i in range(lanes):
            sums[i] = half
        for k in range(0, count[y], 2):
            weight, pixels = weights[y, k], source[first[y] + k]
            other, others = weights[y, k + 1], source[first[y] + min(k + 1, count[y] - 1)]
            for i in range(lanes):
                sums[i] += np.int32(pixels[i]) * weight + np.int32(others[i]) * other
        levels = target[y]
        for i in range(lanes):
            levels[i] = np.uint8(min(max(sums[i] >> bits, np.int32(0)), np.int32(255)))


@_compiled(numba.void(_PICTURE, _OUTPUT, numba.boolean))
def resample(image, out, bicubic):
    """uint8 [H, W, 3] -> `out`, uint8 [h, w, 3], both in row-major order: bilinear or bicubic, widened when shrinking.

    One axis after the other, rounded to grey levels in between. The order shows where bicubic overshoots: it is that
    of Pillow 13, the width first unless the height shrinks by more than twice as many pixels (earlier ones: always).
    """
    height, width = image.shape[:2]
    h, w = out.shape[:2]
    if h < height and height - h > 2 * (width - w):
        between = np.empty((h, width, 3), np.uint8)
        _along_height(image, between, bicubic)
        _along_width(between, out, bicubic)
    else:
        between = np.empty((height, w, 3), np.uint8)
        _along_width(image, between, bicubic)
        _along_height(between, out, bicubic)


@_compiled()
def _taps(old, new):
    """Lower index, upper index and the upper one's weight for each of `new` half-pixel-centred samples."""
    lower, upper, weight = np.empty(new, np.int64), np.empty(new, np.int64), np.empty(new, np.float32)
    for x in range(new):
        position = (np.float32(x) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
        floor = np.floor(position)
        lower[x], upper[x] = min(max(int(floor), 0), old - 1), min(max(int(floor) + 1, 0), old - 1)
        weight[x] = position - floor
    return lower, upper, weight


@_compiled(numba.void(_PICTURE, _OUTPUT))
def resample_no_antialias(image, out):
    """uint8 [H, W, 3] -> `out`, uint8 [h, w, 3]: between the four nearest pixels, in float32, along the height first.

    Truncated, as tf.cast does in big_vision's resize. Rows that are not looked at are not read.
    """
    above, below, down = _taps(image.shape[0], out.shape[0])
    left, right, across = _taps(image.shape[1], out.shape[1])
    source, target = image.reshape(image.shape[0], 3 * image.shape[1]), out.reshape(out.shape[0], 3 * out.shape[1])
    one, lanes, sparse = np.float32(1), source.shape[1], image.shape[1] > 4 * out.shape[1]
    between = np.empty(lanes, np.float32)
    for y in range(out.shape[0]):
        upper, lower, levels = source[above[y]], source[below[y]], target[y]
        v, u = down[y], one - down[y]
        if sparse:
            for x in range(out.shape[1]):
                for start in (3 * left[x], 3 * right[x]):
                    for lane in range(start, start + 3):
                        between[lane] = np.float32(upper[lane]) * u + np.float32(lower[lane]) * v
        else:  # whole rows, of which few pixels are not needed: one vector
            for lane in range(lanes):
                between[lane] = np.float32(upper[lane]) * u + np.float32(lower[lane]) * v
        for x in range(out.shape[1]):
            # Unsigned, since numba looks for negative indices otherwise.
            i, j, k = np.uintp(3 * left[x]), np.uintp(3 * right[x]), np.uintp(3 * x)
            s, t = across[x], one - across[x]
            levels[k] = np.uint8(np.int32(between[i] * t + between[j] * s))
            levels[k + np.uintp(1)] = np.uint8(np.int32(between[i + np.uintp(1)] * t + between[j + np.uintp(1)] * s))
            levels[k + np.uintp(2)] = np.uint8(np.int32(between[i + np.uintp(2)] * t + between[j + np.uintp(2)] * s))
