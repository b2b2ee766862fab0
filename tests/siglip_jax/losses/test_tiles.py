"""The walk over a matrix: every pair once, whatever the tile, and results merged as asked."""

import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.losses.tiles import ADD, LOG_ADD, Results, over_matrix, tile_of

SIDES = [(7, 5, 3), (6, 9, 3), (1, 4, 2), (5, 5, 5), (4, 3, 10)]  # rows, columns, tile


@pytest.mark.parametrize(("rows", "columns", "tile"), SIDES)
def test_every_pair_is_met_once(rows, columns, tile):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 2)).astype(np.float32), rng.normal(size=columns).astype(np.float32)
    sizes = []

    def function(tile):
        products = tile.rows["x"][:, 0, None] * tile.columns["y"][None, :]
        sizes.append(products.shape)
        return Results(
            rows=products.sum(1), columns=[products.sum(0)], total=(products.sum(), jnp.sum(tile.pairs() * products))
        )

    sides = {"x": jnp.asarray(x)}, {"y": jnp.asarray(y)}
    first = (10, 11)
    start = ADD.nothing(function, tile_of(*sides))
    assert sizes.pop() == (rows, columns)  # for the shapes alone
    found = over_matrix(function, *sides, start, first=first, tile=tile, merge=ADD)
    assert max(sizes) <= (tile, tile)
    products = np.outer(x[:, 0].astype(np.float64), y)
    np.testing.assert_allclose(found.rows, products.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.columns[0], products.sum(0), rtol=1e-5, atol=1e-6)
    # Row k is at place 10 + k and column k at 11 + k: the pairs lie one below the diagonal.
    np.testing.assert_allclose(found.total, (products.sum(), np.trace(products, -1)), rtol=1e-4, atol=1e-6)


def test_results_are_merged_with_those_so_far():
    """Logarithms of sums of exponentials, of two matrices that share their rows."""
    x = np.linspace(-50, 50, 7, dtype=np.float32)

    def function(tile):
        logits = tile.rows[:, None] * tile.columns[None, :]
        return Results(rows=jnp.logaddexp.reduce(logits, axis=1), columns=jnp.logaddexp.reduce(logits, axis=0))

    results = LOG_ADD.nothing(function, tile_of(jnp.asarray(x), jnp.ones(4)))
    assert np.all(np.isneginf(results.rows))
    for columns in (np.float32([0, 1, 2, 3]), np.float32([-3, 5, 0, 1])):
        results = over_matrix(
            function, jnp.asarray(x), jnp.asarray(columns), results, first=(0, 0), tile=3, merge=LOG_ADD
        )
    both = np.outer(x.astype(np.float64), [0, 1, 2, 3, -3, 5, 0, 1])
    np.testing.assert_allclose(results.rows, np.logaddexp.reduce(both, axis=1), rtol=1e-6)
    pairs = np.logaddexp(*(np.logaddexp.reduce(part, axis=0) for part in np.split(both, 2, axis=1)))
    np.testing.assert_allclose(results.columns, pairs, rtol=1e-6)
