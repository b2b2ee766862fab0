"""An image tower whose input is stored vectors of an item: an adapter over encoders that are not run again.

It starts as the encoders themselves. With x_k the vectors of input k, m_k and s_k mean and deviation of the training
rows, u(v) = v / |v|, r(v) = v / sqrt(1 + |v|^2), which is shorter than 1, and a strength a from 0 to 1:

    base = u(projection(concat_k weight_k u(x_k - m_k)))
    head = r(linear(y) + MLP(y)),  y = concat_k (x_k - m_k) / s_k
    z    = [sqrt(a) head, sqrt(1 - a) base], their numbers taking turns (`in_turns`)

A title is its vector in the head's places and 0 in the base's: it is compared with the head alone. Between images the
cosine is (1 - a) cos_base + a cos_head where the head has become long, so the strength can be chosen after training,
and 0 is the encoders again. The head is zero at the start, so the cosines are those of the base, and bounded, since an
unbounded one grows until the base, which is what the encoders know, does not matter. Numbers take turns so that a
prefix of an embedding has its share of both: a search by the first quarter then loses little.

The base is fixed: statistics, weights and the projection come from
`training.start.feature_statistics`. The projection is an uncentred SVD, which keeps cosines; at full width there is
none, and they are kept exactly.

Parameters: mean, scale float32 [D], weight [inputs], strength [1], projection [D, base], and the Dense layers hidden_i,
output and linear; D numbers of all inputs in the order of their names.
"""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.models.architecture import FeatureSize
from siglip_jax.models.transformer import Dtype

Features = dict[str, jax.Array]  # by the names of `FeatureSize.inputs`
STATISTICS = ("mean", "scale", "weight", "strength")  # kept in float32
FIXED = (*STATISTICS, "projection")  # no gradient reaches them


class FeatureTower(nn.Module):
    """{name: float [n, numbers]} -> float32 [n, head + base], of length at most 1."""

    size: FeatureSize
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"

    @nn.compact
    def __call__(self, features: Features) -> jax.Array:
        size, numbers = self.size, self.size.numbers
        mean = self._fixed("mean", nn.initializers.zeros, (numbers,), jnp.float32)
        scale = self._fixed("scale", nn.initializers.ones, (numbers,), jnp.float32)
        weight = self._fixed("weight", nn.initializers.ones, (len(size.inputs),), jnp.float32)
        strength = self._fixed("strength", nn.initializers.constant(0.5), (1,), jnp.float32)

        centred = jnp.concatenate([features[name].astype(jnp.float32) for name, _ in size.inputs], axis=-1) - mean
        base = jnp.concatenate(directions(centred, size, weight), axis=-1)
        if size.projects:
            # Columns that are orthogonal, as those of an SVD are.
            columns = self._fixed("projection", _orthogonal, (numbers, size.base), self.param_dtype)
            base = jnp.matmul(base, columns.astype(jnp.float32), precision="highest")

        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        standard = hidden = centred / scale
        for layer in range(size.depth):
            hidden = nn.gelu(nn.Dense(size.mlp_dim, name=f"hidden_{layer}", **kinds)(hidden), approximate=True)
        last = dict(kernel_init=nn.initializers.zeros, **kinds)
        head = nn.Dense(size.head, name="output", **last)(hidden)
        head = head + nn.Dense(size.head, use_bias=False, name="linear", **last)(standard)
        head = bounded(head.astype(jnp.float32))
        both = jnp.concatenate([jnp.sqrt(strength) * head, jnp.sqrt(1 - strength) * unit(base)], axis=-1)
        return both[:, in_turns(size)]

    def _fixed(self, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
        return jax.lax.stop_gradient(self.param(name, init, shape, dtype))


def directions(centred: Any, size: FeatureSize, weight: Any) -> list[Any]:
    """float [..., D], numpy or JAX -> each input's part of it, made unit and times its weight [inputs]."""
    ends = [0, *itertools.accumulate(size.dimensions.values())]
    return [weight[k] * unit(centred[..., begin:end]) for k, (begin, end) in enumerate(itertools.pairwise(ends))]


def at_strength(z: Any, size: FeatureSize, strength: float, *, made_with: float = 0.5) -> Any:
    """Unit embeddings of one strength -> those of another, [..., head + base], numpy or JAX; no tower runs.

    Both parts of z are multiples of what another strength has there, so this is exact, rounding apart.

    Args:
      made_with: the strength of z, above 0 and below 1: at either end one part is lost.
    """
    head, base = (strength / made_with) ** 0.5, ((1 - strength) / (1 - made_with)) ** 0.5
    scale = np.repeat(np.array([head, base], np.float32), [size.head, size.base])
    return unit(z * scale[in_turns(size)])


def beside_nothing(text: jax.Array, size: FeatureSize) -> jax.Array:
    """Vectors of titles [n, head] -> [n, head + base], zero where images have the base."""
    return jnp.pad(text, ((0, 0), (0, size.base)))[:, in_turns(size)]


def in_turns(size: FeatureSize) -> np.ndarray:
    """int64 [head + base], where in [head, base] the numbers of an embedding are: head 0, base 0, head 1, base 1, ...,
    and what the longer of the two has left.
    """
    head, base = np.arange(size.head), size.head + np.arange(size.base)
    both = min(size.head, size.base)
    return np.concatenate([np.stack([head[:both], base[:both]], axis=1).ravel(), head[both:], base[both:]])


def unit(x: Any) -> Any:
    """x / |x| over the last axis, numpy or JAX; zero stays zero."""
    return x / ((x * x).sum(axis=-1, keepdims=True) ** 0.5 + 1e-12)


def bounded(x: jax.Array) -> jax.Array:
    """x / sqrt(1 + |x|^2) over the last axis: x itself where it is short, never as long as 1."""
    return x * jax.lax.rsqrt(1 + jnp.sum(x * x, axis=-1, keepdims=True))


def _orthogonal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Orthogonal columns, made in float32: a QR decomposition takes no smaller floats."""
    return nn.initializers.orthogonal()(key, shape, jnp.float32).astype(dtype)
