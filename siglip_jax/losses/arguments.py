"""What both losses ask of their arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax.losses.exchange import COMMUNICATIONS, GRADIENT_DTYPES, Layout, Walk, choose_communication

INPUT_DTYPES = ("float32", "bfloat16")


def checked_embeddings(name: str, image: Any, text: Any) -> tuple[jax.Array, jax.Array]:
    """Two [n, d] arrays of one dtype.

    Raises:
      ValueError: other shapes, no rows, or dtypes that are neither float32 nor bfloat16.
    """
    image, text = jnp.asarray(image), jnp.asarray(text)
    if image.ndim != 2 or image.shape != text.shape or not image.size:
        raise ValueError(f"{name}: image {image.shape} and text {text.shape}; expected two equal [n, d]")
    for side, x in (("image", image), ("text", text)):
        if x.dtype not in INPUT_DTYPES:
            raise ValueError(f"{name}: {side} is {x.dtype}; expected {' or '.join(INPUT_DTYPES)}")
    dtype = jnp.promote_types(image.dtype, text.dtype)
    return image.astype(dtype), text.astype(dtype)


def checked_scalar(name: str, what: str, value: Any) -> jax.Array:
    """A float32 scalar of a scalar or [1]."""
    value = jnp.asarray(value)
    if value.size != 1:
        raise ValueError(f"{name}: {what} {value.shape}; expected a scalar or [1]")
    return value.astype(jnp.float32).reshape(())


def checked_groups(name: str, groups: Any, rows: int) -> jax.Array | None:
    if groups is None:
        return None
    if groups.shape != (rows,):
        raise ValueError(f"{name}: groups {groups.shape}; expected [{rows}]")
    # Wider ids would be cut, and unequal groups could become equal.
    if not jnp.issubdtype(groups.dtype, jnp.integer) or groups.dtype.itemsize > 4:
        raise ValueError(f"{name}: groups are {groups.dtype}; expected int32")
    return jnp.asarray(groups).astype(jnp.int32)


def checked_layout(name: str, *, mesh: Mesh | None, axis: str | tuple[str, ...], inputs: tuple[Any, ...]) -> Layout:
    """Where the rows are.

    Raises:
      ValueError: an axis that the mesh has not, rows that do not divide over the devices, or sharded rows and no mesh.
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    if mesh is None:
        if any(_is_sharded(x) for x in inputs):
            raise ValueError(f"{name}: inputs are sharded over several devices; pass mesh= and axis=")
        return Layout(mesh=None, axes=())
    if unknown := [a for a in axes if a not in mesh.shape]:
        raise ValueError(f"{name}: axis {', '.join(unknown)}; the mesh has {', '.join(mesh.axis_names)}")
    layout = Layout(mesh=mesh, axes=axes)
    if inputs[0].shape[0] % layout.devices:
        raise ValueError(
            f"{name}: {inputs[0].shape[0]} rows over {layout.devices} devices; expected a multiple of {layout.devices}"
        )
    return layout


def checked_choice(name: str, what: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: {what}={value!r}; expected one of {', '.join(choices)}")
    return value


def checked_walk(
    name: str, image: jax.Array, *, layout: Layout, tile: int | None, communication: str, gradient_dtype: Any
) -> Walk:
    """How to go over all pairs of the rows of `image` [n, d] and as many of text.

    Raises:
      ValueError: a tile below 1, an unknown way of communicating or dtype of gradients.
    """
    checked_choice(name, "communication", communication, COMMUNICATIONS)
    wire_dtype = checked_choice(name, "gradient_dtype", jnp.dtype(gradient_dtype).name, GRADIENT_DTYPES)
    if tile is not None and tile < 1:
        raise ValueError(f"{name}: tile={tile}; expected at least 1")
    (batch, dim), itemsize = image.shape, image.dtype.itemsize
    return Walk(
        layout=layout,
        dtype=image.dtype.name,
        tile=layout.tile if tile is None else tile,
        communication=choose_communication(
            communication, batch=batch, dim=dim, itemsize=itemsize, devices=layout.devices
        ),
        wire_dtype=wire_dtype,
    )


def _is_sharded(x: Any) -> bool:
    if isinstance(x, jax.core.Tracer):  # only explicit mesh axes are known while tracing
        return any(part is not None for part in getattr(jax.typeof(x).sharding, "spec", ()))
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1
