"""NaFlex pictures (SigLIP 2, arXiv 2502.14786, section 2.4.2): any aspect ratio, as patches padded to a budget.

Arrays are numpy or JAX; nothing is imported, since data workers load this module.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Patches(NamedTuple):
    """Pictures of any aspect ratio, cut into patches in row-major order and padded to N patches.

    Attributes:
      pixels: [n, N, patch_size**2 * 3], each patch flattened as (row, column, channel); uint8, or float in the model's
        range with zeros where there is no patch.
      shape: int32 [n, 2], how many rows and columns of patches each picture has; their product is at most N.
    """

    pixels: Any
    shape: Any

    @property
    def mask(self) -> Any:
        """bool [n, N]: True where a patch exists."""
        return _numbers(self) < (self.shape[:, :1] * self.shape[:, 1:])

    @property
    def coordinates(self) -> tuple[Any, Any]:
        """Row and column of every patch, each int32 [n, N]; meaningless where `mask` is False."""
        columns = self.shape[:, 1:]
        return _numbers(self) // columns, _numbers(self) % columns


def _numbers(patches: Patches) -> Any:
    """int32 [n, N]: 0 ... N - 1 in every row, as an array of the kind that `shape` is."""
    ones = patches.shape[:, :1] * 0 + 1
    return ones.repeat(patches.pixels.shape[1], axis=1).cumsum(axis=1) - 1
