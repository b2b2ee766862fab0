"""Groups, weights and N images by M texts in the sigmoid loss, against float64 numpy, on 1, 2 and 8 devices."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.losses import sigmoid_loss
from siglip_jax.losses.reference import dense_sigmoid_loss

SO400M = (np.log(112.3), -16.5)  # the largest logits of the published checkpoints
NAMES = ("image", "text", "t", "b")


def weights_by_hand(groups, text_groups, text_weights, same_group):
    """(+1 or -1, weight) of each pair, float64 [n, m], pair by pair."""
    sign, weight = -np.ones((len(groups), len(text_groups))), np.tile(text_weights, (len(groups), 1))
    for i, group in enumerate(groups):
        for j, text_group in enumerate(text_groups):
            if group == text_group:
                sign[i, j] = 1
                if same_group == "mean":
                    texts = sum(g == group and w > 0 for g, w in zip(text_groups, text_weights, strict=True))
                    images = sum(g == group for g in groups)
                    weight[i, j] *= (1 / max(texts, 1) + 1 / images) / 2
    return sign, weight


def by_hand(image, text, t, b, groups, text_groups, text_weights, same_group):
    """Loss and gradients in float64."""
    sign, weight = weights_by_hand(groups, text_groups, text_weights, same_group)
    cosine = image @ text.T
    logits = np.exp(t) * cosine + b
    by_logit = -weight * sign / (1 + np.exp(sign * logits)) / len(image)
    loss = np.sum(weight * np.logaddexp(0, -sign * logits)) / len(image)
    by_t = np.exp(t) * np.sum(by_logit * cosine)
    return loss, (np.exp(t) * by_logit @ text, np.exp(t) * by_logit.T @ image, by_t, by_logit.sum())


def batch_of(n, m, d, kinds, seed=0):
    """float32 embeddings of which texts lie near an image of their group, with groups and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    groups, text_groups = (rng.integers(0, kinds, rows).astype(np.int32) for rows in (n, m))
    centres = rng.normal(size=(kinds, d))
    image, text = (centres[group] + rng.normal(size=(len(group), d)) for group in (groups, text_groups))
    image, text = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (image, text))
    weights = rng.choice([0.0, 0.5, 1.0, 2.0], m).astype(np.float32)
    t, b = (np.float32([value]) for value in SO400M)
    return dict(image=image, text=text, t=t, b=b, groups=groups, text_groups=text_groups, text_weights=weights)


def exact_of(data, same_group):
    wide = [np.asarray(data[name], np.float64) for name in ("image", "text")]
    labels = [data["groups"], data["text_groups"], np.asarray(data["text_weights"], np.float64)]
    return by_hand(*wide, float(data["t"][0]), float(data["b"][0]), *labels, same_group)


def error(found, exact):
    return np.max(np.abs(np.squeeze(np.asarray(found, np.float64)) - np.squeeze(exact))) / np.max(np.abs(exact))


@pytest.mark.parametrize("same_group", ["positive", "mean"])
@pytest.mark.parametrize(("n", "m", "tile"), [(7, 19, 4), (19, 7, 4), (12, 12, None), (1, 5, 2)])
@pytest.mark.parametrize("loss", [sigmoid_loss, dense_sigmoid_loss])
def test_images_by_texts(loss, n, m, tile, same_group):
    data = batch_of(n, m, 16, kinds=5)
    labels = {name: jnp.asarray(data[name]) for name in ("groups", "text_groups", "text_weights")}
    options = {"tile": tile} if loss is sigmoid_loss else {}
    function = functools.partial(loss, **labels, same_group=same_group, **options)
    arguments = [jnp.asarray(data[name]) for name in NAMES]
    value, gradients = jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2, 3)))(*arguments)
    expected, exact = exact_of(data, same_group)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(function(*arguments), expected, rtol=1e-5)  # without gradients
    for name, found, by_float64 in zip(NAMES, gradients, exact, strict=True):
        assert error(found, by_float64) < (1e-5 if loss is sigmoid_loss else 1e-4), name


def loss_of(data, **options):
    return float(sigmoid_loss(*(jnp.asarray(data[name]) for name in NAMES), **options))


def test_mean_is_one_over_k():
    """Square, one grouping: each positive weighs 1/k, by (1/k + 1/k) / 2; where every k is 1 it is "positive"."""
    data = batch_of(12, 12, 16, kinds=4)
    groups = data["groups"]
    k = np.array([np.sum(groups == group) for group in groups])
    logits = np.exp(SO400M[0]) * data["image"].astype(np.float64) @ data["text"].T.astype(np.float64) + SO400M[1]
    same = groups[:, None] == groups
    expected = np.where(same, np.logaddexp(0, -logits) / k[:, None], np.logaddexp(0, logits)).sum() / 12
    found = {kind: loss_of(data, groups=groups, same_group=kind) for kind in ("positive", "mean")}
    assert found["mean"] == pytest.approx(expected, rel=1e-5)
    assert found["mean"] < found["positive"]
    alone = np.arange(12, dtype=np.int32)
    assert loss_of(data, groups=alone, same_group="mean") == pytest.approx(loss_of(data), rel=1e-6)
    assert loss_of(data, same_group="mean") == loss_of(data)


@pytest.mark.parametrize("same_group", ["positive", "mean"])
def test_a_text_of_weight_zero_is_not_there(same_group):
    data = batch_of(8, 24, 16, kinds=5)
    kept = data["text_weights"] > 0
    assert 0 < kept.sum() < 24
    labels = dict(groups=data["groups"], text_groups=data["text_groups"], text_weights=data["text_weights"])
    fewer = {**data, "text": data["text"][kept]}
    labels_of_fewer = dict(
        groups=data["groups"], text_groups=data["text_groups"][kept], text_weights=data["text_weights"][kept]
    )
    found = loss_of(data, **labels, same_group=same_group)
    assert found == pytest.approx(loss_of(fewer, **labels_of_fewer, same_group=same_group), rel=1e-6)


def test_without_groups_texts_name_their_image():
    data = batch_of(5, 15, 16, kinds=5)
    numbered = loss_of(data, groups=np.arange(5, dtype=np.int32), text_groups=data["text_groups"])
    assert loss_of(data, text_groups=data["text_groups"]) == numbered
    weighted = {**data, "text": data["text"][:5]}  # row by row, each text with a weight
    weights = data["text_weights"][:5]
    order = np.arange(5, dtype=np.int32)
    by_groups = loss_of(weighted, groups=order, text_groups=order, text_weights=weights)
    assert loss_of(weighted, text_weights=weights) == pytest.approx(by_groups, rel=1e-6)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ((4, 6), {}, "two equal"),
        ((4, 6), {"text_groups": np.zeros(4, np.int32)}, r"text_groups \(4,\); expected \[6\]"),
        ((4, 6), {"text_groups": np.zeros(6, np.float32)}, "text_groups are float32; expected int32"),
        (
            (4, 6),
            {"text_groups": np.zeros(6, np.int32), "groups": np.zeros(6, np.int32)},
            r"groups \(6,\); expected",
        ),
        ((4, 6), {"text_groups": np.zeros(6, np.int32), "same_group": "ignore"}, "expected positive or mean"),
        ((4, 6), {"text_groups": np.zeros(6, np.int32), "same_group": "negative"}, "expected positive or mean"),
        ((4, 4), {"text_weights": np.ones(3, np.float32)}, r"text_weights \(3,\) of float32; expected float32 \[4\]"),
        ((4, 4), {"text_weights": np.ones(4, np.int32)}, "of int32; expected float32"),
    ],
)
def test_wrong_labels(rows, options, message):
    image, text = (jnp.ones((count, 3)) for count in rows)
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(image, text, jnp.zeros(1), jnp.zeros(1), **options)


DEVICES = """
import sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.losses import sigmoid_loss

found = {}
for shape in ("square", "wide"):
    data = np.load(f"{sys.argv[1]}/{shape}.npz")
    for devices in (1, 2, 8):
        mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
        place = lambda a: jax.device_put(a, NamedSharding(mesh, P("data")))
        x, y, groups, text_groups, weights = (
            place(data[name]) for name in ("image", "text", "groups", "text_groups", "text_weights")
        )
        for same_group, communication in (("mean", "ring"), ("mean", "gather"), ("positive", "ring")):
            loss = lambda *a: sigmoid_loss(
                *a, groups=groups, text_groups=text_groups, text_weights=weights, same_group=same_group,
                communication=communication, mesh=mesh, tile=9,
            )
            value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(x, y, data["t"], data["b"])
            for name, array in zip(("loss", "image", "text", "t", "b"), (value, *gradients)):
                found["|".join((shape, str(devices), same_group, communication, name))] = np.asarray(array)
    if shape == "wide":  # images numbered in the order of the global batch
        scalars = data["t"], data["b"]
        loss = lambda groups: sigmoid_loss(x, y, *scalars, groups=groups, text_groups=text_groups, mesh=mesh)
        np.testing.assert_allclose(loss(None), loss(place(np.arange(len(x), dtype=np.int32))))
np.savez(f"{sys.argv[1]}/found.npz", **found)
"""


@pytest.mark.slow
def test_every_number_of_devices(python, tmp_path):
    """Within 1e-5 of float64 in float32, at the largest published logits, in tiles that do not divide the rows."""
    sizes = {"square": (64, 64), "wide": (40, 136)}
    data = {shape: batch_of(*rows, 32, kinds=17, seed=1) for shape, rows in sizes.items()}
    for shape, arrays in data.items():
        np.savez(tmp_path / f"{shape}.npz", **arrays)
    done = python(DEVICES, tmp_path, devices=8)
    assert done.returncode == 0, done.stderr
    found = dict(np.load(tmp_path / "found.npz"))
    assert len(found) == 2 * 3 * 3 * 5
    for key, value in found.items():
        shape, _, same_group, _, name = key.split("|")
        loss, gradients = exact_of(data[shape], same_group)
        assert error(value, {"loss": loss, **dict(zip(NAMES, gradients, strict=True))}[name]) < 1e-5, key


COMPILED = """
import functools
import json
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from siglip_jax.analysis.flops import cost
from siglip_jax.analysis.hlo import memory
from siglip_jax.losses import sigmoid_loss

n, m, d = 16_384, 65_536, 256

def measure(devices, same_group):
    mesh = Mesh(np.asarray(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    like = lambda shape, dtype, spec=P("data"): jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    scalar = like((1,), "float32", P())
    arguments = [like((n, d), "float32"), like((m, d), "float32"), scalar, scalar]
    arguments += [like((n,), "int32"), like((m,), "int32"), like((m,), "float32")]
    loss = lambda x, y, t, b, groups, text_groups, weights: sigmoid_loss(
        x, y, t, b, groups=groups, text_groups=text_groups, text_weights=weights, same_group=same_group, mesh=mesh,
        communication="ring",
    )
    both = jax.value_and_grad(loss, argnums=(0, 1, 2, 3))
    compiled = jax.jit(both).lower(*arguments).compile()
    return {**memory(compiled), "flops": cost(both, *arguments).flops / (n * m * d)}

print(json.dumps({f"{k} {kind}": measure(k, kind) for k in (1, 8) for kind in ("positive", "mean")}))
"""


def test_memory_and_flops_of_images_by_texts(python):
    """6 n m d, and no array of n x m, which would be 4 GiB: what "mean" adds is a few numbers a row."""
    done = python(COMPILED, devices=8)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for figures in found.values():
        assert figures["flops"] == 6
    for devices, ceiling in ((1, 25), (8, 46)):  # MiB; a device of 8 holds 8 of texts, as much in flight, 2 gradients
        plain, mean = (found[f"{devices} {kind}"]["temporary"] for kind in ("positive", "mean"))
        assert plain < ceiling * 2**20, plain / 2**20
        assert mean - plain < 32 * (16_384 + 65_536) / devices + 2**16, (mean - plain) / 2**20
