"""How far an export may be from its model: what float32 leaves, and what the model itself rounds away.

A tower in bfloat16 is known to about 1e-2 only: another compiler rounds at other places. So is one in float32 on an
accelerator, which multiplies in fewer bits. What a model rounds away is measured, on the very inputs of the check.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a process that only serves has no JAX
    from siglip_jax.model import Model

MAX_ERROR = 1e-5  # of an embedding from equal pixels or vectors, in float32
MIN_COSINE = 0.9999  # where decoders differ in the last bit
ROUNDINGS = 3.0  # the model's and the export's, and one for chance
MAX_ROUNDING = 0.05  # of a coordinate: beyond it there is nothing to compare with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a check allows.

    Attributes:
      words: how the model computes, "float32 on cpu".
      rounding: the largest difference of a coordinate between the model and itself in full float32.
      distance: of a whole embedding, the same.
    """

    words: str = "float32"
    rounding: float = 0.0
    distance: float = 0.0

    @property
    def max_error(self) -> float:
        return MAX_ERROR + ROUNDINGS * min(self.rounding, MAX_ROUNDING)

    @property
    def min_cosine(self) -> float:
        """Of unit vectors at the distance of MIN_COSINE, and the roundings more."""
        distance = math.sqrt(2 * (1 - MIN_COSINE)) + ROUNDINGS * min(self.distance, MAX_ROUNDING)
        return 1 - distance**2 / 2

    def __str__(self) -> str:
        return f" ({self.words} itself rounds by {self.rounding:.1e})" if self.rounding else ""


def limits_of(model: Model, inputs: Any, *, tower: str = "image") -> Limits:
    """Measured on `inputs`, what `Model.encode_image` takes, or `encode_text` of the tower "text"."""
    import jax

    dtype, backend = jax.numpy.dtype(model.module.dtype).name, jax.default_backend()
    words = f"{dtype} on {backend}"
    if words == "float32 on cpu":
        return Limits(words=words)
    with jax.default_matmul_precision("highest"):
        exact = _encode(model.replace(module=model.module.clone(dtype="float32")), inputs, tower)
    difference = _encode(model, inputs, tower) - exact
    return Limits(
        words=words,
        rounding=float(np.abs(difference).max(initial=0)),
        distance=float(np.linalg.norm(difference, axis=-1).max(initial=0)),
    )


def _encode(model: Model, inputs: Any, tower: str) -> np.ndarray:
    return model.encode_image(inputs) if tower == "image" else model.encode_text(inputs)
