"""Decoding and resizing written in TensorFlow's operations, as `Preprocessing` does both; the module comes as `tf`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import NAFLEX, Preprocessing
from siglip_jax.preprocessing.resize_table import RESIZES


def check_resize(preprocessing: Preprocessing) -> None:
    """Raises a UserError where there is no graph for the resize."""
    if preprocessing.resize == NAFLEX:
        raise UserError(
            "export: this model takes NaFlex pictures, whose sizes differ, and there is no SavedModel for these; "
            "export a model of one fixed size"
        )
    if RESIZES[preprocessing.resize].in_graph is None:
        raise UserError(
            f"export: resize={preprocessing.resize!r} cannot be written in a graph; expected one of "
            + ", ".join(name for name, resize in RESIZES.items() if resize.in_graph is not None)
        )


def decode_and_resize(tf: Any, encoded: Any, preprocessing: Preprocessing) -> Any:
    """Scalar string -> float32 [h, w, 3] of whole numbers 0 to 255, as `Preprocessing.image` gives."""
    return decode_and_resize_each(tf, encoded, {"": preprocessing})[""]


def decode_and_resize_each(tf: Any, encoded: Any, preprocessings: Mapping[str, Preprocessing]) -> dict[str, Any]:
    """One picture for each preprocessing; decoded once for all that take it at its whole size."""
    images, whole = {}, None
    for name, preprocessing in preprocessings.items():
        size, resize = preprocessing.image_size, RESIZES[preprocessing.resize]
        assert resize.in_graph is not None
        if resize.reduced_decode:
            image = _decode(tf, encoded, at_least=size)
        else:
            image = whole = _decode(tf, encoded, at_least=None) if whole is None else whole
        images[name] = tf.ensure_shape(resize.in_graph(tf, image, preprocessing), [*size, 3])
    return images


def _decode(tf: Any, encoded: Any, *, at_least: tuple[int, int] | None) -> Any:
    """float32 [H, W, 3] of whole numbers."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _decode_jpeg(tf, encoded, at_least=at_least),
        lambda: tf.io.decode_png(encoded, channels=3),
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
