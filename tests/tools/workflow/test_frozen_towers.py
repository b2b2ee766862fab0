"""Frozen towers run once: the same parameters as running them in each step."""

import jax
import numpy as np
import pytest

from tools.workflow import frozen_towers
from tools.workflow.training import train_on_dataset

STEPS = 6


@pytest.fixture
def train(tiny_config, shop_dataset, tmp_path, monkeypatch):
    """train(name, **fields) -> the trained parameters, and how many images the frozen towers and the loader decoded."""
    tiny_config.steps, tiny_config.checkpoint_every = STEPS, STEPS
    tiny_config.data.flip = False
    tiny_config.data.cache = False
    monkeypatch.setattr(frozen_towers, "SHARD_BYTES", 1 << 13)  # several shards
    monkeypatch.setattr(frozen_towers, "ROWS", 8)

    def run(name, **fields):
        config = tiny_config.copy_and_resolve_references()
        config.update_from_flattened_dict(fields)
        return train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / name)

    return run


def assert_same(ours, theirs, *, start):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), ours.params, theirs.params)
    moved = jax.tree.map(lambda x, y: float(np.abs(np.asarray(x) - np.asarray(y)).max()), ours.params, start.params)
    assert max(jax.tree.leaves(moved)) > 1e-2


@pytest.mark.parametrize(
    ("fields", "stored"),
    [
        ({"optimizer.freeze": "image"}, "image_embedding [93, 16] float32"),
        ({"optimizer.freeze": "image", "data.flip": True}, "image_embedding [93, 2, 16] float32"),
        ({"optimizer.freeze": "image", "data.title_dropout": 0.3}, "image_embedding [93, 16] float32"),
        ({"optimizer.freeze": "image", "microbatch": 4}, "image_embedding [93, 16] float32"),
        ({"optimizer.freeze": "heads"}, "image_tokens [93, 4, 16] float32, text_pooled [93, 16] float32"),
        ({"optimizer.freeze": "heads", "data.flip": True, "microbatch": 8}, "image_tokens [93, 2, 4, 16] float32"),
        ({"optimizer.freeze_rules": (("txt/.*", True),), "data.zoom": 0.2}, "text_embedding [93, 16] float32"),
        ({"optimizer.freeze_rules": (("(img|txt)/.*", True),)}, "text_embedding [93, 16] float32"),
    ],
)
def test_same_parameters_as_running_the_towers_in_each_step(train, tiny_model, capsys, fields, stored):
    each_step = train("each_step", **fields, **{"data.cache_frozen": "off"})
    assert "run once" not in capsys.readouterr().out
    once = train("once", **fields, **{"data.cache_frozen": "on"})
    assert stored in capsys.readouterr().out
    if any("img|txt" in rule for rule, _ in fields.get("optimizer.freeze_rules", ())):
        assert abs(once.params["t"] - tiny_model.params["t"]) > 1e-3
        np.testing.assert_allclose(once.params["t"], each_step.params["t"], atol=1e-5)
    else:
        assert_same(once, each_step, start=tiny_model)
