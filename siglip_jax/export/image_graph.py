"""Decoding and resizing written in TensorFlow's operations, as `Preprocessing` does both; the module comes as `tf`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siglip_jax.errors import UserError
from siglip_jax.export.graph_formats import reason_not_to_decode
from siglip_jax.preprocessing import NAFLEX, Preprocessing
from siglip_jax.preprocessing.resize_table import RESIZES


def check_resize(preprocessing: Preprocessing) -> None:
    """Raises a UserError where there is no graph for the resize."""
    if RESIZES[preprocessing.resize].in_graph is None:
        raise UserError(
            f"resize={preprocessing.resize!r} cannot be written in a graph; expected one of "
            + ", ".join(name for name, resize in RESIZES.items() if resize.in_graph is not None)
        )


def decode_rows(tf: Any, encoded: Any, preprocessings: Mapping[str, Preprocessing]) -> dict[str, Any]:
    """string [n] -> {name: float32 [n, h, w, 3]} of whole numbers 0 to 255, as `Preprocessing.image` gives each.

    Of NaFlex pictures a pair, as `Preprocessing.batch` gives it: the patches, float32 [n, N, values] with zeros where
    there is none, and int32 [n, 2]. A picture that cannot be read is an error that names its row and says why; n is at
    least 1.
    """
    blank = {name: _blank(tf, each) for name, each in preprocessings.items()}

    def decode(row: Any, one: Any) -> tuple[Any, Any, dict[str, Any]]:
        reason = reason_not_to_decode(tf, one)
        pictures = tf.cond(
            tf.equal(reason, ""),
            lambda: _rows_of(tf, one, preprocessings),
            lambda: dict(blank),
        )
        return row, reason, pictures

    # A dataset leaves out rows that fail and goes on; in a loop the first failure ends all, and does not tell its row.
    count = tf.size(encoded, tf.int64)
    rows = tf.data.Dataset.from_tensor_slices((tf.range(count), encoded))
    rows = rows.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    last = tf.data.Dataset.from_tensors((count, "", blank))  # so that there is one, whatever fails
    found, reasons, pictures = rows.concatenate(last).batch(count + 1).get_single_element()
    of_all = tf.fill([count + 1], "damaged, it cannot be decoded")
    of_all = tf.tensor_scatter_nd_update(of_all, found[:, None], reasons)
    bad = tf.where(tf.not_equal(of_all, ""))[:, 0]
    told = tf.strings.join(["picture ", tf.strings.as_string(bad), ": ", tf.gather(of_all, bad)])
    check = tf.debugging.Assert(tf.equal(tf.size(bad), 0), [tf.strings.reduce_join(told[:5], separator=". ")])
    with tf.control_dependencies([check]):
        return tf.nest.map_structure(lambda x, one: tf.ensure_shape(x[:-1], [None, *one.shape]), pictures, blank)


def _blank(tf: Any, preprocessing: Preprocessing) -> Any:
    """A row of `decode_rows` for a picture that cannot be read."""
    pixels = tf.zeros(preprocessing.row_shape)
    return (pixels, tf.ones([2], tf.int32)) if preprocessing.resize == NAFLEX else pixels


def _rows_of(tf: Any, encoded: Any, preprocessings: Mapping[str, Preprocessing]) -> dict[str, Any]:
    """A row of `decode_rows` for each preprocessing."""
    rows = decode_and_resize_each(tf, encoded, preprocessings)
    for name, preprocessing in preprocessings.items():
        if preprocessing.resize == NAFLEX:
            rows[name] = _cut(tf, rows[name], preprocessing)
    return rows


def _cut(tf: Any, image: Any, preprocessing: Preprocessing) -> tuple[Any, Any]:
    """float32 [h, w, 3] -> `images.cut_patches` of it, padded with zeros, and int32 [2], their rows and columns."""
    side, (most, values) = preprocessing.patch_size, preprocessing.row_shape
    shape = tf.shape(image)[:2] // side
    grid = tf.transpose(tf.reshape(image, [shape[0], side, shape[1], side, 3]), [0, 2, 1, 3, 4])
    patches = tf.reshape(grid, [-1, values])
    padded = tf.pad(patches, [[0, most - tf.shape(patches)[0]], [0, 0]])
    return tf.ensure_shape(padded, [most, values]), tf.ensure_shape(shape, [2])


def decode_and_resize(tf: Any, encoded: Any, preprocessing: Preprocessing) -> Any:
    """Scalar string, a picture of a served kind -> float32 [h, w, 3] of whole numbers, as `Preprocessing.image` has."""
    return decode_and_resize_each(tf, encoded, {"": preprocessing})[""]


def decode_and_resize_each(tf: Any, encoded: Any, preprocessings: Mapping[str, Preprocessing]) -> dict[str, Any]:
    """One picture for each preprocessing, of NaFlex with h and w of its own.

    It is decoded once for all that take it at its whole size.
    """
    images, whole = {}, None
    for name, preprocessing in preprocessings.items():
        size, resize = preprocessing.image_size, RESIZES[preprocessing.resize]
        assert resize.in_graph is not None
        if resize.reduced_decode:
            image = _decode(tf, encoded, at_least=size)
        else:
            image = whole = _decode(tf, encoded, at_least=None) if whole is None else whole
        expected = [None, None, 3] if preprocessing.resize == NAFLEX else [*size, 3]
        images[name] = tf.ensure_shape(resize.in_graph(tf, image, preprocessing), expected)
    return images


def _decode(tf: Any, encoded: Any, *, at_least: tuple[int, int] | None) -> Any:
    """float32 [H, W, 3] of whole numbers, of a picture that `reason_not_to_decode` has nothing against."""

    def others(channels: int) -> Any:
        return tf.io.decode_image(encoded, channels=channels, expand_animations=False)[..., :3]

    image = tf.case(
        [
            (tf.io.is_jpeg(encoded), lambda: _decode_jpeg(tf, encoded, at_least=at_least)),
            (tf.equal(tf.strings.substr(encoded, 8, 4), "WEBP"), lambda: others(0)),  # three, or four with alpha
        ],
        default=lambda: others(3),
    )
    return tf.cast(image, tf.float32)


def _decode_jpeg(tf: Any, encoded: Any, *, at_least: tuple[int, int] | None) -> Any:
    """uint8 [H, W, 3], at 1/8, 1/4 or 1/2 of the size where that reaches `at_least`, see `images.decode_image`."""

    def decode(ratio: int) -> Any:
        # PIL's decoder; TensorFlow's default is off by up to 5 grey levels.
        return tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if at_least is None:
        return decode(1)
    fits = tf.reduce_min(tf.io.extract_jpeg_shape(encoded)[:2] // tf.constant(at_least))
    return tf.case(
        [(fits >= ratio, lambda ratio=ratio: decode(ratio)) for ratio in (8, 4, 2)],
        default=lambda: decode(1),
    )
