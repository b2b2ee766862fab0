"""How every device's rows meet every other's: round a ring, or gathered at once.

`over_pairs` is the walk that the losses share: every row of the global batch against every column, tile by tile.
"""

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
from siglip_jax.losses.tiles import ADD, TILES, Finish, Merge, Results, Tile, TileFunction, count, over_matrix, tile_of

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

    def shard_map(
        self, body: Callable[..., Any], *, by_row: tuple[bool, ...], out_by_row: bool | tuple[bool, ...]
    ) -> Callable[..., Any]:
        """`body` on each device's own rows; arguments and results that are not by row are equal on all devices."""
        if self.mesh is None:
            return body

        def spec(split: bool) -> PartitionSpec:
            return PartitionSpec(self.axes) if split else PartitionSpec()

        return jax.shard_map(
            body, mesh=self.mesh, in_specs=jax.tree.map(spec, by_row), out_specs=jax.tree.map(spec, out_by_row)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Walk:
    """How a loss goes over all pairs: everything about a call that is not an array.

    Attributes:
      layout: where the rows live.
      dtype: of the embeddings and, once they are final, of their gradients.
      tile: rows and columns of a tile.
      communication: "ring" or "gather".
      wire_dtype: of results about columns while they travel.
    """

    layout: Layout
    dtype: str
    tile: int
    communication: str = "ring"
    wire_dtype: str = "float32"


def over_pairs(
    function: TileFunction,
    rows: Any,
    columns: Any,
    *,
    walk: Walk,
    merge: Merge = ADD,
    final: Callable[[Any, Any], Any] = lambda _, about: about,
) -> Results:
    """What `function` finds out on every tile of the matrix of all rows of all devices by all columns, merged.

    Runs on each device, inside `Layout.shard_map`; only `columns` and the results about them travel.

    Args:
      function: a tile function.
      rows: of this device, a tree of [n, ...].
      columns: of this device, a tree of [m, ...].
      merge: joins the results of two tiles; "gather" can only add.
      final: (some rows, the merged results about them) -> what is kept of them, a tree of [r, ...]; called as soon as
        these rows have met every column.

    Returns:
      The final results about this device's rows, the results about its columns, of all devices; the total over this
      device's rows.
    """
    layout = walk.layout
    assert merge is ADD or walk.communication == "ring"
    first_row, columns_of_shard = layout.position() * count(rows), count(columns)

    def nothing(tile: Tile[Any]) -> Results:
        return layout.vary(merge.nothing(function, tile))

    # Where a device meets all columns at once, a stripe of rows is final before the next begins.
    at_once = walk.communication == "gather" or layout.devices == 1
    finish = Finish(lambda tile: nothing(tile).rows, final) if at_once else None

    def visit(columns: Any, shard: Any, home: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        results = over_matrix(
            function,
            rows,
            columns,
            Results(rows=home[0], columns=nothing(tile_of(rows, columns)).columns, total=home[1]),
            first=(first_row, shard * columns_of_shard),
            tile=walk.tile,
            merge=merge,
            finish=finish,
        )
        return results.columns, (results.rows, results.total)

    start = nothing(tile_of(rows, columns))
    if at_once:
        kept = jax.eval_shape(final, rows, start.rows)
        start = start._replace(rows=layout.vary(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), kept)))
    home = (start.rows, start.total)
    if walk.communication == "gather":
        about_columns, home = gather(visit, columns, home, layout=layout, wire_dtype=walk.wire_dtype)
    else:
        about_columns, home = ring(visit, columns, home, layout=layout, join=merge.join, wire_dtype=walk.wire_dtype)
    about_rows, total = home
    return Results(rows=about_rows if at_once else final(rows, about_rows), columns=about_columns, total=total)


def choose_communication(asked: str, *, batch: int, dim: int, itemsize: int, devices: int) -> str:
    """Which way; both send about the same bytes. "auto" gathers up to `GATHER_BYTES` of rows and gradients a device.

    Args:
      batch: global rows of the side that travels.
      itemsize: bytes of one element of a row; a gradient takes 4 more.

    Returns:
      "ring" or "gather".
    """
    if asked != "auto" or devices == 1:
        return "ring" if asked == "auto" else asked
    return "gather" if batch * dim * (itemsize + 4) <= GATHER_BYTES else "ring"


Visit = Callable[[Any, Any, Any], tuple[Any, Any]]


def ring(
    visit: Visit,
    columns: Any,
    home: Any,
    *,
    layout: Layout,
    join: Callable[[jax.Array, jax.Array], jax.Array] = jnp.add,
    wire_dtype: str = "float32",
) -> tuple[Any, Any]:
    """Shows each device every shard of `columns`, one hop at a time, and brings back what was found out about its own.

    Sends `columns` and the results about them once round, D hops each. What a hop sends is ready when the hop begins:
    the columns that the next one needs, and the results of the hop before. So both transfers can run beside the
    arithmetic.

    Args:
      visit: (columns, shard they are of, home) -> (float32 results about these columns, home).
      columns: this device's, a tree of arrays.
      home: what a device accumulates about its own side.
      join: joins two results about the same columns, leaf by leaf.
      wire_dtype: of the results while they travel.

    Returns:
      (the joined results of all devices about this device's columns, home).
    """
    devices = layout.devices
    if devices == 1:
        return visit(columns, layout.position(), home)
    assert layout.mesh is not None
    order = ring_order(layout.mesh, layout.axes)
    onward = [(shard, order[(place + 1) % devices]) for place, shard in enumerate(order)]
    place_of = np.argsort(order)

    def send(tree: Any) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, layout.axes, onward), tree)

    def send_results(tree: Any) -> Any:
        return jax.tree.map(lambda x: send(x.astype(wire_dtype)).astype(x.dtype), tree)

    def hop(number: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        columns, about_last, home = carry
        upcoming, arrived = send(columns), send_results(about_last)
        shard = jnp.asarray(order)[(jnp.asarray(place_of)[layout.position()] - number) % devices]
        about_columns, home = visit(columns, shard, home)
        return upcoming, jax.tree.map(join, arrived, about_columns), home

    upcoming = send(columns)
    about, home = visit(columns, layout.position(), home)
    _, about, home = lax.fori_loop(1, devices, hop, (upcoming, about, home))
    return send_results(about), home


def gather(visit: Visit, columns: Any, home: Any, *, layout: Layout, wire_dtype: str = "float32") -> tuple[Any, Any]:
    """As `ring` with addition, by one all-gather of the columns and one reduce-scatter of the results: 1 hop, D times
    the memory."""
    if layout.devices == 1:
        return visit(columns, layout.position(), home)
    everything = jax.tree.map(lambda x: lax.all_gather(x, layout.axes, tiled=True), columns)
    about, home = visit(everything, 0, home)

    def home_again(x: jax.Array) -> jax.Array:
        return lax.psum_scatter(x.astype(wire_dtype), layout.axes, tiled=True).astype(x.dtype)

    return jax.tree.map(home_again, about), home
