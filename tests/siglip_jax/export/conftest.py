"""An adapter of two inputs beside its formula in float64."""

import types

import jax
import numpy as np
import pytest

from siglip_jax import model as models
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.towers import TwoTowers

WEIGHT = {"cnn-2": 1.5, "pixels": 0.5}


def make_adapter() -> models.Model:
    """Of two inputs, 7 and 5 numbers; no parameter is zero or one."""
    sizes = {"inputs": {"pixels": 5, "cnn-2": 7}, "base": 6, "head": 4, "mlp_dim": 16, "depth": 2}
    architecture = Architecture(
        image_size=(1, 1),
        patch_size=1,
        image=FeatureSize(**sizes),
        text=TowerSize(width=8, depth=1, mlp_dim=8, heads=2),
        vocab_size=11,
        text_length=3,
    )
    model, rng = models.init(TwoTowers(architecture), None, seed=0), np.random.default_rng(0)
    image = model.params["img"] | {
        "mean": rng.normal(size=12),
        "scale": rng.uniform(0.5, 2, 12),
        "strength": np.array([0.7]),
    }
    image["weight"] = np.array(list(WEIGHT.values()))
    for layer in ("output", "linear"):
        image[layer] = {name: rng.normal(size=np.shape(x)) for name, x in image[layer].items()}
    return model.replace(params={**model.params, "img": jax.tree.map(np.float32, image)})


def by_the_formula(model, features) -> np.ndarray:
    """`models/feature_tower.py` in float64."""
    p = model.params["img"]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    def dense(name, x):
        return x @ np.float64(p[name]["kernel"]) + np.float64(p[name].get("bias", 0))

    mean = {"cnn-2": p["mean"][:7], "pixels": p["mean"][7:]}
    centred = {name: features[name].astype(np.float64) - mean[name] for name in WEIGHT}
    base = np.concatenate([WEIGHT[name] * unit(x) for name, x in centred.items()], axis=1)
    if "projection" in p:
        base = base @ np.float64(p["projection"])
    standard = hidden = np.concatenate(list(centred.values()), axis=1) / p["scale"]
    for layer in ("hidden_0", "hidden_1"):
        x = dense(layer, hidden)
        hidden = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    head = dense("output", hidden) + dense("linear", standard)
    head /= np.sqrt(1 + (head**2).sum(axis=1, keepdims=True))
    head, base = np.sqrt(0.7) * head, np.sqrt(1 - 0.7) * unit(base)
    h, b = head.T, base.T  # 4 and 6 numbers, taking turns
    return unit(np.stack([h[0], b[0], h[1], b[1], h[2], b[2], h[3], b[3], b[4], b[5]], axis=1))


def vectors(n, seed=1):
    rng = np.random.default_rng(seed)
    return {name: (3 * rng.normal(size=(n, d)) + 1).astype(np.float32) for name, d in (("pixels", 5), ("cnn-2", 7))}


@pytest.fixture(scope="session")
def adapter() -> types.SimpleNamespace:
    """model, vectors(n) -> features, by_the_formula(features) -> float64 [n, d]."""
    model = make_adapter()
    return types.SimpleNamespace(
        model=model, vectors=vectors, by_the_formula=lambda features: by_the_formula(model, features)
    )
