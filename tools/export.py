"""siglip-jax export: writes the image encoder as a SavedModel and checks it in a process without JAX.

siglip-jax export --model=runs/fashion --output=runs/fashion/savedmodel --dataset=data/fashion
siglip-jax export --model=runs/adapter --output=runs/adapter/savedmodel

An adapter is written alone, with a signature that takes its stored vectors by name. With --dataset and --features its
check uses those of a split, otherwise vectors that are made up.
"""

from __future__ import annotations

from absl import flags

from siglip_jax.export.stablehlo import READERS
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_model(values)
    common_flags.define_output(values, "Folder of the SavedModel.")
    flags.DEFINE_string("dataset", None, "Dataset whose items check the export.", flag_values=values)
    flags.DEFINE_string("split", "test", "Split that the items are from.", flag_values=values)
    common_flags.define_features(values)
    flags.DEFINE_enum(
        "target_tensorflow",
        None,
        list(READERS),
        "The oldest TensorFlow that will read the SavedModel; by default the oldest that can. "
        "Towers in bfloat16 need 2.20.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    from siglip_jax.loading import load
    from tools.workflow import export
    from tools.workflow.item_vectors import Features

    paths = common_flags.features_of(values)
    export.export(
        load(values.model),
        values.output,
        dataset=values.dataset,
        split=values.split,
        features=Features.open(paths) if paths else None,
        target_tensorflow=values.target_tensorflow or "",
    )
