"""The softmax loss against the formula in float64 numpy, on one device and on eight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.analysis.flops import dot_flops
from siglip_jax.losses import softmax, softmax_loss
from siglip_jax.losses.reference import dense_softmax_loss
from siglip_jax.losses.tiles import tile_of

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


def test_one_tile():
    """5 images and 3 texts from within the batch, images 2 to 6, texts 4 to 6, and any sums of the whole batch."""
    rng = np.random.default_rng(6)
    x, y = unit(rng, 5, 4), unit(rng, 3, 4)
    row_log_sum, column_log_sum = rng.uniform(3, 5, 5), rng.uniform(3, 5, 3)
    scale = 3.0
    logits = scale * x @ y.T
    sums = softmax.log_sums_of_tile(tile_of(*map(jnp.float32, (x, y))), jnp.float32(scale))
    np.testing.assert_allclose(sums.rows, np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(sums.columns, np.log(np.exp(logits).sum(axis=0)), rtol=1e-5)

    sides = (softmax.NormalisedRows(*map(jnp.float32, side)) for side in ((x, row_log_sum), (y, column_log_sum)))
    found = softmax.gradients_of_tile(tile_of(*sides, first=(2, 4)), jnp.float32(scale))
    errors = np.exp(logits - row_log_sum[:, None]) + np.exp(logits - column_log_sum)
    for row, column in ((2, 0), (3, 1), (4, 2)):
        errors[row, column] -= 2
    np.testing.assert_allclose(found.rows, errors @ y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.columns, errors.T @ x, rtol=1e-5, atol=1e-6)
    assert sums.total is found.total is None


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
