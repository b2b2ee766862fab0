"""Pictures: decoding to uint8 RGB, resizing to a fixed size or to a budget of patches, cutting into patches.

Only numpy and PIL are imported: data workers load this module.
"""

from __future__ import annotations

import functools
import io
import math
import warnings

import numpy as np
import PIL.Image

from siglip_jax.errors import UserError

MAX_IMAGE_PIXELS = 64_000_000  # larger pictures are refused before they are decoded

_PIL_FILTERS = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
_SMALLEST_SCALE, _LARGEST_SCALE, _SCALE_PRECISION = 1e-6, 100.0, 1e-5  # of the search for a NaFlex size


def decode_image(picture: bytes | PIL.Image.Image) -> np.ndarray:
    """An encoded or opened picture -> uint8 [H, W, 3].

    Alpha is dropped without blending, EXIF rotation is ignored, an animation gives its first frame, 16-bit levels
    keep their upper byte, CMYK is converted by PIL's formula without colour profiles.

    Raises:
      UserError: not a picture, truncated, or more than MAX_IMAGE_PIXELS.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF or palette chunks are no reason for noise
            if isinstance(picture, (bytes, bytearray, memoryview)):
                picture = PIL.Image.open(io.BytesIO(picture))
            if not isinstance(picture, PIL.Image.Image):
                given = type(picture).__name__
                raise UserError(f"a {given} is no picture; expected a PIL image, or encoded bytes (read the file)")
            width, height = picture.size
            if not width or not height:
                raise UserError(f"picture of {width}x{height} pixels; expected at least one")
            if width * height > MAX_IMAGE_PIXELS:
                raise UserError(f"picture of {width}x{height} pixels; the limit is {MAX_IMAGE_PIXELS} pixels")
            if picture.mode.startswith("I;16"):  # PIL would clip 16-bit values to 255 instead of scaling them
                return np.repeat((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            return np.asarray(picture.convert("RGB"))
    except UserError:
        raise
    except PIL.UnidentifiedImageError as error:  # its text names an object by its address, another one in each run
        raise UserError("not a readable picture (unknown format)") from error
    except Exception as error:  # PIL raises many types on damaged files, SyntaxError and struct.error among them
        raise UserError(f"not a readable picture ({type(error).__name__}: {str(error)[:100]})") from error


def resize_image(image: np.ndarray, size: tuple[int, int], *, method: str) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3], squashed to `size` = (h, w).

    `method` is "bilinear" or "bicubic" (both PIL's, antialiased) or "bilinear_no_antialias" (big_vision's).
    """
    if image.shape[:2] == tuple(size):
        return np.ascontiguousarray(image)
    if method in _PIL_FILTERS:
        return np.asarray(PIL.Image.fromarray(image).resize((size[1], size[0]), _PIL_FILTERS[method]))
    rows, columns = (_bilinear_taps(old, new) for old, new in zip(image.shape, size, strict=False))
    # Only the pixels that are looked at: a strip of millions of pixels must not become floats as a whole.
    left, right = (
        image[np.ix_(rows[0], side)] * (1 - rows[2])[:, None, None]
        + image[np.ix_(rows[1], side)] * rows[2][:, None, None]
        for side in columns[:2]
    )
    resized = left * (1 - columns[2])[:, None] + right * columns[2][:, None]
    return resized.clip(0, 255).astype(np.uint8)  # truncated, as tf.cast does in big_vision's resize


@functools.lru_cache(maxsize=256)
def _bilinear_taps(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index and the upper one's weight for each of `new` half-pixel-centred samples."""
    position = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(old / new) - np.float32(0.5)
    floor = np.floor(position)
    lower, upper = (np.clip(floor + step, 0, old - 1).astype(np.int64) for step in (0, 1))
    return lower, upper, (position - floor).astype(np.float32)


@functools.lru_cache(maxsize=4096)
def naflex_size(height: int, width: int, *, patch_size: int, max_patches: int) -> tuple[int, int]:
    """The size, in whole patches, that a picture is resized to: the largest scale that stays within the budget.

    Each side is rounded up to a patch, so the aspect ratio is kept to within one. The scale is found by halving an
    interval down to 1e-5, as Hugging Face's Siglip2ImageProcessor does: a search to another precision would give
    other sizes for some pictures.

    Returns:
      (height, width) in pixels; at least one patch each way, at most `max_patches` together.
    """

    def patches(scale: float) -> tuple[int, int]:
        return max(1, math.ceil(height * scale / patch_size)), max(1, math.ceil(width * scale / patch_size))

    fits, exceeds = _SMALLEST_SCALE, _LARGEST_SCALE
    while exceeds - fits >= _SCALE_PRECISION:
        middle = (fits + exceeds) / 2
        if math.prod(patches(middle)) <= max_patches:
            fits = middle
        else:
            exceeds = middle
    rows, columns = patches(fits)
    # A strip of millions of pixels by one exceeds a small budget even at the smallest scale.
    rows = min(rows, max_patches)
    return rows * patch_size, min(columns, max_patches // rows) * patch_size


def cut_patches(image: np.ndarray, patch_size: int) -> np.ndarray:
    """[h, w, 3] -> [(h / p) * (w / p), p * p * 3]: patches in row-major order, each as (row, column, channel)."""
    rows, columns = image.shape[0] // patch_size, image.shape[1] // patch_size
    grid = image.reshape(rows, patch_size, columns, patch_size, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * columns, -1)
