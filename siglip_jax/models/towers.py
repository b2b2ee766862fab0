"""SigLIP's two towers (arXiv 2303.15343), with the parameter tree of big_vision's `two_towers`, `vit` and
`text_transformer`: {"img": ..., "txt": ..., "t": [1], "b": [1]}."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from siglip_jax.errors import UserError
from siglip_jax.models.transformer import REMAT_POLICIES, Dtype, Encoder, MapHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSize:
    """Width, depth, MLP width and heads of one transformer."""

    width: int
    depth: int
    mlp_dim: int
    heads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that decides the parameter shapes of a SigLIP model; plain JSON there and back.

    Attributes:
      image_size: (height, width) in pixels, each a multiple of `patch_size`.
      patch_size: pixels per side of a square patch.
      image, text: sizes of the two transformers.
      vocab_size, text_length: rows of the token embedding, tokens per title.
      embedding_dim: width of the shared space; equals `image.width`, since the image tower has no projection.
    """

    image_size: tuple[int, int]
    patch_size: int
    image: TowerSize
    text: TowerSize
    vocab_size: int
    text_length: int

    def __post_init__(self):
        sizes = (*self.image_size, self.patch_size, self.vocab_size, self.text_length)
        whole = (*sizes, *dataclasses.astuple(self.image), *dataclasses.astuple(self.text))
        if len(self.image_size) != 2 or any(type(size) is not int or not 0 < size < 2**31 for size in whole):
            raise UserError(f"model: {self}; expected whole numbers of at least 1 everywhere")
        if any(side % self.patch_size for side in self.image_size):
            raise UserError(f"model: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        for name, tower in (("image", self.image), ("text", self.text)):
            if tower.width % tower.heads:
                raise UserError(f"model: {name}.width {tower.width} is not a multiple of {name}.heads {tower.heads}")

    @property
    def embedding_dim(self) -> int:
        return self.image.width

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Architecture:
        try:
            towers = {name: TowerSize(**fields[name]) for name in ("image", "text")}
            return cls(**{**fields, **towers, "image_size": tuple(fields["image_size"])})
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"model: not an architecture ({error}); expected {cls._expected()}") from error

    @classmethod
    def _expected(cls) -> str:
        return ", ".join(field.name for field in dataclasses.fields(cls))


def l2_normalise(x: jax.Array) -> jax.Array:
    """x / (|x| + 1e-8) over the last axis, in float32 (big_vision two_towers)."""
    x = x.astype(jnp.float32)
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


class ImageTower(nn.Module):
    """float [n, h, w, 3] in [-1, 1] -> [n, width], not normalised (big_vision vit, pool_type="map")."""

    size: TowerSize
    patch_size: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        sizes = dict(mlp_dim=self.size.mlp_dim, heads=self.size.heads, **kinds)
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(self.size.width, patch, strides=patch, padding="VALID", name="embedding", **kinds)(image)
        x = x.reshape(x.shape[0], -1, self.size.width)
        x = x + position_embedding(self, x.shape[1], self.size.width).astype(self.dtype)
        x = Encoder(self.size.depth, remat=self.remat, unroll=self.unroll, name="Transformer", **sizes)(x)
        return MapHead(name="MAPHead_0", **sizes)(x)


class TextTower(nn.Module):
    """int32 ids [n, L] -> [n, projection], not normalised: no mask, pooled at the last position, linear head."""

    size: TowerSize
    vocab_size: int
    projection: int
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = nn.Embed(self.vocab_size, self.size.width, name="Embed_0", **kinds)(ids)
        x = x + position_embedding(self, ids.shape[1], self.size.width).astype(self.dtype)
        encoder = Encoder(
            self.size.depth,
            self.size.mlp_dim,
            self.size.heads,
            remat=self.remat,
            unroll=self.unroll,
            name="Encoder_0",
            **kinds,
        )
        return nn.Dense(self.projection, name="head", **kinds)(encoder(x)[:, -1])


def position_embedding(module: ImageTower | TextTower, tokens: int, width: int) -> jax.Array:
    """The learned [1, tokens, width] embedding of big_vision's `get_posemb`."""
    init = nn.initializers.normal(1 / math.sqrt(width))
    return module.param("pos_embedding", init, (1, tokens, width), module.param_dtype)


class TwoTowers(nn.Module):
    """Both towers and the loss's scalars. `dtype` computes, `param_dtype` stores.

    `remat` is a name of `REMAT_POLICIES`; `unroll` layers share one body of the scan over layers (more is faster to
    run and slower to compile).
    """

    architecture: Architecture
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: str = "none"
    unroll: int = 1
    init_temperature: float = 10.0
    init_bias: float = -10.0

    def setup(self):
        if self.remat not in REMAT_POLICIES:
            raise UserError(f"model: remat={self.remat!r}; expected one of {', '.join(REMAT_POLICIES)}")
        try:
            jnp.dtype(self.dtype)
        except TypeError as error:
            raise UserError(f"model: dtype={self.dtype!r}; expected float32 or bfloat16") from error
        arch = self.architecture
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype, remat=self.remat, unroll=self.unroll)
        self.img = ImageTower(arch.image, arch.patch_size, **kinds)
        self.txt = TextTower(arch.text, arch.vocab_size, arch.embedding_dim, **kinds)
        # t is the LOG temperature; both are [1] in every published checkpoint.
        self.t = self.param("t", nn.initializers.constant(math.log(self.init_temperature)), (1,), jnp.float32)
        self.b = self.param("b", nn.initializers.constant(self.init_bias), (1,), jnp.float32)

    def __call__(self, image: jax.Array, text: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """float [n, h, w, 3], int32 [n, L] -> unit-norm float32 [n, d] twice, then t and b."""
        return self.encode_image(image), self.encode_text(text), self.t, self.b

    def encode_image(self, image: jax.Array) -> jax.Array:
        """float [n, h, w, 3] -> unit-norm float32 [n, d]."""
        return l2_normalise(self.img(image))

    def encode_text(self, ids: jax.Array) -> jax.Array:
        """int32 [n, L] -> unit-norm float32 [n, d]."""
        return l2_normalise(self.txt(ids))
