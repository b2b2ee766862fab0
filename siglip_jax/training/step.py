"""One training step as a pure function under `jax.jit` on a mesh: state and batch in, state and metrics out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from siglip_jax.losses import sigmoid_loss
from siglip_jax.training.large_batch import value_and_grad_in_microbatches
from siglip_jax.training.sharding import BATCH_AXES, batch_sharding, keep_rows_apart, tree_shardings

State = dict[str, Any]  # {"params", "opt_state", "step" int32 scalar}
Batch = dict[str, jax.Array]  # {"image" uint8 [n, h, w, 3], "text" int32 [n, L], "group" int32 [n]}


def init_state(params: Any, optimizer: optax.GradientTransformation) -> State:
    """The state before the first step."""
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    to_float: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    state: State,
    schedule: optax.Schedule,
    same_group: str = "positive",
    microbatch: int = 0,
) -> tuple[Callable[[State, Batch], tuple[State, dict[str, jax.Array]]], Any]:
    """Builds the jitted step.

    Args:
      module: a `TwoTowers`.
      to_float: uint8 pixels -> float32 in the model's range (`Preprocessing.to_float`); done on the device, so that
        a quarter of the bytes travel.
      state: arrays or ShapeDtypeStructs; only shapes are read.
      microbatch: rows of a device that pass through the towers at a time, 0 for all; the loss is over the whole batch
        either way (`training.large_batch`).

    Returns:
      (step, state shardings). The state is donated; its sharding does not change, so the step compiles once.
    """
    shardings = tree_shardings(state, mesh)

    def encode(params, batch, key=None):
        with keep_rows_apart(mesh):
            outputs: Any = module.apply({"params": params}, to_float(batch["image"]), batch["text"])
        image, text, _, _ = outputs
        return image, text

    def loss_of(params, embeddings, batch):
        image, text = embeddings
        return sigmoid_loss(
            image,
            text,
            params["t"],
            params["b"],
            groups=batch["group"],
            same_group=same_group,
            mesh=mesh,
            axis=BATCH_AXES,
        )

    if microbatch:
        value_and_grad = value_and_grad_in_microbatches(
            encode, loss_of, microbatch=microbatch, mesh=mesh, axis=BATCH_AXES
        )
    else:
        value_and_grad = jax.value_and_grad(lambda params, batch: loss_of(params, encode(params, batch), batch))

    def step(state: State, batch: Batch):
        loss, gradients = value_and_grad(state["params"], batch)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {
            "loss": loss,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": jnp.asarray(schedule(state["step"])),
            "temperature": jnp.exp(params["t"][0]),
            "bias": params["b"][0],
        }
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )
    return jitted, shardings
