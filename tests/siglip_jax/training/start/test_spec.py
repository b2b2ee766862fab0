"""What a config says of its model, without weights."""

import re

import jax
import pytest

from siglip_jax.training import aot
from siglip_jax.training.config import default_config
from siglip_jax.training.start.spec import compute_options, outline


def small_config(depth: int):
    config = default_config()
    config.preprocessing.image_size, config.model.patch_size = (16, 16), 8
    config.preprocessing.text_length, config.preprocessing.vocab_size = 8, 32
    for tower in (config.model.image, config.model.text):
        tower.width, tower.depth, tower.mlp_dim, tower.heads = 16, depth, 32, 2
    config.batch_size = 8
    return config


def unrolls(config):
    """Of the scans over layers in the step that this config compiles to here, forward and backward."""
    step = aot.build_step(config, devices=jax.devices()[:1])
    text = str(jax.make_jaxpr(step.function)(step.state, step.batch))
    return {int(unroll) for unroll in re.findall(r"length=3\b[^]]*?unroll=(\d+)", text, flags=re.DOTALL)}


@pytest.mark.parametrize(("platform", "expected"), [("cpu", 12), ("tpu", 1), ("gpu", 1)])
def test_layers_are_unrolled_on_a_cpu_alone(platform, expected):
    config = small_config(depth=3)
    assert compute_options(config, platform=platform)["unroll"] == expected
    assert outline(config, platform=platform)[0].unroll == expected
    config.model.unroll = 2
    assert compute_options(config, platform=platform)["unroll"] == 2


def test_the_step_of_this_machine_is_unrolled():
    config = small_config(depth=3)
    assert unrolls(config) == {3}
    config.model.unroll = 1
    assert unrolls(config) == {1}
