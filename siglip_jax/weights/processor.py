"""Hugging Face's processor files and `Preprocessing`, in both directions.

    preprocessor_config.json   pictures; newer transformers write processor_config.json with the same inside
    tokenizer_config.json      which class reads the tokenizer file, and its rules
    spiece.model | tokenizer.model | tokenizer.json

Reading is strict, as for weights: a setting that is not known and not off is an error, since it would change what the
model sees. Field names are those of transformers 4.37 to 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.preprocessing.resize_table import FIXED_PROCESSOR, FLEXIBLE_PROCESSOR, RESIZES
from siglip_jax.weights.processor_settings import names, refuse_unknown, switch, value_range, write_json
from siglip_jax.weights.tokenizer_files import read_tokenizer, write_tokenizer

IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")  # the first one that describes pictures counts
_FIXED, _FLEXIBLE = FIXED_PROCESSOR, FLEXIBLE_PROCESSOR
_IMAGE_PROCESSORS = {f"{name}{variant}": name for name in (_FIXED, _FLEXIBLE) for variant in ("", "Fast", "Pil")} | {
    "SiglipFeatureExtractor": _FIXED
}
# What does not change pixels or ids, whatever its value.
_NEUTRAL_IMAGE = names("""
    auto_map crop_size data_format default_to_square device disable_grouping do_convert_rgb feature_extractor_type
    image_processor_type input_data_format pad_size processor_class return_tensors size_divisor _valid_processor_keys
""")


# --- reading ----------------------------------------------------------------------------------------------------------


def read_processor(
    folder: epath.PathLike,
    *,
    text_length: int,
    vocab_size: int,
    image_size: tuple[int, int] | None = None,
) -> Preprocessing | None:
    """The preprocessing that a Hugging Face folder describes.

    Without files about pictures there is none. Without a tokenizer file there is one for pictures alone. Without
    tokenizer_config.json the file's name decides: spiece.model is SigLIP 1's, the others are Gemma's. Gemma is
    lower-cased unless `do_lower_case` is false, and padded on the right unless `padding_side` says left, since that
    is how SigLIP 2 was trained, whatever the class of the tokenizer does by itself.

    Args:
      text_length, vocab_size: of the text tower, from config.json.
      image_size: (height, width) of the position grid times the patch, for NaFlex; when absent, the square grid of
        `max_num_patches`.

    Raises:
      UserError: a file that is not JSON, a setting that is unknown or cannot be followed, a tokenizer of more ids
        than `vocab_size`.
    """
    folder = epath.Path(folder)
    path, settings = _image_settings(folder)
    if path is None:
        return None
    fields = _image_fields(path, settings, image_size)
    text = read_tokenizer(folder, vocab_size=vocab_size, text_length=text_length)
    return Preprocessing(text_length=text_length, **fields, **text)


def _image_settings(folder: epath.Path) -> tuple[epath.Path | None, dict[str, Any]]:
    for name in IMAGE_FILES:
        path = folder / name
        if not path.exists():
            continue
        settings = files.read_json(path)
        if name == "processor_config.json":
            refuse_unknown(path, settings, {"image_processor"}, {"processor_class", "auto_map", "tokenizer"})
            settings = settings.get("image_processor") or {}
            if not isinstance(settings, dict):
                raise UserError(f"{path}: image_processor is no JSON object; expected its settings")
        if settings:
            return path, settings
    return None, {}


def _image_fields(path: epath.Path, settings: Mapping[str, Any], image_size: tuple[int, int] | None) -> dict[str, Any]:
    name = settings.get("image_processor_type", settings.get("feature_extractor_type"))
    kind = _IMAGE_PROCESSORS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise UserError(f"{path}: image_processor_type={name!r}; expected {_FIXED} or {_FLEXIBLE}")
    known = {"do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"}
    known |= {"size"} if kind == _FIXED else {"patch_size", "max_num_patches"}
    # The flexible one has no use for a size: it is written by some versions, as null or as the default of the class.
    refuse_unknown(path, settings, known, _NEUTRAL_IMAGE | ({"size"} if kind == _FLEXIBLE else set()))
    if not switch(path, settings, "do_resize"):
        raise UserError(f"{path}: do_resize={settings['do_resize']!r}; expected true")
    fields: dict[str, Any] = {"value_range": _value_range(path, settings)}
    resample = settings.get("resample", 3 if kind == _FIXED else 2)
    known_resizes = {resize.huggingface: name for name, resize in RESIZES.items()}
    if type(resample) is not int or (kind, resample) not in known_resizes:
        fitting = sorted(
            (key[1], resize) for key, resize in known_resizes.items() if key is not None and key[0] == kind
        )
        expected = " or ".join(f"{number} ({resize})" for number, resize in fitting)
        raise UserError(f"{path}: resample={resample!r}; expected {expected} for {kind}")
    fields["resize"] = known_resizes[kind, resample]
    if kind == _FIXED:
        size = settings.get("size", {"height": 224, "width": 224})
        if not isinstance(size, dict) or size.keys() != {"height", "width"}:
            raise UserError(f'{path}: size={size!r}; expected {{"height": ..., "width": ...}}')
        return fields | {"image_size": (size["height"], size["width"])}
    patch_size, max_patches = (
        _whole(path, name, settings.get(name, default))
        for name, default in (("patch_size", 16), ("max_num_patches", 256))
    )
    side = math.isqrt(max_patches) * patch_size
    return fields | {
        "patch_size": patch_size,
        "max_patches": max_patches,
        "image_size": image_size or (side, side),
    }


def _whole(path: epath.Path, name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: {name}={value!r}; expected a whole number of at least 1")
    return value


def _value_range(path: epath.Path, settings: Mapping[str, Any]) -> tuple[float, float]:
    scale = settings.get("rescale_factor", 1 / 255) if switch(path, settings, "do_rescale") else 1.0
    if not switch(path, settings, "do_normalize"):
        return value_range(path, 0.0, 1.0, scale=scale)
    return value_range(path, settings.get("image_mean", 0.5), settings.get("image_std", 0.5), scale=scale)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_processor(preprocessing: Preprocessing, folder: epath.PathLike) -> list[str]:
    """Writes the files that transformers' AutoProcessor reads beside a model's config.json.

    Returns:
      What is lost: a line for each rule that transformers cannot follow and what it will do instead.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings, notes = _write_image(preprocessing)
    write_json(folder / "preprocessor_config.json", settings)
    if preprocessing.tokenizer is None:
        return notes
    return notes + write_tokenizer(preprocessing, folder, processor_class=settings["processor_class"])


def _write_image(preprocessing: Preprocessing) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    low, high = preprocessing.value_range
    std = 1 / (high - low)
    settings: dict[str, Any] = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [-low * std] * 3,
        "image_std": [std] * 3,
        "do_convert_rgb": True,  # else a grey or transparent picture fails there
    }
    resize = RESIZES[preprocessing.resize]
    kind, resample = resize.huggingface or (_FIXED, 2)
    if kind == _FLEXIBLE:
        kinds = {"image_processor_type": _FLEXIBLE, "processor_class": "Siglip2Processor"}
        flexible = {"patch_size": preprocessing.patch_size, "max_num_patches": preprocessing.max_patches}
        if tuple(flexible.values()) != (16, 256):
            given = ", ".join(f"{name}={value}" for name, value in reversed(flexible.items()))
            notes.append(f"max_patches: AutoProcessor goes by 256 patches of 16 pixels; call it with {given}")
        return settings | kinds | flexible | {"resample": resample}, notes
    if resize.huggingface is None:
        instead = f"it will {resize.huggingface_instead} (resample={resample})"
        notes.append(f"resize: {preprocessing.resize} is unknown to transformers; {instead}")
    height, width = preprocessing.image_size
    return settings | {
        "image_processor_type": _FIXED,
        "processor_class": "SiglipProcessor",
        "resample": resample,
        "size": {"height": height, "width": width},
    }, notes
