"""An order of the shards in which each hands on to a physical neighbour.

TPU chips form a grid. Sent to a neighbour, rows cross one link, and XLA makes the transfer asynchronous. In row-major
order the step from the end of one row of chips to the start of the next crosses the grid; all others wait for it, and
for v5e slices of 8 x 8 and more XLA (libtpu 0.0.42) then compiles a transfer that nothing overlaps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh


@functools.cache
def ring_order(mesh: Mesh, axes: tuple[str, ...]) -> tuple[int, ...]:
    """Shards along `axes`, numbered row-major, in the order of a closed walk; 0, 1, 2, ... where no grid is known."""
    shards = int(np.prod([mesh.shape[axis] for axis in axes]))
    places = [mesh.axis_names.index(axis) for axis in axes]
    # One device of each shard: the others hold copies and make the same walk beside it.
    devices = np.moveaxis(mesh.devices, places, range(len(places))).reshape(shards, -1)[:, 0]
    if not all(hasattr(device, "coords") for device in devices):
        return tuple(range(shards))
    return closed_walk([(*device.coords, getattr(device, "core_on_chip", 0)) for device in devices])


def closed_walk(coordinates: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Indices of grid points so that neighbours in the order, the last and first included, are neighbours in the grid.

    Where all sides are odd there is no such walk, and one step is longer. Points that do not fill a grid stay in their
    order.
    """
    # Steps of 2 or 4, where other devices lie between, count as neighbours too.
    ranks = [np.unique(values, return_inverse=True)[1] for values in np.transpose(coordinates)]
    index = {place: number for number, place in enumerate(map(tuple, np.transpose(ranks).tolist()))}
    sides = [int(values.max()) + 1 for values in ranks]
    if len(index) != len(coordinates) or np.prod(sides) != len(coordinates):
        return tuple(range(len(coordinates)))
    # An even side first, then a path through all the others: together a grid of two sides.
    dimensions = sorted(range(len(sides)), key=lambda k: (sides[k] == 1, sides[k] % 2))
    first, rest = dimensions[0], dimensions[1:]

    def at(row: int, place: tuple[int, ...]) -> int:
        whole = dict(zip(rest, place, strict=True)) | {first: row}
        return index[tuple(whole[k] for k in range(len(sides)))]

    path = snake([sides[k] for k in rest])
    if len(path) == 1:
        return tuple(at(row, path[0]) for row in range(sides[first]))
    # Up and down the columns 1, 2, ..., and home along column 0.
    order = []
    for row in range(sides[first]):
        order += [at(row, place) for place in (path[1:] if row % 2 == 0 else path[:0:-1])]
    return (*order, *(at(row, path[0]) for row in reversed(range(sides[first]))))


def snake(sides: Sequence[int]) -> list[tuple[int, ...]]:
    """All points of a grid, each a neighbour of the one before."""
    path: list[tuple[int, ...]] = [()]
    for side in sides:
        path = [
            (*place, k)
            for number, place in enumerate(path)
            for k in (range(side) if number % 2 == 0 else reversed(range(side)))
        ]
    return path
