"""The ring on a grid of chips: every shard once, every step to a neighbour."""

import itertools
import math
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh

from siglip_jax.losses.ring_order import closed_walk, ring_order


@given(sides=st.lists(st.integers(1, 5), min_size=1, max_size=4), spread=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_step_is_to_a_neighbour(sides, spread, seed):
    points = [tuple(spread * k for k in place) for place in itertools.product(*map(range, sides))]
    np.random.default_rng(seed).shuffle(points)
    walk = closed_walk([tuple(point) for point in points])
    assert sorted(walk) == list(range(math.prod(sides)))
    steps = [
        sum(abs(np.subtract(points[a], points[b]))) // spread for a, b in zip(walk, walk[1:] + walk[:1], strict=True)
    ]
    longer = sum(step > 1 for step in steps)
    # A single row, and a grid of odd sides only, cannot be walked round without one longer step.
    one_row = sum(side > 1 for side in sides) == 1 and max(sides) > 2
    assert longer == (1 if one_row or (math.prod(sides) % 2 and math.prod(sides) > 1) else 0)


def test_points_that_fill_no_grid_stay_in_order():
    assert closed_walk([(0, 0), (0, 1), (1, 0)]) == (0, 1, 2)
    assert closed_walk([(0, 0), (0, 0)]) == (0, 1)


def chips(shape, names):
    devices = np.empty(shape, object)
    for place in np.ndindex(shape):
        devices[place] = types.SimpleNamespace(coords=place, core_on_chip=0)
    return types.SimpleNamespace(devices=devices, axis_names=names, shape=dict(zip(names, shape, strict=True)))


@pytest.mark.parametrize("axes", [("data",), ("data", "fsdp"), ("fsdp", "data")])
def test_shards_are_numbered_in_the_order_of_the_axes(axes):
    mesh = chips((4, 2, 2), ("data", "fsdp", "tensor"))
    order = ring_order.__wrapped__(mesh, axes)
    sizes = [mesh.shape[axis] for axis in axes]
    places = [np.unravel_index(shard, sizes) for shard in order]
    assert sorted(order) == list(range(math.prod(sizes)))
    steps = [sum(abs(np.subtract(a, b))) for a, b in itertools.pairwise(places)]
    assert max(steps) == 1


def test_without_a_grid_the_order_is_plain():
    import jax

    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    assert ring_order(mesh, ("data",)) == (0,)
