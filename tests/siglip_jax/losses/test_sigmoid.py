"""The sigmoid loss against the formula in float64 numpy, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siglip_jax.losses import sigmoid, sigmoid_loss
from siglip_jax.losses.exchange import GATHER_BYTES, Layout, Walk, choose_communication
from siglip_jax.losses.positives import Labels
from siglip_jax.losses.reference import dense_sigmoid_loss
from siglip_jax.losses.tiles import tile_of

SO400M = (np.log(112.3), -16.5)  # t and b of a published checkpoint: the largest logits there are


def unit(rng, n, d):
    x = rng.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def pairs(rng, n, d):
    """Images and texts of which some fit, so that neither kind of error is all there is."""
    image = unit(rng, n, d)
    text = image * rng.uniform(0, 0.6, size=(n, 1)) + unit(rng, n, d)
    return image, text / np.linalg.norm(text, axis=1, keepdims=True)


def reference(image, text, t, b, groups=None, same_group="positive"):
    """Loss and gradients by hand in float64: with s = +1 or -1 and w = 0 for pairs that do not count,
    d loss / d logit = -w s sigmoid(-s logit) / n."""
    n = len(image)
    cosine = image @ text.T
    logits = np.exp(t) * cosine + b
    diagonal = np.eye(n, dtype=bool)
    same = diagonal if groups is None else groups[:, None] == groups[None, :]
    positive = same if same_group == "positive" else diagonal
    sign, weight = np.where(positive, 1.0, -1.0), np.where(same & ~positive, 0.0, 1.0)
    loss = np.sum(weight * np.logaddexp(0, -sign * logits)) / n
    by_logit = -weight * sign * np.exp(-np.logaddexp(0, sign * logits)) / n
    gradients = {
        "image": np.exp(t) * by_logit @ text,
        "text": np.exp(t) * by_logit.T @ image,
        "t": np.sum(by_logit * cosine) * np.exp(t),
        "b": by_logit.sum(),
    }
    return loss, gradients


def max_norm_error(found, exact):
    """max |found - exact| / max |exact|."""
    return np.max(np.abs(np.squeeze(found).astype(np.float64) - exact)) / np.max(np.abs(exact))


def ours(image, text, t, b, dtype="float32", **options):
    arguments = [jnp.asarray(image, dtype), jnp.asarray(text, dtype)]
    arguments += [jnp.asarray([value], jnp.float32) for value in (t, b)]
    loss, gradients = jax.value_and_grad(lambda *a: sigmoid_loss(*a, **options), argnums=(0, 1, 2, 3))(*arguments)
    return loss, dict(zip(("image", "text", "t", "b"), map(np.asarray, gradients), strict=True))


@settings(max_examples=15, deadline=None)
@given(
    n=st.sampled_from([1, 5, 7]),
    d=st.sampled_from([1, 4]),
    tile=st.sampled_from([None, 1, 3, 7]),
    t=st.floats(-2, 5),
    b=st.floats(-20, 5),
    kinds=st.sampled_from([None, 1, 3]),
    same_group=st.sampled_from(["positive", "ignore"]),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients(n, d, tile, t, b, kinds, same_group, seed):
    rng = np.random.default_rng(seed)
    image, text = unit(rng, n, d), unit(rng, n, d)
    groups = None if kinds is None else rng.integers(0, kinds, n).astype(np.int32)
    loss, gradients = ours(image, text, t, b, groups=groups, same_group=same_group, tile=tile)
    expected, by_hand = reference(image, text, t, b, groups, same_group)
    assert loss.dtype == jnp.float32
    assert loss.shape == ()
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-6)
    for name, value in by_hand.items():
        scale = max(1.0, np.abs(value).max())
        np.testing.assert_allclose(gradients[name].squeeze() / scale, np.squeeze(value) / scale, atol=5e-5)


RULES = [(False, "positive"), (True, "positive"), (True, "ignore")]


@pytest.mark.parametrize(("with_groups", "same_group"), RULES)
def test_one_tile(with_groups, same_group):
    """5 images and 3 texts from within the batch: images 2 to 6, texts 4 to 6."""
    rng = np.random.default_rng(6)
    x, y = unit(rng, 5, 4), unit(rng, 3, 4)
    row_groups, column_groups = np.array([0, 1, 2, 1, 0], np.int32), np.array([2, 0, 0], np.int32)
    scale, b = 3.0, -1.5
    sides = (
        sigmoid.GroupedRows(jnp.asarray(vectors, jnp.float32), jnp.asarray(groups) if with_groups else None)
        for vectors, groups in ((x, row_groups), (y, column_groups))
    )
    tile = tile_of(*sides, first=(2, 4))
    found = sigmoid.gradients_of_tile(tile, jnp.float32(scale), jnp.float32(b), same_group=same_group)

    pair = np.zeros((5, 3), bool)
    pair[2, 0] = pair[3, 1] = pair[4, 2] = True
    same = row_groups[:, None] == column_groups[None, :] if with_groups else pair
    assert (same != pair).any() == with_groups
    positive, counts = (same, pair | True) if same_group == "positive" else (pair, pair | ~same)
    logits = scale * x @ y.T + b
    losses = np.where(counts, np.log1p(np.exp(np.where(positive, -logits, logits))), 0)
    errors = np.where(counts, 1 / (1 + np.exp(-logits)) - positive, 0)
    np.testing.assert_allclose(found.rows, errors @ y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.columns, errors.T @ x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.total, (losses.sum(), errors.sum()), rtol=1e-5)
    value = sigmoid.value_of_tile(tile, jnp.float32(scale), jnp.float32(b), same_group=same_group)
    assert value.rows is value.columns is None
    np.testing.assert_allclose(value.total, losses.sum(), rtol=1e-5)


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
    values["negative"] = values["alone"]
    np.testing.assert_allclose(ours(image, text, 2.0, -3.0)[0], values["alone"], rtol=1e-5)
    for kind in ("positive", "ignore", "negative"):
        found, _ = ours(image, text, 2.0, -3.0, groups=groups, same_group=kind)
        np.testing.assert_allclose(found, values[kind], rtol=1e-5)
        dense = dense_sigmoid_loss(*map(jnp.float32, (image, text, 2.0, -3.0)), groups=groups, same_group=kind)
        np.testing.assert_allclose(dense, values[kind], rtol=1e-5)


def test_scalars_of_any_rank():
    rng = np.random.default_rng(1)
    image, text = (jnp.asarray(unit(rng, 4, 3), jnp.float32) for _ in range(2))
    one = sigmoid_loss(image, text, jnp.ones([1]), jnp.zeros([1]))
    assert sigmoid_loss(image, text, jnp.ones([]), jnp.zeros([])) == one


def published_case(dtype, with_groups, same_group):
    """301 rows in tiles of 64 at the largest published logits: inputs, options and what float64 makes of the same
    rounded inputs, so that the only error left is the loss's own."""
    rng = np.random.default_rng(2)
    image, text = (jnp.asarray(x, dtype) for x in pairs(rng, 301, 768))
    groups = rng.integers(0, 100, 301).astype(np.int32) if with_groups else None
    t, b = (float(np.float32(value)) for value in SO400M)
    exact = reference(*(np.asarray(x, np.float64) for x in (image, text)), t, b, groups, same_group)
    return (image, text, t, b), {"groups": groups, "same_group": same_group, "tile": 64}, exact


@pytest.mark.parametrize(("with_groups", "same_group"), RULES)
def test_error_in_float32(with_groups, same_group):
    arguments, options, (expected, by_hand) = published_case("float32", with_groups, same_group)
    loss, gradients = ours(*arguments, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    errors = {name: max_norm_error(gradients[name], value) for name, value in by_hand.items()}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(("with_groups", "same_group"), RULES)
def test_error_in_bfloat16(with_groups, same_group):
    """0.3 % in the norm; in the largest element 0.3 % beyond the rounding to bfloat16, itself up to 0.4 %, that
    returning a gradient of the inputs' dtype is."""
    arguments, options, (expected, by_hand) = published_case("bfloat16", with_groups, same_group)
    loss, gradients = ours(*arguments, "bfloat16", **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in ("t", "b"):
        assert max_norm_error(gradients[name], by_hand[name]) < 3e-3
    for name in ("image", "text"):
        assert gradients[name].dtype == jnp.bfloat16
        error = np.abs(gradients[name].astype(np.float64) - by_hand[name])
        assert np.linalg.norm(error) < 3e-3 * np.linalg.norm(by_hand[name])
        assert beyond_rounding(gradients[name], by_hand[name]) < 3e-3


def beyond_rounding(found, exact):
    """The max-norm error that a correct rounding to bfloat16 (8 significant bits) does not explain."""
    found = np.squeeze(found).astype(np.float64)
    half_spacing = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(found), 1e-30))) - 8)
    return np.max(np.abs(found - exact) - half_spacing) / np.max(np.abs(exact))


def test_error_in_bfloat16_before_the_gradients_are_rounded():
    (image, text, t, b), _, (_, by_hand) = published_case("bfloat16", False, "positive")
    walk = Walk(layout=Layout(mesh=None, axes=()), dtype="float32", tile=64)  # of the gradients
    _, *gradients = sigmoid._loss_and_gradients(walk, "positive", image, text, jnp.float32(t), jnp.float32(b), Labels())
    for found, exact in zip(gradients, by_hand.values(), strict=True):
        assert max_norm_error(np.asarray(found), exact) < 3e-3


def test_the_cotangent_scales_the_gradients():
    rng = np.random.default_rng(4)
    image, text = (jnp.asarray(x, jnp.float32) for x in pairs(rng, 6, 4))
    t, b = jnp.ones(1), jnp.zeros(1)
    once, thrice = (jax.grad(lambda x, k=k: k * sigmoid_loss(x, text, t, b))(image) for k in (1, 3))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def test_rematerialised_and_mapped():
    rng = np.random.default_rng(5)
    image, text = (jnp.asarray(x, jnp.float32) for x in pairs(rng, 6, 4))
    t, b = jnp.ones(1), jnp.zeros(1)
    gradient = jax.grad(lambda x: sigmoid_loss(x, text, t, b))
    again = jax.jit(jax.grad(jax.checkpoint(lambda x: sigmoid_loss(x, text, t, b))))(image)
    np.testing.assert_allclose(again, gradient(image), rtol=1e-5)
    two = jax.vmap(gradient)(jnp.stack([image, text]))
    np.testing.assert_allclose(two[1], gradient(text), rtol=1e-5, atol=1e-7)


DERIVATIVES = {
    "jvp": lambda f, x: jax.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: jax.jacfwd(f)(x),
    "linearize": lambda f, x: jax.linearize(f, x)[1](x),
    "hessian": lambda f, x: jax.hessian(f)(x),
    "gradient of a gradient": lambda f, x: jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2)))(x),
    "Hessian-vector product": lambda f, x: jax.jvp(jax.grad(f), (x,), (x,)),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives_that_do_not_exist_raise(kind):
    text = jnp.eye(4)
    message = "forward-mode" if kind in ("jvp", "jacfwd", "linearize") else "first derivatives in reverse mode only"
    with pytest.raises(TypeError, match=message):
        DERIVATIVES[kind](lambda x: sigmoid_loss(x, text, jnp.ones(1), jnp.zeros(1)), jnp.eye(4))


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
        (((0, 3), (0, 3)), {}, "two equal"),
        (((4, 3), (4, 3)), {"groups": np.zeros(4, np.int64)}, "groups are int64; expected int32"),
        (((4, 3), (4, 3)), {"groups": np.zeros(4, np.float32)}, "groups are float32; expected int32"),
        (((4, 3), (4, 3)), {"same_group": "maybe"}, "expected one of positive, mean, ignore, negative"),
        (((4, 3), (4, 3)), {"communication": "mail"}, "expected one of auto, ring, gather"),
        (((4, 3), (4, 3)), {"gradient_dtype": "float16"}, "expected one of float32, bfloat16"),
        (((4, 3), (4, 3)), {"tile": 0}, "tile=0; expected at least 1"),
    ],
)
def test_wrong_arguments(shapes, options, message):
    image, text = (jnp.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(image, text, jnp.zeros(1), jnp.zeros(1), **options)


@pytest.mark.parametrize(("side", "dtype"), [("image", jnp.int32), ("text", jnp.float16)])
def test_wrong_dtypes(side, dtype):
    arguments = {"image": jnp.zeros((4, 3)), "text": jnp.zeros((4, 3)), "t": jnp.zeros(1), "b": jnp.zeros(1)}
    arguments[side] = arguments[side].astype(dtype)
    with pytest.raises(ValueError, match=f"{side} is {jnp.dtype(dtype)}; expected float32 or bfloat16"):
        sigmoid_loss(**arguments)
    with pytest.raises(ValueError, match=r"t \(2,\); expected a scalar or \[1\]"):
        sigmoid_loss(jnp.zeros((4, 3)), jnp.zeros((4, 3)), jnp.zeros(2), jnp.zeros(1))


# --- several devices --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "devices", "chosen"),
    [(4096, 8, "gather"), (4096, 1, "ring"), (32_768, 8, "ring"), (GATHER_BYTES // 768 // 8 + 1, 2, "ring")],
)
def test_automatic_communication(batch, devices, chosen):
    """Up to 32 MiB of texts and their float32 gradients are gathered."""
    size = dict(batch=batch, dim=768, itemsize=4, devices=devices)
    assert choose_communication("auto", **size) == chosen
    assert choose_communication("ring", **size) == "ring"
    assert choose_communication("gather", **size) == "gather"


# Meshes of 1, 2 and 8 of eight devices, one with two batch axes, one with an axis of copies; 104 rows are 13 a device.
SEVERAL_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.losses import sigmoid_loss

data = np.load(sys.argv[1])
t, b = data["t"], data["b"]
MESHES = {
    "1": ((1,), "data"), "2": ((2,), "data"), "8": ((8,), "data"),
    "4 by 2": ((4, 2), ("data", "fsdp")), "2 by 2, copied": ((2, 2, 2), ("data", "fsdp")),
}
found = {}

def mesh_of(shape):
    devices = np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape)
    return Mesh(devices, ("data", "fsdp", "tensor")[: len(shape)], axis_types=(AxisType.Auto,) * len(shape))

def run(name, same_group, dtype="float32", **options):
    shape, axis = MESHES[name]
    mesh = mesh_of(shape)
    place = lambda a: jax.device_put(a, NamedSharding(mesh, P(axis)))
    x, y = place(jnp.asarray(data["image"], dtype)), place(jnp.asarray(data["text"], dtype))
    more = {} if same_group == "none" else {"groups": place(data["groups"]), "same_group": same_group}
    loss = lambda x, y, t, b: sigmoid_loss(x, y, t, b, mesh=mesh, axis=axis, tile=5, **more, **options)
    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(x, y, t, b)
    assert gradients[0].sharding.is_equivalent_to(x.sharding, 2), gradients[0].sharding
    key = "|".join((name, same_group, dtype, *options.values()))
    for which, array in zip(("loss", "image", "text", "t", "b"), (value, *gradients)):
        found[key + "|" + which] = np.asarray(array).astype(np.float64)

run("1", "ignore", communication="ring")
run("2", "none", communication="ring")
run("2", "positive", "bfloat16", communication="ring")
run("8", "positive", communication="ring")
run("8", "none", communication="ring", gradient_dtype="bfloat16")
run("8", "ignore", "bfloat16", communication="gather")
run("8", "none", communication="gather", gradient_dtype="bfloat16")
run("4 by 2", "none", communication="gather")
run("4 by 2", "ignore", communication="ring")
run("2 by 2, copied", "positive", communication="ring")
np.savez(sys.argv[2], **found)

eight = mesh_of((8,))
x = jax.device_put(data["image"], NamedSharding(eight, P("data")))
for rows, options in ((104, {}), (12, {"mesh": eight}), (104, {"mesh": eight, "axis": "row"})):
    try:
        sigmoid_loss(x[:rows], x[:rows], t, b, **options)
    except ValueError as error:
        print(error)
"""


def test_several_devices_are_one(python, tmp_path):
    rng = np.random.default_rng(3)
    image, text = pairs(rng, 104, 32)
    t, b = (np.float32([value]) for value in SO400M)
    arrays = dict(image=image.astype(np.float32), text=text.astype(np.float32), t=t, b=b)
    arrays["groups"] = rng.integers(0, 40, 104).astype(np.int32)
    np.savez(tmp_path / "in.npz", **arrays)
    done = python(SEVERAL_DEVICES, tmp_path / "in.npz", tmp_path / "out.npz", devices=8)
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()
    for line, part in zip(refusals, ("pass mesh=", "12 rows over 8 devices", "axis row"), strict=True):
        assert part in line
    found = dict(np.load(tmp_path / "out.npz"))
    assert len(found) == 5 * 10
    for key, value in found.items():
        _, same_group, dtype, *options, which = key.split("|")
        groups = None if same_group == "none" else arrays["groups"]
        exact = [np.asarray(jnp.asarray(arrays[side], dtype), np.float64) for side in ("image", "text")]
        loss, gradients = reference(*exact, t[0].astype(float), b[0].astype(float), groups, same_group)
        exact = {"loss": loss, **gradients}[which]
        if dtype == "bfloat16":
            assert beyond_rounding(value, exact) < 3e-3, key
        else:  # a gradient that travels in bfloat16 is rounded at each of eight hops
            bound = 1e-2 if "bfloat16" in options and which == "text" else 1e-5
            assert max_norm_error(value, exact) < bound, key
