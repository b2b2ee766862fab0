"""Hugging Face's tokenizer files and the rules for titles of a `Preprocessing`, in both directions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import EOS_ID, Preprocessing, Tokenizer, open_tokenizer
from siglip_jax.preprocessing.resize_table import RESIZES
from siglip_jax.preprocessing.tokenizer import SENTINELS, is_json
from siglip_jax.weights.processor_settings import names, refuse_unknown, switch, write_json

TOKENIZER_CONFIG = "tokenizer_config.json"
SPIECE = "spiece.model"
TOKENIZER_FILES = (SPIECE, "tokenizer.model", "tokenizer.json")  # SentencePiece first: it needs no further library
_NO_MASK = ["input_ids"]  # else transformers makes an attention mask, and every embedding of a short title is another
_SIGLIP, _SIGLIP2, _GEMMA, _T5 = "SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer", "T5Tokenizer"
_AS_FILE = "PreTrainedTokenizerFast"  # goes by tokenizer.json alone, in every version
_TOKENIZER_CLASSES = {f"{name}{variant}": name for name in (_SIGLIP, _SIGLIP2, _GEMMA, _T5) for variant in ("", "Fast")}
_TOKENIZER_CLASSES |= dict.fromkeys((_AS_FILE, "TokenizersBackend"), _AS_FILE)
_NAFLEX_LENGTH = 64  # of titles, to which Siglip2Processor pads unless its caller says another

# What does not change ids, whatever its value; of special tokens that a title spells see docs/guide/preprocessing.md.
_NEUTRAL_TEXT = names("""
    auto_map backend chat_template clean_up_tokenization_spaces fast_tokenizer_files is_local legacy local_files_only
    max_length name_or_path pad_to_multiple_of pad_token_type_id padding processor_class return_tensors
    spaces_between_special_tokens special_tokens_map_file split_special_tokens stride tokenizer_file tokenizer_type
    unk_id transformers_version truncation truncation_strategy use_default_system_prompt use_fast vocab_file
""")
# What is looked at below.
_READ_TEXT = names("""
    add_bos_token add_eos_token added_tokens_decoder additional_special_tokens bos_token do_lower_case eos_token
    extra_ids extra_special_tokens mask_token model_input_names model_max_length model_specific_special_tokens pad_token
    padding_side sp_model_kwargs tokenizer_class truncation_side unk_token
""")


# --- reading ----------------------------------------------------------------------------------------------------------


def read_tokenizer(folder: epath.Path, *, vocab_size: int, text_length: int, open_clip: bool = False) -> dict[str, Any]:
    """tokenizer, pad_id, lowercase and punctuation; nothing where there is no tokenizer file.

    `open_clip` is whether open_clip calls it, which takes nothing but ids, and where no tokenizer lower-cases that does
    not say so.
    """
    file = next((folder / name for name in TOKENIZER_FILES if (folder / name).exists()), None)
    if file is None:
        return {}
    path = folder / TOKENIZER_CONFIG
    settings = files.read_json(path) if path.exists() else {}
    given = settings.get("tokenizer_class", _SIGLIP if file.name == SPIECE else _GEMMA)
    kind = _TOKENIZER_CLASSES.get(given) if isinstance(given, str) else None
    if kind is None:
        raise UserError(f"{path}: tokenizer_class={given!r}; expected one of {_SIGLIP}, {_SIGLIP2}, {_GEMMA}, {_T5}")
    refuse_unknown(path, settings, _READ_TEXT, _NEUTRAL_TEXT)
    if settings and settings.get("model_input_names") is None and not open_clip:
        print(
            f"warning: {path} has no model_input_names, so transformers masks the padding of titles and embeds them "
            f"otherwise; here they are read without a mask, as SigLIP was trained: add {json.dumps(_NO_MASK)}",
            file=sys.stderr,
            flush=True,
        )
    longest = settings.get("model_max_length")
    if isinstance(longest, (int, float)) and longest < text_length:
        raise UserError(
            f"{path}: model_max_length={longest!r}, where transformers cuts and pads titles; expected "
            f"{text_length}, as the text tower has it"
        )
    as_trained: dict[str, Any] = {"add_bos_token": False, "add_eos_token": True, "sp_model_kwargs": {}}
    as_trained |= {"extra_ids": 0, "padding_side": "right", "truncation_side": "right"}
    if not open_clip:
        as_trained["model_input_names"] = _NO_MASK
    for name, expected in as_trained.items():
        if settings.get(name) not in (None, expected):
            raise UserError(f"{path}: {name}={settings[name]!r}; expected {expected!r}, as SigLIP was trained")
    serialised = file.read_bytes()
    tokenizer = open_tokenizer(serialised)
    if tokenizer.vocab_size > vocab_size + SENTINELS:
        raise UserError(
            f"{file}: {tokenizer.vocab_size} ids; the text tower has {vocab_size}: put the model's own tokenizer there"
        )
    for piece, number in _added_tokens(folder, settings):
        found = tokenizer.piece_id(piece)
        if found is None or number not in (None, found):
            told = "" if number is None else f" with id {number}"
            raise UserError(
                f"{path}: {piece!r} is a token that was added{told}; {file.name} has "
                f"{'none such' if found is None else f'id {found}'}, so titles with it get other ids in transformers"
            )
    eos = _piece_of(settings, "eos_token")
    if eos is not None and tokenizer.piece_id(eos) != EOS_ID:
        raise UserError(f"{path}: eos_token={eos!r} has id {tokenizer.piece_id(eos)}; expected {EOS_ID}")
    pad = _piece_of(settings, "pad_token")
    pad_id = {_SIGLIP: EOS_ID}.get(kind, 0) if pad is None else tokenizer.piece_id(pad)
    if pad_id is None:
        raise UserError(f"{path}: pad_token={pad!r} is not in {file.name}; expected one of its pieces")
    lower = switch(path, settings, "do_lower_case") or kind == _SIGLIP2
    by_file = (_AS_FILE, _T5, _GEMMA) if open_clip else (_AS_FILE, _T5)  # Gemma's titles were lower-cased in training
    if kind in by_file and settings.get("do_lower_case") is None:
        lower = is_json(serialised) and "Lowercase" in json.dumps(json.loads(serialised).get("normalizer"))
    return {
        "tokenizer": serialised,
        "pad_id": pad_id,
        "lowercase": "unicode" if lower else "none",
        "punctuation": "delete" if kind == _SIGLIP else "keep",
    }


def _added_tokens(folder: epath.Path, settings: Mapping[str, Any]) -> list[tuple[str, int | None]]:
    """(piece, id where it is told) of each token that transformers looks for in a title before all others."""
    found: list[tuple[str, int | None]] = []
    decoder = settings.get("added_tokens_decoder") or {}
    if (beside := folder / "added_tokens.json").exists():
        found += [(piece, number) for piece, number in files.read_json(beside).items()]
    try:
        found += [(token["content"], int(number)) for number, token in decoder.items()]
        for name in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
            tokens = settings.get(name) or []
            for token in tokens.values() if isinstance(tokens, dict) else tokens:
                found.append((token["content"] if isinstance(token, dict) else token, None))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / TOKENIZER_CONFIG}: its added tokens cannot be read ({error!r})") from error
    return found


def _piece_of(settings: Mapping[str, Any], name: str) -> str | None:
    """A special token is written as text or as {"content": text, ...}."""
    value = settings.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


# --- writing ----------------------------------------------------------------------------------------------------------


def write_tokenizer(
    preprocessing: Preprocessing, folder: epath.Path, *, processor_class: str, automatic: bool = True
) -> list[str]:
    """Writes the tokenizer and its rules; returns what is lost, as `write_processor` does.

    `automatic` is false where AutoTokenizer reads it, and AutoProcessor does not.
    """
    assert preprocessing.tokenizer is not None
    tokenizer = open_tokenizer(preprocessing.tokenizer)
    kind, notes = _tokenizer_class(preprocessing, tokenizer, automatic=automatic)
    if kind is None:
        return notes
    name = SPIECE if kind == _SIGLIP else "tokenizer.json" if is_json(preprocessing.tokenizer) else "tokenizer.model"
    (folder / name).write_bytes(_complete(preprocessing.tokenizer, lower=preprocessing.lowercase != "none"))
    special = {"eos_token": tokenizer.piece(EOS_ID), "pad_token": tokenizer.piece(preprocessing.pad_id)}
    special |= {f"{role}_token": f"<{role}>" for role in ("unk", "bos") if tokenizer.piece_id(f"<{role}>") is not None}
    if kind == _SIGLIP:
        special.pop("bos_token", None)
    write_json(folder / "special_tokens_map.json", special)
    rules = {
        "tokenizer_class": kind,
        "processor_class": processor_class,
        "do_lower_case": preprocessing.lowercase != "none",
        "model_max_length": preprocessing.text_length,
        "padding_side": "right",
        "model_input_names": _NO_MASK,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a title that spells one is text, as in training
        **special,
    }
    if kind != _SIGLIP:
        rules |= {"add_bos_token": False, "add_eos_token": True}
    write_json(folder / TOKENIZER_CONFIG, rules)
    return notes


def _complete(serialised: bytes, *, lower: bool) -> bytes:
    """A tokenizer.json that lower-cases and ends titles with EOS itself: no class does so in every version."""
    if not is_json(serialised):
        return serialised
    import tokenizers

    tokenizer: Any = tokenizers.Tokenizer.from_buffer(serialised)
    normalizers, eos = tokenizers.normalizers, tokenizer.id_to_token(EOS_ID)
    lowers = "Lowercase" in json.dumps(json.loads(serialised).get("normalizer"))
    ends = tokenizer.encode("a").ids == [*tokenizer.encode("a", add_special_tokens=False).ids, EOS_ID]
    if ends and lowers >= lower:
        return serialised
    if lower and not lowers:
        more = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *more])
    if not ends:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, EOS_ID)]
        )
    return tokenizer.to_str().encode()


def _tokenizer_class(
    preprocessing: Preprocessing, tokenizer: Tokenizer, *, automatic: bool
) -> tuple[str | None, list[str]]:
    """The class whose rules are nearest, and what it does otherwise; None where no class can read the file."""
    assert preprocessing.tokenizer is not None
    # Gemma puts no space before the first word; SigLIP 1's classes read files that do.
    gemma = not any(tokenizer.piece(number).startswith("\u2581") for number in tokenizer.encode(["a"])[0])
    notes: list[str] = []
    if preprocessing.lowercase == "ascii":
        notes.append("lowercase: ascii is unknown to transformers; it will lower-case all letters")
    if gemma and preprocessing.punctuation == "keep":
        kind = _gemma_class(preprocessing, notes)
        return kind, notes if automatic else [note for note in notes if "AutoProcessor" not in note]
    if is_json(preprocessing.tokenizer):
        return None, [f"tokenizer: {_SIGLIP} reads SentencePiece files alone; no tokenizer was written"]
    if preprocessing.punctuation == "keep":
        notes.append("punctuation: transformers will delete it; no class keeps it for this tokenizer")
    return _SIGLIP, notes


def _gemma_class(preprocessing: Preprocessing, notes: list[str]) -> str:
    assert preprocessing.tokenizer is not None
    naflex, cased = RESIZES[preprocessing.resize].uses_patches, preprocessing.lowercase == "none"
    if naflex and cased:
        notes.append(
            f"lowercase: AutoProcessor of transformers 5 lower-cases titles of every NaFlex model ({_SIGLIP2}); call "
            "GemmaTokenizer.from_pretrained there"
        )
    if naflex and preprocessing.text_length != _NAFLEX_LENGTH:
        notes.append(
            f"text_length: AutoProcessor goes by {_NAFLEX_LENGTH} ids; call it with "
            f"max_length={preprocessing.text_length}"
        )
    if not naflex:
        notes.append(
            "tokenizer: AutoProcessor of transformers before 4.50 knows SiglipTokenizer alone; call AutoTokenizer and "
            "AutoImageProcessor there"
        )
    if is_json(preprocessing.tokenizer):
        return _AS_FILE
    if cased:
        return _GEMMA
    notes.append(f"lowercase: {_SIGLIP2} lower-cases, from transformers 5 on; earlier ones do not know the class")
    return _SIGLIP2
