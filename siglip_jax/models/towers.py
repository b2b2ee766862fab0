"""SigLIP's two towers (arXiv 2303.15343), with the parameter tree of big_vision's `two_towers`, `vit` and
`text_transformer`: {"img": ..., "txt": ..., "t": [1], "b": [1]}; or an adapter in the place of the image tower."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from siglip_jax.errors import UserError, check_choice
from siglip_jax.models.architecture import DTYPES, Architecture, FeatureSize, TowerSize
from siglip_jax.models.feature_tower import STATISTICS, Features, FeatureTower, beside_nothing
from siglip_jax.models.transformer import REMAT_POLICIES, Dtype, Encoder, MapHead
from siglip_jax.preprocessing import Patches


def l2_normalise(x: jax.Array) -> jax.Array:
    """x / (|x| + 1e-8) over the last axis, in float32 (big_vision two_towers)."""
    x = x.astype(jnp.float32)
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-8)


class ImageTower(nn.Module):
    """float [n, h, w, 3] in [-1, 1] -> [n, width], not normalised (big_vision vit, pool_type="map").

    For float `Patches` (big_vision naflex_vit): a dense embedding, the position embedding of `grid` resized for each
    picture, and padding that neither attention nor the head looks at.

    Half a tower, to run what is frozen once: `part` "body" gives the tokens [n, tokens, width] that the pooling head
    reads, as `Patches` for `Patches`; "head" takes those.
    """

    size: TowerSize
    patch_size: int
    grid: tuple[int, int]
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(self, image: jax.Array | Patches, *, part: str = "whole") -> Any:
        tokens = image if part == "head" else self._tokens(image)
        if part == "body":
            return tokens
        x, mask = (tokens.pixels, tokens.mask) if isinstance(tokens, Patches) else (tokens, None)
        return MapHead(name="MAPHead_0", **self._sizes)(x, mask)

    @property
    def _sizes(self) -> dict[str, Any]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        return dict(mlp_dim=self.size.mlp_dim, heads=self.size.heads, gelu=self.size.gelu, **kinds)

    def _tokens(self, image: jax.Array | Patches) -> Any:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        width, mask = self.size.width, None
        if isinstance(image, Patches):
            mask = image.mask
            # Even NaN in the padding must not get through: 0 * NaN is NaN in attention's weighted sum.
            x = nn.Dense(width, name="embedding", **kinds)(jnp.where(mask[..., None], image.pixels, 0))
            grid = position_embedding(self, (*self.grid, width))
            x = x + positions_of_patches(grid, image).astype(self.dtype)
        else:
            patch = (self.patch_size, self.patch_size)
            x = nn.Conv(width, patch, strides=patch, padding="VALID", name="embedding", **kinds)(image)
            x = x.reshape(x.shape[0], -1, width)
            x = x + position_embedding(self, (1, x.shape[1], width)).astype(self.dtype)
        encoder = Encoder(self.size.depth, remat=self.remat, unroll=self.unroll, name="Transformer", **self._sizes)
        x = encoder(x, mask)
        return Patches(x, image.shape) if isinstance(image, Patches) else x


class TextTower(nn.Module):
    """int32 ids [n, L] -> [n, projection], not normalised: no mask, pooled at the last position, linear head.

    Without a `projection` there is no head: [n, width]. `part` "body" gives what the head reads, [n, width]; "head"
    takes that.
    """

    size: TowerSize
    vocab_size: int
    projection: int | None
    dtype: Dtype = "float32"
    param_dtype: Dtype = "float32"
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(self, ids: jax.Array, *, part: str = "whole") -> jax.Array:
        x = ids if part == "head" else self._pooled(ids)
        if part == "body" or self.projection is None:
            return x
        return nn.Dense(self.projection, name="head", dtype=self.dtype, param_dtype=self.param_dtype)(x)

    def _pooled(self, ids: jax.Array) -> jax.Array:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        x = nn.Embed(self.vocab_size, self.size.width, name="Embed_0", **kinds)(ids)
        x = x + position_embedding(self, (1, ids.shape[1], self.size.width)).astype(self.dtype)
        encoder = Encoder(
            self.size.depth,
            self.size.mlp_dim,
            self.size.heads,
            remat=self.remat,
            unroll=self.unroll,
            gelu=self.size.gelu,
            name="Encoder_0",
            **kinds,
        )
        return encoder(x)[:, -1]


def position_embedding(module: ImageTower | TextTower, shape: tuple[int, ...]) -> jax.Array:
    """The learned [..., width] embedding of big_vision's `get_posemb`."""
    init = nn.initializers.normal(1 / math.sqrt(shape[-1]))
    return module.param("pos_embedding", init, shape, module.param_dtype)


def positions_of_patches(grid: jax.Array, patches: Patches) -> jax.Array:
    """The position embedding [rows, columns, width] at every patch: float32 [n, N, width].

    For each picture the grid is resized to that picture's rows and columns, bilinear with antialias (big_vision
    naflex_vit, Hugging Face `Siglip2VisionEmbeddings`). Each patch's value is a weighted mean over the whole grid, so
    the resized grids, whose shapes differ, are never formed.
    """
    row, column = patches.coordinates
    down = _resize_weights(row, patches.shape[:, :1], grid.shape[0])
    across = _resize_weights(column, patches.shape[:, 1:], grid.shape[1])
    both = jnp.einsum("npr,npc->nprc", down, across)
    return jnp.einsum("nprc,rcd->npd", both, grid.astype(jnp.float32), precision="highest")


def _resize_weights(index: jax.Array, count: jax.Array, size: int) -> jax.Array:
    """Weights [..., size] of `size` samples at `index` of `count` resized ones: a triangle, widened when shrinking."""
    scale = (size / count).astype(jnp.float32)
    centre = (index + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(size) - centre[..., None]) / jnp.maximum(scale, 1.0)[..., None]
    weights = jnp.maximum(1.0 - distance, 0.0)
    return weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1e-9)  # padding lies outside of the grid


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

    def setup(self) -> None:
        check_choice("model: remat", self.remat, REMAT_POLICIES)
        for name, dtype in (("dtype", self.dtype), ("param_dtype", self.param_dtype)):
            if str(dtype) not in DTYPES and dtype not in map(jnp.dtype, DTYPES):
                raise UserError(f"model: {name}={dtype!r}; expected one of {', '.join(DTYPES)}")
        arch = self.architecture
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype, remat=self.remat, unroll=self.unroll)
        if isinstance(arch.image, FeatureSize):
            self.img: nn.Module = FeatureTower(arch.image, dtype=self.dtype, param_dtype=self.param_dtype)
        else:
            self.img = ImageTower(arch.image, arch.patch_size, arch.grid, **kinds)
        self.txt = TextTower(arch.text, arch.vocab_size, arch.text_dim if arch.text_head else None, **kinds)
        # t is the LOG temperature; both are [1] in every published checkpoint.
        self.t = self.param("t", nn.initializers.constant(math.log(self.init_temperature)), (1,), jnp.float32)
        self.b = self.param("b", nn.initializers.constant(self.init_bias), (1,), jnp.float32)

    def __call__(
        self, image: jax.Array | Patches | Features, text: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """What `encode_image` takes, int32 [n, L] -> unit-norm float32 [n, d] twice, then t and b."""
        return self.encode_image(image), self.encode_text(text), self.t, self.b

    def encode_image(self, image: jax.Array | Patches | Features) -> jax.Array:
        """float [n, h, w, 3], float `Patches`, or float [n, numbers] by name for an adapter -> unit-norm float32
        [n, d].
        """
        return l2_normalise(self.img(image))

    def encode_text(self, ids: jax.Array) -> jax.Array:
        """int32 [n, L] -> unit-norm float32 [n, d]."""
        return self._unit_text(self.txt(ids))

    def _unit_text(self, text: jax.Array) -> jax.Array:
        text, size = l2_normalise(text), self.architecture.image
        return beside_nothing(text, size) if isinstance(size, FeatureSize) else text

    def encode_batch(self, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Unit-norm float32 [n, d] of images and of texts, from what the batch has of each.

        Images: "image" as `encode_image` takes it, or what `store` gave: "image_embedding", or "image_tokens" with
        "image_shape" where those are of `Patches`. Texts: "text", "text_embedding" or "text_pooled".
        """
        if "image_embedding" in batch:
            image = batch["image_embedding"]
        elif "image_tokens" in batch:
            tokens, shape = batch["image_tokens"], batch.get("image_shape")
            image = self.img(tokens if shape is None else Patches(tokens, shape), part="head")
        else:
            image = self.img(batch["image"])
        if "text_embedding" in batch:
            text = batch["text_embedding"]
        elif "text_pooled" in batch:
            text = self.txt(batch["text_pooled"], part="head")
        else:
            text = self.txt(batch["text"])
        return l2_normalise(image), self._unit_text(text)

    def store(self, batch: Mapping[str, Any], keys: Collection[str]) -> dict[str, jax.Array]:
        """What `encode_batch` can go on from, in the type of the computation, of the "image" and "text" that are there.

        Args:
          keys: any of "image_embedding" [n, d], before it is normalised; "image_tokens" [n, tokens, width], the input
            of the pooling head (of `Patches` with "image_shape" int32 [n, 2]); "text_embedding" [n, d]; "text_pooled"
            [n, width], the input of the projection.
        """
        stored: dict[str, Any] = {}
        if "image" in batch and "image_embedding" in keys:
            stored["image_embedding"] = self.img(batch["image"])
        if "image" in batch and "image_tokens" in keys:
            tokens = self.img(batch["image"], part="body")
            if isinstance(tokens, Patches):
                stored["image_shape"], tokens = tokens.shape, tokens.pixels
            stored["image_tokens"] = tokens
        if "text" in batch and "text_embedding" in keys:
            stored["text_embedding"] = self.txt(batch["text"])
        if "text" in batch and "text_pooled" in keys:
            stored["text_pooled"] = self.txt(batch["text"], part="body")
        return stored


def example_inputs(architecture: Architecture) -> tuple[Any, np.ndarray]:
    """One image and one title of zeros, as the towers take them."""
    if architecture.features:
        image: Any = {name: np.zeros((1, numbers), np.float32) for name, numbers in architecture.features.items()}
    elif architecture.naflex:
        pixels = np.zeros((1, 1, architecture.patch_size**2 * 3), np.float32)
        image = Patches(pixels, np.ones((1, 2), np.int32))
    else:
        image = np.zeros((1, *architecture.image_size, 3), np.float32)
    return image, np.zeros((1, architecture.text_length), np.int32)


def storage_dtype(name: str, dtype: Any) -> Any:
    """What the parameter "img/embedding/kernel" is stored in where `dtype` is asked for.

    float32 for t and b, since exp(t) multiplies every logit, and for the statistics of an adapter's inputs, whose means
    are taken off before anything else is computed.
    """
    return np.dtype(np.float32) if _ALWAYS_FLOAT32.fullmatch(name) else jnp.dtype(dtype)


_ALWAYS_FLOAT32 = re.compile(f"[tb]|img/({'|'.join(STATISTICS)})")


@functools.lru_cache(maxsize=64)
def parameter_shapes(architecture: Architecture) -> Any:
    """The parameter tree of ShapeDtypeStructs, float32."""
    module = TwoTowers(architecture)
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *example_inputs(architecture))["params"])
