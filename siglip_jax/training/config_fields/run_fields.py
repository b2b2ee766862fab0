"""What a run keeps, shows and stops for. Read by `training.run`, `checkpoints` and `siglip-jax compile`."""

from __future__ import annotations

from typing import Any

from siglip_jax.training.config_fields.field import Field, FieldTable, Values, at_least


def _is_span(steps: Any) -> bool:
    return len(steps) == 2 and (not any(steps) or 1 <= steps[0] <= steps[1])


RUN = FieldTable(
    "Run",
    "",
    "What a run keeps, shows and stops for (docs/guide/training.md).",
    {
        "topology": Field("", "TPU slice that this config is for.", Values('such as "v5e:16x16"; empty for none')),
        "checkpoint_every": Field(500, "Steps from one checkpoint to the next.", at_least(1), free=True),
        "keep_checkpoints": Field(
            2,
            "How many of the newest checkpoints stay. The best by `evaluation.best_metric` stays as well.",
            at_least(1),
            free=True,
        ),
        "deadline_minutes": Field(
            0.0,
            "Minutes after which the run has saved and stopped, to be started again.",
            at_least(0, "0 for none, or more"),
            free=True,
        ),
        "log_every": Field(20, "Steps from one line of metrics to the next.", at_least(1), free=True),
        "profile_steps": Field(
            (0, 0),
            "First and last step of a profile, written to `profile/` in the workdir.",
            Values("(first, last) step, or (0, 0) for none", _is_span),
            free=True,
        ),
        "wandb_project": Field("", "Project of Weights & Biases; empty sends nothing there.", free=True),
    },
)
