"""The adapter of stored vectors: at the start it is the encoders, and what it learns is bounded."""

import itertools

import jax
import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize, parameter_counts
from siglip_jax.models.feature_tower import FIXED
from siglip_jax.models.towers import TwoTowers, example_inputs, parameter_shapes


def architecture(base: int = 11, depth: int = 1) -> Architecture:
    return Architecture(
        image_size=(1, 1),
        patch_size=1,
        image=FeatureSize(inputs={"pixels": 4, "cnn": 7}, base=base, head=6, mlp_dim=16, depth=depth),
        text=TowerSize(width=8, depth=1, mlp_dim=16, heads=2),
        vocab_size=30,
        text_length=5,
    )


def vectors(n: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"cnn": 3 + 2 * rng.normal(size=(n, 7)).astype(np.float32), "pixels": rng.random((n, 4), np.float32)}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_hand(params: dict, features: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The base and the whole embedding, float64, unit norm."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    centred = np.concatenate([features["cnn"], features["pixels"]], axis=1) - p["mean"]
    base = np.concatenate([p["weight"][0] * unit(centred[:, :7]), p["weight"][1] * unit(centred[:, 7:])], axis=1)
    base = unit(base @ p["projection"] if "projection" in p else base)
    x = centred / p["scale"]
    for layer in sorted(name for name in p if name.startswith("hidden")):
        x = x @ p[layer]["kernel"] + p[layer]["bias"]
        x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    head = x @ p["output"]["kernel"] + p["output"]["bias"] + centred / p["scale"] @ p["linear"]["kernel"]
    head /= np.sqrt(1 + (head**2).sum(axis=1, keepdims=True))
    return base, unit(taking_turns(p["strength"] ** 0.5 * head, (1 - p["strength"]) ** 0.5 * base))


def taking_turns(head: np.ndarray, base: np.ndarray) -> np.ndarray:
    """head 0, base 0, head 1, base 1, ... of each row, and what the longer has left."""
    rows = []
    for pair in zip(head, base, strict=True):
        turns = [x for both in itertools.zip_longest(*pair) for x in both if x is not None]
        rows.append(np.array(turns))
    return np.stack(rows)


@pytest.mark.parametrize(("base", "depth"), [(11, 1), (5, 2)], ids=str)
def test_the_tower_is_its_formula(base, depth):
    module = TwoTowers(architecture(base, depth))
    start = jax.jit(module.init)(jax.random.key(0), *example_inputs(module.architecture))["params"]
    untrained, z = by_hand(start["img"], vectors())
    np.testing.assert_allclose(z, taking_turns(np.zeros((6, 6)), untrained), atol=1e-12)  # the head is zero
    rng = np.random.default_rng(1)
    shaken = jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.random(x.shape, np.float32), start)
    for params in (start, shaken):
        _, expected = by_hand(params["img"], vectors())
        found = module.apply({"params": params}, vectors(), method="encode_image")
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_at_full_width_the_start_has_the_cosines_of_the_inputs():
    module = TwoTowers(architecture())
    params = jax.jit(module.init)(jax.random.key(0), *example_inputs(module.architecture))["params"]
    x = vectors()
    z = module.apply({"params": params}, x, method="encode_image")
    inputs = unit(np.concatenate([unit(x["cnn"].astype(np.float64)), unit(x["pixels"].astype(np.float64))], axis=1))
    np.testing.assert_allclose(z @ z.T, inputs @ inputs.T, atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_however_large_the_head_its_share_is_the_strength(strength):
    module = TwoTowers(architecture())
    params = jax.jit(module.init)(jax.random.key(0), *example_inputs(module.architecture))["params"]
    rng = np.random.default_rng(2)
    wild = {"output": {"kernel": 1e6 * rng.normal(size=(16, 6)).astype(np.float32), "bias": np.zeros(6, np.float32)}}
    image = {**params["img"], **wild, "strength": np.array([strength], np.float32)}
    base, _ = by_hand(image, vectors())
    _, alone = by_hand(image | {"strength": np.ones(1)}, vectors())
    z = module.apply({"params": {**params, "img": image}}, vectors(), method="encode_image")
    np.testing.assert_allclose(z @ z.T, (1 - strength) * base @ base.T + strength * alone @ alone.T, atol=1e-5)


def test_titles_are_compared_with_the_head_alone():
    module = TwoTowers(architecture())
    params = jax.jit(module.init)(jax.random.key(0), *example_inputs(module.architecture))["params"]
    text = np.asarray(module.apply({"params": params}, np.arange(10).reshape(2, 5), method="encode_text"))
    assert text.shape == (2, 17)
    assert text[:, :12:2].all()
    assert not np.delete(text, np.arange(0, 12, 2), axis=1).any()
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-6)


def test_what_is_fixed_has_no_gradient():
    module = TwoTowers(architecture(5))
    image, text = vectors(), np.zeros((6, 5), np.int32)
    params = jax.jit(module.init)(jax.random.key(0), image, text)["params"]
    gradients = jax.jit(jax.grad(lambda p: module.apply({"params": p}, image, text)[0].sum()))(params)["img"]
    assert {name: float(np.abs(gradients[name]).max()) for name in FIXED} == dict.fromkeys(FIXED, 0.0)
    assert all(np.abs(gradients[name]["kernel"]).max() > 0 for name in ("output", "linear"))


@pytest.mark.parametrize(("base", "depth"), [(11, 1), (5, 3)], ids=str)
def test_parameters_are_counted(base, depth):
    found = parameter_counts(architecture(base, depth))
    shapes = parameter_shapes(architecture(base, depth))
    sizes = {name: sum(x.size for x in jax.tree.leaves(shapes[name])) for name in ("img", "txt")}
    assert found == {"image": sizes["img"], "text": sizes["txt"], "total": sum(sizes.values()) + 2}


def test_an_architecture_of_features_is_json_and_back():
    ours = architecture(5, 2)
    fields = ours.to_json()
    assert fields["image"] == {"inputs": {"cnn": 7, "pixels": 4}, "base": 5, "head": 6, "mlp_dim": 16, "depth": 2}
    assert Architecture.from_json(fields) == ours
    assert ours.features == {"cnn": 7, "pixels": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": {"inputs": {}, "base": 1, "head": 1, "mlp_dim": 1}}, "without features"),
        ({"image": {"inputs": {"a/b": 3}, "base": 1, "head": 1, "mlp_dim": 1}}, "feature named 'a/b'"),
        ({"image": {"inputs": {"cnn": 3}, "base": 4, "head": 1, "mlp_dim": 1}}, "a base of 4 for 3 numbers"),
        ({"image": {"inputs": {"cnn": 3.5}, "base": 1, "head": 1, "mlp_dim": 1}}, "whole numbers"),
        ({"image": {"inputs": {"cnn": 3}, "base": 1}}, "not an architecture"),
        ({"image": {"inputs": 3, "base": 1, "head": 1, "mlp_dim": 1}}, "not an architecture"),
        ({"image_size": [8, 8]}, "sees no pictures"),
        ({"naflex": True}, "sees no pictures"),
    ],
    ids=str,
)
def test_impossible_adapters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Architecture.from_json(architecture().to_json() | change)
