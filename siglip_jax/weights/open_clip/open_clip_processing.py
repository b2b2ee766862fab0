"""How open_clip prepares images and titles, and `Preprocessing`, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.preprocessing.resize_table import FIXED_PROCESSOR, RESIZES
from siglip_jax.weights.processor_settings import names, refuse_unknown, value_range
from siglip_jax.weights.tokenizer_files import read_tokenizer, write_tokenizer

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers
_CLIP = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
# What is done to titles before the tokenizer does its own; each also mends broken encodings and HTML entities.
_CLEANED: dict[str, dict[str, str]] = {
    "whitespace": {},
    "lower": {"lowercase": "unicode"},
    "canonicalize": {"lowercase": "unicode", "punctuation": "delete"},
}


def read_processing(
    folder: epath.Path,
    settings: Mapping[str, Any],
    text: Mapping[str, Any],
    *,
    image_size: tuple[int, int],
    text_length: int,
    vocab_size: int,
    source: epath.Path,
) -> Preprocessing:
    """preprocess_cfg, text_cfg and the tokenizer's files -> the preprocessing.

    Raises:
      UserError: images that are cropped or padded, or a setting that cannot be followed.
    """
    refuse_unknown(source, settings, names("mean std interpolation resize_mode mode"), names("size fill_color"))
    mode = settings.get("resize_mode", "shortest")
    if mode != "squash":
        raise UserError(
            f"{source}: resize_mode={mode!r} cuts off or pads what is not square; expected 'squash', as SigLIP was "
            "trained: put that there if it is what is meant"
        )
    resample = _RESAMPLE.get(settings.get("interpolation", "bicubic"))
    resizes = {resize.huggingface: name for name, resize in RESIZES.items()}
    if resample is None or settings.get("mode", "RGB") != "RGB":
        raise UserError(f"{source}: preprocess_cfg={dict(settings)}; expected RGB, bilinear or bicubic")
    fields: dict[str, Any] = {
        "image_size": image_size,
        "text_length": text_length,
        "resize": resizes[FIXED_PROCESSOR, resample],
        "value_range": value_range(source, settings.get("mean", _CLIP["mean"]), settings.get("std", _CLIP["std"])),
    }
    options = text.get("tokenizer_kwargs") or {}
    refuse_unknown(source, options, {"clean"}, ())
    clean = options.get("clean", "whitespace")
    if clean not in _CLEANED:
        raise UserError(f"{source}: tokenizer_kwargs.clean={clean!r}; expected one of {', '.join(_CLEANED)}")
    titles = read_tokenizer(folder, vocab_size=vocab_size, text_length=text_length, open_clip=True)
    return Preprocessing(**fields | titles | (_CLEANED[clean] if titles else {}))


def write_processing(
    preprocessing: Preprocessing, folder: epath.Path
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Writes the tokenizer; returns preprocess_cfg, what belongs into text_cfg, and what is lost, a line each."""
    low, high = preprocessing.value_range
    std, notes = 1 / (high - low), []
    resize = RESIZES[preprocessing.resize]
    kind, resample = resize.huggingface or (FIXED_PROCESSOR, 2)
    if resize.huggingface is None or kind != FIXED_PROCESSOR:
        notes.append(f"resize: {preprocessing.resize} is unknown to open_clip; it will {resize.huggingface_instead}")
    interpolation = next(name for name, number in _RESAMPLE.items() if number == resample)
    settings = {
        "mean": [-low * std] * 3,
        "std": [std] * 3,
        "interpolation": interpolation,
        "resize_mode": "squash",
    }
    if preprocessing.tokenizer is None:
        return settings, {}, [*notes, "no tokenizer was written, since the model has none; open_clip has its CLIP one"]
    lowers = preprocessing.punctuation == "keep" and preprocessing.lowercase != "none"
    # open_clip lower-cases by itself, so that no class of tokenizer need do so, which not all versions have.
    titles = preprocessing.replace(lowercase="none") if lowers else preprocessing
    notes += write_tokenizer(titles, folder, processor_class="SiglipProcessor", automatic=False)
    if lowers and preprocessing.lowercase == "ascii":
        notes.append("lowercase: ascii is unknown to open_clip; it will lower-case all letters")
    notes.append("titles: open_clip also mends broken encodings and HTML entities such as &amp;, and collapses spaces")
    text = {
        "hf_tokenizer_name": folder.name,  # of a repository, once it is uploaded; a folder takes its own files
        "tokenizer_kwargs": {"clean": "lower" if lowers else "whitespace"},
        "pad_id": preprocessing.pad_id,
    }
    return settings, text, notes
