"""The tensors of Hugging Face's SigLIP models: the name table, used in both directions.

`SiglipModel` holds SigLIP 1 and the fixed-size SigLIP 2 models, `Siglip2Model` the NaFlex ones. The table below is the
only place that knows both namings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from siglip_jax.models.architecture import Architecture
from siglip_jax.weights import name_table
from siglip_jax.weights.name_table import ATTENTION, CONVOLUTION, DENSE, KERNEL, MERGE, NORM, ROWS, SAME, SPLIT

_MLP = (("MlpBlock_0/Dense_0", "mlp.fc1", DENSE), ("MlpBlock_0/Dense_1", "mlp.fc2", DENSE))
_LAYER: tuple[tuple[str, str, name_table.Kind], ...] = (
    ("LayerNorm_0", "layer_norm1", NORM),
    ("LayerNorm_1", "layer_norm2", NORM),
    *_MLP,
    (f"{ATTENTION}/query", "self_attn.q_proj", SPLIT),
    (f"{ATTENTION}/key", "self_attn.k_proj", SPLIT),
    (f"{ATTENTION}/value", "self_attn.v_proj", SPLIT),
    (f"{ATTENTION}/out", "self_attn.out_proj", MERGE),
)
_PLAIN: tuple[tuple[str, str, name_table.Kind], ...] = (
    ("img/pos_embedding", "vision_model.embeddings.position_embedding.weight", ROWS),
    ("img/embedding/bias", "vision_model.embeddings.patch_embedding.bias", SAME),
    ("img/Transformer/encoder_norm", "vision_model.post_layernorm", NORM),
    ("img/MAPHead_0/probe", "vision_model.head.probe", SAME),
    ("img/MAPHead_0/LayerNorm_0", "vision_model.head.layernorm", NORM),
    *((f"img/MAPHead_0/{ours}", f"vision_model.head.{theirs}", kind) for ours, theirs, kind in _MLP),
    (f"img/MAPHead_0/{ATTENTION}/out", "vision_model.head.attention.out_proj", MERGE),
    ("txt/Embed_0/embedding", "text_model.embeddings.token_embedding.weight", SAME),
    ("txt/pos_embedding", "text_model.embeddings.position_embedding.weight", ROWS),
    ("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm", NORM),
    ("t", "logit_scale", SAME),
    ("b", "logit_bias", SAME),
)
HEAD = "text_model.head"
# Buffers that old versions of transformers wrote: 0, 1, 2, ... and no parameters.
BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def table(architecture: Architecture) -> Iterator[name_table.Entry]:
    """Every tensor of a Hugging Face model of this architecture; an identity head is not among them."""
    for ours, theirs, kind in _PLAIN:
        yield from name_table.entries(ours, theirs, kind)
    patches = KERNEL if architecture.naflex else CONVOLUTION
    yield from name_table.entries("img/embedding/kernel", "vision_model.embeddings.patch_embedding.weight", patches)
    if architecture.text_head:
        yield from name_table.entries("txt/head", HEAD, DENSE)
    attention, parts = "vision_model.head.attention", ("query", "key", "value")
    yield from name_table.joined("img/MAPHead_0", parts, f"{attention}.in_proj_weight", f"{attention}.in_proj_bias")
    for prefix, tower, depth in (
        ("img/Transformer", "vision_model", architecture.pictures_tower("huggingface").depth),
        ("txt/Encoder_0", "text_model", architecture.text.depth),
    ):
        for ours, theirs, kind in _LAYER:
            for layer in range(depth):
                there = f"{tower}.encoder.layers.{layer}.{theirs}"
                yield from name_table.entries(f"{prefix}/encoderblock/{ours}", there, kind, layer=layer)


def to_state_dict(params: Any, architecture: Architecture) -> dict[str, Any]:
    """Our parameter tree -> Hugging Face's names and shapes. Without a text head an identity is written for it."""
    state = name_table.to_state_dict(params, architecture, table)
    if not architecture.text_head:
        width, dtype = architecture.text.width, np.asarray(params["txt"]["pos_embedding"]).dtype
        state |= {f"{HEAD}.weight": np.eye(width, dtype=dtype), f"{HEAD}.bias": np.zeros(width, dtype)}
    return state


def from_state_dict(
    state: Mapping[str, np.ndarray], architecture: Architecture, shapes: Any, *, source: object
) -> dict[str, Any]:
    """Hugging Face's tensors -> our parameter tree, dtypes as stored; see `name_table.from_state_dict`."""
    left_out = set(BUFFERS) if architecture.text_head else {*BUFFERS, f"{HEAD}.weight", f"{HEAD}.bias"}
    state = {name: value for name, value in state.items() if name not in left_out}
    return name_table.from_state_dict(state, architecture, table, shapes, source=source)


def has_identity_head(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the text head does nothing: how Hugging Face writes SigLIP 1 i18n, which has none."""
    return name_table.is_identity(state.get(f"{HEAD}.weight"), state.get(f"{HEAD}.bias"))
