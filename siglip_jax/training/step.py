"""One training step as a pure function under `jax.jit` on a mesh: state and batch in, state and metrics out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from siglip_jax.losses.pair_losses import PAIR_LOSSES
from siglip_jax.training.encode import Batch, encode_batch
from siglip_jax.training.optimizer import ema
from siglip_jax.training.optimizer.freezing import stop_gradients
from siglip_jax.training.parallel.microbatch import value_and_grad_in_microbatches
from siglip_jax.training.parallel.sharding import BATCH_AXES, batch_sharding, keep_rows_apart, tree_shardings
from siglip_jax.training.param_rules import Params
from siglip_jax.training.terms import NO_TERMS, Terms

State = dict[str, Any]  # {"params", "opt_state", "step" int32 scalar, and "ema" where a running mean is kept}
TrainStep = Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]  # the scalars are metrics of the step


def init_state(params: Params, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0) -> State:
    """The state before the first step."""
    state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
    return state | {"ema": ema.start(params)} if ema_decay else state


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    to_float: Callable[[jax.Array], jax.Array],
    mesh: Mesh,
    state: State,
    schedule: optax.Schedule,
    loss: str = "sigmoid",
    same_group: str = "positive",
    microbatch: int = 0,
    frozen: Params | None = None,
    ema_decay: float = 0.0,
    terms: Terms = NO_TERMS,
) -> tuple[TrainStep, Any]:
    """Builds the jitted step.

    Args:
      module: a `TwoTowers`.
      to_float: uint8 pixels -> float32 in the model's range (`Preprocessing.to_float`); done on the device, so that
        a quarter of the bytes travel.
      state: arrays or ShapeDtypeStructs; only shapes are read.
      loss: of the pairs, a name in `losses.pair_losses.PAIR_LOSSES`; only sigmoid reads `same_group`.
      microbatch: rows of a device that pass through the towers at a time, 0 for all; the loss is over the whole batch
        either way (`parallel.microbatch`).
      frozen: tree of bools, True where a parameter gets no gradient (`optimizer.freezing`); None for none.
      ema_decay: of the running mean of the parameters (`optimizer.ema`); 0 keeps none.
      terms: what is minimised beside the loss of the pairs; each is a metric of the step.

    Returns:
      (step, state shardings). The state is donated; its sharding does not change, so the step compiles once.
    """
    shardings = tree_shardings(state, mesh)

    def learning(params: Params) -> Params:
        return params if frozen is None else stop_gradients(params, frozen)

    def encode(params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        with keep_rows_apart(mesh):
            return encode_batch(module, learning(params), batch, to_float=to_float)

    def loss_of(
        params: Params, embeddings: tuple[jax.Array, jax.Array], batch: Batch
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        image, text = embeddings
        params = learning(params)

        def pair_loss(image: jax.Array, text: jax.Array) -> jax.Array:
            return PAIR_LOSSES[loss](
                image,
                text,
                params["t"],
                params["b"],
                groups=batch["group"],
                same_group=same_group,
                mesh=mesh,
                axis=BATCH_AXES,
            )

        return terms.add_to(pair_loss(image, text), image=image, text=text, batch=batch, pair_loss=pair_loss)

    if microbatch:
        value_and_grad = value_and_grad_in_microbatches(
            encode, loss_of, microbatch=microbatch, has_aux=True, mesh=mesh, axis=BATCH_AXES
        )
    else:
        value_and_grad = jax.value_and_grad(
            lambda params, batch: loss_of(params, encode(params, batch), batch), has_aux=True
        )

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        (_, losses), gradients = value_and_grad(state["params"], batch)
        updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics = {
            **losses,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": jnp.asarray(schedule(state["step"])),
            "temperature": jnp.exp(params["t"][0]),
            "bias": params["b"][0],
        }
        new = {"params": params, "opt_state": opt_state, "step": state["step"] + 1}
        if ema_decay:
            new["ema"] = ema.step(state["ema"], params, decay=ema_decay)
        return new, metrics

    jitted = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        donate_argnums=0,
    )
    return jitted, shardings
