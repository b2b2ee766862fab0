"""sentence-transformers' folders of SigLIP models: a Hugging Face folder, and how its outputs become unit vectors.

Written for sentence-transformers from 5.4 on, which embeds images as well as texts, with transformers 5: what earlier
ones call the output is not what these do.
"""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.models.presets import Preset
from siglip_jax.weights import huggingface
from siglip_jax.weights.processor_settings import write_json
from siglip_jax.weights.stored_model import Format, StoredModel, WriteOptions

MODULES = "modules.json"
_TRANSFORMER, _NORMALIZE = "Transformer", "Normalize"


def detect(path: epath.Path) -> bool:
    """A Hugging Face folder with modules.json."""
    return path.is_dir() and (path / MODULES).exists() and huggingface.detect(path)


def read(folder: epath.Path, preset: Preset | None = None) -> StoredModel:
    """The model behind the modules.

    Raises:
      UserError: a module that changes embeddings, beside the model and its normalisation.
    """
    modules = json.loads((folder / MODULES).read_text()) if files.is_regular(folder / MODULES) else None
    kinds = [str(each.get("type", "")).rpartition(".")[2] for each in modules] if isinstance(modules, list) else []
    if kinds not in ([_TRANSFORMER], [_TRANSFORMER, _NORMALIZE]):
        raise UserError(f"{folder / MODULES}: modules {kinds}; expected {_TRANSFORMER} and {_NORMALIZE}, no others")
    return huggingface.read(folder, preset)


def write(model: StoredModel, folder: epath.Path, options: WriteOptions) -> list[str]:
    """Writes what `SentenceTransformer(folder)` reads: its `encode` gives our unit vectors, of titles and of images."""
    notes = huggingface.write(model, folder, options)
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (name, path) in enumerate([(_TRANSFORMER, ""), (_NORMALIZE, f"1_{_NORMALIZE}")])
    ]
    (folder / MODULES).write_text(json.dumps(listed, indent=2) + "\n")
    (folder / f"1_{_NORMALIZE}").mkdir(exist_ok=True)
    length = model.architecture.text_length
    features = {name: f"get_{name}_features" for name in ("text", "image")}
    settings: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            name: {"method": method, "method_output_name": "pooler_output"} for name, method in features.items()
        },
        "module_output_name": "sentence_embedding",
        # SigLIP pools at the last position, so that a title must be padded to its whole length.
        "processing_kwargs": {"text": {"padding": "max_length", "max_length": length, "truncation": True}},
    }
    write_json(folder / "sentence_bert_config.json", settings)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "similarity_fn_name": "cosine",
            "prompts": {},
            "default_prompt_name": None,
        },
    )
    return notes


SENTENCE_TRANSFORMERS = Format(
    description="a sentence-transformers folder (modules.json beside config.json)",
    detect=detect,
    read=read,
    write=write,
)
