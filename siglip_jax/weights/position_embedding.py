"""Position embeddings for pictures of another size than a checkpoint was trained on."""

from __future__ import annotations

import numpy as np

from siglip_jax.errors import UserError, check_choice

METHODS = ("linear", "bicubic")
MAX_SIDE = 256  # patches; 4096 pixels by 16


def resize_positions(grid: np.ndarray, size: tuple[int, int], *, method: str = "linear") -> np.ndarray:
    """[rows, columns, width] -> [*size, width], of the same dtype, computed in float64.

    "linear" keeps the corners in place, as big_vision does when it loads a checkpoint at another resolution (scipy's
    zoom of order 1). "bicubic" samples pixel centres with a = -0.75 and no antialias, as Hugging Face's
    `interpolate_pos_encoding` does (torch's interpolate).
    """
    check_choice("method", method, METHODS)
    if max(size) > MAX_SIDE:
        raise UserError(f"a grid of {size[0]} x {size[1]} positions; the limit is {MAX_SIDE} a side")
    matrix = _linear if method == "linear" else _bicubic
    rows, columns = (matrix(old, new) for old, new in zip(grid.shape, size, strict=False))
    resized = np.einsum("yr,xc,rcd->yxd", rows, columns, grid.astype(np.float64), optimize=True)
    return resized.astype(grid.dtype)


def _linear(old: int, new: int) -> np.ndarray:
    """[new, old]: first and last sample stay where they are."""
    position = np.arange(new) * (old - 1) / max(new - 1, 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old)))


def _bicubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """[new, old]: Keys' cubic convolution at the four nearest samples, those beyond the edge repeating it."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        x = np.abs(position - (first + tap))
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return matrix
