"""What both losses ask of their arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from siglip_jax.losses.exchange import COMMUNICATIONS, GRADIENT_DTYPES, Layout, Walk, choose_communication

INPUT_DTYPES = ("float32", "bfloat16")


def checked_embeddings(name: str, image: Any, text: Any, *, paired: bool = True) -> tuple[jax.Array, jax.Array]:
    """[n, d] and [m, d] arrays of one dtype; m is n where row k of both is a pair.

    Raises:
      ValueError: other shapes, no rows, or dtypes that are neither float32 nor bfloat16.
    """
    image, text = jnp.asarray(image), jnp.asarray(text)
    matrices = image.ndim == text.ndim == 2 and image.size and text.size and image.shape[1] == text.shape[1]
    if not matrices or (paired and image.shape != text.shape):
        expected = "two equal [n, d]" if paired else "[n, d] and [m, d]"
        raise ValueError(f"{name}: image {image.shape} and text {text.shape}; expected {expected}")
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


def checked_groups(name: str, what: str, groups: Any, rows: int) -> jax.Array | None:
    """int32 [rows], or None where there are none."""
    if groups is None:
        return None
    if groups.shape != (rows,):
        raise ValueError(f"{name}: {what} {groups.shape}; expected [{rows}]")
    # Wider ids would be cut, and unequal groups could become equal.
    if not jnp.issubdtype(groups.dtype, jnp.integer) or groups.dtype.itemsize > 4:
        raise ValueError(f"{name}: {what} are {groups.dtype}; expected int32")
    return jnp.asarray(groups).astype(jnp.int32)


def checked_weights(name: str, what: str, weights: Any, rows: int) -> jax.Array | None:
    """float32 [rows], constants to a derivative, or None where there are none."""
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape != (rows,) or not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"{name}: {what} {weights.shape} of {weights.dtype}; expected float32 [{rows}]")
    return jax.lax.stop_gradient(weights.astype(jnp.float32))


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
    for rows in (x.shape[0] for x in inputs if x.ndim):
        if rows % layout.devices:
            raise ValueError(
                f"{name}: {rows} rows over {layout.devices} devices; expected a multiple of {layout.devices}"
            )
    return layout


def checked_choice(name: str, what: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name}: {what}={value!r}; expected one of {', '.join(choices)}")
    return value


def checked_walk(
    name: str, text: jax.Array, *, layout: Layout, tile: int | None, communication: str, gradient_dtype: Any
) -> Walk:
    """How to go over all pairs of the images and the rows of `text` [m, d].

    Raises:
      ValueError: a tile below 1, an unknown way of communicating or dtype of gradients.
    """
    checked_choice(name, "communication", communication, COMMUNICATIONS)
    wire_dtype = checked_choice(name, "gradient_dtype", jnp.dtype(gradient_dtype).name, GRADIENT_DTYPES)
    if tile is not None and tile < 1:
        raise ValueError(f"{name}: tile={tile}; expected at least 1")
    (batch, dim), itemsize = text.shape, text.dtype.itemsize
    return Walk(
        layout=layout,
        dtype=text.dtype.name,
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
