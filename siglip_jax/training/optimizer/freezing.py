"""Which parameters stay as they are: presets by name, and regexes over parameter paths before them."""

from __future__ import annotations

import jax
import ml_collections

from siglip_jax.errors import UserError
from siglip_jax.training.param_rules import Params, check_rules, match_rules

Rules = tuple[tuple[str, bool], ...]  # (regex over the whole path, frozen?); the first match wins

FREEZE_PRESETS: dict[str, Rules] = {
    "none": ((".*", False),),
    # LiT (arXiv 2111.07991): the text tower learns to read out what the locked image tower knows.
    "image": (("img/.*", True), (".*", False)),
    # Vectors of titles stay valid, and so does what they say of other catalogues: images learn to meet them.
    "text": (("txt/.*", True), (".*", False)),
    # The token table is most of a multilingual text tower (197 of 282 M in SigLIP 2 B/16), and a small catalogue
    # touches a few of its rows.
    "embeddings": (
        (r"img/(embedding/.*|pos_embedding)", True),
        (r"txt/(Embed_0/embedding|pos_embedding)", True),
        (".*", False),
    ),
    # Only the pooling head of pictures, the projection of texts, t and b learn.
    "heads": ((r"img/MAPHead_0/.*", False), (r"txt/head/.*", False), (r"[tb]", False), (".*", True)),
}


def freeze_rules(config: ml_collections.ConfigDict) -> Rules:
    """`config.optimizer.freeze_rules`, then the preset that `config.optimizer.freeze` names."""
    options = config.optimizer
    if options.freeze not in FREEZE_PRESETS:
        raise UserError(f"config.optimizer.freeze={options.freeze!r}; expected one of {', '.join(FREEZE_PRESETS)}")
    return (*((pattern, bool(value)) for pattern, value in options.freeze_rules), *FREEZE_PRESETS[options.freeze])


def frozen_parameters(config: ml_collections.ConfigDict, params: Params) -> Params:
    """A tree of bools shaped as `params`, True where a parameter does not learn."""
    return match_rules(freeze_rules(config), params)


def freezes_any(config: ml_collections.ConfigDict) -> bool:
    """Whether the config names anything to freeze."""
    return any(frozen for _, frozen in freeze_rules(config))


def check_freezing(config: ml_collections.ConfigDict, params: Params) -> None:
    """Raises a UserError for a rule that fits no parameter, and where nothing is left to train."""
    check_rules("config.optimizer.freeze_rules", config.optimizer.freeze_rules, params, kind=bool)
    if all(jax.tree.leaves(frozen_parameters(config, params))):
        raise UserError(
            f"config.optimizer.freeze={config.optimizer.freeze!r} with freeze_rules={config.optimizer.freeze_rules} "
            "freezes every parameter; leave some to train"
        )


def stop_gradients(params: Params, frozen: Params) -> Params:
    """`params` with the frozen ones cut from differentiation.

    Done inside the loss, so that the backward pass below them is never traced: a locked tower runs forward alone.
    """
    return jax.tree.map(lambda x, stop: jax.lax.stop_gradient(x) if stop else x, params, frozen)
