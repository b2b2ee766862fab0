"""open_clip's folders, open_clip_config.json with safetensors, and bare state dicts of theirs and of transformers'."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.models.presets import Preset
from siglip_jax.models.towers import parameter_shapes
from siglip_jax.weights import huggingface_names, name_table, tensors
from siglip_jax.weights.open_clip import open_clip_names
from siglip_jax.weights.open_clip.open_clip_config import read_architecture, write_architecture
from siglip_jax.weights.open_clip.open_clip_processing import read_processing, write_processing
from siglip_jax.weights.stored_model import Format, StoredModel, WriteOptions

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_NAMES = (WEIGHTS, "open_clip_pytorch_model.safetensors", tensors.SINGLE)  # in the order that open_clip looks


def detect(path: epath.Path) -> bool:
    """A folder with open_clip_config.json."""
    return path.is_dir() and (path / CONFIG).exists()


def read(folder: epath.Path, preset: Preset | None = None) -> StoredModel:
    """The config, the tensors and the tokenizer of a folder."""
    weights = next((folder / name for name in _NAMES if (folder / name).exists()), None)
    if weights is None:
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1:
            hint = tensors.conversion(folder, WEIGHTS) or f"expected {WEIGHTS} beside {CONFIG}"
            raise UserError(f"{folder}: no weights; {hint}")
        weights = found[0]
    return _read(folder / CONFIG, weights)


def _read(path: epath.Path, weights: epath.Path) -> StoredModel:
    config = files.read_json(path)
    model, settings = config.get("model_cfg"), config.get("preprocess_cfg")
    if not isinstance(model, dict) or not isinstance(settings, dict | None):
        raise UserError(f"{path}: no model_cfg, or a preprocess_cfg that is none; expected an open_clip_config.json")
    state = open_clip_names.tidy(tensors.read_file(weights))
    head = open_clip_names.has_identity_head(state)
    architecture = read_architecture(model, identity_head=head, source=path)
    preprocessing = None
    if settings:
        preprocessing = read_processing(
            path.parent,
            settings,
            model["text_cfg"],
            image_size=architecture.image_size,
            text_length=architecture.text_length,
            vocab_size=architecture.vocab_size,
            source=path,
        )
    params = open_clip_names.from_state_dict(state, architecture, parameter_shapes(architecture), source=weights)
    return StoredModel(params=params, architecture=architecture, preprocessing=preprocessing, source=weights)


def write(model: StoredModel, folder: epath.Path, options: WriteOptions) -> list[str]:
    """Writes what `open_clip.create_model_from_pretrained("local-dir:...")` and its `get_tokenizer` read."""
    config: dict[str, Any] = {"model_cfg": write_architecture(model.architecture)}
    folder.mkdir(parents=True, exist_ok=True)
    state = name_table.to_state_dict(model.params, model.architecture, open_clip_names.table)
    tensors.write_file(folder / WEIGHTS, state, metadata={"format": "pt"})  # it reads no shards
    if model.preprocessing is None:
        notes = ["no preprocess_cfg was written, since the preprocessing is not known; open_clip takes that of CLIP"]
    else:
        config["preprocess_cfg"], text, notes = write_processing(model.preprocessing, folder)
        config["model_cfg"]["text_cfg"] |= text
    if "timm_model_kwargs" in config["model_cfg"]["vision_cfg"]:
        notes.append(
            "a name of timm's for this image tower; open_clip up to 3.3 cannot read the timm_model_kwargs in its place "
            "(of published sizes, siglip-jax convert --image_gelu=exact gives one that has a name)"
        )
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    return notes


# --- bare state dicts -------------------------------------------------------------------------------------------------


def detect_state_dict(path: epath.Path) -> bool:
    return path.suffix == ".safetensors" and not path.is_dir()


def read_state_dict(path: epath.Path, preset: Preset | None = None) -> StoredModel:
    """A .safetensors file with the config beside it, or of the preset that is named.

    Raises:
      UserError: neither tells the architecture, which tensors alone do not (how many heads), or one tower alone.
    """
    if preset is None and (config := path.parent / CONFIG).exists():
        return _read(config, path)
    state = tensors.read_file(path)
    theirs = _whose(open_clip_names.tidy(state), path)
    state = open_clip_names.tidy(state, scalar=() if theirs is open_clip_names else (1,))
    if preset is None:
        raise UserError(
            f"{path}: its tensors do not tell how many heads the towers have; load a preset's name with this file as "
            f"weights=, or put {CONFIG} beside it"
        )
    architecture = preset.architecture
    params = theirs.from_state_dict(state, architecture, parameter_shapes(architecture), source=path)
    return StoredModel(
        params=params, architecture=architecture, preprocessing=preset.preprocessing("huggingface"), source=path
    )


def _whose(state: dict[str, np.ndarray], path: epath.Path) -> Any:
    if "text.positional_embedding" in state:
        return open_clip_names
    if "text_model.final_layer_norm.weight" in state:
        return huggingface_names
    if "attn_pool.latent" in state or "visual.trunk.attn_pool.latent" in state:
        raise UserError(f"{path}: an image tower of timm alone; expected both towers, with t and b")
    listed = tensors.list_some(sorted(state), at_most=5)
    raise UserError(f"{path}: {listed}; expected the tensors of a SigLIP of open_clip or transformers")


OPEN_CLIP = Format(
    description="an open_clip folder (open_clip_config.json with safetensors)",
    detect=detect,
    read=read,
    write=write,
)
STATE_DICT = Format(
    description="a .safetensors of open_clip's or transformers' tensors with a preset's name",
    detect=detect_state_dict,
    read=read_state_dict,
)
