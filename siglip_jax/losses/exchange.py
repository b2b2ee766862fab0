"""How every device's rows meet every other's: round a ring, or gathered at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from siglip_jax.losses.ring_order import ring_order
from siglip_jax.losses.tiles import TILES

COMMUNICATIONS = ("auto", "ring", "gather")
GRADIENT_DTYPES = ("float32", "bfloat16")
# Below this the gathered rows and their gradients cost little memory, while a hop of the ring would be too short to
# hide its latency.
GATHER_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the rows live: spread over `axes` of `mesh`, or all on one device where `mesh` is None."""

    mesh: Mesh | None
    axes: tuple[str, ...]

    @property
    def devices(self) -> int:
        """Shards that the rows are in; axes of the mesh not named hold copies."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def tile(self) -> int:
        """Rows and columns of a tile on this kind of device."""
        platform = jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform
        return TILES.get({"cuda": "gpu", "rocm": "gpu"}.get(platform, platform), TILES["cpu"])

    def shard_map(self, body: Callable, *, by_row: tuple[bool, ...], out_by_row: tuple[bool, ...]) -> Callable:
        """`body` on each device's own rows; arguments and results that are not by row are equal on all devices."""
        if self.mesh is None:
            return body

        def spec(split: bool) -> PartitionSpec:
            return PartitionSpec(self.axes) if split else PartitionSpec()

        return jax.shard_map(
            body, mesh=self.mesh, in_specs=tuple(map(spec, by_row)), out_specs=tuple(map(spec, out_by_row))
        )

    def position(self) -> Any:
        """Which shard this device holds, in the order of the global rows."""
        return lax.axis_index(self.axes) if self.mesh is not None else 0

    def vary(self, tree: Any) -> Any:
        """Constants as the start of a loop whose later values differ between devices."""
        return tree if self.mesh is None else jax.tree.map(lambda x: lax.pcast(x, self.axes, to="varying"), tree)

    def total(self, tree: Any) -> Any:
        """The sum over all shards."""
        return tree if self.mesh is None else lax.psum(tree, self.axes)


def choose_communication(asked: str, *, batch: int, dim: int, itemsize: int, devices: int) -> str:
    """Which way; both send about the same bytes. "auto" gathers up to `GATHER_BYTES` of rows and gradients a device.

    Args:
      batch: global rows.
      itemsize: bytes of one element of a row; a gradient takes 4 more.

    Returns:
      "ring" or "gather".
    """
    if asked != "auto" or devices == 1:
        return "ring" if asked == "auto" else asked
    return "gather" if batch * dim * (itemsize + 4) <= GATHER_BYTES else "ring"


def ring(
    visit: Callable[[Any, Any, Any], tuple[Any, Any]],
    rows: Any,
    home: Any,
    *,
    layout: Layout,
    merge: Callable[[Any, Any], Any] = jnp.add,
    wire_dtype: Any = None,
) -> tuple[Any, Any]:
    """Shows each device every shard of `rows`, one hop at a time, and brings back what was found out about its own.

    Sends `rows` and the results about them once round, D hops each. What a hop sends is ready when the hop begins: the
    rows that the next one needs, and the results of the hop before. So both transfers can run beside the arithmetic.

    Args:
      visit: (rows, shard they are of, home) -> (result about these rows, home).
      rows: this device's rows, a tree of arrays.
      home: what a device accumulates about its own side.
      merge: joins two results about the same rows, leaf by leaf.
      wire_dtype: of the results while they travel; None as they are.

    Returns:
      (the merged results of all devices about this device's rows, home).
    """
    devices = layout.devices
    if devices == 1:
        return visit(rows, layout.position(), home)
    assert layout.mesh is not None
    order = ring_order(layout.mesh, layout.axes)
    onward = [(shard, order[(place + 1) % devices]) for place, shard in enumerate(order)]
    place_of = np.argsort(order)

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, layout.axes, onward), tree)

    def send_result(tree: Any) -> Any:
        if wire_dtype is None:
            return send(tree)
        return jax.tree.map(lambda x, sent: sent.astype(x.dtype), tree, send([x.astype(wire_dtype) for x in tree]))

    def hop(number: Any, carry: Any) -> Any:
        here, about_last, home = carry
        upcoming, arrived = send(here), send_result(about_last)
        shard = jnp.asarray(order)[(jnp.asarray(place_of)[layout.position()] - number) % devices]
        about_here, home = visit(here, shard, home)
        return upcoming, jax.tree.map(merge, arrived, about_here), home

    upcoming = send(rows)
    about, home = visit(rows, layout.position(), home)
    _, about, home = lax.fori_loop(1, devices, hop, (upcoming, about, home))
    return send_result(about), home


def gather(
    visit: Callable[[Any, Any, Any], tuple[Any, Any]], rows: Any, home: Any, *, layout: Layout, wire_dtype: Any = None
) -> tuple[Any, Any]:
    """As `ring` with addition, by one all-gather of the rows and one reduce-scatter of the results: 1 hop, D times the
    memory."""
    if layout.devices == 1:
        return visit(rows, layout.position(), home)
    everything = jax.tree.map(lambda x: lax.all_gather(x, layout.axes, tiled=True), rows)
    about, home = visit(everything, 0, home)

    def home_again(x: jax.Array) -> jax.Array:
        sent = x if wire_dtype is None else x.astype(wire_dtype)
        return lax.psum_scatter(sent, layout.axes, tiled=True).astype(x.dtype)

    return jax.tree.map(home_again, about), home
