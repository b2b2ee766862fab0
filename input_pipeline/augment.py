"""Random changes to training pictures that leave the product what it is, drawn for each (seed, epoch, row).

A draw belongs to its row, so batches do not depend on the batch size, the number of processes or of workers.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import NAFLEX, Patches, Preprocessing

_FLIP, _SHIFT_DOWN, _SHIFT_RIGHT, _ZOOM = range(4)  # what a draw is for: equal rows draw anew for each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a picture.

    Attributes:
      flip: mirror half of the pictures.
      shift: move by up to this many pixels along each side; the uncovered edge repeats the outermost pixels.
      zoom: enlarge or shrink about the centre by up to this share (0.2: 0.8 to 1.2 times), by nearest pixels.
    """

    flip: bool = True
    shift: int = 0
    zoom: float = 0.0

    def __post_init__(self):
        if self.shift < 0:
            raise UserError(f"augmentation: shift={self.shift} pixels; expected 0 or more")
        if not 0 <= self.zoom < 1:
            raise UserError(f"augmentation: zoom={self.zoom}; expected a share from 0 to less than 1")

    def check(self, preprocessing: Preprocessing) -> None:
        """Raises a UserError where pictures of this preprocessing cannot be changed so."""
        if preprocessing.resize == NAFLEX and (self.shift or self.zoom):
            raise UserError(
                f"augmentation: shift={self.shift}, zoom={self.zoom} with NaFlex pictures, whose sizes differ; these "
                "can only be flipped: give shift=0, zoom=0"
            )

    def __call__(
        self, images: np.ndarray | Patches, rows: np.ndarray, *, seed: int, epoch: int
    ) -> np.ndarray | Patches:
        """uint8 [b, h, w, 3] or `Patches` of uint8 of the given rows -> a new value of the same shapes."""
        mirrored = (draws(rows, seed=seed, epoch=epoch, purpose=_FLIP) >> np.uint64(63)).astype(bool) & self.flip
        if isinstance(images, Patches):
            return _mirror_patches(images, mirrored) if self.flip else images
        if self.flip:
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.shift or self.zoom:
            down, right, zoom = (
                draws(rows, seed=seed, epoch=epoch, purpose=purpose) for purpose in (_SHIFT_DOWN, _SHIFT_RIGHT, _ZOOM)
            )
            scale = 1 + self.zoom * (2 * _unit(zoom) - 1)
            y, x = (
                _sources(side, np.floor(_unit(drawn) * (2 * self.shift + 1)) - self.shift, scale)
                for side, drawn in zip(images.shape[1:3], (down, right), strict=True)
            )
            images = images[np.arange(len(images))[:, None, None], y[:, :, None], x[:, None, :]]
        return images


def _mirror_patches(patches: Patches, mirrored: np.ndarray) -> Patches:
    """Those pictures left to right: the patches of each row in reverse order, and each patch mirrored itself."""
    y, x = patches.coordinates
    columns = patches.shape[:, 1:]
    number = np.arange(patches.pixels.shape[1])
    source = np.where(patches.mask & mirrored[:, None], y * columns + (columns - 1 - x), number)
    pixels = np.take_along_axis(patches.pixels, source[..., None], axis=1)
    side = math.isqrt(pixels.shape[2] // 3)
    squares = pixels.reshape(*pixels.shape[:2], side, side, 3)
    squares = np.where(mirrored[:, None, None, None, None], squares[..., ::-1, :], squares)
    return Patches(squares.reshape(pixels.shape), patches.shape)


def _sources(side: int, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int64 [b, side]: which pixel each one is taken from, after a move by `shift` [b] and a zoom by `scale` [b]."""
    centre = (side - 1) / 2
    position = centre + (np.arange(side) - shift[:, None] - centre) / scale[:, None]
    return np.clip(np.floor(position + 0.5), 0, side - 1).astype(np.int64)


def _unit(drawn: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1)."""
    return (drawn >> np.uint64(11)) * 2.0**-53


def draws(rows: np.ndarray, *, seed: int, epoch: int, purpose: int = 0) -> np.ndarray:
    """uint64 [b]: uniform for each (seed, epoch, purpose, row), by the mixing function of SplitMix64 (Steele 2014).

    A generator per element, as Grain's `random_map` has, costs more than the whole batch.
    """
    mixed = np.zeros(1, np.uint64)
    for word in (np.array([seed]), np.array([epoch]), np.array([purpose]), rows):
        mixed = (mixed ^ word.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
