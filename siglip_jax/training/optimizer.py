"""AdamW with warm-up and cosine decay."""

from __future__ import annotations

import ml_collections
import optax

from siglip_jax.training.rules import match_rules

# Only matrices shrink: norms, biases, the temperature and the bias of the loss keep what they learn.
DECAY_RULES = (
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
    """Clip by global norm, Adam, decoupled decay of the parameters in DECAY_RULES, scheduled rate."""
    options = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
        optax.adamw(
            make_schedule(config),
            b1=options.b1,
            b2=options.b2,
            weight_decay=options.weight_decay,
            mask=lambda params: match_rules(DECAY_RULES, params),
        ),
    )
