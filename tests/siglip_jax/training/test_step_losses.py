"""A step of each loss, with a teacher and prefixes, against JAX's derivative of the dense formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from siglip_jax.losses.pair_losses import PAIR_LOSSES
from siglip_jax.losses.reference import dense_sigmoid_loss, dense_softmax_loss
from siglip_jax.training import loop
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.terms import Terms

RATE = 0.05
DENSE = {
    "sigmoid": lambda image, text, params, groups: dense_sigmoid_loss(
        image, text, params["t"], params["b"], groups=groups
    ),
    "softmax": lambda image, text, params, groups: dense_softmax_loss(image, text, params["t"]),
}


def unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("loss", "microbatch"), [*((loss, 0) for loss in PAIR_LOSSES), ("softmax", 4)])
def test_a_step_is_that_of_the_whole_matrix(tiny_model, tiny_config, random_batch, make_step, loss, microbatch):
    teacher = np.random.default_rng(1).normal(size=(8, 16))
    batch = random_batch() | {"teacher": np.asarray(unit(teacher), np.float32)}
    options = dict(loss=loss, microbatch=microbatch, optimizer=optax.sgd(RATE))
    step, state = make_step(tiny_config, terms=Terms(teacher={"cosine": 2.0}, prefixes={4: 0.5}), **options)
    state, metrics = step(state, batch)

    def total(params):
        pixels = tiny_model.preprocessing.to_float(batch["image"])
        image, text, _, _ = tiny_model.module.apply({"params": params}, pixels, batch["text"])
        parts = {
            "loss": DENSE[loss](image, text, params, batch["group"]),
            "matryoshka_4": DENSE[loss](unit(image[:, :4]), unit(text[:, :4]), params, batch["group"]),
            "teacher_cosine": jnp.mean(1 - jnp.sum(image * batch["teacher"], axis=1)),
        }
        return parts["loss"] + 0.5 * parts["matryoshka_4"] + 2 * parts["teacher_cosine"], parts

    (value, parts), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(tiny_model.params)
    np.testing.assert_allclose(metrics["total"], value, rtol=1e-5)
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[name], part, rtol=1e-5, err_msg=name)
    moved = jax.tree.map(lambda x, gradient: x - RATE * gradient, tiny_model.params, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), state["params"], moved)
    if loss == "softmax":  # b is no part of it
        assert float(state["params"]["b"][0]) == float(tiny_model.params["b"][0])


def test_the_config_chooses(tiny_model, tiny_config, RandomBatches, random_batch, tmp_path):
    tiny_config.update(loss="softmax", batch_size=8, steps=3, checkpoint_every=3)
    tiny_config.evaluation.best_metric = ""
    loop.train(tiny_config, model=tiny_model, batches=RandomBatches(8), workdir=tmp_path / "run")
    batch = random_batch(8, seed=1)
    image = tiny_model.encode_image(tiny_model.preprocessing.to_float(batch["image"]))
    expected = DENSE["softmax"](image, tiny_model.encode_text(batch["text"]), tiny_model.params, batch["group"])
    assert read_metrics(tmp_path / "run")[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
