"""Models between models: the parameters of a start and of what was tuned from it, interpolated.

WiSE-FT (arXiv 2109.01903): (1 - alpha) start + alpha tuned, which often keeps most of the gain and forgets less than
`tuned`. Of several tuned models, their mean comes first, a uniform soup (arXiv 2203.05482). Both need models that were
tuned from one start: parameters of unrelated models do not correspond, and their blend is good at nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.feature_tower import FIXED


def interpolate(start: Any, tuned: Any, alpha: float) -> Any:
    """(1 - alpha) start + alpha tuned, leaf by leaf, in float32; at 0 and 1 the inputs to the bit.

    Raises:
      UserError: an alpha outside 0 to 1: what lies beyond was not seen by anybody.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha={alpha}; expected a number from 0, the start, to 1, the tuned model")
    if alpha in (0, 1):  # 1 * -0.0 + 0 * x is 0.0
        return jax.tree.map(_float32, tuned if alpha else start)
    own, other = np.float32(1 - alpha), np.float32(alpha)
    return jax.tree.map(lambda a, b: own * _float32(a) + other * _float32(b), start, tuned)


def average(trees: Sequence[Any]) -> Any:
    """The mean of parameter trees, leaf by leaf, in float32; of one tree itself, to the bit."""
    if len(trees) == 1:
        return jax.tree.map(_float32, trees[0])
    return jax.tree.map(lambda *leaves: sum(map(_float32, leaves)) / np.float32(len(leaves)), *trees)


def check_blendable(models: Mapping[str, Model]) -> None:
    """Raises a UserError that says how another model differs from the first one, by the names that are given.

    Blended are models of one architecture, one preprocessing with its tokenizer, and parameters of the same shapes;
    adapters must also have the same fixed parameters, or what is learned would read other inputs.
    """
    (first, start), *others = ((name, _described(model)) for name, model in models.items())
    for name, other in others:
        if different := files.differences(other, start):
            raise UserError(
                f"{name} cannot be blended with {first}, which is there: {'; '.join(different)}; expected models that "
                "were tuned from one start"
            )


def _described(model: Model) -> dict[str, Any]:
    shapes = {
        name: list(np.shape(leaf)) for name, leaf in flax.traverse_util.flatten_dict(model.params, sep="/").items()
    }
    described = {
        "architecture": model.architecture.to_json(),
        "preprocessing": None if model.preprocessing is None else model.preprocessing.to_json(),
        "parameters": shapes,
    }
    if model.architecture.features:
        fixed = {name: model.params["img"][name] for name in FIXED if name in model.params["img"]}
        fixed.pop("strength")  # a number between two others is a strength as well
        described["fixed"] = {
            name: hashlib.sha256(_float32(leaf).tobytes()).hexdigest() for name, leaf in fixed.items()
        }
    return described


def _float32(leaf: Any) -> np.ndarray:
    return np.asarray(leaf, np.float32)
