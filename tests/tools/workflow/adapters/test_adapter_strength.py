"""The strength of an adapter that ranks a split best, against cosines by numpy."""

import re

import numpy as np
import pytest

from eval.metrics import rank_metrics
from input_pipeline.dataset import attributes
from siglip_jax.training.start.feature_statistics import with_strength
from tools.workflow.adapters.adapter_strength import choose_strength
from tools.workflow.item_vectors import Features
from tools.workflow.training import start_model


@pytest.fixture
def adapter(shop_dataset, tiny_config, tmp_path):
    """(an untrained adapter, its features): noise, and the type of an item, which the base hardly sees."""
    names, rng = [], np.random.default_rng(0)
    for split in ("train", "test"):
        ids, _, columns = attributes(shop_dataset, split)
        names += list(zip(ids, columns["type"], strict=True))
    kinds = sorted({kind for _, kind in names})
    ids = np.array([item for item, _ in names])
    arrays = {
        "kind": np.eye(len(kinds), dtype=np.float32)[[kinds.index(kind) for _, kind in names]],
        "noise": rng.normal(size=(len(ids), 8)).astype(np.float32),
    }
    for name, vectors in arrays.items():
        np.savez(tmp_path / f"{name}.npz", ids=ids, embeddings=vectors)
    features = Features.open({name: [tmp_path / f"{name}.npz"] for name in arrays})
    with tiny_config.unlocked():
        tiny_config.model.features = features.dimensions
    tiny_config.model.adapter = dict(
        base=8 + len(kinds), head=len(kinds), mlp_dim=4, depth=1, strength=0.5, weights={"kind": 1e-3}
    )
    model = start_model(tiny_config, shop_dataset, features=features.of_split(shop_dataset, "train"))
    return model, features


def choose(adapter, config, dataset):
    model, features = adapter
    return choose_strength(model, config=config, dataset=dataset, split="test", features=features)


def strength(model):
    return round(float(np.asarray(model.params["img"]["strength"])[0]), 6)  # of float32


def test_nothing_learned_nothing_changed(adapter, tiny_config, shop_dataset, capsys):
    assert strength(choose(adapter, tiny_config, shop_dataset)) == 0
    assert "strength 0 chosen on split test: nDCG_exp@5" in capsys.readouterr().out


def test_a_head_that_knows_what_is_relevant_is_believed(adapter, tiny_config, shop_dataset, capsys):
    """The printed means are those of numpy."""
    model, features = adapter
    image = dict(model.params["img"])
    kernel = np.zeros_like(image["linear"]["kernel"])
    count = features.dimensions["kind"]
    kernel[:count] = 10 * np.eye(count)  # inputs in the order of their names
    model = model.replace(params={**model.params, "img": {**image, "linear": {"kernel": kernel}}})
    chosen = choose((model, features), tiny_config, shop_dataset)
    assert strength(chosen) > 0

    _, _, columns = attributes(shop_dataset, "test")
    kind, colour = (np.array(columns[name]) for name in ("type", "colour"))
    gains = (kind[:, None] == kind) * (1 + (colour[:, None] == colour))
    inputs = {name: each.parts[0][each.rows] for name, each in features.of_split(shop_dataset, "test").items()}
    off = ~np.eye(len(kind), dtype=bool)
    means = []
    for value in (0.0, strength(chosen)):
        z = with_strength(model, value).encode_image(inputs).astype(np.float64)
        scores = (z @ z.T)[off].reshape(len(kind), -1)
        labels = gains[off].reshape(len(kind), -1)
        means.append(np.nanmean(rank_metrics(scores, labels, metrics=("nDCG@5",), gain="exponential")["nDCG@5"]))
    printed = {
        float(at): float(mean)
        for mean, at in re.findall(r"(\d\.\d+) at (\S+?)(?:,|$)", capsys.readouterr().out.strip())
    }
    assert [printed[0.0], printed[strength(chosen)]] == pytest.approx(means, abs=0.002)
    assert max(printed.values()) == printed[strength(chosen)] > printed[0.0]
