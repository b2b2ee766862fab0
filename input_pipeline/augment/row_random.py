"""Numbers drawn at random that belong to a row: the same whatever the batch, the process, the worker or the thread."""

from __future__ import annotations

import enum

import numpy as np


class Purpose(enum.IntEnum):
    """What a draw is for: equal rows draw anew for each. Numbers that were given away stay, since runs rest on them."""

    FLIP = 0
    SHIFT_DOWN = 1
    SHIFT_RIGHT = 2
    ZOOM = 3
    CROP_AREA = 4
    CROP_ASPECT = 5
    CROP_DOWN = 6
    CROP_RIGHT = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    HUE = 11
    IMAGE = 12
    TITLE = 13
    SHUFFLE = 14
    STAND_IN = 1 << 16  # and one more for each attempt
    PART = 1 << 32  # and the number of the part
    PLACE = 2 << 32  # and the number of the part


def draws(rows: np.ndarray, *, seed: int, epoch: int, purpose: int | np.ndarray = 0) -> np.ndarray:
    """uint64 [b]: uniform for each (seed, epoch, purpose, row), by the mixing function of SplitMix64 (Steele 2014).

    A generator per element, as Grain's `random_map` has, costs more than the whole batch.

    Args:
      rows, purpose: [b], or one of them a single value for all of the other.
    """
    mixed = np.zeros(1, np.uint64)
    for word in (seed, epoch, purpose, rows):
        mixed = (mixed ^ np.atleast_1d(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def unit(drawn: np.ndarray) -> np.ndarray:
    """uint64 -> float64 in [0, 1)."""
    return (drawn >> np.uint64(11)) * 2.0**-53
