"""StableHLO for older releases of TensorFlow: what is written, and that it computes the same."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.export.savedmodel import call_module
from siglip_jax.export.stablehlo import READERS, lower_for, lower_for_oldest

tf = pytest.importorskip("tensorflow")


def shape(*sizes) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, np.float32)


@pytest.mark.parametrize("release", READERS)
def test_each_release_gets_its_versions_and_the_same_values(release):
    (n,) = jax.export.symbolic_shape("n")
    before = jax.config.jax_export_calling_convention_version
    lowered = lower_for(
        lambda params, x: (jnp.tanh(x @ params["w"]), x.sum(1).astype(jnp.int32)),
        {"unused": shape(7), "w": shape(3, 2)},
        shape(n, 3),
        target_tensorflow=release,
    )
    assert jax.config.jax_export_calling_convention_version == before
    assert lowered.calling_convention == READERS[release].calling_convention
    assert b"test_stablehlo.py" not in lowered.module
    assert f"StableHLO_v{READERS[release].stablehlo}".encode() in lowered.module
    assert [(size, dtype.name) for size, dtype in lowered.outputs] == [((None, 2), "float32"), ((None,), "int32")]

    w = np.array([[1, 0.5], [0, -1], [2, 0.25]], np.float32)
    graph = tf.function(
        lambda x: call_module(tf, lowered, [tf.zeros([7]), tf.constant(w), x]),
        input_signature=[tf.TensorSpec([None, 3])],
        autograph=False,
    )
    for rows in (1, 4):
        x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3) / 4
        found, sums = graph(tf.constant(x))
        np.testing.assert_allclose(found, np.tanh(x.astype(np.float64) @ w), atol=1e-6)
        np.testing.assert_array_equal(sums, x.sum(1).astype(np.int32))


def test_an_argument_that_jax_leaves_out_is_not_passed():
    lowered = lower_for(lambda a, b: 2 * b, shape(3), shape(2), target_tensorflow="2.16")
    assert lowered.kept == (1,)
    graph = tf.function(lambda: call_module(tf, lowered, [tf.zeros([3]), tf.constant([1.0, 2.0])]), autograph=False)
    np.testing.assert_array_equal(graph()[0], [2, 4])


def test_an_unknown_release_names_the_known_ones():
    with pytest.raises(UserError, match=r"--target_tensorflow='2.15'; expected one of 2.16, 2.17, 2.18, "):
        lower_for(jnp.sin, shape(2), target_tensorflow="2.15")


def test_an_operation_that_the_release_lacks_names_the_later_ones(capfd):
    with pytest.raises(UserError, match=r"StableHLO 0.14.0 lacks .*--target_tensorflow=2.16 .* 2.21"):
        lower_for(jnp.tan, shape(2), target_tensorflow="2.16")
    assert lower_for_oldest(jnp.tan, shape(2))[0] == "2.20"
    assert lower_for_oldest(jnp.sin, shape(2))[0] == "2.16"
    assert capfd.readouterr().err == ""  # MLIR's own words for it
    print("still there", file=sys.stderr)
    assert capfd.readouterr().err == "still there\n"
