"""Multipliers of the learning rate, by tower, layer and rule."""

import flax.traverse_util
import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.training.optimizer.rates import check_rates, rate_multipliers


def flatten(tree) -> dict:
    """{"img/embedding/kernel": array, ...}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def test_rates_by_tower_layer_and_rule(tiny_model, tiny_config):
    options = tiny_config.optimizer
    options.image_rate, options.text_rate, options.layer_decay = 0.5, 0.1, 0.8
    options.rate_rules = ((".*/LayerNorm_0/scale", 0.0),)
    check_rates(tiny_config, tiny_model.params)
    found = flatten(rate_multipliers(tiny_config, tiny_model.params))
    shapes = {name: x.shape for name, x in flatten(tiny_model.params).items()}
    assert found.keys() == shapes.keys()
    expected = {  # two image layers, one text layer
        "img/embedding/kernel": 0.5 * 0.8**2,
        "img/pos_embedding": 0.5 * 0.8**2,
        "img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel": 0.5 * np.array([0.8, 1.0]),
        "img/Transformer/encoderblock/LayerNorm_0/scale": np.zeros(2),
        "img/Transformer/encoder_norm/scale": 0.5,
        "img/MAPHead_0/probe": 0.5,
        "txt/Embed_0/embedding": 0.1 * 0.8,
        "txt/pos_embedding": 0.1 * 0.8,
        "txt/Encoder_0/encoderblock/MlpBlock_0/Dense_1/bias": 0.1 * np.array([1.0]),
        "txt/Encoder_0/encoder_norm/bias": 0.1,
        "txt/head/kernel": 0.1,
        "t": 1.0,
        "b": 1.0,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(np.ravel(found[name]), np.ravel(value), rtol=1e-6, err_msg=name)
        np.broadcast_shapes(found[name].shape, shapes[name])
    assert found["img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"].shape == (2, 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_rules": (("text/.*", 0.1),)}, "'text/.*' matches no parameter"),
        ({"rate_rules": (("txt/.*", -1.0),)}, "expected a number of 0 or more"),
    ],
    ids=str,
)
def test_faulty_rates_are_refused(tiny_model, tiny_config, changes, message):
    tiny_config.optimizer.update(changes)
    with pytest.raises(UserError, match=message):
        check_rates(tiny_config, tiny_model.params)
