"""The softmax loss against the formula in float64 numpy, on one device and on eight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.analysis.flops import dot_flops
from siglip_jax.losses import softmax_loss
from siglip_jax.losses.reference import dense_softmax_loss

LOG_TEMPERATURE = np.log(100.0)  # CLIP's clamp


def unit(rng, n, d):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(image, text, t):
    """Loss and gradients by hand in float64."""
    n = len(image)
    cosine = image @ text.T
    logits = np.exp(t) * cosine
    by_row, by_column = (np.exp(logits - np.logaddexp.reduce(logits, axis=k, keepdims=True)) for k in (1, 0))
    loss = -np.mean(np.log(np.diag(by_row)) + np.log(np.diag(by_column))) / 2
    by_logit = (by_row + by_column - 2 * np.eye(n)) / (2 * n)
    gradients = np.exp(t) * by_logit @ text, np.exp(t) * by_logit.T @ image, np.sum(by_logit * logits)
    return loss, gradients


@pytest.mark.parametrize(("n", "tile"), [(1, None), (7, 3), (7, None), (65, 16)])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 2e-5), ("bfloat16", 8e-3)])
def test_values_and_gradients(n, tile, dtype, bound):
    rng = np.random.default_rng(n)
    image, text = (jnp.asarray(unit(rng, n, 16), dtype) for _ in range(2))
    t = np.float32([LOG_TEMPERATURE])
    loss, gradients = jax.value_and_grad(lambda *a: softmax_loss(*a, tile=tile), argnums=(0, 1, 2))(image, text, t)
    expected, by_hand = reference(*(np.asarray(x, np.float64) for x in (image, text)), np.float64(t))
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(softmax_loss(image, text, t, tile=tile), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dense_softmax_loss(image, text, t), expected, rtol=1e-5, atol=1e-5)
    for found, exact in zip(gradients, by_hand, strict=True):
        found = np.squeeze(np.asarray(found)).astype(np.float64)
        assert np.max(np.abs(found - np.squeeze(exact))) <= bound * max(np.max(np.abs(exact)), 1e-6)


def test_flops():
    """The logits twice, and two products for the gradients; without them the logits once."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((67, 8), (67, 8), (1,))]
    both = jax.value_and_grad(lambda *a: softmax_loss(*a, tile=10), argnums=(0, 1, 2))
    assert dot_flops(both, *shapes) == 8 * 67 * 67 * 8
    assert dot_flops(lambda *a: softmax_loss(*a, tile=10), *shapes) == 2 * 67 * 67 * 8


def test_second_derivatives_raise():
    with pytest.raises(TypeError, match="dense_softmax_loss"):
        jax.hessian(lambda t: softmax_loss(jnp.eye(3), jnp.eye(3), t))(jnp.ones(1))


EIGHT_DEVICES = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from siglip_jax.losses import softmax_loss
from siglip_jax.training.parallel.sharding import BATCH_AXES, make_mesh

mesh = make_mesh({"data": 4, "fsdp": 2, "tensor": 1})
x, y = (jax.device_put(a, NamedSharding(mesh, P(BATCH_AXES))) for a in np.load(sys.argv[1]))
loss = lambda *a: softmax_loss(*a, mesh=mesh, axis=BATCH_AXES, tile=2)
value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(x, y, jnp.full(1, 2.0))
print(json.dumps([np.asarray(a).tolist() for a in (value, *gradients)]))
"""


def test_eight_devices_are_one(python, tmp_path):
    rng = np.random.default_rng(3)
    both = np.stack([unit(rng, 24, 5), unit(rng, 24, 5)]).astype(np.float32)
    np.save(tmp_path / "rows.npy", both)
    done = python(EIGHT_DEVICES, tmp_path / "rows.npy", devices=8)
    assert done.returncode == 0, done.stderr
    loss, *gradients = json.loads(done.stdout)
    expected, by_hand = reference(*both.astype(np.float64), 2.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for found, exact in zip(gradients, by_hand, strict=True):
        np.testing.assert_allclose(np.squeeze(found), exact, atol=1e-5 * np.max(np.abs(exact)))
