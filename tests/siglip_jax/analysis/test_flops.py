"""The counter against hand counts and against the same program unrolled."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from siglip_jax.analysis.flops import cost, dot_flops
from siglip_jax.errors import UserError

SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: x @ x, 1),
        (lambda x: lax.scan(lambda c, _: (c @ x, None), x, length=5)[0], 5),
        (lambda x: lax.scan(lambda c, _: (lax.fori_loop(0, 3, lambda i, c: c @ x, c), None), x, length=5)[0], 15),
        (lambda x: lax.fori_loop(0, 7, lambda i, c: c @ c, x), 7),
        (lambda x: lax.fori_loop(2, jnp.int32(7), lambda i, c: c @ c, x), 5),
        (lambda x: lax.while_loop(lambda c: c[0] < 6, lambda c: (c[0] + 1, c[1] @ x), (0, x))[1], 6),
        (lambda x: lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x @ x), 2),
        (lambda x: lax.switch(x[0, 0].astype(int), [lambda: x, lambda: x @ x, lambda: x]), 1),
        (lambda x: jax.jit(lambda y: y @ y)(x) @ x, 2),
        (lambda x: jax.vmap(lambda row: x @ row)(x), 1),
        (jax.grad(lambda x: jnp.sum(x @ x)), 3),
        # two products forward, one again (the second one's value is of no use), two backward for each
        (jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda y: jnp.sin(y @ y) @ y)(x))), 2 + 1 + 4),
        (lambda x: x + 1, 0),
    ],
)
def test_by_hand(function, products):
    assert dot_flops(function, SQUARE) == products * PRODUCT


def test_scan_is_its_unrolled_twin():
    weights = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    batch = jax.ShapeDtypeStruct((3, 16), jnp.float32)

    def scanned(weights, x):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jnp.sum(lax.scan(layer, x, weights)[0])

    def unrolled(weights, x):
        for number in range(5):
            x = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))(x, weights[number])
        return jnp.sum(x)

    counts = [dot_flops(jax.value_and_grad(f, argnums=(0, 1)), weights, batch) for f in (scanned, unrolled)]
    assert counts[0] == counts[1] > 3 * 5 * 2 * 3 * 16 * 16


def test_convolutions():
    pictures, patches = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 32, 32, 3), (16, 16, 3, 40)))

    def convolve(x, kernel, groups=1):
        order = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            x, kernel, (16, 16), "VALID", dimension_numbers=order, feature_group_count=groups
        )

    assert dot_flops(convolve, pictures, patches) == 2 * (2 * 2 * 2 * 40) * (16 * 16 * 3)
    one_channel = jax.ShapeDtypeStruct((16, 16, 1, 3), jnp.float32)
    assert dot_flops(lambda x, k: convolve(x, k, 3), pictures, one_channel) == 2 * (2 * 2 * 2 * 3) * (16 * 16)


def test_a_shard_map_counts_all_devices_and_what_each_sends():
    mesh = AbstractMesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))  # newer JAX: Explicit
    onward = [(i, (i + 1) % 8) for i in range(8)]

    def local(x):  # [2, 6] of [16, 6]
        x = lax.fori_loop(0, 3, lambda i, x: lax.ppermute(x, ("data", "fsdp"), onward), x)
        everyone = lax.all_gather(x, ("data", "fsdp"), tiled=True)
        products = everyone @ x.T
        shares = lax.psum_scatter(products, "data", tiled=True)
        return lax.psum(jnp.sum(shares), ("data", "fsdp"))

    spec = PartitionSpec(("data", "fsdp"))
    function = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())
    found = cost(jax.jit(function), jax.ShapeDtypeStruct((16, 6), jnp.float32))
    assert found.flops == 8 * (2 * 16 * 6 * 2)
    rows = 2 * 6 * 4
    names = {name.removesuffix("_invariant"): sent for name, sent in found.sent.items()}
    assert names == {
        "ppermute": 3 * rows,
        "all_gather": 7 * rows,
        "reduce_scatter": 16 * 2 * 4 * 3 / 4,
        "psum": 2 * 4 * 7 / 8,
    }


def test_a_loop_of_unknown_length_is_refused_where_it_multiplies():
    def until_large(x):
        return lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c @ c, x)

    with pytest.raises(UserError, match="unknown length"):
        dot_flops(until_large, SQUARE)
    assert dot_flops(lambda x: lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c * 2, x), SQUARE) == 0
