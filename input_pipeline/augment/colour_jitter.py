"""Colour jitter: brightness, contrast, saturation and hue of a picture, changed by one affine map of its RGB values.

Each of the four is affine, so they are multiplied out and the levels are rounded and cut to 0 ... 255 once, at the end.
Done one after the other on whole levels, as torchvision's ColorJitter and PIL's ImageEnhance do, each step rounds.
"""

from __future__ import annotations

import math

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL's "L" has it
# Chroma of the NTSC colour space: two axes at right angles, so that a hue is an angle.
_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)


def colour_map(
    mean: float, *, brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[np.ndarray, float]:
    """(float64 [3, 3], offset): RGB levels are multiplied by the matrix, and the offset is added to all three.

    Args:
      mean: luma of the picture, which contrast leaves as it is.
      brightness, contrast, saturation: factors, 1 for no change; 0 gives black, a plain grey and a grey picture.
      hue: turns of the colour circle, at constant luma.
    """
    grey = np.outer(np.ones(3), LUMA)
    saturate = saturation * np.eye(3) + (1 - saturation) * grey
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    # Grey stays grey when saturated and turned, so the offset passes both unchanged.
    return contrast * brightness * turn @ saturate, (1 - contrast) * brightness * mean


def mean_luma(pixels: np.ndarray) -> float:
    """Of uint8 [n, 3] in row-major order."""
    from input_pipeline.augment.pixel_kernels import channel_sums

    return float(LUMA @ channel_sums(pixels)) / len(pixels)


def change_colours(pixels: np.ndarray, matrix: np.ndarray, offset: float) -> None:
    """uint8 [n, 3] in row-major order, changed in place; in float32, rounded.

    Not a matrix product: BLAS may add up in another order for another number of pixels or threads.
    """
    from input_pipeline.augment.pixel_kernels import recolour

    recolour(pixels, matrix.astype(np.float32), np.float32(offset))
