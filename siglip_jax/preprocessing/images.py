"""Pictures: decoding to uint8 RGB, resizing to a fixed size or to a budget of patches, cutting into patches.

JPEG files are decoded by simplejpeg and resized by `resize`; both give PIL's own pixels in a third of its time.
PIL reads what the first refuses, and every other format. JAX is not imported: data workers load this module.
"""

from __future__ import annotations

import functools
import io
import math
import threading
import warnings

import numpy as np
import PIL.Image
import simplejpeg

from siglip_jax.errors import UserError, check_choice

MAX_IMAGE_PIXELS = 64_000_000  # larger pictures are refused before they are decoded
RESIZE_METHODS = ("bilinear", "bicubic", "bilinear_no_antialias")  # of resize_image
FILLS = ("white", "grey", "edge")  # of what a picture leaves free, see pad_image

_JPEG = b"\xff\xd8\xff"
_DIVISORS = (8, 4, 2)  # libjpeg's scaled decoding, as far as every library has it
SMALLEST_SCALE, LARGEST_SCALE, SCALE_PRECISION = 1e-6, 100.0, 1e-5  # of the search for a NaFlex size


class _Scratch(threading.local):
    """A piece of memory for each thread: the system clears fresh memory, a tenth of the time that decoding takes."""

    def __init__(self) -> None:
        self.memory = bytearray(16 * 2**20)  # no more of it is real than was ever used


_SCRATCH = _Scratch()


def scratch() -> bytearray:
    """This thread's own memory for pictures that are not kept."""
    return _SCRATCH.memory


def decode_image(
    picture: bytes | PIL.Image.Image, *, at_least: tuple[int, int] | None = None, memory: bytearray | None = None
) -> np.ndarray:
    """An encoded or opened picture -> uint8 [H, W, 3].

    Alpha is dropped without blending, EXIF rotation is ignored, an animation gives its first frame, 16-bit levels
    keep their upper byte, CMYK is converted by PIL's formula without colour profiles.

    Args:
      at_least: (height, width) that suffice: an encoded JPEG is decoded at 1/8, 1/4 or 1/2 of its size, the smallest
        that reaches both, by leaving out frequencies. Others are decoded whole.
      memory: where a JPEG is decoded to if it fits; the result is then a view of it.

    Raises:
      UserError: not a picture, truncated, or more than MAX_IMAGE_PIXELS; an opened JPEG with `at_least`.
    """
    encoded = picture if isinstance(picture, (bytes, bytearray, memoryview)) else None
    if encoded is not None and (decoded := _decode_plain_jpeg(encoded, at_least, memory)) is not None:
        return decoded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF or palette chunks are no reason for noise
            if encoded is not None:
                picture = PIL.Image.open(io.BytesIO(encoded))
                _check_size(*picture.size)
                if at_least is not None:
                    picture.draft(None, (at_least[1], at_least[0]))
            elif at_least is not None and getattr(picture, "format", None) in ("JPEG", "MPO"):
                raise UserError("an opened JPEG cannot be decoded at a reduced size any more; pass the file's bytes")
            if not isinstance(picture, PIL.Image.Image):
                given = type(picture).__name__
                raise UserError(f"a {given} is no picture; expected a PIL image, or encoded bytes (read the file)")
            _check_size(*picture.size)
            if picture.mode.startswith("I;16"):  # PIL would clip 16-bit values to 255 instead of scaling them
                return np.repeat((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8)[..., None], 3, axis=-1)
            return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except UserError:
        raise
    except PIL.UnidentifiedImageError as error:  # its text names an object by its address, another one in each run
        raise UserError("not a readable picture (unknown format)") from error
    except Exception as error:  # PIL raises many types on damaged files, SyntaxError and struct.error among them
        raise UserError(f"not a readable picture ({type(error).__name__}: {str(error)[:100]})") from error


def _decode_plain_jpeg(
    encoded: bytes | bytearray | memoryview, at_least: tuple[int, int] | None, memory: bytearray | None
) -> np.ndarray | None:
    """A sound JPEG of colour or grey; None for all that PIL has to look at, which also says what is wrong with it."""
    if bytes(encoded[: len(_JPEG)]) != _JPEG:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        _check_size(width, height)
        divisor = 1 if at_least is None else _divisor((height, width), at_least)
        smaller = dict(min_height=-(-height // divisor), min_width=-(-width // divisor), min_factor=divisor)
        if memory is not None and 3 * height * width > len(memory):
            memory = None
        return simplejpeg.decode_jpeg(encoded, "RGB", buffer=memory, **(smaller if divisor > 1 else {}))
    except UserError:
        raise
    except ValueError:
        return None


def _check_size(width: int, height: int) -> None:
    if not width or not height:
        raise UserError(f"picture of {width}x{height} pixels; expected at least one")
    if width * height > MAX_IMAGE_PIXELS:
        raise UserError(f"picture of {width}x{height} pixels; the limit is {MAX_IMAGE_PIXELS} pixels")


def _divisor(size: tuple[int, int], at_least: tuple[int, int]) -> int:
    fits = min(side // least for side, least in zip(size, at_least, strict=True))
    return next((divisor for divisor in _DIVISORS if divisor <= fits), 1)


def resize_image(image: np.ndarray, size: tuple[int, int], *, method: str, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3], squashed to `size` = (h, w), in memory of its own.

    Args:
      method: "bilinear" or "bicubic" (both PIL's, antialiased) or "bilinear_no_antialias" (big_vision's).
      out: where to write, uint8 [h, w, 3] in row-major order, such as a row of a batch; returned.
    """
    check_choice("resize_image: method", method, RESIZE_METHODS)
    if not image.size:
        raise UserError(f"resize_image: an image of shape {list(image.shape)}; expected at least one pixel")
    if out is None:
        if image.shape[:2] == tuple(size):
            return np.array(image, order="C")
        out = np.empty((*size, 3), np.uint8)
    elif out.shape != (*size, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise UserError(f"out is {out.dtype} {list(out.shape)}; expected uint8 {[*size, 3]} in row-major order")
    if image.shape[:2] == tuple(size):
        out[...] = image
        return out
    from siglip_jax.preprocessing import resize

    image = np.ascontiguousarray(image)
    if method == "bilinear_no_antialias":
        resize.resample_no_antialias(image, out)
    else:
        resize.resample(image, out, method == "bicubic")
    return out


def pad_image(image: np.ndarray, size: tuple[int, int], *, fill: str, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [h, w, 3]: resized to fit, bilinear and antialiased, in the middle of a plain ground.

    Args:
      fill: "white" (255), "grey" (128) or "edge", the mean colour of the two edges that touch the ground.
      out: see `resize_image`.
    """
    height, width = fitting_size(image.shape[:2], size)
    if (height, width) == tuple(size):
        return resize_image(image, size, method="bilinear", out=out)
    inner = resize_image(image, (height, width), method="bilinear")
    out = np.empty((*size, 3), np.uint8) if out is None else out
    out[...] = edge_mean(inner, rows=height < size[0]) if fill == "edge" else {"white": 255, "grey": 128}[fill]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    out[top : top + height, left : left + width] = inner
    return out


def fitting_size(old: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) of the ratio of `old` within `size`, rounded half up, at least one pixel.

    In whole numbers, so that the exported graph comes to the same.
    """
    if old[0] * size[1] >= old[1] * size[0]:  # the height decides
        return size[0], max(1, (2 * old[1] * size[0] + old[0]) // (2 * old[0]))
    return max(1, (2 * old[0] * size[1] + old[1]) // (2 * old[1])), size[1]


def edge_mean(image: np.ndarray, *, rows: bool) -> np.ndarray:
    """uint8 [3]: the mean, rounded half up, of the first and last row, or else column."""
    edges = image[[0, -1]] if rows else image[:, [0, -1]]
    edges = edges.reshape(-1, 3).astype(np.int64)
    return ((2 * edges.sum(axis=0) + len(edges)) // (2 * len(edges))).astype(np.uint8)


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

    fits, exceeds = SMALLEST_SCALE, LARGEST_SCALE
    while exceeds - fits >= SCALE_PRECISION:
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
