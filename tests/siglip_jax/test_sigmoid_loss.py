"""The sigmoid loss against the formula in float64 numpy, on one device and on eight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_jax.losses import sigmoid_loss


def unit(rng, n, d):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def reference(image, text, t, b, groups=None, same_group="positive"):
    """Loss and gradients by hand, pair by pair, in float64: with s = +1 or -1 and w = 0 for pairs that do not count,
    d loss / d logit = -w s sigmoid(-s logit) / n."""
    n = len(image)
    cosine = image @ text.T
    logits = np.exp(t) * cosine + b
    sign, weight = -np.ones((n, n)), np.ones((n, n))
    for i in range(n):
        for j in range(n):
            same = i == j if groups is None else groups[i] == groups[j]
            if i == j or (same and same_group == "positive"):
                sign[i, j] = 1
            elif same:
                weight[i, j] = 0
    loss = np.sum(weight * np.logaddexp(0, -sign * logits)) / n
    by_logit = -weight * sign / (1 + np.exp(sign * logits)) / n
    gradients = {
        "image": np.exp(t) * by_logit @ text,
        "text": np.exp(t) * by_logit.T @ image,
        "t": np.sum(by_logit * cosine) * np.exp(t),
        "b": by_logit.sum(),
    }
    return loss, gradients


def ours(image, text, t, b, dtype="float32", **options):
    arguments = [jnp.asarray(image, dtype), jnp.asarray(text, dtype)]
    arguments += [jnp.asarray([value], jnp.float32) for value in (t, b)]
    loss, gradients = jax.value_and_grad(lambda *a: sigmoid_loss(*a, **options), argnums=(0, 1, 2, 3))(*arguments)
    return loss, dict(zip(("image", "text", "t", "b"), map(np.asarray, gradients), strict=True))


@settings(max_examples=15, deadline=None)
@given(
    n=st.sampled_from([1, 7]),
    t=st.floats(-2, 5),
    b=st.floats(-20, 5),
    kinds=st.sampled_from([None, 1, 3]),
    same_group=st.sampled_from(["positive", "ignore"]),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients(n, t, b, kinds, same_group, seed):
    rng = np.random.default_rng(seed)
    image, text = unit(rng, n, 4), unit(rng, n, 4)
    groups = None if kinds is None else rng.integers(0, kinds, n).astype(np.int32)
    loss, gradients = ours(image, text, t, b, groups=groups, same_group=same_group)
    expected, by_hand = reference(image, text, t, b, groups, same_group)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-6)
    for name, value in by_hand.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(gradients[name].squeeze() / scale, np.squeeze(value) / scale, atol=5e-5)


def test_groups_change_the_loss():
    """Three equal titles: as positives they pull, ignored they do nothing, without groups they push."""
    rng = np.random.default_rng(0)
    image, text = unit(rng, 6, 4), unit(rng, 6, 4)
    groups = np.array([0, 1, 0, 2, 0, 3], np.int32)
    values = {
        "alone": reference(image, text, 2.0, -3.0)[0],
        "positive": reference(image, text, 2.0, -3.0, groups, "positive")[0],
        "ignore": reference(image, text, 2.0, -3.0, groups, "ignore")[0],
    }
    assert len({round(value, 3) for value in values.values()}) == 3
    assert values["ignore"] < values["alone"] < values["positive"]
    np.testing.assert_allclose(ours(image, text, 2.0, -3.0)[0], values["alone"], rtol=1e-5)
    for kind in ("positive", "ignore"):
        found, _ = ours(image, text, 2.0, -3.0, groups=groups, same_group=kind)
        np.testing.assert_allclose(found, values[kind], rtol=1e-5)


def test_scalars_of_any_rank():
    rng = np.random.default_rng(1)
    image, text = (jnp.asarray(unit(rng, 4, 3), jnp.float32) for _ in range(2))
    one = sigmoid_loss(image, text, jnp.ones([1]), jnp.zeros([1]))
    assert sigmoid_loss(image, text, jnp.ones([]), jnp.zeros([])) == one


def test_bfloat16_inputs_accumulate_in_float32():
    """Against float64 over the same rounded inputs, so that the only error left is that of the products."""
    rng = np.random.default_rng(2)
    image, text = (jnp.asarray(unit(rng, 33, 512), jnp.bfloat16) for _ in range(2))
    exact = [np.asarray(x, np.float64) for x in (image, text)]
    loss, gradients = ours(image, text, np.log(10.0), -5.0, dtype="bfloat16")
    expected, by_hand = reference(*exact, np.log(10.0), -5.0)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(gradients["image"], np.float64), by_hand["image"], atol=2e-3)


@pytest.mark.parametrize("b", [200.0, -200.0])
def test_extreme_logits_stay_finite(b):
    """Each row has one pair on the wrong side: a negative of logit 200, or a positive of logit exp(0) - 200."""
    loss, gradients = ours(np.eye(2), np.eye(2), 0.0, b)
    np.testing.assert_allclose(loss, 200 if b > 0 else 199, rtol=1e-6)
    assert all(np.isfinite(value).all() for value in gradients.values())


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4, 3), (5, 3)), {}, r"\(4, 3\) and text \(5, 3\)"),
        (((4, 3), (4, 2)), {}, "two equal"),
        (((4,), (4,)), {}, "two equal"),
        (((4, 3), (4, 3)), {"groups": np.zeros(3, np.int32)}, r"groups \(3,\); expected \[4\]"),
        (((4, 3), (4, 3)), {"same_group": "negative"}, "expected one of positive, ignore"),
    ],
)
def test_wrong_arguments(shapes, options, message):
    image, text = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(image, text, jnp.zeros(1), jnp.zeros(1), **options)


EIGHT_DEVICES = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.losses import sigmoid_loss

assert jax.device_count() == 8
rng = np.random.default_rng(3)
image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 16, 5)).astype(np.float32))
groups = np.array([0, 1, 2, 3] * 4, np.int32)
t, b = jnp.ones(1), jnp.full(1, -2.0)
found = {}
for name, shape, axis in (("one axis", (8, 1), "data"), ("two axes", (4, 2), ("data", "fsdp"))):
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, P(axis))
    x, y, g = (jax.device_put(a, rows) for a in (image, text, groups))
    for same_group in ("positive", "ignore"):
        loss = lambda x, y, t, b: sigmoid_loss(
            x, y, t, b, groups=g, same_group=same_group, mesh=mesh, axis=axis
        )
        value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(x, y, t, b)
        found[name + " " + same_group] = [np.asarray(a).tolist() for a in (value, *gradients)]
try:
    sigmoid_loss(x, y, t, b)
except ValueError as error:
    found["refusal"] = str(error)
print(json.dumps(found))
"""


def test_eight_devices_are_one(python):
    done = python(EIGHT_DEVICES, devices=8)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "pass mesh=" in found.pop("refusal")
    rng = np.random.default_rng(3)
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 16, 5)).astype(np.float32))
    groups = np.array([0, 1, 2, 3] * 4, np.int32)
    assert len(found) == 4
    for name, (loss, *gradients) in found.items():
        expected, by_hand = reference(image.astype(float), text.astype(float), 1.0, -2.0, groups, name.split()[-1])
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        for ours, value in zip(gradients, by_hand.values(), strict=True):
            np.testing.assert_allclose(np.squeeze(ours), value, atol=1e-5)
