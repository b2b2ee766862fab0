"""AdamW with warm-up and cosine decay, with rates by parameter and frozen parameters."""

from __future__ import annotations

import operator

import jax
import ml_collections
import optax

from siglip_jax.training.optimizer.freezing import freezes_any, frozen_parameters
from siglip_jax.training.optimizer.rates import has_rates, scale_by_rates
from siglip_jax.training.param_rules import Params, match_rules

# Only matrices shrink: norms, biases, the temperature and the bias of the loss keep what they learn. What is fixed of
# an adapter gets no gradient, and must not shrink either.
DECAY_RULES = (
    (r"img/(mean|scale|weight|strength|projection)", False),
    (r".*/kernel", True),
    (r".*/embedding", True),
    (r".*/(pos_embedding|probe)", True),
    (r".*/(bias|scale)", False),
    (r"[tb]", False),
)


def make_schedule(config: ml_collections.ConfigDict) -> optax.Schedule:
    """step -> learning rate: linear warm-up, then a cosine to `final_fraction` of the peak at the last step."""
    options = config.optimizer
    peak = options.learning_rate
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, options.warmup_steps, config.steps, peak * options.final_fraction
    )


def make_optimizer(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Clip by global norm, Adam, decoupled decay of the parameters in DECAY_RULES, scheduled rate.

    Parameters that `freezing` names get no update and have no moments; `rates` multiplies the rate
    of the others. As in AdamW the decay is times the rate, so the multipliers slow both alike.
    """
    options = config.optimizer
    parts = [
        optax.scale_by_adam(b1=options.b1, b2=options.b2),
        optax.add_decayed_weights(options.weight_decay, mask=lambda params: match_rules(DECAY_RULES, params)),
    ]
    clip = optax.clip_by_global_norm(options.clip_norm)
    if freezes_any(config):

        def frozen(params: Params) -> Params:
            return frozen_parameters(config, params)

        def trained(params: Params) -> Params:
            return jax.tree.map(operator.not_, frozen(params))

        # Before the clipping, which must not count them.
        still = optax.masked(optax.set_to_zero(), frozen)
        parts = [still, clip, *(optax.masked(part, trained) for part in parts)]
    else:
        parts = [clip, *parts]
    if has_rates(config):
        parts.append(scale_by_rates(config))
    return optax.chain(*parts, optax.scale_by_learning_rate(make_schedule(config)))
