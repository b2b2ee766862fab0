"""How fast each parameter learns: multipliers of the learning rate by tower, by layer and by regex."""

from __future__ import annotations

from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from siglip_jax.training.param_rules import Params, check_rules, match_rules, path_name

# Layer-wise decay (ELECTRA, arXiv 2003.10555; BEiT, arXiv 2106.08254): the nearer to the input, the slower. Layers of
# a scanned tower are one array, so their rates are a vector along its leading axis.
EMBEDDINGS, LAYERS, HEADS = "embeddings", "layers", "heads"
DEPTH_RULES = (
    (r"(img|txt)/.*encoderblock/.*", LAYERS),
    (r"img/(embedding/.*|pos_embedding)", EMBEDDINGS),
    (r"txt/(Embed_0/embedding|pos_embedding)", EMBEDDINGS),
    (r"img/(Transformer/encoder_norm|MAPHead_0)/.*", HEADS),
    (r"img/(mean|scale|weight|strength|projection|(hidden_[0-9]+|output|linear)/.*)", HEADS),  # an adapter is a head
    (r"txt/(Encoder_0/encoder_norm|head)/.*", HEADS),
    (r"[tb]", HEADS),
)


def rate_multipliers(config: ml_collections.ConfigDict, params: Params) -> Params:
    """What multiplies the scheduled learning rate: a tree shaped as `params` of float32 scalars, or [depth, 1, ...].

    With d = config.optimizer.layer_decay, layer i of a tower of `depth` layers gets d^(depth - 1 - i), its embeddings
    d^depth, everything behind its layers 1; times the tower's rate (image_rate, text_rate; 1 for t and b). A parameter
    that one of config.optimizer.rate_rules matches gets that rule's value in the place of the tower's rate.
    """
    options = config.optimizer
    table = (*options.rate_rules, ("img/.*", options.image_rate), ("txt/.*", options.text_rate), ("[tb]", 1.0))
    depths = _depths(params)

    def multiplier(path: tuple[Any, ...], x: Any, rate: float, place: str) -> np.ndarray | np.float32:
        depth = depths.get(path_name(path).split("/")[0], 0)
        if place == LAYERS:
            by_layer = float(options.layer_decay) ** np.arange(depth - 1, -1, -1)
            return np.float32(rate * by_layer.reshape(-1, *[1] * (x.ndim - 1)))
        return np.float32(rate * options.layer_decay ** (depth if place == EMBEDDINGS else 0))

    return jax.tree_util.tree_map_with_path(
        multiplier, params, match_rules(table, params), match_rules(DEPTH_RULES, params)
    )


def scale_by_rates(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Multiplies the updates by `rate_multipliers`; they must be those of all parameters, frozen ones included."""

    def update(updates: optax.Updates, params: Params | None = None) -> optax.Updates:
        rates = rate_multipliers(config, updates)
        return jax.tree.map(lambda u, rate: u * rate.astype(u.dtype), updates, rates)

    return optax.stateless(update)


def has_rates(config: ml_collections.ConfigDict) -> bool:
    """Whether any parameter may learn at another rate than the others."""
    options = config.optimizer
    return bool(options.rate_rules) or (options.image_rate, options.text_rate, options.layer_decay) != (1, 1, 1)


def check_rates(config: ml_collections.ConfigDict, params: Params) -> None:
    """Raises a UserError for a rule that is malformed or fits no parameter."""
    check_rules("config.optimizer.rate_rules", config.optimizer.rate_rules, params, kind=float)


def _depths(params: Params) -> dict[str, int]:
    """{"img": layers, "txt": layers}."""
    named = ((path_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params))
    return {name.split("/")[0]: x.shape[0] for name, x in named if "/encoderblock/" in name}
