"""Random changes to training pictures that leave the product what it is, drawn for each (seed, epoch, row).

A draw belongs to its row, so batches do not depend on the batch size, the number of processes or of workers.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from siglip_jax.errors import UserError

_FLIP, _SHIFT_DOWN, _SHIFT_RIGHT = range(3)  # what a draw is for: equal rows draw anew for each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a picture.

    Attributes:
      flip: mirror half of the pictures.
      shift: move by up to this many pixels along each side; the uncovered edge repeats the outermost pixels.
    """

    flip: bool = True
    shift: int = 0

    def __post_init__(self):
        if self.shift < 0:
            raise UserError(f"augmentation: shift={self.shift} pixels; expected 0 or more")

    def __call__(self, images: np.ndarray, rows: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
        """uint8 [b, h, w, 3] of the given rows -> a new array of the same shape."""
        if self.flip:
            mirrored = (draws(rows, seed=seed, epoch=epoch, purpose=_FLIP) >> np.uint64(63)).astype(bool)
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        if self.shift:
            steps = np.uint64(2 * self.shift + 1)
            down, right = (
                (draws(rows, seed=seed, epoch=epoch, purpose=purpose) % steps).astype(np.int64) - self.shift
                for purpose in (_SHIFT_DOWN, _SHIFT_RIGHT)
            )
            height, width = images.shape[1:3]
            y = np.clip(np.arange(height) - down[:, None], 0, height - 1)
            x = np.clip(np.arange(width) - right[:, None], 0, width - 1)
            images = images[np.arange(len(images))[:, None, None], y[:, :, None], x[:, None, :]]
        return images


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
