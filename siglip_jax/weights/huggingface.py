"""Hugging Face's SigLIP folders: config.json, the weights and the processor, each read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.presets import Preset
from siglip_jax.models.towers import parameter_shapes
from siglip_jax.weights import tensors
from siglip_jax.weights.huggingface_names import from_state_dict, has_identity_head, to_state_dict
from siglip_jax.weights.processor import read_processor, write_processor
from siglip_jax.weights.stored_model import Format, StoredModel, WriteOptions

# --- config.json ------------------------------------------------------------------------------------------------------

# What transformers fills in where config.json is silent (SiglipTextConfig, SiglipVisionConfig, Siglip2VisionConfig).
_DEFAULT_SIZE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
_FIXED = dict(layer_norm_eps=1e-6, num_channels=3, vision_use_head=True)
_GELUS = {"gelu_pytorch_tanh": "tanh", "gelu": "exact"}


def architecture_of(config: Mapping[str, Any], *, text_head: bool, source: object) -> Architecture:
    """A parsed config.json -> the architecture.

    Args:
      text_head: whether the text head does anything, which config.json does not tell.

    Raises:
      UserError: another kind of model, one tower alone, or a setting that these towers do not have.
    """
    kind = config.get("model_type")
    if kind in ("siglip_vision_model", "siglip_text_model", "siglip2_vision_model", "siglip2_text_model"):
        raise UserError(f"{source}: {kind} is one tower; expected both, model_type siglip or siglip2")
    if kind is None and "pretrained_cfg" in config:
        raise UserError(
            f"{source}: {config.get('architecture')}, an image tower of timm alone; expected both towers, as in the "
            "folder of open_clip or transformers"
        )
    if kind not in ("siglip", "siglip2"):
        raise UserError(f"{source}: model_type is {kind!r}; expected siglip or siglip2")
    naflex = kind == "siglip2"
    try:
        vision, text = (dict(config.get(name) or {}) for name in ("vision_config", "text_config"))
        for name, tower in (("vision_config", vision), ("text_config", text)):
            for field, expected in _FIXED.items():
                if tower.get(field, expected) != expected:
                    raise UserError(f"{source}: {name}.{field} is {tower[field]!r}; SigLIP has {expected!r}")
            if (act := tower.setdefault("hidden_act", "gelu_pytorch_tanh")) not in _GELUS:
                raise UserError(f"{source}: {name}.hidden_act is {act!r}; SigLIP has 'gelu_pytorch_tanh', or 'gelu'")
        patch = vision.get("patch_size", 16)
        side = math.isqrt(vision.get("num_patches", 256)) * patch if naflex else vision.get("image_size", 224)
        architecture = Architecture(
            image_size=(side, side),
            patch_size=patch,
            image=_tower_size(vision),
            text=_tower_size(text),
            vocab_size=text.get("vocab_size", 32_000),
            text_length=text.get("max_position_embeddings", 64),
            text_head=text_head,
            naflex=naflex,
        )
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: not the config of a SigLIP model ({error})") from error
    projection = text.get("projection_size") or architecture.text.width
    if projection != architecture.embedding_dim:
        raise UserError(
            f"{source}: text_config.projection_size is {projection}, but pictures are embedded in "
            f"{architecture.embedding_dim} dimensions; the two must agree"
        )
    return architecture


def _tower_size(fields: dict[str, Any]) -> TowerSize:
    width, mlp_dim, depth, heads = ({**_DEFAULT_SIZE, **fields}[name] for name in _DEFAULT_SIZE)
    return TowerSize(width=width, depth=depth, mlp_dim=mlp_dim, heads=heads, gelu=_GELUS[fields["hidden_act"]])


def config_of(architecture: Architecture, *, dtype: str, pad_id: int) -> dict[str, Any]:
    """The config.json of an architecture, complete, so that no default of any version matters.

    Raises:
      UserError: a picture or a grid that is not square, or an adapter, which Hugging Face's models cannot have.
    """
    rows, columns = architecture.grid
    if rows != columns:
        raise UserError(f"image_size {architecture.image_size} is not square; Hugging Face's SigLIP models must be")
    image = architecture.pictures_tower("config.json")
    prefix = "siglip2" if architecture.naflex else "siglip"
    picture = {"num_patches": rows * columns} if architecture.naflex else {"image_size": architecture.image_size[0]}
    common = {"attention_dropout": 0.0, "layer_norm_eps": 1e-6}

    def tower(size: TowerSize) -> dict[str, Any]:
        widths = {"hidden_size": size.width, "intermediate_size": size.mlp_dim}
        act = next(name for name, gelu in _GELUS.items() if gelu == size.gelu)
        return {
            **common,
            "hidden_act": act,
            **widths,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.heads,
        }

    return {
        "architectures": ["Siglip2Model" if architecture.naflex else "SiglipModel"],
        "model_type": prefix,
        "dtype": dtype,
        "initializer_factor": 1.0,
        "text_config": {
            "model_type": f"{prefix}_text_model",
            **tower(architecture.text),
            "max_position_embeddings": architecture.text_length,
            "projection_size": architecture.embedding_dim,
            "vocab_size": architecture.vocab_size,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": pad_id,
        },
        "vision_config": {
            "model_type": f"{prefix}_vision_model",
            **tower(image),
            **picture,
            "num_channels": 3,
            "patch_size": architecture.patch_size,
            "vision_use_head": True,
        },
    }


# --- folders ----------------------------------------------------------------------------------------------------------


def detect(path: epath.Path) -> bool:
    """A folder with config.json and safetensors."""
    return path.is_dir() and (path / "config.json").exists() and any(weights.exists() for weights in _weights(path))


def _weights(folder: epath.Path) -> list[epath.Path]:
    return [folder / tensors.SINGLE, folder / tensors.INDEX]


def read(folder: epath.Path, preset: Preset | None = None) -> StoredModel:
    """config.json, the tensors and the processor of a folder."""
    path = folder / "config.json"
    config = files.read_json(path)
    state = tensors.read(folder)
    architecture = architecture_of(config, text_head=not has_identity_head(state), source=path)
    params = from_state_dict(state, architecture, parameter_shapes(architecture), source=folder)
    preprocessing = read_processor(
        folder,
        text_length=architecture.text_length,
        vocab_size=architecture.vocab_size,
        image_size=architecture.image_size if architecture.naflex else None,
    )
    return StoredModel(params=params, architecture=architecture, preprocessing=preprocessing, source=folder)


def write(model: StoredModel, folder: epath.Path, options: WriteOptions) -> list[str]:
    """Writes config.json, the tensors that `SiglipModel.from_pretrained` reads (one file or shards), the processor."""
    model.architecture.pictures_tower("save as huggingface")
    pad_id = 1 if model.preprocessing is None else model.preprocessing.pad_id
    dtype = np.asarray(model.params["img"]["pos_embedding"]).dtype.name
    config = config_of(model.architecture, dtype=dtype, pad_id=pad_id)
    folder.mkdir(parents=True, exist_ok=True)
    state = to_state_dict(model.params, model.architecture)
    tensors.write_folder(folder, state, metadata={"format": "pt"}, shard_bytes=options.shard_bytes)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if model.preprocessing is None:
        return ["no processor was written, since the preprocessing is not known"]
    return write_processor(model.preprocessing, folder)


HUGGINGFACE = Format(
    description="a Hugging Face folder (config.json with model.safetensors)",
    detect=detect,
    read=read,
    write=write,
)
