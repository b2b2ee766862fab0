"""AdamW against its formulas in float64 and against optax's own."""

import math

import flax.traverse_util
import jax
import numpy as np
import optax

from siglip_jax.training.optimizer.adamw import DECAY_RULES, make_optimizer, make_schedule
from siglip_jax.training.param_rules import match_rules


def flatten(tree) -> dict:
    """{"img/embedding/kernel": array, ...}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def test_learning_rate(tiny_config):
    config = tiny_config
    config.steps, config.optimizer.warmup_steps, config.optimizer.final_fraction = 110, 10, 0.2
    peak = config.optimizer.learning_rate
    schedule = make_schedule(config)
    for step in (0, 3, 9, 10, 40, 60, 109, 110, 200):
        done = min((step - 10) / 100, 1)
        cosine = 0.2 + 0.8 * (1 + np.cos(np.pi * done)) / 2
        expected = peak * (step / 10 if step < 10 else cosine)
        np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-12)


def test_decay_covers_every_parameter_and_only_matrices(tiny_model):
    mask = flatten(match_rules(DECAY_RULES, tiny_model.params))
    assert mask.keys() == flatten(tiny_model.params).keys()
    decayed = {name for name, decays in mask.items() if decays}
    last = {name.rpartition("/")[2] for name in decayed}
    assert last == {"kernel", "embedding", "pos_embedding", "probe"}
    assert {name.rpartition("/")[2] for name in mask.keys() - decayed} == {"bias", "scale", "t", "b"}


def test_a_step_without_gradient_only_decays(tiny_config):
    """AdamW: p - rate * decay * p for the matrices, and nothing else moves."""
    optimizer = make_optimizer(tiny_config)
    names = ("Dense_0/kernel", "Dense_0/bias", "LayerNorm_0/scale", "Embed_0/embedding", "pos_embedding", "probe")
    rng = np.random.default_rng(0)
    params = flax.traverse_util.unflatten_dict(
        {name: rng.normal(size=3).astype(np.float32) for name in (*(f"img/{name}" for name in names), "t", "b")},
        sep="/",
    )
    update = jax.jit(optimizer.update)
    zeros = jax.tree.map(np.zeros_like, params)
    _, state = update(zeros, optimizer.init(params), params)  # the rate is 0 at the first step of the warm-up
    updates, _ = update(zeros, state, params)
    rate = tiny_config.optimizer.learning_rate / tiny_config.optimizer.warmup_steps
    for name, found in flatten(updates).items():
        decays = name.endswith(("kernel", "embedding", "probe"))
        expected = -rate * tiny_config.optimizer.weight_decay * decays * flatten(params)[name].astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=name)


def test_updates_against_adam_by_hand(tiny_model, tiny_config):
    """Two steps in float64: clipping over what learns, Adam, decay, rates by layer; the image tower locked."""
    options = tiny_config.optimizer
    options.layer_decay, options.text_rate, options.freeze, options.clip_norm = 0.7, 0.3, "image", 0.05
    params = tiny_model.params
    optimizer = make_optimizer(tiny_config)
    state, rng = optimizer.init(params), np.random.default_rng(0)
    update = jax.jit(optimizer.update)
    moments = dict.fromkeys(flatten(params), (0.0, 0.0))
    schedule = make_schedule(tiny_config)
    depth_of = {"txt/Embed_0/embedding": 0.7, "txt/pos_embedding": 0.7}
    for number in range(2):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 1e-2, params)
        updates, state = update(gradients, state, params)
        given = {k: np.asarray(v, np.float64) for k, v in flatten(gradients).items() if not k.startswith("img/")}
        norm = math.sqrt(sum((g**2).sum() for g in given.values()))
        assert norm > options.clip_norm
        for name, found in flatten(updates).items():
            if name.startswith("img/"):
                assert not np.any(found)
                continue
            g = given[name] * options.clip_norm / norm
            m, v = moments[name]
            m, v = options.b1 * m + (1 - options.b1) * g, options.b2 * v + (1 - options.b2) * g**2
            moments[name] = m, v
            direction = (m / (1 - options.b1 ** (number + 1))) / (np.sqrt(v / (1 - options.b2 ** (number + 1))) + 1e-8)
            if name.endswith(("kernel", "embedding")):
                direction = direction + options.weight_decay * np.asarray(flatten(params)[name], np.float64)
            rate = (0.3 if name.startswith("txt/") else 1.0) * depth_of.get(name, 1.0)
            expected = -float(schedule(number)) * rate * direction
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-9, err_msg=name)


def test_plain_settings_are_plain_adamw(tiny_model, tiny_config):
    options = tiny_config.optimizer
    plain = optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            make_schedule(tiny_config),
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
            mask=lambda params: match_rules(DECAY_RULES, params),
        ),
    )
    params = {"img": {"MAPHead_0": tiny_model.params["img"]["MAPHead_0"]}, "t": tiny_model.params["t"]}
    gradients, ends = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), params), []
    for optimizer in (plain, make_optimizer(tiny_config)):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = jax.jit(optimizer.update)(gradients, state, params)
        ends.append(updates)
    jax.tree.map(np.testing.assert_array_equal, *ends)
