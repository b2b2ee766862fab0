"""`config.optimizer`. Read by `training.optimizer`."""

from __future__ import annotations

from siglip_jax.training.config_fields.field import Field, FieldTable, Values, above, at_least, between

_MOMENT = between(0, 1, open_high=True)


def _rules(example: str) -> Values:
    """Pairs; whether the expressions fit the parameters is checked where the parameters are."""
    return Values(
        f"such as {example}", lambda rules: all(isinstance(rule, tuple | list) and len(rule) == 2 for rule in rules)
    )


OPTIMIZER = FieldTable(
    "Optimizer",
    "optimizer",
    "AdamW with a linear warm-up and a cosine. A rule is a pair of a regular expression over the whole path of a "
    "parameter and a value; the first that matches wins (docs/guide/finetuning.md).",
    {
        "learning_rate": Field(1e-3, "The largest rate, after the warm-up.", above(0)),
        "warmup_steps": Field(100, "Steps until the rate is reached.", at_least(0, "0 or more, below `steps`")),
        "final_fraction": Field(0.01, "Share of the largest rate that the cosine ends at.", between(0, 1)),
        "weight_decay": Field(0.1, "Decay of matrices, times the rate as in AdamW.", at_least(0, "0 or more")),
        "b1": Field(0.9, "Decay of the mean of gradients.", _MOMENT),
        "b2": Field(0.98, "Decay of the mean of squared gradients.", _MOMENT),
        "clip_norm": Field(1.0, "Largest norm of all gradients together.", above(0)),
        "image_rate": Field(1.0, "Multiplies the rate of the image tower.", at_least(0, "0 or more")),
        "text_rate": Field(1.0, "Multiplies the rate of the text tower.", at_least(0, "0 or more")),
        "layer_decay": Field(
            1.0,
            "Multiplies the rate of a layer by `layer_decay` to the power of the layers above it.",
            between(0, 1, open_low=True),
        ),
        "rate_rules": Field(
            (), "Rules with multipliers, before those of the towers.", _rules('(("txt/head/.*", 10.0),)')
        ),
        "freeze": Field(
            "none", "Which parameters do not learn.", Values("one of none, image, text, embeddings, heads")
        ),
        "freeze_rules": Field(
            (), "Rules with True for frozen, before `freeze`.", _rules('(("img/MAPHead_0/.*", False),)')
        ),
    },
)
