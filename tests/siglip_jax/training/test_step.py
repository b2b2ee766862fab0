"""One step against formulas, and in micro-batches."""

import jax
import numpy as np
import optax

from siglip_jax.training.optimizer.adamw import make_schedule


def logits_of(model, batch):
    pixels = (batch["image"].astype(np.float64) / 127.5 - 1).astype(np.float32)
    return model.logits(model.encode_image(pixels), model.encode_text(batch["text"])).astype(np.float64)


def test_steps_learn_a_batch_by_heart_and_compile_once(tiny_model, tiny_config, random_batch, make_step, loss_by_hand):
    config = tiny_config
    config.steps, config.optimizer.learning_rate = 60, 1e-2
    batch = random_batch()
    step, state = make_step(config, same_group="ignore")
    losses, rates = [], []
    for number in range(60):
        old = state["params"]["t"]
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        rates.append(float(metrics["learning_rate"]))
        assert int(state["step"]) == number + 1
        assert old.is_deleted()  # the state is donated: two copies would not fit
    assert step._cache_size() == 1
    np.testing.assert_allclose(rates, [float(make_schedule(config)(k)) for k in range(60)], rtol=1e-5)
    assert losses[-1] < 0.25 * losses[0]
    np.testing.assert_allclose(losses[0], loss_by_hand(batch, same_group="ignore"), rtol=1e-5)
    # A learned pair is nearer than any other.
    trained = tiny_model.replace(params=jax.device_get(state["params"]))
    logits = logits_of(trained, batch)
    assert (logits.argmax(axis=1)[2:] == np.arange(8)[2:]).all()


def test_steps_in_microbatches_are_those_of_the_whole_batch(tiny_model, tiny_config, random_batch, make_step):
    """With plain gradient steps: Adam would blow up the rounding of gradients that are zero but for it."""
    batch, ends = random_batch(), []
    for microbatch in (0, 2):
        step, state = make_step(tiny_config, optimizer=optax.sgd(0.1), microbatch=microbatch)
        for _ in range(4):
            state, metrics = step(state, batch)
        ends.append((jax.device_get(state["params"]), metrics))
    (whole, metrics), (cut, metrics_cut) = ends
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics_cut[name], metrics[name], rtol=1e-5)
    assert abs(whole["t"] - tiny_model.params["t"]) > 0.01  # something was learned
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), cut, whole)
