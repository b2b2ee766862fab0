"""What a config says of its model, without weights: preprocessing, module, and the shapes of a step's arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.models.architecture import Architecture, FeatureSize, TowerSize
from siglip_jax.models.presets import PRESETS
from siglip_jax.models.towers import TwoTowers
from siglip_jax.preprocessing import NAFLEX, Patches, Preprocessing
from siglip_jax.training.start.frozen_parts import stored_shapes

UNROLLED_ON_CPU = 12  # layers; more compile slowly


def preprocessing_of(config: ml_collections.ConfigDict) -> Preprocessing:
    """Of a model that starts from random weights, without its tokenizer.

    Raises:
      UserError: pictures that patches do not divide.
    """
    fields, patch_size = config.preprocessing, config.model.patch_size
    titles = {name: fields[name] for name in ("text_length", "lowercase", "punctuation")}
    if config.model.features:
        return Preprocessing(image_size=(1, 1), **titles)  # sees no pictures
    if patch_size > 0 and any(side % patch_size for side in fields.image_size):
        raise UserError(
            f"config.preprocessing.image_size={tuple(fields.image_size)} is not a multiple of config.model.patch_size="
            f"{patch_size}; what is left over would never be looked at"
        )
    return Preprocessing(
        image_size=tuple(fields.image_size),
        resize=fields.resize,
        fill=fields.fill,
        patch_size=patch_size if fields.resize == NAFLEX else 0,
        max_patches=fields.max_patches,
        **titles,
    )


def architecture_of(
    config: ml_collections.ConfigDict, preprocessing: Preprocessing, *, vocab_size: int
) -> Architecture:
    """Of a model that starts from random weights; an adapter's, where `config.model.features` names some."""
    features = config.model.features.to_dict()
    return Architecture(
        image_size=preprocessing.image_size,
        patch_size=1 if features else config.model.patch_size,
        image=_adapter(features, config) if features else TowerSize(**config.model.image),
        text=TowerSize(**config.model.text),
        vocab_size=vocab_size,
        text_length=preprocessing.text_length,
        naflex=preprocessing.resize == NAFLEX,
    )


def _adapter(features: dict[str, int], config: ml_collections.ConfigDict) -> FeatureSize:
    options = config.model.adapter
    sizes = {name: options[name] for name in ("head", "mlp_dim", "depth")}
    return FeatureSize(inputs=tuple(features.items()), base=options.base or sum(features.values()), **sizes)


def compute_options(config: ml_collections.ConfigDict, *, platform: str | None = None) -> dict[str, Any]:
    """How the towers compute, for `TwoTowers` and for `load`, on `platform`: the default backend's when absent.

    On a CPU the slices of stacked parameters, and the updates of their gradients, cost time
    (docs/benchmarks/step.md); unrolled layers have none. Elsewhere one body compiles faster and runs alike.
    """
    options = {name: config.model[name] for name in ("dtype", "param_dtype", "remat", "unroll")}
    unrolled = UNROLLED_ON_CPU if (platform or jax.default_backend()) == "cpu" else 1
    return {**options, "unroll": config.model.unroll or unrolled}


def outline(config: ml_collections.ConfigDict, *, platform: str | None = None) -> tuple[TwoTowers, Preprocessing]:
    """The module that a run of `config` on `platform` (the default backend's when absent) would train, and its
    preprocessing; no weights are read where the name of a preset, or a folder of ours, tells the architecture.

    The vocabulary of a tokenizer that is yet to be trained counts as `config.preprocessing.vocab_size`.
    """
    if not config.init:
        preprocessing = preprocessing_of(config)
        architecture = architecture_of(config, preprocessing, vocab_size=config.preprocessing.vocab_size)
    elif config.init in PRESETS:
        preset = PRESETS[config.init]
        preprocessing, architecture = preset.preprocessing("huggingface"), preset.architecture
    elif (description := epath.Path(config.init) / "model.json").exists():
        architecture = Architecture.from_json(files.read_json(description).get("architecture"))  # type: ignore[arg-type]
        preprocessing = Preprocessing.load(epath.Path(config.init))
    else:
        from siglip_jax.loading import load

        model = load(config.init)
        if model.preprocessing is None:
            raise UserError(f"config.init={config.init}: the model has no known preprocessing")
        architecture, preprocessing = model.architecture, model.preprocessing
    return TwoTowers(architecture, **compute_options(config, platform=platform)), preprocessing


def batch_shapes(
    module: TwoTowers,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    stored: Collection[str] = (),
    more: Sequence[str] = (),
) -> dict[str, Any]:
    """ShapeDtypeStructs of a global batch, as `training.step` takes it.

    Args:
      stored: keys of `TwoTowers.store` that are there in the place of "image" and "text".
      more: the keys of `Terms.batch_keys`.
    """
    n = batch_size
    image: Any = jax.ShapeDtypeStruct((n, *preprocessing.row_shape), np.uint8)
    if features := module.architecture.features:
        image = {name: jax.ShapeDtypeStruct((n, numbers), np.float32) for name, numbers in features.items()}
    elif module.architecture.naflex:
        image = Patches(image, jax.ShapeDtypeStruct((n, 2), np.int32))
    batch = {
        "image": image,
        "text": jax.ShapeDtypeStruct((n, module.architecture.text_length), np.int32),
        "group": jax.ShapeDtypeStruct((n,), np.int32),
    }
    if stored:
        outputs = stored_shapes(module, batch, keys=stored)
        gone = {key.partition("_")[0] for key in outputs}
        batch = {key: value for key, value in batch.items() if key not in gone} | outputs
    return batch | {key: jax.ShapeDtypeStruct((n, module.architecture.embedding_dim), np.float32) for key in more}
