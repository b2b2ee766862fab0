"""The terms of a teacher against their formulas in float64 numpy, on one device and on several."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_jax.losses.teacher import TEACHER_TERMS, similarity_term


def unit(rng, n, d):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(name, z, u):
    """(value, gradient by z), over the whole matrices."""
    n = len(z)
    if name == "cosine":
        return np.mean(1 - np.sum(z * u, axis=1)), -u / n
    if name == "mse":
        return np.mean(np.sum((z - u) ** 2, axis=1)), 2 * (z - u) / n
    difference = z @ z.T - u @ u.T
    return np.mean(difference**2), 4 * difference @ z / n**2


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from([*TEACHER_TERMS]),
    n=st.sampled_from([1, 5, 40]),
    d=st.sampled_from([1, 3, 64]),
    apart=st.sampled_from([0.0, 1e-3, 0.3, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients(name, n, d, apart, seed):
    """From a teacher that the student has reached to one that knows nothing of it."""
    rng = np.random.default_rng(seed)
    u = unit(rng, n, d)
    z = u + apart * rng.normal(size=(n, d)) / np.sqrt(d)
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    u = u.astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(TEACHER_TERMS[name]))(z, u)
    expected, by_hand = reference(name, z.astype(np.float64), u.astype(np.float64))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=3e-7 if name == "cosine" else 1e-10)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=2e-6 / n)


def test_a_rotated_teacher_has_the_same_similarities():
    rng = np.random.default_rng(0)
    z = unit(rng, 50, 8)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert abs(float(similarity_term(z.astype(np.float32), (z @ turn).astype(np.float32)))) < 1e-6
    assert TEACHER_TERMS["cosine"](z.astype(np.float32), (z @ turn).astype(np.float32)) > 0.3


def test_the_teacher_is_a_constant_and_low_precision_is_computed_in_float32():
    rng = np.random.default_rng(1)
    z, u = (jnp.asarray(unit(rng, 6, 4), jnp.bfloat16) for _ in range(2))
    exact = [np.asarray(x, np.float64) for x in (z, u)]
    for name, term in TEACHER_TERMS.items():
        by_z, by_u = jax.jit(jax.grad(term, argnums=(0, 1)))(z, u)
        assert by_z.dtype == jnp.bfloat16
        assert not by_u.any()
        np.testing.assert_allclose(term(z, u), reference(name, *exact)[0], rtol=1e-5)


@pytest.mark.parametrize("name", [*TEACHER_TERMS])
def test_wrong_arguments(name):
    term = TEACHER_TERMS[name]
    with pytest.raises(ValueError, match=rf"{name}_term: embeddings \(4, 3\) and teacher \(4, 2\); expected two equal"):
        term(jnp.zeros((4, 3)), jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="two equal"):
        term(jnp.zeros((0, 3)), jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="teacher are int32; expected float32 or bfloat16"):
        term(jnp.zeros((4, 3)), jnp.zeros((4, 3), jnp.int32))


SEVERAL_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.analysis.hlo import collectives, memory
from siglip_jax.losses.teacher import TEACHER_TERMS, similarity_term

data = np.load(sys.argv[1])
found = {}
for devices in (1, 2, 8):
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"))
    z, u = (jax.device_put(data[name], rows) for name in ("z", "u"))
    for name, term in TEACHER_TERMS.items():
        value, gradient = jax.jit(jax.value_and_grad(term))(z, u)
        assert gradient.sharding.is_equivalent_to(rows, 2), gradient.sharding
        found[f"{devices}|{name}|value"], found[f"{devices}|{name}|gradient"] = value, gradient
np.savez(sys.argv[2], **found)

# 65,536 rows over the eight, compiled only: a matrix of cosines would take 16 GiB.
many = jax.ShapeDtypeStruct((65_536, 64), "float32", sharding=rows)
compiled = jax.jit(jax.value_and_grad(similarity_term), out_shardings=(None, rows)).lower(many, many).compile()
kinds = sorted({each.kind for each in collectives(compiled.as_text())})
print(json.dumps({"kinds": kinds, **memory(compiled)}))
"""


def test_several_devices_are_one_and_memory_follows_the_rows(python, tmp_path):
    rng = np.random.default_rng(3)
    z, u = (unit(rng, 104, 32).astype(np.float32) for _ in range(2))
    np.savez(tmp_path / "in.npz", z=z, u=u)
    done = python(SEVERAL_DEVICES, tmp_path / "in.npz", tmp_path / "out.npz", devices=8)
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "out.npz"))
    assert len(found) == 3 * 3 * 2
    for key, value in found.items():
        _, name, which = key.split("|")
        expected = reference(name, z.astype(np.float64), u.astype(np.float64))[which == "gradient"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-8, err_msg=key)
    compiled = json.loads(done.stdout)
    assert compiled["kinds"] == ["all-reduce"]  # of d x d matrices; no row travels
    assert compiled["temporary"] < 8 * 2**21  # eight times a device's 8,192 rows of 64
