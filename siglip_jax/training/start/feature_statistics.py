"""What an adapter (`models.feature_tower`) starts with: statistics of the training rows, and the projection.

Two passes in float64 over stretches of the rows, so that memory does not grow with the catalogue and vectors may be
memory-mapped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.architecture import FeatureSize
from siglip_jax.models.feature_tower import directions

MAX_ROWS = 1 << 16  # looked at: of more rows, so many spread evenly
STRETCH_BYTES = 1 << 26  # of float64 numbers held at a time
MAX_PROJECTED = 1 << 14  # numbers of all inputs: the SVD takes their square in memory
MIN_SCALE = 1e-2  # of the root mean square deviation of an input's numbers: rarely used ones must not outweigh the rest

Take = Callable[[np.ndarray], Mapping[str, np.ndarray]]  # rows int64 [n] -> {name: float [n, numbers]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureStart:
    """The fixed parameters of an adapter.

    Attributes:
      parameters: {"mean", "scale", "weight", "strength"} float32, and "projection" where the embedding is narrower.
      kept: share of the squared length of the base that the projection keeps, 1 without one.
      rows: how many were looked at.
    """

    parameters: dict[str, np.ndarray]
    kept: float
    rows: int


def start_adapter(
    model: Model, take: Take, rows: np.ndarray, *, strength: float, weights: Mapping[str, float] | None = None
) -> tuple[Model, FeatureStart]:
    """The adapter `model` with the fixed parameters of these training rows.

    Args:
      take: reads vectors of rows, such as a memory map's.
      rows: int64 [n], the training rows that have vectors.
      strength, weights: see `feature_start`.

    Raises:
      UserError: `model` takes pictures, or as `feature_start`.
    """
    size = model.architecture.image
    if not isinstance(size, FeatureSize):
        raise UserError("features were given for a model of pictures; start from random weights, or from an adapter")
    found = feature_start(size, take, rows, strength=strength, weights=weights)
    image = dict(model.params["img"])
    image |= {name: value.astype(np.asarray(image[name]).dtype) for name, value in found.parameters.items()}
    return model.replace(params={**model.params, "img": image}), found


def with_strength(model: Model, strength: float) -> Model:
    """The adapter `model` with another strength, from 0 (the encoders alone) to 1 (what was learned alone).

    Nothing needs to be trained again: a title is compared with the learned part, and only the cosines between images
    move from one to the other.

    Raises:
      UserError: a strength outside, or a model of pictures.
    """
    if not model.architecture.features:
        raise UserError("strength: this is a model of pictures; only an adapter has one")
    if not 0 <= strength <= 1:
        raise UserError(f"strength={strength}; expected 0 to 1")
    image = {**model.params["img"], "strength": np.array([strength], np.float32)}
    return model.replace(params={**model.params, "img": image})


def feature_start(
    size: FeatureSize, take: Take, rows: np.ndarray, *, strength: float, weights: Mapping[str, float] | None = None
) -> FeatureStart:
    """Means, deviations and projection of the training rows; the same for the same rows.

    Args:
      take, rows: see `start_adapter`.
      strength: see `with_strength`.
      weights: of inputs in the base, 1 where none is given.

    Raises:
      UserError: no rows, vectors of another size, not finite or equal in all rows, a weight of no input or of 0 for
        all, or too many numbers to project.
    """
    weights = dict(weights or {})
    if unknown := [name for name in weights if name not in size.dimensions]:
        raise UserError(
            f"config.model.adapter.weights: no feature {unknown[0]!r}; there are {', '.join(size.dimensions)}"
        )
    weight = np.array([weights.get(name, 1.0) for name in size.dimensions])
    if not weight.any():
        raise UserError("config.model.adapter.weights: all 0; expected one feature at least that weighs more")
    if not len(rows):
        raise UserError("adapter: no training row has all features; are these the stores of this dataset?")
    if size.projects and size.numbers > MAX_PROJECTED:
        raise UserError(
            f"adapter: {size.numbers} numbers are too many to project to {size.base}; the limit is {MAX_PROJECTED}. "
            "Use narrower stores, or config.model.adapter.base=0, which keeps all numbers"
        )
    rows = np.asarray(rows)[:: math.ceil(len(rows) / MAX_ROWS)]
    mean, deviation = _mean_and_deviation(size, take, rows)
    parameters = {"mean": mean, "scale": _scale(size, deviation), "weight": weight, "strength": np.array([strength])}
    kept = 1.0
    if size.projects:
        parameters["projection"], kept = _projection(size, take, rows, mean=mean, weight=weight)
    return FeatureStart(
        parameters={name: value.astype(np.float32) for name, value in parameters.items()}, kept=kept, rows=len(rows)
    )


def _stretches(size: FeatureSize, take: Take, rows: np.ndarray) -> Iterator[np.ndarray]:
    """float64 [m, D] of consecutive rows, inputs side by side in the order of their names."""
    step = max(1, STRETCH_BYTES // (8 * size.numbers))
    for begin in range(0, len(rows), step):
        found = take(rows[begin : begin + step])
        yield np.concatenate([_checked(name, n, found[name]) for name, n in size.inputs], axis=1)


def _checked(name: str, numbers: int, vectors: np.ndarray) -> np.ndarray:
    if vectors.ndim != 2 or vectors.shape[1] != numbers:
        raise UserError(f"feature {name}: vectors of {list(vectors.shape)}; expected [n, {numbers}]")
    if bad := int((~np.isfinite(vectors).all(axis=1)).sum()):
        raise UserError(f"feature {name}: {bad} of {len(vectors)} vectors hold NaN or infinity; embed them again")
    return vectors.astype(np.float64)


def _mean_and_deviation(size: FeatureSize, take: Take, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 [D] twice."""
    first: Any = None
    total, squares = np.zeros(size.numbers), np.zeros(size.numbers)
    for stretch in _stretches(size, take, rows):
        first = stretch[0] if first is None else first
        shifted = stretch - first  # the squares of large means would swallow small deviations
        total += shifted.sum(axis=0)
        squares += (shifted * shifted).sum(axis=0)
    mean = total / len(rows)
    return first + mean, np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))


def _scale(size: FeatureSize, deviation: np.ndarray) -> np.ndarray:
    """What numbers are divided by: their deviation, within a bound."""
    scale = []
    for name, part in zip(size.dimensions, _split(size, deviation), strict=True):
        usual = math.sqrt(float(np.mean(part**2)))
        if not usual:
            raise UserError(f"feature {name}: all vectors are equal, so they tell nothing apart; leave it out")
        scale.append(np.maximum(part, MIN_SCALE * usual))
    return np.concatenate(scale)


def _split(size: FeatureSize, x: np.ndarray) -> Sequence[np.ndarray]:
    return np.split(x, np.cumsum([*size.dimensions.values()])[:-1], axis=-1)


def _projection(
    size: FeatureSize, take: Take, rows: np.ndarray, *, mean: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, float]:
    """(columns [D, base], share kept): the right singular vectors of the base's rows, the largest first."""
    gram = np.zeros((size.numbers, size.numbers))
    for stretch in _stretches(size, take, rows):
        base = np.concatenate(directions(stretch - mean, size, weight), axis=1)
        gram += base.T @ base
    values, vectors = np.linalg.eigh(gram)  # ascending
    columns = vectors[:, ::-1][:, : size.base]
    # A singular vector's sign is anybody's choice; this one does not depend on the library.
    columns = columns * np.sign(columns[np.abs(columns).argmax(axis=0), np.arange(size.base)])
    return columns, float(values[::-1][: size.base].sum() / values.sum())
