"""Which parts of the towers are frozen, from the rules."""

import dataclasses

import jax
import numpy as np
import pytest

from siglip_jax.models.towers import parameter_shapes
from siglip_jax.training.start.frozen_parts import frozen_parts, parameters_digest


@pytest.mark.parametrize(
    ("freeze", "rules", "expected"),
    [
        ("none", (), []),
        ("image", (), ["image_embedding"]),
        ("embeddings", (), []),
        ("heads", (), ["image_tokens", "text_pooled"]),
        ("heads", (("img/MAPHead_0/.*", True),), ["image_embedding", "text_pooled"]),
        ("heads", (("img/MAPHead_0/probe", True),), ["image_tokens", "text_pooled"]),
        ("heads", (("img/Transformer/encoder_norm/scale", False),), ["text_pooled"]),
        ("image", (("txt/head/.*", False), ("txt/.*", True)), ["image_embedding", "text_pooled"]),
        ("image", (("img/.*", False), ("txt/.*", True)), ["text_embedding"]),
        ("none", (("img/MAPHead_0/.*", True),), []),
    ],
)
def test_the_largest_frozen_part_of_each_tower(tiny_config, tiny_model, freeze, rules, expected):
    tiny_config.optimizer.freeze, tiny_config.optimizer.freeze_rules = freeze, rules
    found = frozen_parts(tiny_config, tiny_model.params, architecture=tiny_model.architecture)
    assert [part.key for part in found] == expected


def test_a_text_tower_without_a_projection_has_no_head(tiny_config, tiny_model):
    architecture = dataclasses.replace(tiny_model.architecture, text_head=False)
    params = parameter_shapes(architecture)
    tiny_config.optimizer.freeze_rules = (("(img|txt)/.*", True),)
    found = frozen_parts(tiny_config, params, architecture=architecture)
    assert [part.key for part in found] == ["image_embedding", "text_embedding"]


def test_the_digest_is_of_the_parameters_below_the_head(tiny_config, tiny_model):
    tiny_config.optimizer.freeze = "heads"
    parts = frozen_parts(tiny_config, tiny_model.params, architecture=tiny_model.architecture)
    params = jax.tree.map(np.array, tiny_model.params)
    first = parameters_digest(params, parts)
    params["img"]["MAPHead_0"]["probe"] += 1
    params["t"] += 1
    assert parameters_digest(params, parts) == first
    params["txt"]["pos_embedding"][0, -1, -1] += 1e-3
    assert parameters_digest(params, parts) != first
