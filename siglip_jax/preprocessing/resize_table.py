"""The ways to bring an image to the size that a model takes: one entry each in RESIZES, by the name in the config.

To add one, write an entry (docs/adding.md). `Preprocessing`, the export and Hugging Face's processor files read the
table. Neither JAX, TensorFlow nor onnx is imported here: `in_graph` gets the `tf` module from the export, `in_onnx` its
graph writer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from siglip_jax.preprocessing import graph_resize, onnx_resize
from siglip_jax.preprocessing.images import naflex_size, pad_image, resize_image

NAFLEX = "naflex"
PAD = "bilinear_pad"
SCALED_DECODE = "bilinear_scaled_decode"

# Hugging Face's image processors: to one size, and to a budget of patches.
FIXED_PROCESSOR, FLEXIBLE_PROCESSOR = "SiglipImageProcessor", "Siglip2ImageProcessor"


class Fields(Protocol):
    """What a resize may read of a `Preprocessing`."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def fill(self) -> str: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def max_patches(self) -> int: ...


def _image_size(height: int, width: int, fields: Fields) -> tuple[int, int]:
    return fields.image_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize:
    """One way to resize.

    Attributes:
      apply: (image uint8 [H, W, 3], (h, w), fields, out) -> uint8 [h, w, 3]. `out` is where to write, or None; an array
        that is returned instead is copied there.
      size: (H, W, fields) -> (h, w); `image_size` unless given, and that it must be but for "naflex".
      in_graph: (tf, image, fields) -> image, the same in TensorFlow's operations: float32 [H, W, 3] of whole numbers 0
        to 255 -> float32 [h, w, 3] of whole numbers, (h, w) as of `size`. None where a model cannot be exported with
        this resize.
      in_onnx: (graph, images, fields) -> images, the same in ONNX's operations by an `OnnxGraph`: the name of float32
        [n, 3, H, W] -> that of [n, 3, h, w]. None where an .onnx file cannot take decoded pictures with this resize.
      huggingface: the image processor of Hugging Face and its `resample` (PIL's number) that do exactly the same, read
        and written; None where none does.
      huggingface_instead: what transformers does instead, after "it will".
      uses_fill: whether `Preprocessing.fill` must be given; it is refused elsewhere.
      uses_patches: whether `patch_size` and `max_patches` must be given; they are refused elsewhere.
      reduced_decode: whether a JPEG is decoded at 1/2, 1/4 or 1/8 where that is no smaller than `image_size`.
    """

    apply: Callable[[np.ndarray, tuple[int, int], Fields, np.ndarray | None], np.ndarray]
    size: Callable[[int, int, Fields], tuple[int, int]] = _image_size
    in_graph: Callable[[Any, Any, Fields], Any] | None = None
    in_onnx: Callable[[Any, str, Fields], str] | None = None
    huggingface: tuple[str, int] | None = None
    huggingface_instead: str = "squash images to the size, bilinear and antialiased"
    uses_fill: bool = False
    uses_patches: bool = False
    reduced_decode: bool = False


def _bilinear(image: np.ndarray, size: tuple[int, int], fields: Fields, out: np.ndarray | None) -> np.ndarray:
    return resize_image(image, size, method="bilinear", out=out)


def _bilinear_in_graph(tf: Any, image: Any, fields: Fields) -> Any:
    return graph_resize.resize(tf, image, fields.image_size, kernel="bilinear")


RESIZES: dict[str, Resize] = {
    "bilinear": Resize(
        apply=_bilinear,
        in_graph=_bilinear_in_graph,
        in_onnx=lambda graph, images, fields: onnx_resize.resize(graph, images, fields.image_size, kernel="bilinear"),
        huggingface=(FIXED_PROCESSOR, 2),
    ),
    "bicubic": Resize(
        apply=lambda image, size, fields, out: resize_image(image, size, method="bicubic", out=out),
        in_graph=lambda tf, image, fields: graph_resize.resize(tf, image, fields.image_size, kernel="bicubic"),
        in_onnx=lambda graph, images, fields: onnx_resize.resize(graph, images, fields.image_size, kernel="bicubic"),
        huggingface=(FIXED_PROCESSOR, 3),
    ),
    "bilinear_no_antialias": Resize(
        apply=lambda image, size, fields, out: resize_image(image, size, method="bilinear_no_antialias", out=out),
        in_graph=lambda tf, image, fields: graph_resize.resize_no_antialias(tf, image, fields.image_size),
        in_onnx=lambda graph, images, fields: onnx_resize.resize_no_antialias(graph, images, fields.image_size),
        huggingface_instead="antialias",
    ),
    SCALED_DECODE: Resize(
        apply=_bilinear,
        in_graph=_bilinear_in_graph,
        huggingface_instead="decode JPEG files whole",
        reduced_decode=True,
    ),
    PAD: Resize(
        apply=lambda image, size, fields, out: pad_image(image, size, fill=fields.fill, out=out),
        in_graph=lambda tf, image, fields: graph_resize.pad(tf, image, fields.image_size, fill=fields.fill),
        in_onnx=lambda graph, images, fields: onnx_resize.pad(graph, images, fields.image_size, fill=fields.fill),
        huggingface_instead="squash pictures to the size, which gives other embeddings of all that are not square",
        uses_fill=True,
    ),
    NAFLEX: Resize(
        size=lambda height, width, fields: naflex_size(
            height, width, patch_size=fields.patch_size, max_patches=fields.max_patches
        ),
        apply=_bilinear,
        in_graph=lambda tf, image, fields: graph_resize.naflex(
            tf, image, patch_size=fields.patch_size, max_patches=fields.max_patches
        ),
        huggingface=(FLEXIBLE_PROCESSOR, 2),
        uses_patches=True,
    ),
}
