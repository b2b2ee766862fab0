"""The running mean of the parameters: its values, its type and place, and that a run hands it back."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import siglip_jax
from siglip_jax.training import loop
from siglip_jax.training.optimizer import ema
from siglip_jax.training.optimizer.adamw import make_optimizer
from siglip_jax.training.parallel.sharding import tree_shardings
from siglip_jax.training.step import init_state


def flatten(tree) -> dict:
    """{"img/embedding/kernel": array, ...}."""
    return flax.traverse_util.flatten_dict(tree, sep="/")


def test_what_is_frozen_stays_and_the_mean_is_that_of_float64(tiny_model, tiny_config, random_batch, make_step):
    tiny_config.ema_decay, tiny_config.optimizer.freeze = 0.7, "image"
    step, state = make_step(tiny_config)
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny_model.params)
    for seed in range(6):
        state, metrics = step(state, random_batch(seed=seed))
        expected = jax.tree.map(lambda m, x: 0.7 * m + 0.3 * np.asarray(x, np.float64), expected, state["params"])
    assert metrics["gradient_norm"] > 0
    before, after, mean = (flatten(tree) for tree in (tiny_model.params, state["params"], ema.evaluated(state)))
    for name, value in flatten(expected).items():
        np.testing.assert_allclose(mean[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
        still = name.startswith("img/")
        assert np.array_equal(before[name], after[name]) == still, name
        assert np.array_equal(before[name], mean[name]) == still, name
    assert abs(mean["t"] - after["t"]) > 1e-4


def test_running_mean_is_float32_and_sharded_as_the_parameters(tiny_model, tiny_config):
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tiny_model.params)
    state = jax.eval_shape(lambda p: init_state(p, make_optimizer(tiny_config), ema_decay=0.9), half)
    assert {x.dtype for x in jax.tree.leaves(state["ema"])} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(ema.evaluated, state))} == {jnp.dtype("bfloat16")}
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    shardings = tree_shardings(state, mesh)
    assert jax.tree.leaves(shardings["ema"]) == jax.tree.leaves(shardings["params"])
    assert any(any(s.spec) for s in jax.tree.leaves(shardings["ema"]))


def test_the_mean_is_what_a_run_hands_back_and_resumes(tiny_model, tiny_config, tmp_path, RandomBatches):
    config = tiny_config
    config.steps, config.checkpoint_every, config.ema_decay, config.optimizer.freeze = 6, 3, 0.5, "image"
    seen = {}

    def evaluate(step, params):
        seen[step] = np.asarray(params["t"])
        return {}

    whole = loop.train(config, model=tiny_model, batches=RandomBatches(), workdir=tmp_path / "a", evaluators=[evaluate])

    class Killed(Exception):
        pass

    class Short(RandomBatches):
        def __next__(self):
            if self.position == 4:
                raise Killed
            return super().__next__()

    with pytest.raises(Killed):
        loop.train(config, model=tiny_model, batches=Short(), workdir=tmp_path / "b")
    resumed = loop.train(config, model=tiny_model, batches=RandomBatches(), workdir=tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert seen.keys() == {0, 3, 6}
    assert seen[6] == whole.params["t"]
    loaded = siglip_jax.load(tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole.params)
