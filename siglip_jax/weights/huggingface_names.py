"""The tensors of Hugging Face's SigLIP models: the name table and the shapes, used in both directions.

`SiglipModel` holds SigLIP 1 and the fixed-size SigLIP 2 models, `Siglip2Model` the NaFlex ones. The table below is the
only place that knows both namings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.models.architecture import Architecture
from siglip_jax.weights.tensors import check_names_and_shapes


@dataclasses.dataclass(frozen=True)
class Transform:
    """How tensors of ours (one, or three that Hugging Face joins) become one of theirs, and back.

    `to_theirs` works on numpy and on JAX arrays; `to_ours` takes the shape that ours has.
    """

    to_theirs: Callable[[Any], Any]
    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _linear(inputs: int) -> Transform:
    """A kernel whose first `inputs` axes are summed over; torch keeps [out, in]."""
    return Transform(
        lambda x: x.reshape(math.prod(x.shape[:inputs]), -1).T,
        lambda x, shape: x.T.reshape(shape),
    )


SAME = Transform(lambda x: x, lambda x, shape: x.reshape(shape))
FLAT = Transform(lambda x: x.reshape(-1), lambda x, shape: x.reshape(shape))
ROWS = Transform(lambda x: x.reshape(-1, x.shape[-1]), lambda x, shape: x.reshape(shape))
KERNEL, OUT_KERNEL = _linear(1), _linear(2)
CONVOLUTION = Transform(lambda x: x.transpose(3, 2, 0, 1), lambda x, shape: x.transpose(2, 3, 1, 0))

# Of one tensor, or of the tensors of a layer: our name, their name, transform.
Kind = Transform | tuple[tuple[str, str, Transform], ...]

_NORM = (("scale", "weight", SAME), ("bias", "bias", SAME))
_DENSE = (("kernel", "weight", KERNEL), ("bias", "bias", SAME))
_SPLIT = (("kernel", "weight", KERNEL), ("bias", "bias", FLAT))  # kernel [d, heads, d / heads]
_MERGE = (("kernel", "weight", OUT_KERNEL), ("bias", "bias", SAME))
_MLP = (("MlpBlock_0/Dense_0", "mlp.fc1", _DENSE), ("MlpBlock_0/Dense_1", "mlp.fc2", _DENSE))
_ATTENTION = "MultiHeadDotProductAttention_0"

_LAYER: tuple[tuple[str, str, Kind], ...] = (
    ("LayerNorm_0", "layer_norm1", _NORM),
    ("LayerNorm_1", "layer_norm2", _NORM),
    *_MLP,
    (f"{_ATTENTION}/query", "self_attn.q_proj", _SPLIT),
    (f"{_ATTENTION}/key", "self_attn.k_proj", _SPLIT),
    (f"{_ATTENTION}/value", "self_attn.v_proj", _SPLIT),
    (f"{_ATTENTION}/out", "self_attn.out_proj", _MERGE),
)
_IMAGE: tuple[tuple[str, str, Kind], ...] = (
    ("img/pos_embedding", "vision_model.embeddings.position_embedding.weight", ROWS),
    ("img/embedding/bias", "vision_model.embeddings.patch_embedding.bias", SAME),
    ("img/Transformer/encoder_norm", "vision_model.post_layernorm", _NORM),
    ("img/MAPHead_0/probe", "vision_model.head.probe", SAME),
    ("img/MAPHead_0/LayerNorm_0", "vision_model.head.layernorm", _NORM),
    *((f"img/MAPHead_0/{ours}", f"vision_model.head.{theirs}", kind) for ours, theirs, kind in _MLP),
    (f"img/MAPHead_0/{_ATTENTION}/out", "vision_model.head.attention.out_proj", _MERGE),
)
# Joined one after the other along the first axis of theirs.
_QUERY_KEY_VALUE = (
    ("kernel", "vision_model.head.attention.in_proj_weight", KERNEL),
    ("bias", "vision_model.head.attention.in_proj_bias", FLAT),
)
_TEXT = (
    ("txt/Embed_0/embedding", "text_model.embeddings.token_embedding.weight", SAME),
    ("txt/pos_embedding", "text_model.embeddings.position_embedding.weight", ROWS),
    ("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm", _NORM),
)
_SCALARS = (("t", "logit_scale", SAME), ("b", "logit_bias", SAME))
HEAD = "text_model.head"
# Buffers that old versions of transformers wrote: 0, 1, 2, ... and no parameters.
BUFFERS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of theirs: the tensors of ours that it is made of, and the layer they are stacked at."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform
    layer: int | None = None


def name_table(architecture: Architecture) -> Iterator[Entry]:
    """Every tensor of a Hugging Face model of this architecture; an identity head is not among them."""
    patches = KERNEL if architecture.naflex else CONVOLUTION
    plain: list[tuple[str, str, Kind]] = [*_IMAGE, *_TEXT, *_SCALARS]
    plain.append(("img/embedding/kernel", "vision_model.embeddings.patch_embedding.weight", patches))
    if architecture.text_head:
        plain.append(("txt/head", HEAD, _DENSE))
    for ours, theirs, kind in plain:
        for a, b, transform in _leaves(ours, theirs, kind):
            yield Entry(b, (a,), transform)
    for leaf, theirs, transform in _QUERY_KEY_VALUE:
        parts = tuple(f"img/MAPHead_0/{_ATTENTION}/{part}/{leaf}" for part in ("query", "key", "value"))
        yield Entry(theirs, parts, transform)
    for prefix, tower, depth in (
        ("img/Transformer", "vision_model", architecture.image.depth),
        ("txt/Encoder_0", "text_model", architecture.text.depth),
    ):
        for ours, theirs, kind in _LAYER:
            for a, b, transform in _leaves(f"{prefix}/encoderblock/{ours}", theirs, kind):
                for layer in range(depth):
                    yield Entry(f"{tower}.encoder.layers.{layer}.{b}", (a,), transform, layer)


def _leaves(ours: str, theirs: str, kind: Kind) -> Iterator[tuple[str, str, Transform]]:
    if isinstance(kind, Transform):
        yield ours, theirs, kind
    else:
        for a, b, transform in kind:
            yield f"{ours}/{a}", f"{theirs}.{b}", transform


# --- parameters -------------------------------------------------------------------------------------------------------


def to_state_dict(params: Any, architecture: Architecture, *, xp: Any = np) -> dict[str, Any]:
    """Our parameter tree -> Hugging Face's names and shapes. Without a text head an identity is written for it.

    `xp` is numpy, or jax.numpy to trace.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    state = {}
    for entry in name_table(architecture):
        arrays = [flat[name] if entry.layer is None else flat[name][entry.layer] for name in entry.ours]
        parts = [entry.transform.to_theirs(array) for array in arrays]
        state[entry.theirs] = parts[0] if len(parts) == 1 else xp.concatenate(parts)
    if not architecture.text_head:
        state[f"{HEAD}.weight"] = xp.eye(architecture.text.width, dtype=flat["txt/pos_embedding"].dtype)
        state[f"{HEAD}.bias"] = xp.zeros(architecture.text.width, flat["txt/pos_embedding"].dtype)
    return state


def from_state_dict(
    state: Mapping[str, np.ndarray], architecture: Architecture, shapes: Any, *, source: object
) -> dict[str, Any]:
    """Hugging Face's tensors -> our parameter tree, dtypes as stored.

    Args:
      shapes: our tree of anything with a shape.

    Raises:
      UserError: listing every key that is missing, extra or misshapen.
    """
    state = {name: value for name, value in state.items() if name not in BUFFERS}
    theirs = jax.eval_shape(lambda params: to_state_dict(params, architecture, xp=jnp), shapes)
    check_names_and_shapes(state, {name: x.shape for name, x in theirs.items()}, source=source)
    expected = flax.traverse_util.flatten_dict(shapes, sep="/")
    flat: dict[str, Any] = {}
    for entry in name_table(architecture):
        for name, part in zip(entry.ours, np.split(state[entry.theirs], len(entry.ours)), strict=True):
            shape = tuple(expected[name].shape)
            if entry.layer is None:
                flat[name] = entry.transform.to_ours(part, shape)
            else:
                flat.setdefault(name, []).append(entry.transform.to_ours(part, shape[1:]))
    flat = {name: np.stack(value) if isinstance(value, list) else value for name, value in flat.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def has_identity_head(state: Mapping[str, np.ndarray]) -> bool:
    """Whether the text head does nothing: how Hugging Face writes SigLIP 1 i18n, which has none."""
    weight, bias = state.get(f"{HEAD}.weight"), state.get(f"{HEAD}.bias")
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        return False
    return not np.asarray(bias).any() and np.array_equal(weight, np.eye(len(weight), dtype=weight.dtype))
