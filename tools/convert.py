"""siglip-jax convert: weights from any format to any that can be written: native, huggingface, big_vision.

siglip-jax convert --model=google/siglip2-base-patch16-256 --output=siglip2.npz --to=big_vision
siglip-jax convert --model=runs/fashion --output=hf_folder --to=huggingface
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
        "Format to write: native, huggingface or big_vision.",
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
    from etils import epath

    from siglip_jax.errors import UserError, check_choice
    from siglip_jax.loading import load
    from siglip_jax.models.presets import PRESETS
    from siglip_jax.preprocessing import Preprocessing
    from siglip_jax.weights.formats import written_formats

    check_choice("--to", values.to, written_formats())
    output = epath.Path(values.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} exists; give a new path")
    if values.image_size < 0:
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
    for lost in model.save(output, format=values.to, layout=values.layout):
        print(f"not in {output}: {lost}")
    print(f"{source} -> {output} ({values.to})")
