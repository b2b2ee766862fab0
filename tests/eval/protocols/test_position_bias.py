"""The power of position bias, from taps that were drawn with a known one."""

import numpy as np
import pytest

from eval.logs import Queries
from eval.protocols.position_bias import measure_position_bias

WORTH = np.array([0.9, 0.2, 0.6, 0.1])  # of four items


def queries_of(order, gains):
    q, k = order.shape
    return Queries(
        *(np.arange(q).astype(object), np.full(q, "", object), np.arange(q), np.arange(q), np.full(q, 4)),
        starts=np.arange(q + 1) * k,
        candidates=order.ravel(),
        gains=gains.ravel().astype(np.float32),
        positions=np.tile(np.arange(k), q),
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 1.5])
def test_the_power_is_found_where_items_were_swapped(power):
    """The old ranker prefers the better items, with noise: only what one item earned at several places tells."""
    rng = np.random.default_rng(2)
    order = np.argsort(-(WORTH + 0.4 * rng.normal(size=(4000, 4))), axis=1)
    acted = rng.random((4000, 4)) < WORTH[order] * (1.0 + np.arange(4)) ** -power
    found = measure_position_bias(queries_of(order, acted))
    assert found.power == pytest.approx(power, abs=3.5 * found.error)
    assert found.error < 0.1
    assert found.usable
    assert (found.items, found.actions) == (4, acted.sum())


def test_without_swaps_nothing_is_measured():
    order = np.tile(np.arange(4), (50, 1))
    assert measure_position_bias(queries_of(order, np.ones((50, 4)))) is None
    order[0] = order[0, ::-1]
    assert not measure_position_bias(queries_of(order, np.eye(4)[np.zeros(50, int)])).usable
