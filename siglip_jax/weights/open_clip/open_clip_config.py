"""model_cfg of an open_clip_config.json and `Architecture`, in both directions.

Reading is strict, as for Hugging Face's files: a setting that is not known and not off is an error, since it would
change what the model computes. Names are those of open_clip 2.20 to 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from siglip_jax.errors import UserError
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.weights.open_clip.timm_towers import TimmTower, mlp_ratio, read_tower, write_tower
from siglip_jax.weights.processor_settings import names, refuse_unknown

_MODEL = names("embed_dim vision_cfg text_cfg quick_gelu")
_NEUTRAL_MODEL = names("custom_text init_logit_bias init_logit_scale nonscalar_logit_scale cast_dtype output_dict")
_IMAGE = names("image_size timm_model_name timm_pool timm_proj timm_model_kwargs")
_NEUTRAL_IMAGE = names("""
    timm_model_pretrained timm_drop timm_drop_path timm_proj_bias patch_dropout image_seq_len
    layers width head_width mlp_ratio patch_size
""")  # timm's name counts, not the last line
_TEXT = names("""
    context_length vocab_size width heads layers mlp_ratio no_causal_mask pool_type proj_bias proj_type norm_kwargs
    act_kwargs text_arch
""")
# How titles are prepared is read by `open_clip_processing`; an id of padding matters to masks alone.
_NEUTRAL_TEXT = names("""
    hf_tokenizer_name tokenizer_kwargs pad_id bos_id eos_id hf_model_pretrained correct_cls_mask
""")
_TEXT_FIXED: dict[str, tuple[Any, Any]] = {  # what open_clip takes where nothing is said, and what SigLIP has
    "no_causal_mask": (False, True),
    "pool_type": ("argmax", "last"),
    "norm_kwargs": (None, {"eps": 1e-6}),
    "text_arch": ("clip", "clip"),
}


def read_architecture(model: Mapping[str, Any], *, identity_head: bool, source: epath.Path) -> Architecture:
    """The parsed model_cfg -> the architecture.

    Args:
      identity_head: whether the projection of titles does nothing, which the config does not tell.

    Raises:
      UserError: another kind of model, or a setting that these towers do not have.
    """
    refuse_unknown(source, model, _MODEL, _NEUTRAL_MODEL)
    image, text = model.get("vision_cfg"), model.get("text_cfg")
    if not isinstance(image, dict) or not isinstance(text, dict):
        raise UserError(f"{source}: model_cfg without vision_cfg or text_cfg; expected both towers")
    if not image.get("timm_model_name"):
        raise UserError(f"{source}: vision_cfg without timm_model_name is another kind of model; expected a SigLIP")
    if model.get("quick_gelu"):
        raise UserError(f"{source}: quick_gelu is {model['quick_gelu']!r}; SigLIP has GELU, exact or by tanh")
    refuse_unknown(source, image, _IMAGE, _NEUTRAL_IMAGE)
    refuse_unknown(source, text, _TEXT, _NEUTRAL_TEXT)
    for name, expected in (("timm_pool", "map"), ("timm_proj", "none")):
        if image.get(name) != expected:
            raise UserError(f"{source}: vision_cfg.{name} is {image.get(name)!r}; SigLIP has {expected!r}")
    for name, (default, expected) in _TEXT_FIXED.items():
        if (found := text.get(name, default)) != expected:
            raise UserError(f"{source}: text_cfg.{name} is {found!r}; SigLIP has {expected!r}")
    tower = read_tower(image["timm_model_name"], image.get("timm_model_kwargs") or {}, source=source)
    side = image.get("image_size", 224)
    if (given := tuple(side) if isinstance(side, list) else (side, side)) != tower.image_size:
        raise UserError(f"{source}: vision_cfg.image_size is {given}, that of its tower {tower.image_size}")
    projects = text.get("proj_type", "linear") == "linear"
    if projects and not text.get("proj_bias"):
        raise UserError(f"{source}: text_cfg.proj_bias is {text.get('proj_bias')!r}; SigLIP has true")
    try:
        width = text.get("width", 512)
        architecture = Architecture(
            image_size=tower.image_size,
            patch_size=tower.patch_size,
            image=tower.size,
            text=TowerSize(
                width=width,
                depth=text.get("layers", 12),
                mlp_dim=int(width * text.get("mlp_ratio", 4.0)),
                heads=text.get("heads", 8),
                gelu=_gelu(text, source),
            ),
            vocab_size=text.get("vocab_size", 49408),
            text_length=text.get("context_length", 77),
            text_head=projects and not identity_head,
        )
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: not the config of a SigLIP model ({error})") from error
    if model.get("embed_dim") != architecture.embedding_dim:
        raise UserError(
            f"{source}: embed_dim is {model.get('embed_dim')!r}, but its tower embeds images in "
            f"{architecture.embedding_dim} dimensions; the two must agree"
        )
    return architecture


def _gelu(text: Mapping[str, Any], source: epath.Path) -> str:
    """Of nn.GELU(**act_kwargs)."""
    options = text.get("act_kwargs") or {}
    known = {"tanh": "tanh", "none": "exact"}
    if (
        not isinstance(options, dict)
        or options.keys() - {"approximate"}
        or options.get("approximate", "none") not in known
    ):
        raise UserError(f"{source}: text_cfg.act_kwargs is {options!r}; expected {{'approximate': 'tanh' or 'none'}}")
    return known[options.get("approximate", "none")]


def write_architecture(architecture: Architecture) -> dict[str, Any]:
    """model_cfg, without the part of the tokenizer.

    Raises:
      UserError: an adapter or NaFlex, which open_clip's towers of one image size cannot be.
    """
    image, text = architecture.pictures_tower("save as open_clip"), architecture.text
    if architecture.naflex:
        raise UserError("save as open_clip: NaFlex images are written for transformers; expected format='huggingface'")
    name, options = write_tower(TimmTower(image, architecture.patch_size, architecture.image_size))
    height, width = architecture.image_size
    vision = {
        "image_size": height if height == width else [height, width],
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    }
    return {
        "embed_dim": architecture.embedding_dim,
        "init_logit_bias": -10,  # else it has no b
        "custom_text": True,
        "vision_cfg": vision | ({"timm_model_kwargs": options} if options else {}),
        "text_cfg": {
            "context_length": architecture.text_length,
            "vocab_size": architecture.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
            "mlp_ratio": mlp_ratio(text),
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": architecture.text_head,
            "proj_type": "linear" if architecture.text_head else "none",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh" if text.gelu == "tanh" else "none"},
        },
    }
