"""Pre-LN transformer blocks whose parameter tree is big_vision's, name for name (big_vision/models/vit.py).

Layers are stacked along a leading depth axis (`encoderblock/...`) by `nn.scan` and rematerialised by `nn.remat`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

Dtype = Any

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def layer_norm(name: str, *, param_dtype: Dtype) -> nn.LayerNorm:
    """LayerNorm with SigLIP's epsilon, computed in float32 whatever the compute dtype."""
    return nn.LayerNorm(epsilon=1e-6, dtype="float32", param_dtype=param_dtype, name=name)


class Mlp(nn.Module):
    """Dense, GELU (tanh-approximated or exact), Dense: [..., width] -> [..., width]."""

    mlp_dim: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = dict(
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        width = x.shape[-1]
        x = nn.gelu(nn.Dense(self.mlp_dim, name="Dense_0", **dense)(x), approximate=self.gelu == "tanh")
        return nn.Dense(width, name="Dense_1", **dense)(x)


class Attention(nn.Module):
    """Multi-head attention of queries [n, q, width] over keys [n, k, width] -> [n, q, width]; softmax in float32."""

    heads: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = queries.shape[-1]
        dense = dict(dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=nn.initializers.xavier_uniform())
        split = dict(features=(self.heads, width // self.heads), **dense)
        q = nn.DenseGeneral(name="query", **split)(queries)
        k = nn.DenseGeneral(name="key", **split)(keys)
        v = nn.DenseGeneral(name="value", **split)(keys)
        if mask is not None:  # [n, k], True where a key exists
            mask = mask[:, None, None, :]
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return nn.DenseGeneral(width, axis=(-2, -1), name="out", **dense)(out)


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Shaped for `nn.scan`: returns (x, None)."""

    mlp_dim: int
    heads: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, None]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        y = layer_norm("LayerNorm_0", param_dtype=self.param_dtype)(x).astype(self.dtype)
        x = x + Attention(self.heads, name="MultiHeadDotProductAttention_0", **kinds)(y, y, mask)
        y = layer_norm("LayerNorm_1", param_dtype=self.param_dtype)(x).astype(self.dtype)
        return x + Mlp(self.mlp_dim, gelu=self.gelu, name="MlpBlock_0", **kinds)(y), None


class Encoder(nn.Module):
    """`depth` stacked blocks and a final norm: [n, tokens, width] -> [n, tokens, width]."""

    depth: int
    mlp_dim: int
    heads: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: str = "none"
    unroll: int = 1
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        block = EncoderBlock
        if self.remat != "none":
            block = nn.remat(block, prevent_cse=False, policy=REMAT_POLICIES[self.remat])
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=min(self.unroll, self.depth),
        )
        x, _ = stack(self.mlp_dim, self.heads, self.dtype, self.param_dtype, self.gelu, name="encoderblock")(x, mask)
        return layer_norm("encoder_norm", param_dtype=self.param_dtype)(x).astype(self.dtype)


class MapHead(nn.Module):
    """Multi-head attention pooling (Set Transformer, arXiv 1810.00825): [n, tokens, width] -> [n, width]."""

    mlp_dim: int
    heads: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    gelu: str = "tanh"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        n, _, width = x.shape
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, width), self.param_dtype)
        probe = probe.astype(self.dtype).repeat(n, axis=0)
        x = Attention(self.heads, name="MultiHeadDotProductAttention_0", **kinds)(probe, x, mask)
        y = layer_norm("LayerNorm_0", param_dtype=self.param_dtype)(x).astype(self.dtype)
        return (x + Mlp(self.mlp_dim, gelu=self.gelu, name="MlpBlock_0", **kinds)(y))[:, 0]
