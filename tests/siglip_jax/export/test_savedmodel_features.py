"""The SavedModel of an adapter: its signature "features" against the formula in float64, in a process without JAX."""

import json

import jax
import numpy as np
import pytest

from siglip_jax import model as models
from siglip_jax.export import savedmodel
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.towers import TwoTowers

pytest.importorskip("tensorflow")
WEIGHT = {"cnn-2": 1.5, "pixels": 0.5}


def adapter(**changes) -> models.Model:
    """Of two inputs, 7 and 5 numbers; no parameter is zero or one."""
    sizes = {"inputs": {"pixels": 5, "cnn-2": 7}, "base": 6, "head": 4, "mlp_dim": 16, "depth": 2} | changes
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
    return unit(np.concatenate([np.sqrt(0.7) * head, np.sqrt(1 - 0.7) * unit(base)], axis=1))


def vectors(n, seed=1):
    rng = np.random.default_rng(seed)
    return {name: (3 * rng.normal(size=(n, d)) + 1).astype(np.float32) for name, d in (("pixels", 5), ("cnn-2", 7))}


def test_features_without_jax_equal_the_formula(tmp_path):
    model, features = adapter(), vectors(9)
    savedmodel.export_saved_model(model, tmp_path / "export")
    z = savedmodel.run_without_jax(tmp_path / "export", {"features": features})["features"]
    np.testing.assert_allclose(z, by_the_formula(model, features), atol=1e-5)
    assert z.dtype == np.float32
    for rows in (1, 4):  # any batch
        some = {name: x[:rows] for name, x in features.items()}
        found = savedmodel.run_saved_model(tmp_path / "export", {"features": some})["features"]
        np.testing.assert_allclose(found, z[:rows], atol=1e-6)
    manifest = json.loads((tmp_path / "export" / savedmodel.MANIFEST).read_text())
    assert manifest["features"] == {"cnn-2": 7, "pixels": 5}
    assert manifest["signatures"] == {"features": "cnn-2: float32 [n, 7], pixels: float32 [n, 5]"}
    assert manifest["output"] == "embedding: float32 [n, 10], unit norm"
