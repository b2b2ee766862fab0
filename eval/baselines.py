"""Rows every comparison carries, so that a number has a floor to stand on: random vectors and the pixels themselves."""

import numpy as np

from siglip_jax.errors import UserError

_BLOCK = 512  # images converted at once


def random_embeddings(n: int, d: int, *, seed: int) -> np.ndarray:
    """Directions drawn uniformly on the sphere: float32 [n, d], unit norm. Their metrics are those of a blind guess."""
    if n < 0 or d < 1:
        raise UserError(f"random embeddings [{n}, {d}]: expected n >= 0 and d >= 1")
    vectors = np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The pixels as an embedding: centred per feature over the set, then unit norm.

    Without the centring all pictures on white ground look alike to a cosine. Works in place on its one output (4 bytes
    a pixel and channel: 9,000 images of 64x64x3 are 442 MB) and converts few images at a time, so `images` may be a
    memmap. Byte-identical images come out byte-identical.

    Args:
        images: uint8 [n, height, width, 3].

    Returns:
        float32 [n, height * width * 3].

    Raises:
        UserError: another shape or dtype, or an image equal to the mean of all (it has no direction; all equal, say).
    """
    if not isinstance(images, np.ndarray):
        raise UserError(f"images are {type(images).__name__}: expected uint8 [n, height, width, 3], all of one size")
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise UserError(f"images are {images.dtype} {list(images.shape)}: expected uint8 [n, height, width, 3]")
    n = len(images)
    total = np.zeros(images.shape[1:], np.int64)
    for lo in range(0, n, _BLOCK):
        total += images[lo : lo + _BLOCK].sum(axis=0, dtype=np.int64)
    mean = (total / max(n, 1)).astype(np.float32).reshape(-1)
    out = np.empty((n, mean.size), np.float32)
    for lo in range(0, n, _BLOCK):
        block = out[lo : lo + _BLOCK]
        np.subtract(images[lo : lo + _BLOCK].reshape(len(block), -1), mean, out=block)
        norm = np.sqrt(np.square(block).sum(axis=1))[:, None]  # row by row, so equal rows get equal norms
        # A picture that only rounding separates from the mean has no direction either.
        flat = np.flatnonzero(norm[:, 0] <= 1e-4 * np.sqrt(mean.size))
        if flat.size:
            raise UserError(
                f"image {lo + flat[0]} equals the mean of the {n} images: raw pixels need a set of different pictures"
            )
        block /= norm
    return out
