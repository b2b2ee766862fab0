"""Why an encoded picture cannot be served, in TensorFlow's operations; the module comes as `tf`.

The rules of `siglip_jax.preprocessing.image_formats`, and the limit of pixels of `images`, read from the first bytes:
before anything is decoded, since a few hundred kilobytes can hold gigabytes of pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from siglip_jax.preprocessing import MAX_IMAGE_PIXELS
from siglip_jax.preprocessing.image_formats import (
    ANIMATED,
    FEW_COLOURS,
    HEADER_BYTES,
    SERVED,
    SIGNATURES,
    TRANSPARENT,
    not_served,
)

_SHORTEST = 34  # bytes that are looked at in any picture


def reason_not_to_decode(tf: Any, encoded: Any) -> Any:
    """Scalar string -> scalar string: "" for a picture that `image_graph` decodes, else what is wrong with it."""
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, HEADER_BYTES), tf.uint8), tf.int64)
    count = tf.shape(data)[0]
    data = tf.concat([data, tf.zeros([_SHORTEST], tf.int64)], axis=0)  # so that no place is beyond the end

    def starts(place: int, mark: bytes) -> Any:
        return tf.reduce_all(data[place : place + len(mark)] == tf.constant(list(mark), tf.int64))

    def number(place: int, size: int, *, big: bool = False) -> Any:
        powers = [256**power for power in range(size)]
        return tf.reduce_sum(data[place : place + size] * tf.constant(powers[::-1] if big else powers, tf.int64))

    def within_limit(width: Any, height: Any) -> Any:
        fits = tf.reduce_all(tf.stack([width, height]) <= MAX_IMAGE_PIXELS) & (width * height <= MAX_IMAGE_PIXELS)
        size = tf.strings.join(["a picture of ", tf.strings.as_string(width), "x", tf.strings.as_string(height)])
        return tf.where(fits, "", tf.strings.join([size, f" pixels; the limit is {MAX_IMAGE_PIXELS} pixels"]))

    def webp() -> Any:
        bits = number(21, 4)
        width, height = tf.case(
            [
                (starts(12, b"VP8X"), lambda: (number(24, 3) + 1, number(27, 3) + 1)),
                (starts(12, b"VP8L"), lambda: (bits % 2**14 + 1, bits // 2**14 % 2**14 + 1)),
            ],
            default=lambda: (number(26, 2) % 2**14, number(28, 2) % 2**14),
        )
        animated = starts(12, b"VP8X") & (data[20] // 2 % 2 == 1)
        return tf.where(animated, ANIMATED, within_limit(width, height))

    def bmp() -> Any:
        height = number(22, 4)  # negative where the rows begin at the top
        plain = (number(14, 4) >= 40) & ((number(28, 2) == 24) | (number(28, 2) == 32)) & (number(30, 4) == 0)
        size = within_limit(number(18, 4), tf.where(height < 2**31, height, 2**32 - height))
        return tf.where(plain, size, FEW_COLOURS)

    def jpeg() -> Any:
        size = tf.cast(tf.io.extract_jpeg_shape(encoded), tf.int64)
        return within_limit(size[1], size[0])

    def gif() -> Any:
        size = within_limit(number(6, 2), number(8, 2))
        return tf.where(_first_frame_is_whole(tf, data, count), size, TRANSPARENT)

    readers: dict[str, Callable[[], Any]] = {"WEBP": webp, "GIF": gif, "BMP": bmp, "JPEG": jpeg}
    readers["PNG"] = lambda: within_limit(number(16, 4, big=True), number(20, 4, big=True))
    assert readers.keys() == set(SERVED)
    for _, _, name in SIGNATURES:
        readers.setdefault(name, functools.partial(tf.constant, not_served(name)))
    cases = [(starts(place, mark), readers[name]) for place, mark, name in SIGNATURES]
    return tf.case(cases, default=lambda: tf.constant(not_served("other")))


def _first_frame_is_whole(tf: Any, data: Any, count: Any) -> Any:
    """`image_formats._first_frame_is_whole` of int64 [count + more]."""
    colours = tf.where(data[10] >= 128, tf.bitwise.left_shift(tf.constant(6, tf.int64), data[10] % 8), 0)
    extension, transparency, picture = 0x21, 0xF9, 0x2C

    def unfinished(place: Any, inside: Any, done: Any, whole: Any) -> Any:
        return ~done & (place + 9 < count)

    def step(place: Any, inside: Any, done: Any, whole: Any) -> Any:
        block, size = data[place], tf.cast(data[place], tf.int32)
        extends = ~inside & (block == extension)
        transparent = extends & (data[place + 1] == transparency) & (data[place + 3] % 2 == 1)
        begins = ~inside & ~extends
        fills = tf.reduce_all(data[place + 1 : place + 5] == 0) & tf.reduce_all(
            data[place + 5 : place + 9] == data[6:10]
        )
        return (
            place + tf.where(inside, size + 1, 2),
            tf.where(inside, block != 0, extends),
            transparent | begins,
            begins & (block == picture) & fills,
        )

    no = tf.constant(False)
    return tf.while_loop(unfinished, step, (tf.cast(13 + colours, tf.int32), no, no, no))[3]
