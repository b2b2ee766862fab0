"""The running mean of the parameters: mean <- decay * mean + (1 - decay) * parameters after each step.

It starts at the start's parameters and is not debiased: for a loaded start that is a pull towards it, as in the weight
interpolation of WiSE-FT (arXiv 2109.01903). Kept in float32, since in bfloat16 a step of (1 - decay) rounds to nothing.
The tree is that of the parameters, so the same sharding rules fit it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from siglip_jax.training.param_rules import Params


def start(params: Params) -> Params:
    """float32 copies of the parameters."""
    return jax.tree.map(lambda x: x.astype(jnp.float32) + 0, params)


def step(mean: Params, params: Params, *, decay: float) -> Params:
    """The mean after a step that led to `params`."""
    # As a difference: a frozen parameter's mean then stays equal to it, bit for bit.
    return jax.tree.map(lambda m, x: m + (1 - decay) * (x.astype(jnp.float32) - m), mean, params)


def evaluated(state: dict[str, Any]) -> Params:
    """The parameters that are evaluated and handed back: the mean, in the parameters' dtype, or the parameters."""
    if "ema" not in state:
        return state["params"]
    return jax.tree.map(lambda m, x: m.astype(x.dtype), state["ema"], state["params"])
