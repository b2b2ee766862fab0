"""`config.preprocessing` and `config.model`: the model that a run starts with. Read by `training.start.spec`."""

from __future__ import annotations

import math
from typing import Any

from siglip_jax.models.architecture import DTYPES, FEATURE_NAME
from siglip_jax.preprocessing.resize_table import RESIZES
from siglip_jax.training.config_fields.field import Field, FieldTable, Values, above, at_least, one_of

_DTYPES = one_of(*DTYPES)
_TOWER = dict(width=768, depth=12, mlp_dim=3072, heads=12)
_ADAPTER = dict(base=0, head=256, mlp_dim=1024, depth=1, strength=0.5, weights={})
_SIZES = Values("width, depth, mlp_dim and heads, each at least 1; heads divides width")


def _are_features(value: Any) -> bool:
    return all(FEATURE_NAME.fullmatch(name) and type(size) is int and size > 0 for name, size in value.items())


def _is_adapter(value: Any) -> bool:
    if set(value) != set(_ADAPTER):
        return False
    sizes, weights = (value.base, value.head, value.mlp_dim, value.depth), value.weights.values()
    return (
        all(type(size) is int for size in sizes)
        and value.base >= 0
        and min(sizes[1:]) > 0
        and 0 < value.strength < 1
        and all(isinstance(weight, int | float) and 0 <= weight < math.inf for weight in weights)
    )


PREPROCESSING = FieldTable(
    "Preprocessing",
    "preprocessing",
    "How images become pixels and titles become tokens, for a model from random weights. A loaded model keeps its own. "
    "docs/guide/preprocessing.md explains the choices.",
    {
        "image_size": Field((224, 224), "Height and width in pixels.", Values("multiples of `model.patch_size`")),
        "resize": Field(
            "bilinear",
            "How an image gets that size. With naflex it keeps its aspect ratio, and the size is that of the position "
            "grid.",
            Values(f"one of {', '.join(RESIZES)}"),
        ),
        "fill": Field("", "What bilinear_pad fills the rest with.", Values("white, grey or edge; empty for others")),
        "max_patches": Field(0, "Patches of an image, for naflex: each is resized to fit them.", Values("0 or more")),
        "text_length": Field(64, "Tokens of a title, padding included.", Values("1 to 65536")),
        "vocab_size": Field(
            32_000, "Size of the vocabulary that is learned from the titles, unless a tokenizer is given."
        ),
        "tokenizer": Field(
            "",
            "Path of a tokenizer.",
            Values("a SentencePiece .model file or a tokenizer.json; empty trains one on the titles"),
        ),
        "lowercase": Field("unicode", "Which letters of a title are lowered.", Values("one of none, ascii, unicode")),
        "punctuation": Field("keep", "What happens to the punctuation of a title.", Values("one of keep, delete")),
    },
)

MODEL = FieldTable(
    "Model",
    "model",
    "The two towers. A loaded model keeps its sizes, its temperature and its bias; `dtype`, `param_dtype`, `remat` and "
    "`unroll` apply to both.",
    {
        "patch_size": Field(16, "Pixels of a patch's side.", Values("at least 1")),
        "image": Field(_TOWER, "Sizes of the image tower.", _SIZES),
        "text": Field(_TOWER, "Sizes of the text tower.", _SIZES),
        "features": Field(
            {},
            "Stored vectors that an adapter takes in the place of pictures, and how many numbers each has. "
            "`siglip-jax train --features` fills it in.",
            Values('{name: numbers}, such as {"cnn": 1024}; empty for pictures', _are_features),
        ),
        "adapter": Field(
            _ADAPTER,
            "Of an adapter: numbers of an embedding for the inputs as they are (0 for all of theirs) and for what is "
            "learned, width and number of the hidden layers, share of what is learned in the cosine of two images, and "
            "what an input weighs where that is not 1.",
            Values('base, head, mlp_dim, depth, strength between 0 and 1, weights such as {"cnn": 2.0}', _is_adapter),
        ),
        "dtype": Field("float32", "Type of the computation.", _DTYPES),
        "param_dtype": Field("float32", "Type that parameters are stored in.", _DTYPES),
        "remat": Field(
            "none",
            "Which activations are computed again in the backward pass: memory for time.",
            Values("one of none, full, dots, dots_no_batch"),
            free=True,
        ),
        "unroll": Field(
            0,
            "Layers in one body of the loop over layers. More is faster to run on a CPU, slower to compile everywhere. "
            "0 is 12 on a CPU, which is all layers of most towers, and 1 elsewhere.",
            at_least(0, "0 for automatic, or a number of layers"),
            free=True,
        ),
        "init_temperature": Field(10.0, "exp(t) at the start, of a model from random weights.", above(0)),
        "init_bias": Field(
            -10.0,
            "b at the start, of a model from random weights: near log(p / (1 - p)) with p = 1 / `batch_size`.",
        ),
    },
)
