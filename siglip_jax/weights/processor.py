"""Hugging Face's processor files and `Preprocessing`, in both directions.

    preprocessor_config.json   pictures; newer transformers write processor_config.json with the same inside
    tokenizer_config.json      which class reads the tokenizer file, and its rules
    spiece.model | tokenizer.model | tokenizer.json

Reading is strict, as for weights: a setting that is not known and not off is an error, since it would change what the
model sees. Field names are those of transformers 4.37 to 5.23.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import EOS_ID, Preprocessing, Tokenizer, open_tokenizer
from siglip_jax.preprocessing.resize_table import FIXED_PROCESSOR, FLEXIBLE_PROCESSOR, RESIZES
from siglip_jax.preprocessing.tokenizer import SENTINELS, is_json

IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")  # the first one that describes pictures counts
TOKENIZER_CONFIG = "tokenizer_config.json"
SPIECE = "spiece.model"
TOKENIZER_FILES = (SPIECE, "tokenizer.model", "tokenizer.json")  # SentencePiece first: it needs no further library

_FIXED, _FLEXIBLE = FIXED_PROCESSOR, FLEXIBLE_PROCESSOR
_IMAGE_PROCESSORS = {f"{name}{variant}": name for name in (_FIXED, _FLEXIBLE) for variant in ("", "Fast", "Pil")} | {
    "SiglipFeatureExtractor": _FIXED
}
_NO_MASK = ["input_ids"]  # else transformers makes an attention mask, and every embedding of a short title is another
_SIGLIP, _SIGLIP2, _GEMMA = "SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer"
_TOKENIZER_CLASSES = {f"{name}{variant}": name for name in (_SIGLIP, _SIGLIP2, _GEMMA) for variant in ("", "Fast")}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What does not change pixels or ids, whatever its value.
_NEUTRAL_IMAGE = _names("""
    auto_map crop_size data_format default_to_square device disable_grouping do_convert_rgb feature_extractor_type
    image_processor_type input_data_format pad_size processor_class return_tensors size_divisor _valid_processor_keys
""")
_NEUTRAL_TEXT = _names("""
    added_tokens_decoder additional_special_tokens auto_map backend bos_token chat_template clean_up_tokenization_spaces
    eos_token extra_special_tokens fast_tokenizer_files is_local legacy local_files_only mask_token max_length
    model_max_length model_specific_special_tokens name_or_path pad_to_multiple_of pad_token
    pad_token_type_id padding padding_side processor_class return_tensors spaces_between_special_tokens
    special_tokens_map_file split_special_tokens stride tokenizer_class tokenizer_file tokenizer_type
    transformers_version truncation truncation_side truncation_strategy unk_token use_default_system_prompt use_fast
    vocab_file
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
    text = _text_fields(folder, vocab_size)
    return Preprocessing(text_length=text_length, **fields, **text)


def _image_settings(folder: epath.Path) -> tuple[epath.Path | None, dict[str, Any]]:
    for name in IMAGE_FILES:
        path = folder / name
        if not path.exists():
            continue
        settings = files.read_json(path)
        if name == "processor_config.json":
            _refuse_unknown(path, settings, {"image_processor"}, {"processor_class", "auto_map", "tokenizer"})
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
    _refuse_unknown(path, settings, known, _NEUTRAL_IMAGE | ({"size"} if kind == _FLEXIBLE else set()))
    if not _switch(path, settings, "do_resize"):
        raise UserError(f"{path}: do_resize={settings['do_resize']!r}; expected true")
    fields: dict[str, Any] = {"value_range": _value_range(path, settings)}
    resample = settings.get("resample", 3 if kind == _FIXED else 2)
    names = {resize.huggingface: name for name, resize in RESIZES.items()}
    if type(resample) is not int or (kind, resample) not in names:
        fitting = sorted((key[1], resize) for key, resize in names.items() if key is not None and key[0] == kind)
        expected = " or ".join(f"{number} ({resize})" for number, resize in fitting)
        raise UserError(f"{path}: resample={resample!r}; expected {expected} for {kind}")
    fields["resize"] = names[kind, resample]
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
    """What (x * rescale_factor - mean) / std makes of 0 and 255; one value for all three channels."""
    scale = settings.get("rescale_factor", 1 / 255) if _switch(path, settings, "do_rescale") else 1.0
    mean, std = 0.0, 1.0
    if _switch(path, settings, "do_normalize"):
        values = [settings.get("image_mean", 0.5), settings.get("image_std", 0.5)]
        channels = [value if isinstance(value, list) else [value] for value in values]
        if not all(numbers and all(number == numbers[0] for number in numbers) for numbers in channels):
            raise UserError(f"{path}: image_mean={values[0]!r}, image_std={values[1]!r}; expected equal channels")
        (mean, *_), (std, *_) = channels
    if not all(type(value) in (int, float) for value in (scale, mean, std)) or not scale > 0 or not std > 0:
        raise UserError(f"{path}: rescale_factor={scale!r}, image_mean={mean!r}, image_std={std!r}; expected numbers")
    # 255 * 0.00392156862745098 is 1 but for the last bit.
    low, high = (round((level * scale - mean) / std, 9) for level in (0, 255))
    return low, high


def _text_fields(folder: epath.Path, vocab_size: int) -> dict[str, Any]:
    """tokenizer, pad_id, lowercase and punctuation; nothing where there is no tokenizer file."""
    file = next((folder / name for name in TOKENIZER_FILES if (folder / name).exists()), None)
    if file is None:
        return {}
    path = folder / TOKENIZER_CONFIG
    settings = files.read_json(path) if path.exists() else {}
    given = settings.get("tokenizer_class", _SIGLIP if file.name == SPIECE else _GEMMA)
    kind = _TOKENIZER_CLASSES.get(given) if isinstance(given, str) else None
    if kind is None:
        raise UserError(f"{path}: tokenizer_class={given!r}; expected one of {_SIGLIP}, {_SIGLIP2}, {_GEMMA}")
    _refuse_unknown(
        path,
        settings,
        {"add_bos_token", "add_eos_token", "do_lower_case", "model_input_names", "sp_model_kwargs"},
        _NEUTRAL_TEXT,
    )
    as_trained: dict[str, Any] = {"add_bos_token": False, "add_eos_token": True, "sp_model_kwargs": {}}
    as_trained["model_input_names"] = _NO_MASK
    as_trained |= {"padding_side": "right", "truncation_side": "right"}
    for name, expected in as_trained.items():
        if settings.get(name) not in (None, expected):
            raise UserError(f"{path}: {name}={settings[name]!r}; expected {expected!r}, as SigLIP was trained")
    serialised = file.read_bytes()
    tokenizer = open_tokenizer(serialised)
    if tokenizer.vocab_size > vocab_size + SENTINELS:
        raise UserError(
            f"{file}: {tokenizer.vocab_size} ids; the text tower has {vocab_size}: put the model's own tokenizer there"
        )
    eos = _piece_of(settings, "eos_token")
    if eos is not None and tokenizer.piece_id(eos) != EOS_ID:
        raise UserError(f"{path}: eos_token={eos!r} has id {tokenizer.piece_id(eos)}; expected {EOS_ID}")
    pad = _piece_of(settings, "pad_token")
    pad_id = {_SIGLIP: EOS_ID}.get(kind, 0) if pad is None else tokenizer.piece_id(pad)
    if pad_id is None:
        raise UserError(f"{path}: pad_token={pad!r} is not in {file.name}; expected one of its pieces")
    lower = _switch(path, settings, "do_lower_case") or kind == _SIGLIP2
    return {
        "tokenizer": serialised,
        "pad_id": pad_id,
        "lowercase": "unicode" if lower else "none",
        "punctuation": "delete" if kind == _SIGLIP else "keep",
    }


def _piece_of(settings: Mapping[str, Any], name: str) -> str | None:
    """A special token is written as text or as {"content": text, ...}."""
    value = settings.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _switch(path: epath.Path, settings: Mapping[str, Any], name: str) -> bool:
    """A setting that is true, false, or left to its default, which is true."""
    value = settings.get(name)
    if value is not None and type(value) is not bool:
        raise UserError(f"{path}: {name}={value!r}; expected true or false")
    return value is not False


def _refuse_unknown(path: epath.Path, settings: Mapping[str, Any], known: set[str], neutral: Any) -> None:
    unknown = {name: value for name, value in settings.items() if name not in known and name not in neutral and value}
    if unknown:
        listed = ", ".join(f"{name}={str(value)[:60]!r}" for name, value in sorted(unknown.items()))
        raise UserError(f"{path}: unknown settings {listed}; they may change what the model sees: remove them")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_processor(preprocessing: Preprocessing, folder: epath.PathLike) -> list[str]:
    """Writes the files that transformers' AutoProcessor reads beside a model's config.json.

    Returns:
      What is lost: a line for each rule that transformers cannot follow and what it will do instead.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings, notes = _write_image(preprocessing)
    _write_json(folder / "preprocessor_config.json", settings)
    if preprocessing.tokenizer is None:
        return notes
    tokenizer = open_tokenizer(preprocessing.tokenizer)
    kind, more = _tokenizer_class(preprocessing, tokenizer)
    notes += more
    if kind is None:
        return notes
    name = SPIECE if kind == _SIGLIP else "tokenizer.json" if is_json(preprocessing.tokenizer) else "tokenizer.model"
    (folder / name).write_bytes(_with_end(preprocessing.tokenizer))
    special = {"eos_token": tokenizer.piece(EOS_ID), "pad_token": tokenizer.piece(preprocessing.pad_id)}
    special |= {f"{role}_token": f"<{role}>" for role in ("unk", "bos") if tokenizer.piece_id(f"<{role}>") is not None}
    if kind == _SIGLIP:
        special.pop("bos_token", None)
    _write_json(folder / "special_tokens_map.json", special)
    rules = {
        "tokenizer_class": kind,
        "processor_class": settings["processor_class"],
        "do_lower_case": preprocessing.lowercase != "none",
        "model_max_length": preprocessing.text_length,
        "padding_side": "right",
        "model_input_names": _NO_MASK,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if kind != _SIGLIP:
        rules |= {"add_bos_token": False, "add_eos_token": True}
    _write_json(folder / TOKENIZER_CONFIG, rules)
    return notes


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


def _with_end(serialised: bytes) -> bytes:
    """A tokenizer.json that ends titles with EOS itself: transformers 5 has no other rule for it."""
    if not is_json(serialised):
        return serialised
    import tokenizers

    tokenizer: Any = tokenizers.Tokenizer.from_buffer(serialised)
    if tokenizer.encode("a").ids == [*tokenizer.encode("a", add_special_tokens=False).ids, EOS_ID]:
        return serialised
    eos = tokenizer.id_to_token(EOS_ID)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, EOS_ID)]
    )
    return tokenizer.to_str().encode()


def _tokenizer_class(preprocessing: Preprocessing, tokenizer: Tokenizer) -> tuple[str | None, list[str]]:
    """The class whose rules are nearest, and what it does otherwise; None where no class can read the file."""
    assert preprocessing.tokenizer is not None
    # Gemma puts no space before the first word; SigLIP 1's classes read files that do.
    gemma = not any(tokenizer.piece(number).startswith("\u2581") for number in tokenizer.encode(["a"])[0])
    notes: list[str] = []
    if preprocessing.lowercase == "ascii":
        notes.append("lowercase: ascii is unknown to transformers; it will lower-case all letters")
    if gemma and preprocessing.punctuation == "keep":
        if preprocessing.lowercase == "none":
            return _GEMMA, notes
        notes.append(f"lowercase: {_SIGLIP2} lower-cases, from transformers 5 on; earlier ones do not know the class")
        return _SIGLIP2, notes
    if is_json(preprocessing.tokenizer):
        return None, [f"tokenizer: {_SIGLIP} reads SentencePiece files alone; no tokenizer was written"]
    if preprocessing.punctuation == "keep":
        notes.append("punctuation: transformers will delete it; no class keeps it for this tokenizer")
    return _SIGLIP, notes


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
