"""What a run minimises beside the loss of its pairs. Read by `training.terms`; `teacher.store` by
`tools.workflow.training`."""

from __future__ import annotations

import itertools
import math
from typing import Any

from siglip_jax.training.config_fields.field import Field, FieldTable, Values

_WEIGHT = Values("0 for none, or more", lambda value: 0 <= value < math.inf)


def _ascending(widths: Any) -> bool:
    whole = all(type(width) is int and width >= 1 for width in widths)
    return whole and all(low < high for low, high in itertools.pairwise(widths))


TEACHER = FieldTable(
    "Teacher",
    "teacher",
    "Embeddings of another encoder that the image tower learns to be near; docs/guide/finetuning.md says when. Each "
    "weight is of one term, which is added to the loss and logged as `teacher_cosine` and so on. With all weights at 0 "
    "the store is not read.",
    {
        "store": Field(
            "",
            "Embeddings of the training items. Where they have more numbers than the model's they are reduced to as "
            "many; where they have fewer, zeros follow.",
            Values("a store of `siglip-jax embed` or a file of ids and vectors; empty for none"),
            free=True,  # a run records what is in it, and refuses another
        ),
        "cosine": Field(0.0, "Weight of the mean of 1 - cos(image, teacher).", _WEIGHT),
        "mse": Field(
            0.0, "Weight of the mean of |image - teacher|², which is twice the one above for unit vectors.", _WEIGHT
        ),
        "similarity": Field(
            0.0,
            "Weight of the mean, over all pairs of images of a batch, of (their cosine - the teacher's)².",
            _WEIGHT,
        ),
    },
)

MATRYOSHKA = FieldTable(
    "Shorter embeddings",
    "matryoshka",
    "The loss also of the first numbers of both embeddings, made unit vectors again, so that embeddings can be cut.",
    {
        "widths": Field(
            (),
            "Numbers of each prefix.",
            Values("whole numbers, ascending, below the embedding's dimension, such as (64, 128)", _ascending),
        ),
        "weights": Field(
            (),
            "Weight of the loss of each prefix; the whole embedding has 1.",
            Values(
                "a number for each width, 0 or more, such as (1.0, 1.0)",
                lambda weights: all(0 <= weight < math.inf for weight in weights),
            ),
        ),
    },
)
