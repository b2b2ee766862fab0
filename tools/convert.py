"""siglip-jax convert: weights from any format to any that can be written.

native                 our own folder: safetensors, the architecture, the preprocessing
huggingface            transformers: config.json, safetensors (shards beyond --shard_size), the processor, a model card
sentence_transformers  the same with what SentenceTransformer(folder) reads
open_clip              open_clip_config.json with safetensors and the tokenizer
big_vision             an .npz

Read are these, and a .safetensors of tensors alone with the name of a preset (--model=NAME --weights=FILE).

siglip-jax convert --model=google/siglip2-base-patch16-256 --output=siglip2.npz --to=big_vision
siglip-jax convert --model=runs/fashion --output=hf_folder --to=huggingface --report=runs/report.json
siglip-jax convert --model=runs/fashion --output=clip_folder --to=open_clip --image_gelu=exact
siglip-jax convert --model=google/siglip-base-patch16-224 --weights=webli_en_b16_224_63724782.npz
  --tokenizer=spiece.model --output=native --to=native
"""

from __future__ import annotations

from absl import flags

from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_model(values)
    common_flags.define_output(values, "Folder, or the .npz file of --to=big_vision; must not exist.")
    flags.DEFINE_string(
        "to",
        "native",
        "Format to write: native, huggingface, sentence_transformers, open_clip or big_vision.",
        values,
    )
    flags.DEFINE_enum("layout", "stacked", ["stacked", "layers"], "Layers in an .npz.", flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        "stored",
        ["stored", "float32", "bfloat16", "float16"],
        "Type of the parameters; stored keeps every bit.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "image_gelu",
        "stored",
        ["stored", "tanh", "exact"],
        "GELU of the image tower; another one than it was trained with changes embeddings a little. open_clip 3.3 and "
        "earlier know timm's base towers with the exact one alone.",
        flag_values=values,
    )
    common_flags.define_folders(values)
    flags.DEFINE_string("weights", None, "Where a preset's weights are (see siglip_jax.load).", flag_values=values)
    flags.DEFINE_string(
        "preprocessing",
        None,
        "Folder with the preprocessing.json to use, such as a saved model; or a preset, as big_vision trained it.",
        flag_values=values,
    )
    flags.DEFINE_string("tokenizer", None, "Tokenizer file, for weights without one.", flag_values=values)
    flags.DEFINE_integer("image_size", 0, "Another side in pixels; positions are resized.", flag_values=values)
    flags.DEFINE_enum(
        "position_resize", "linear", ["linear", "bicubic"], "big_vision's way or Hugging Face's.", flag_values=values
    )


def main(values: flags.FlagValues) -> None:
    from siglip_jax.errors import UserError, check_choice
    from siglip_jax.loading import load, with_image_gelu
    from siglip_jax.models.presets import PRESETS
    from siglip_jax.preprocessing import Preprocessing
    from siglip_jax.weights.formats import written_formats
    from tools.workflow.exports.folders import check_new, write_folder

    check_choice("--to", values.to, written_formats())
    output = check_new(values.output)
    if values.image_size < 0 or (values["image_size"].present and not values.image_size):
        raise UserError(f"--image_size={values.image_size}; expected the side of a square in pixels")
    preprocessing = values.preprocessing or None
    if preprocessing and preprocessing not in PRESETS:
        preprocessing = Preprocessing.load(preprocessing)
    model = load(
        values.model,
        weights=values.weights,
        preprocessing=preprocessing,
        tokenizer=values.tokenizer,
        image_size=(values.image_size,) * 2 if values.image_size else None,
        position_resize=values.position_resize,
        param_dtype=values.dtype,
    )
    source = model.source or values.model  # of a run, the checkpoint
    if values.image_gelu != "stored":
        model = with_image_gelu(model, values.image_gelu)
    lost = write_folder(
        model, output, format=values.to, layout=values.layout, shard_size=values.shard_size, report=values.report
    )
    for line in lost:
        print(f"not in {output}: {line}")
    print(f"{source} -> {output} ({values.to})")
