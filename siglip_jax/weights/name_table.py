"""Tables of tensor names between our parameter tree and somebody else's state dict, read in both directions.

`huggingface_names` and `open_clip_names` are the tables; here are the ways that one tensor becomes another, and the
two walks over a table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.models.architecture import Architecture
from siglip_jax.weights.tensors import check_names_and_shapes


@dataclasses.dataclass(frozen=True)
class Transform:
    """How tensors of ours (one, or some that they join) become one of theirs, and back.

    `to_theirs` works on numpy and on JAX arrays; `to_ours` takes the shape that ours has.
    """

    to_theirs: Callable[[Any], Any]
    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _linear(inputs: int) -> Transform:
    """A kernel whose first `inputs` axes are summed over; torch keeps [out, in]."""
    return Transform(
        lambda x: x.reshape(math.prod(x.shape[:inputs]), -1).T,
        lambda x, shape: x.T.reshape(shape),
    )


SAME = Transform(lambda x: x, lambda x, shape: x.reshape(shape))
FLAT = Transform(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape))
SCALAR = Transform(lambda x: x.reshape(()), lambda x, shape: x.reshape(shape))
ROWS = Transform(lambda x: x.reshape(-1, x.shape[-1]), lambda x, shape: x.reshape(shape))
KERNEL, OUT_KERNEL = _linear(1), _linear(2)
CONVOLUTION = Transform(lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0))

# Of one tensor, or of the tensors of a layer: our name, their name, transform.
Kind = Transform | tuple[tuple[str, str, Transform], ...]

NORM = (("scale", "weight", SAME), ("bias", "bias", SAME))
DENSE = (("kernel", "weight", KERNEL), ("bias", "bias", SAME))
SPLIT = (("kernel", "weight", KERNEL), ("bias", "bias", FLAT))  # kernel [d, heads, d / heads]
MERGE = (("kernel", "weight", OUT_KERNEL), ("bias", "bias", SAME))
ATTENTION = "MultiHeadDotProductAttention_0"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of theirs: the tensors of ours that it is made of, and the layer they are stacked at."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    layer: int | None = None


Table = Callable[[Architecture], Iterator[Entry]]


def entries(ours: str, theirs: str, kind: Kind, *, layer: int | None = None) -> Iterator[Entry]:
    """Of a tensor, or of the tensors of a layer below two names."""
    if isinstance(kind, Transform):
        yield Entry(theirs, (ours,), kind, layer)
    else:
        for a, b, transform in kind:
            yield Entry(f"{theirs}.{b}", (f"{ours}/{a}",), transform, layer)


def joined(ours: str, parts: Collection[str], weight: str, bias: str, *, layer: int | None = None) -> Iterator[Entry]:
    """Projections of an attention that they keep one after the other along the first axis."""
    for leaf, theirs, transform in (("kernel", weight, KERNEL), ("bias", bias, FLAT)):
        yield Entry(theirs, tuple(f"{ours}/{ATTENTION}/{part}/{leaf}" for part in parts), transform, layer)


def to_state_dict(params: Any, architecture: Architecture, table: Table, *, xp: Any = np) -> dict[str, Any]:
    """Our parameter tree -> their names and shapes. `xp` is numpy, or jax.numpy to trace."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    state = {}
    for entry in table(architecture):
        arrays = [flat[name] if entry.layer is None else flat[name][entry.layer] for name in entry.ours]
        parts = [entry.transform.to_theirs(array) for array in arrays]
        state[entry.theirs] = parts[0] if len(parts) == 1 else xp.concatenate(parts)
    return state


def from_state_dict(
    state: Mapping[str, np.ndarray], architecture: Architecture, table: Table, shapes: Any, *, source: object
) -> dict[str, Any]:
    """Their tensors -> our parameter tree, dtypes as stored.

    Args:
      shapes: our tree of anything with a shape.

    Raises:
      UserError: listing every key that is missing, extra or misshapen.
    """
    theirs = jax.eval_shape(lambda params: to_state_dict(params, architecture, table, xp=jnp), shapes)
    check_names_and_shapes(state, {name: x.shape for name, x in theirs.items()}, source=source)
    expected = flax.traverse_util.flatten_dict(shapes, sep="/")
    flat: dict[str, Any] = {}
    for entry in table(architecture):
        whole = state[entry.theirs]
        for name, part in zip(entry.ours, np.split(whole, len(entry.ours)) if entry.ours[1:] else [whole], strict=True):
            shape = tuple(expected[name].shape)
            if entry.layer is None:
                flat[name] = entry.transform.to_ours(part, shape)
            else:
                flat.setdefault(name, []).append(entry.transform.to_ours(part, shape[1:]))
    flat = {name: np.stack(value) if isinstance(value, list) else value for name, value in flat.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def is_identity(weight: np.ndarray | None, bias: np.ndarray | None) -> bool:
    """Whether a text head does nothing, as transformers writes that of SigLIP 1 i18n, which has none."""
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        return False
    return not np.asarray(bias).any() and np.array_equal(weight, np.eye(len(weight), dtype=weight.dtype))
