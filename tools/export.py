"""siglip-jax export: writes the encoders as a SavedModel and checks it in a process without JAX.

siglip-jax export --model=runs/fashion --output=runs/fashion/savedmodel --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion/image.onnx --dataset=data/fashion
siglip-jax export --model=runs/fashion --output=runs/fashion/text.onnx --tower=text --dataset=data/fashion
siglip-jax export --model=runs/adapter --output=runs/adapter/savedmodel
siglip-jax export --model=runs/adapter --output=runs/adapter.onnx
siglip-jax export --model=runs/adapter --encoder=cnn=SAVEDMODEL --encoder=pixels=pixels:16x12 --output=runs/joined \\
  --dataset=data/fashion
siglip-jax export --verify=runs/fashion/savedmodel

Golden pictures and titles travel with every export. --verify replays them, and so does the verify.py that travels with
them and needs nothing of this library.

An adapter is written alone, to take its stored vectors by name, unless --encoder gives what made each of them. With
--dataset and --features its check uses those of a split, otherwise vectors that are made up (docs/guide/export.md).
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from siglip_jax.export.stablehlo import READERS
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_model(values, required=False)
    flags.DEFINE_string(
        "output", None, "Folder of the SavedModel; of a name in .onnx an ONNX file.", flag_values=values
    )
    flags.DEFINE_string("verify", None, "An export whose golden inputs are replayed.", flag_values=values)
    flags.DEFINE_enum(
        "text",
        "ids",
        ["ids", "strings", "none"],
        "What the text tower of a SavedModel takes: token ids; strings as well, which need tensorflow-text wherever "
        "it is loaded; none leaves the tower out.",
        flag_values=values,
    )
    flags.DEFINE_enum("tower", "image", ["image", "text"], "Which one an .onnx file holds.", flag_values=values)
    flags.DEFINE_enum(
        "precision", "float32", ["float32", "float16", "int8"], "Of a tower in an .onnx file.", flag_values=values
    )
    flags.DEFINE_string("dataset", None, "Dataset whose items check the export.", flag_values=values)
    flags.DEFINE_string("split", "test", "Split that the items are from.", flag_values=values)
    common_flags.define_features(values)
    flags.DEFINE_multi_string(
        "encoder",
        [],
        "name=NETWORK: what made an adapter's feature, to be joined with it, one for each of them: the folder of a "
        "SavedModel, pixels:16x12, colours:6x7x7, edges:8x6x8; for ONNX .onnx.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "target_tensorflow",
        None,
        list(READERS),
        "The oldest TensorFlow that will read the SavedModel; by default the oldest that can. "
        "Towers in bfloat16 need 2.20.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    from tools.workflow.exports import export

    if values.verify is not None:
        if values.model is not None or values.output is not None:
            raise UserError("--verify is of an export that is there; leave --model and --output out")
        return export.verify(values.verify)
    for flag in ("model", "output"):
        if values[flag].value is None:
            raise UserError(f"--{flag} is missing; expected --model and --output, or --verify")
    from siglip_jax.loading import load
    from tools.workflow.item_vectors import Features

    paths = common_flags.features_of(values)
    export.export(
        load(values.model),
        values.output,
        dataset=values.dataset,
        split=values.split,
        features=Features.open(paths) if paths else None,
        encoders=common_flags.named_paths(values.encoder, flag="encoder", expected="name=NETWORK"),
        target_tensorflow=values.target_tensorflow or "",
        text=values.text,
        tower=values.tower,
        precision=values.precision,
    )
