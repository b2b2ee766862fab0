"""Resizing in machine code: PIL's antialiased filters, to the bit, and big_vision's bilinear without antialias.

PIL's own loops take longer than decoding the JPEG. No kept library resizes to the same pixels: OpenCV and kornia-rs do
not antialias with these filters, libvips places the samples elsewhere, fast_image_resize is off by up to two grey
levels (`siglip-jax bench pictures`). So Pillow's Resample.c is written out here for numba, in vectors (`simd`).
Threads run at once: the GIL is released.

The module takes a second to import, and a few more the first time on a machine: `images` imports it when needed.
"""

from __future__ import annotations

import numba
import numpy as np

from siglip_jax.preprocessing.numba_jit import compiled
from siglip_jax.preprocessing.simd import (
    add_product,
    blend,
    floats,
    into_block,
    out_of_block,
    pixels,
    spread,
    spread_rows,
    store_levels,
    store_truncated,
)

_BITS = 22  # of the fraction of a weight, as in Pillow: 32 bits less 8 of a pixel less 2 for sums and negative lobes
_WIDEST = 2**16  # source columns of a block that are laid side by side at a time: bounds the memory of a long strip

_PICTURE = numba.types.Array(numba.types.uint8, 3, "C", readonly=True)  # a writeable one is taken as well
_OUTPUT = numba.types.uint8[:, :, ::1]

Places = tuple[int, int, int, int]  # of the first byte of each row of a block


@compiled()
def _weights(old: int, new: int, bicubic: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


@compiled()
def _places(start: int, stride: int, rows: int) -> Places:
    """Of the four rows of a block, of which there are `rows`: the last one again for those that are missing."""
    last = rows - 1
    return start, start + min(1, last) * stride, start + min(2, last) * stride, start + min(3, last) * stride


@compiled()
def _moved(places: Places, by: int) -> Places:
    return places[0] + by, places[1] + by, places[2] + by, places[3] + by


@compiled()
def _into_block(
    block: np.ndarray, source: np.ndarray, start: int, stride: int, rows: int, columns: int, room: int
) -> None:
    """`columns` pixels of each of the rows -> a block; `room` bytes may be read of a row."""
    there = 0
    while there < columns and 3 * there + 16 <= room:
        into_block(block, 16 * there, source, _places(start + 3 * there, stride, rows))
        there += 4
    for x in range(there, columns):
        places = _places(start + 3 * x, stride, rows)
        for r in range(4):
            for c in range(3):
                block[16 * x + 4 * r + c] = source[places[r] + c]


@compiled()
def _out_of_block(block: np.ndarray, target: np.ndarray, start: int, stride: int, rows: int, columns: int) -> None:
    """A block -> `columns` pixels of each of the rows."""
    for x in range(0, columns - 3, 4):
        out_of_block(target, _places(start + 3 * x, stride, rows), block, 16 * x)
    for x in range(columns // 4 * 4, columns):
        places = _places(start + 3 * x, stride, rows)
        for r in range(rows):
            for c in range(3):
                target[places[r] + c] = block[16 * x + 4 * r + c]


@compiled()
def _along_width(image: np.ndarray, out: np.ndarray, bicubic: bool) -> None:
    """[height, W, 3] -> [height, w, 3], four rows at a time."""
    height, old, new = image.shape[0], image.shape[1], out.shape[1]
    bits, half = np.int32(_BITS), np.int32(1 << (_BITS - 1))
    first, count, weights = _weights(old, new, bicubic)
    strip = min(max(_WIDEST * new // old, 1), new)  # columns of `out` at a time, all of most pictures
    span = 0
    for start in range(0, new, strip):
        last = min(start + strip, new) - 1
        span = max(span, first[last] + count[last] - first[start])
    source, target = image.reshape(-1), out.reshape(-1)
    block, filtered = np.empty(16 * (span + 3), np.uint8), np.empty(16 * strip, np.uint8)
    for top in range(0, height, 4):
        rows = min(4, height - top)
        for start in range(0, new, strip):
            columns = min(strip, new - start)
            origin = first[start]
            used = first[start + columns - 1] + count[start + columns - 1] - origin
            _into_block(block, source, 3 * (top * old + origin), 3 * old, rows, used, 3 * (old - origin))
            for x in range(columns):
                sums, place = spread(half), 16 * (first[start + x] - origin)
                for k in range(count[start + x]):
                    sums = add_product(sums, block, place + 16 * k, weights[start + x, k])
                store_levels(filtered, 16 * x, sums, bits)
            _out_of_block(filtered, target, 3 * (top * new + start), 3 * new, rows, columns)


@compiled()
def _along_height(image: np.ndarray, out: np.ndarray, bicubic: bool) -> None:
    """[H, width, 3] -> [h, width, 3]."""
    first, count, weights = _weights(image.shape[0], out.shape[0], bicubic)
    lanes, bits, half = 3 * out.shape[1], np.int32(_BITS), np.int32(1 << (_BITS - 1))
    source, target = image.reshape(-1), out.reshape(-1)
    for y in range(out.shape[0]):
        top = first[y] * lanes
        for start in range(0, lanes - 15, 16) if lanes >= 16 else range(0):
            sums = spread(half)
            for k in range(count[y]):
                sums = add_product(sums, source, top + k * lanes + start, weights[y, k])
            store_levels(target, y * lanes + start, sums, bits)
        for lane in range(lanes // 16 * 16, lanes):
            level = half
            for k in range(count[y]):
                level += np.int32(source[top + k * lanes + lane]) * weights[y, k]
            target[y * lanes + lane] = np.uint8(min(max(level >> bits, np.int32(0)), np.int32(255)))


@compiled(numba.void(_PICTURE, _OUTPUT, numba.boolean))
def resample(image: np.ndarray, out: np.ndarray, bicubic: bool) -> None:
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


@compiled()
def _taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and the upper one's weight for each of `new` half-pixel-centred samples."""
    lower, upper, weight = np.empty(new, np.int64), np.empty(new, np.int64), np.empty(new, np.float32)
    for x in range(new):
        position = (np.float32(x) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
        floor = np.floor(position)
        lower[x], upper[x] = min(max(int(floor), 0), old - 1), min(max(int(floor) + 1, 0), old - 1)
        weight[x] = position - floor
    return lower, upper, weight


@compiled()
def _no_antialias_by_rows(image: np.ndarray, out: np.ndarray) -> None:
    """Whole rows are blended, then pixels of them: for pictures of which most columns are looked at."""
    above, below, down = _taps(image.shape[0], out.shape[0])
    left, right, across = _taps(image.shape[1], out.shape[1])
    height, width, one = out.shape[0], out.shape[1], np.float32(1)
    source, target, filtered = image.reshape(image.shape[0], -1), out.reshape(-1), np.empty(16 * width, np.uint8)
    stride = source.shape[1]
    between = np.zeros(4 * stride + 1, np.float32)  # one number more is read than there are
    for top in range(0, height, 4):
        rows = min(4, height - top)
        for r in range(rows):
            y, blended = top + r, between[r * stride : (r + 1) * stride]
            upper, lower, v, u = source[above[y]], source[below[y]], down[y], one - down[y]
            for lane in range(stride):
                blended[lane] = np.float32(upper[lane]) * u + np.float32(lower[lane]) * v
        for x in range(width):
            near = floats(between, _places(3 * left[x], stride, rows))
            far = floats(between, _places(3 * right[x], stride, rows))
            store_truncated(filtered, 16 * x, blend(near, one - across[x], far, across[x]))
        _out_of_block(filtered, target, 3 * top * width, 3 * width, rows, width)


@compiled()
def _no_antialias_by_pixels(image: np.ndarray, out: np.ndarray) -> None:
    """Pixels that are not looked at are not read: for large pictures."""
    above, below, down = _taps(image.shape[0], out.shape[0])
    left, right, across = _taps(image.shape[1], out.shape[1])
    height, width, stride, one = out.shape[0], out.shape[1], 3 * image.shape[1], np.float32(1)
    source, target, filtered = image.reshape(-1), out.reshape(-1), np.empty(16 * width, np.uint8)
    for top in range(0, height, 4):
        rows = min(4, height - top)
        a, b, c, d = _places(top, 1, rows)
        upper = above[a] * stride, above[b] * stride, above[c] * stride, above[d] * stride
        lower = below[a] * stride, below[b] * stride, below[c] * stride, below[d] * stride
        v, u = (down[a], down[b], down[c], down[d]), (one - down[a], one - down[b], one - down[c], one - down[d])
        below_weight, above_weight = spread_rows(v), spread_rows(u)
        # 4 bytes are read of a pixel, and the last one of all has 3.
        end = image.shape[1] - (below[d] == image.shape[0] - 1)
        for x in range(width):
            i, j, s, t = 3 * left[x], 3 * right[x], one - across[x], across[x]
            if right[x] < end:
                near = blend(
                    pixels(source, _moved(upper, i)), above_weight, pixels(source, _moved(lower, i)), below_weight
                )
                far = blend(
                    pixels(source, _moved(upper, j)), above_weight, pixels(source, _moved(lower, j)), below_weight
                )
                store_truncated(filtered, 16 * x, blend(near, s, far, t))
                continue
            for r in range(4):
                for k in range(3):
                    left_level = (
                        np.float32(source[upper[r] + i + k]) * u[r] + np.float32(source[lower[r] + i + k]) * v[r]
                    )
                    right_level = (
                        np.float32(source[upper[r] + j + k]) * u[r] + np.float32(source[lower[r] + j + k]) * v[r]
                    )
                    filtered[16 * x + 4 * r + k] = np.uint8(np.int32(left_level * s + right_level * t))
        _out_of_block(filtered, target, 3 * top * width, 3 * width, rows, width)


@compiled(numba.void(_PICTURE, _OUTPUT))
def resample_no_antialias(image: np.ndarray, out: np.ndarray) -> None:
    """uint8 [H, W, 3] -> `out`, uint8 [h, w, 3]: between the four nearest pixels, in float32, along the height first.

    Truncated, as tf.cast does in big_vision's resize. Rows that are not looked at are not read.
    """
    if image.shape[1] <= 3 * out.shape[1]:
        _no_antialias_by_rows(image, out)
    else:
        _no_antialias_by_pixels(image, out)
