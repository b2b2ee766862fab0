"""The tensors of open_clip's SigLIP models (its `CustomTextCLIP`, timm's `VisionTransformer`), in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from siglip_jax.models.architecture import Architecture
from siglip_jax.weights import name_table
from siglip_jax.weights.name_table import ATTENTION, CONVOLUTION, DENSE, MERGE, NORM, ROWS, SAME, SCALAR

TRUNK, POOL, HEAD = "visual.trunk", "visual.trunk.attn_pool", "text.text_projection"
_IMAGE_LAYER: tuple[tuple[str, str, name_table.Kind], ...] = (
    ("LayerNorm_0", "norm1", NORM),
    ("LayerNorm_1", "norm2", NORM),
    (f"{ATTENTION}/out", "attn.proj", MERGE),
    ("MlpBlock_0/Dense_0", "mlp.fc1", DENSE),
    ("MlpBlock_0/Dense_1", "mlp.fc2", DENSE),
)
_TEXT_LAYER: tuple[tuple[str, str, name_table.Kind], ...] = (
    ("LayerNorm_0", "ln_1", NORM),
    ("LayerNorm_1", "ln_2", NORM),
    (f"{ATTENTION}/out", "attn.out_proj", MERGE),
    ("MlpBlock_0/Dense_0", "mlp.c_fc", DENSE),
    ("MlpBlock_0/Dense_1", "mlp.c_proj", DENSE),
)
_PLAIN: tuple[tuple[str, str, name_table.Kind], ...] = (
    ("img/embedding/kernel", f"{TRUNK}.patch_embed.proj.weight", CONVOLUTION),
    ("img/embedding/bias", f"{TRUNK}.patch_embed.proj.bias", SAME),
    ("img/pos_embedding", f"{TRUNK}.pos_embed", SAME),
    ("img/Transformer/encoder_norm", f"{TRUNK}.norm", NORM),
    ("img/MAPHead_0/probe", f"{POOL}.latent", SAME),
    ("img/MAPHead_0/LayerNorm_0", f"{POOL}.norm", NORM),
    (f"img/MAPHead_0/{ATTENTION}/out", f"{POOL}.proj", MERGE),
    ("img/MAPHead_0/MlpBlock_0/Dense_0", f"{POOL}.mlp.fc1", DENSE),
    ("img/MAPHead_0/MlpBlock_0/Dense_1", f"{POOL}.mlp.fc2", DENSE),
    ("txt/Embed_0/embedding", "text.token_embedding.weight", SAME),
    ("txt/pos_embedding", "text.positional_embedding", ROWS),
    ("txt/Encoder_0/encoder_norm", "text.ln_final", NORM),
    ("t", "logit_scale", SCALAR),
    ("b", "logit_bias", SCALAR),
)
_QUERY, _KEY_VALUE = ("query",), ("key", "value")


def table(architecture: Architecture) -> Iterator[name_table.Entry]:
    """Every tensor of an open_clip model of this architecture."""
    for ours, theirs, kind in _PLAIN:
        yield from name_table.entries(ours, theirs, kind)
    if architecture.text_head:
        yield from name_table.entries("txt/head", HEAD, DENSE)
    yield from name_table.joined("img/MAPHead_0", _QUERY, f"{POOL}.q.weight", f"{POOL}.q.bias")
    yield from name_table.joined("img/MAPHead_0", _KEY_VALUE, f"{POOL}.kv.weight", f"{POOL}.kv.bias")
    for prefix, blocks, kinds, weight, bias, depth in (
        (
            "img/Transformer",
            f"{TRUNK}.blocks",
            _IMAGE_LAYER,
            "attn.qkv.weight",
            "attn.qkv.bias",
            architecture.pictures_tower("open_clip").depth,
        ),
        (
            "txt/Encoder_0",
            "text.transformer.resblocks",
            _TEXT_LAYER,
            "attn.in_proj_weight",
            "attn.in_proj_bias",
            architecture.text.depth,
        ),
    ):
        for layer in range(depth):
            here, there = f"{prefix}/encoderblock", f"{blocks}.{layer}"
            for ours, theirs, kind in kinds:
                yield from name_table.entries(f"{here}/{ours}", f"{there}.{theirs}", kind, layer=layer)
            parts = (*_QUERY, *_KEY_VALUE)
            yield from name_table.joined(here, parts, f"{there}.{weight}", f"{there}.{bias}", layer=layer)


def tidy(state: Mapping[str, np.ndarray], *, scalar: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """Without the prefix that distributed training leaves, and t and b of the shape `scalar`, () or (1,)."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    for name in ("logit_scale", "logit_bias"):
        if name in state and state[name].shape in ((), (1,)):
            state[name] = state[name].reshape(scalar)
    return state


def has_identity_head(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the text head does nothing, as where SigLIP 1 i18n, which has none, was brought to a fixed form."""
    return name_table.is_identity(state.get(f"{HEAD}.weight"), state.get(f"{HEAD}.bias"))


def from_state_dict(
    state: Mapping[str, np.ndarray], architecture: Architecture, shapes: Any, *, source: object
) -> dict[str, Any]:
    """open_clip's tensors, tidied -> our parameter tree; see `name_table.from_state_dict`."""
    if not architecture.text_head:
        state = {name: value for name, value in state.items() if name not in (f"{HEAD}.weight", f"{HEAD}.bias")}
    return name_table.from_state_dict(state, architecture, table, shapes, source=source)
