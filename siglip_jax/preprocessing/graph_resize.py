"""Resizing written in TensorFlow's operations, for the graph of an export; the module comes as `tf`.

Images are float32 [H, W, 3] of whole numbers 0 to 255, as those that come out, [h, w, 3].
"""

from __future__ import annotations

from typing import Any

from siglip_jax.preprocessing.images import LARGEST_SCALE, SCALE_PRECISION, SMALLEST_SCALE


def pad(tf: Any, image: Any, size: tuple[int, int], *, fill: str) -> Any:
    """float32 [H, W, 3] of whole numbers -> [h, w, 3], as `images.pad_image` does."""
    old_height, old_width = (tf.cast(tf.shape(image)[axis], tf.int64) for axis in (0, 1))

    def half_up(side: Any, new: int, other: Any) -> Any:
        return tf.maximum((2 * side * new + other) // (2 * other), 1)

    height, width = tf.cond(
        old_height * size[1] >= old_width * size[0],
        lambda: (tf.constant(size[0], tf.int64), half_up(old_width, size[0], old_height)),
        lambda: (half_up(old_height, size[1], old_width), tf.constant(size[1], tf.int64)),
    )
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    inner = resize(tf, image, (height, width), kernel="bilinear")
    if fill == "edge":
        edges = tf.cond(
            height < size[0],
            lambda: tf.concat([inner[0], inner[-1]], axis=0),
            lambda: tf.concat([inner[:, 0], inner[:, -1]], axis=0),
        )
        edges = tf.cast(edges, tf.int64)
        count = tf.shape(edges, tf.int64)[0]
        ground = tf.cast((2 * tf.reduce_sum(edges, axis=0) + count) // (2 * count), tf.float32)
    else:
        ground = tf.fill([3], {"white": 255.0, "grey": 128.0}[fill])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    around = [[top, size[0] - height - top], [left, size[1] - width - left], [0, 0]]
    return tf.pad(inner - ground, around) + ground


def naflex(tf: Any, image: Any, *, patch_size: int, max_patches: int) -> Any:
    """float32 [H, W, 3] of whole numbers -> [h, w, 3], as many patches as `images.naflex_size` finds."""
    sides = tf.cast(tf.shape(image)[:2], tf.float64)

    def patches(scale: Any) -> Any:
        return tf.maximum(tf.math.ceil(sides * scale / patch_size), 1.0)

    def halved(fits: Any, exceeds: Any) -> tuple[Any, Any]:
        middle = (fits + exceeds) / 2
        within = tf.reduce_prod(patches(middle)) <= tf.cast(max_patches, tf.float64)
        return tf.where(within, middle, fits), tf.where(within, exceeds, middle)

    ends = (tf.constant(end, tf.float64) for end in (SMALLEST_SCALE, LARGEST_SCALE))
    found, _ = tf.while_loop(lambda fits, exceeds: exceeds - fits >= SCALE_PRECISION, halved, tuple(ends))
    rows, columns = tf.unstack(tf.cast(patches(found), tf.int32), num=2)
    rows = tf.minimum(rows, max_patches)
    columns = tf.minimum(columns, max_patches // rows)
    return resize(tf, image, (rows * patch_size, columns * patch_size), kernel="bilinear")


def resize(tf: Any, image: Any, size: tuple[Any, Any], *, kernel: str) -> Any:
    """float32 [H, W, 3] of whole numbers -> [h, w, 3], antialiased, in the order of `resize.resample`."""
    old = tf.shape(image)
    rows, columns = (
        _resampling_matrix(tf, old[axis], new, kernel=kernel, antialias=True) for axis, new in enumerate(size)
    )

    def to_grey_levels(x: Any) -> Any:
        return tf.clip_by_value(tf.floor(x + 0.5), 0, 255)

    def along_height(x: Any) -> Any:
        return to_grey_levels(tf.einsum("hH,HWc->hWc", rows, x))

    def along_width(x: Any) -> Any:
        return to_grey_levels(tf.einsum("wW,HWc->Hwc", columns, x))

    height_first = (old[0] > size[0]) & (old[0] - size[0] > 2 * (old[1] - size[1]))
    return tf.cond(height_first, lambda: along_width(along_height(image)), lambda: along_height(along_width(image)))


def resize_no_antialias(tf: Any, image: Any, size: tuple[int, int]) -> Any:
    """Bilinear between the four nearest pixels, truncated once, at the end; equal sizes are left alone."""
    rows, columns = (
        _resampling_matrix(tf, tf.shape(image)[axis], new, kernel="bilinear", antialias=False)
        for axis, new in enumerate(size)
    )
    return tf.floor(tf.clip_by_value(tf.einsum("hH,wW,HWc->hwc", rows, columns, image), 0, 255))


def _resampling_matrix(tf: Any, old: Any, new: Any, *, kernel: str, antialias: bool) -> Any:
    """float32 [new, old]: PIL's resampling (Resample.c, precompute_coeffs) along one axis as a matrix.

    tf.image.resize differs from PIL by up to 5 grey levels with bicubic and antialias; written as a matrix both agree.
    """
    old, new = tf.cast(old, tf.float64), tf.cast(new, tf.float64)
    scale = old / new
    stretch = tf.maximum(scale, 1.0) if antialias else tf.constant(1.0, tf.float64)
    reach = (2.0 if kernel == "bicubic" else 1.0) * stretch
    center = (tf.range(new, dtype=tf.float64) + 0.5)[:, None] * scale
    source = tf.range(old, dtype=tf.float64)[None, :]
    first, last = tf.floor(center - reach + 0.5), tf.floor(center + reach + 0.5)
    distance = tf.abs((source - center + 0.5) / stretch)
    if kernel == "bicubic":  # Keys' cubic with a = -0.5
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weight = tf.where(distance < 1, near, tf.where(distance < 2, far, tf.zeros_like(distance)))
    else:
        weight = tf.maximum(1 - distance, 0)
    weight = tf.where((source >= first) & (source < last), weight, tf.zeros_like(weight))
    return tf.cast(weight / tf.reduce_sum(weight, axis=1, keepdims=True), tf.float32)
