"""What users hold: a module, its parameters and its preprocessing.

Its files are the business of `siglip_jax.weights.formats`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from siglip_jax.errors import UserError, check_choice
from siglip_jax.models.architecture import Architecture
from siglip_jax.models.towers import TwoTowers, example_inputs
from siglip_jax.preprocessing import Patches, Preprocessing
from siglip_jax.weights import native
from siglip_jax.weights.formats import FORMATS, written_formats
from siglip_jax.weights.stored_model import LAYOUTS, SHARD_BYTES, StoredModel, WriteOptions

MAX_BATCH = 256
_IN_FLIGHT = 2  # batches on their way while the host makes the next one
FAR_OUTSIDE = 4  # times the range of pixels: what is meant otherwise, such as 0 to 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A SigLIP model ready to encode, on every device of this process.

    `batch_size` of the encode methods bounds the rows of a device. Set `jax_default_device` for one device alone.

    Attributes:
      module: the two towers.
      params: big_vision's tree {"img", "txt", "t", "b"} of arrays.
      preprocessing: how pictures and titles become arrays, or None when it is not known.
      source: the file, folder or checkpoint that the parameters were read from; "" of others.
    """

    module: TwoTowers = dataclasses.field(repr=False)
    params: dict[str, Any] = dataclasses.field(repr=False)
    preprocessing: Preprocessing | None = None
    source: str = dataclasses.field(default="", compare=False)

    @property
    def architecture(self) -> Architecture:
        return self.module.architecture

    def replace(self, **changes: Any) -> Model:
        return dataclasses.replace(self, **({"source": ""} if "params" in changes else {}) | changes)

    def encode_image(self, images: Any, *, batch_size: int = MAX_BATCH) -> np.ndarray:
        """float [n, h, w, 3] in [-1, 1], or a sequence of PIL images or encoded bytes -> unit-norm float32 [n, d].

        A NaFlex model takes float `Patches` instead of the array, an adapter stored vectors by name, such as
        {"cnn": float [n, 1024]}.

        Raises:
          UserError: uint8 arrays (their range is not known), floats far outside the range, another picture size,
            pictures without a known preprocessing, pictures for an adapter, or other features than it takes.
        """
        if self.architecture.features or isinstance(images, Mapping):
            return self._encode("encode_image", self._checked_features(images), batch_size)
        if not _is_array(images):
            images = self._known_preprocessing("pictures").images(_sequence("encode_image", "pictures", images))
        if self.architecture.naflex:
            return self._encode("encode_image", self._checked_patches(images), batch_size)
        size = self.architecture.image_size
        if (
            isinstance(images, Patches)
            or images.ndim != 4
            or tuple(images.shape[1:]) != (*size, 3)
            or not np.issubdtype(images.dtype, np.floating)
        ):
            given = "Patches" if isinstance(images, Patches) else f"{images.dtype} {list(images.shape)}"
            raise UserError(
                f"encode_image: {given}; expected float [n, {size[0]}, {size[1]}, 3] in "
                "[-1, 1], or PIL images, which go through model.preprocessing"
            )
        self._check_range(images)
        return self._encode("encode_image", images, batch_size)

    def _check_range(self, pixels: Any) -> None:
        """UserError for floats far outside what the tower was trained on, such as 0 to 255."""
        low, high = self.preprocessing.value_range if self.preprocessing is not None else (-1.0, 1.0)
        if not pixels.size:
            return
        margin, least, most = FAR_OUTSIDE * (high - low), float(pixels.min()), float(pixels.max())
        if not (math.isfinite(least) and math.isfinite(most)):
            return  # told by its embedding, with the row
        if least < low - margin or most > high + margin:
            raise UserError(
                f"encode_image: pixels from {least:.4g} to {most:.4g}; expected [{low:g}, {high:g}]: give PIL images, "
                "or what model.preprocessing.images makes of them"
            )

    def _checked_features(self, features: Any) -> dict[str, np.ndarray]:
        wanted = self.architecture.features
        if not wanted:
            raise UserError("encode_image: a dict of features; this model takes pictures")
        expected = f"float [n, numbers] by name, with the numbers {wanted}"
        if not isinstance(features, Mapping):
            kind = type(features).__name__
            raise UserError(f"encode_image: a {kind}; this model takes stored vectors, not pictures: {expected}")
        if features.keys() != wanted.keys():
            raise UserError(
                f"encode_image: the features {', '.join(map(str, features)) or 'none'}; expected {expected}"
            )
        for name, rows in features.items():
            if not _is_array(rows) or isinstance(rows, Patches):
                raise UserError(f"encode_image: {name} is a {type(rows).__name__}; expected {expected}")
            if rows.ndim != 2 or rows.shape[1] != wanted[name] or not np.issubdtype(rows.dtype, np.floating):
                raise UserError(f"encode_image: {name} is {rows.dtype} {list(rows.shape)}; expected {expected}")
        if len({len(rows) for rows in features.values()}) > 1:
            counts = ", ".join(f"{name} {len(rows)}" for name, rows in features.items())
            raise UserError(f"encode_image: different numbers of rows ({counts}); expected one of each for an item")
        return {name: features[name] for name in wanted}

    def _checked_patches(self, images: Any) -> Patches:
        values = self.architecture.patch_size**2 * 3
        expected = f"float Patches of [n, N, {values}] in [-1, 1] and int32 [n, 2], or PIL images"
        if not isinstance(images, Patches):
            raise UserError(f"encode_image: {images.dtype} {list(images.shape)}; a NaFlex model takes {expected}")
        pixels, shape = images
        if not _is_array(pixels) or not _is_array(shape):
            raise UserError(f"encode_image: Patches of {type(pixels).__name__}; expected {expected}")
        if pixels.ndim != 3 or pixels.shape[-1] != values or not np.issubdtype(pixels.dtype, np.floating):
            raise UserError(f"encode_image: Patches of {pixels.dtype} {list(pixels.shape)}; expected {expected}")
        if tuple(shape.shape) != (len(pixels), 2) or not np.issubdtype(shape.dtype, np.integer):
            raise UserError(f"encode_image: shape of {shape.dtype} {list(shape.shape)}; expected {expected}")
        shape = np.asarray(shape, np.int64)
        sides = np.clip(shape, 0, pixels.shape[1] + 1)  # so that no product wraps round
        if len(shape) and (shape.min() < 1 or sides.prod(axis=1).max() > pixels.shape[1]):
            raise UserError(f"encode_image: shape {shape.tolist()[:8]} does not fit {pixels.shape[1]} patches")
        patches = Patches(pixels, shape.astype(np.int32))
        self._check_range(pixels[patches.mask])  # padding is never looked at
        return patches

    def encode_text(self, texts: Any, *, batch_size: int = MAX_BATCH) -> np.ndarray:
        """int32 ids [n, L], or strings -> unit-norm float32 [n, d].

        Raises:
          UserError: ids of another shape or type, or strings without a known preprocessing.
        """
        if not _is_array(texts):
            texts = [texts] if isinstance(texts, str) else _sequence("encode_text", "strings", texts)
            texts = self._known_preprocessing("strings").text(texts)
        length, vocab = self.architecture.text_length, self.architecture.vocab_size
        if texts.ndim != 2 or texts.shape[1] != length or not np.issubdtype(texts.dtype, np.integer):
            raise UserError(f"encode_text: {texts.dtype} {list(texts.shape)}; expected int32 ids [n, {length}]")
        if texts.size and (texts.min() < 0 or texts.max() >= vocab):  # XLA would clamp them silently
            raise UserError(f"encode_text: ids from {texts.min()} to {texts.max()}; expected 0 to {vocab - 1}")
        return self._encode("encode_text", texts, batch_size)

    def logits(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Embeddings [n, d], [m, d] -> float32 [n, m]: exp(t) <image, text> + b."""
        t, b = (np.asarray(self.params[name], np.float32)[0] for name in ("t", "b"))
        image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
        dim = self.architecture.embedding_dim
        if image.ndim != 2 or text.ndim != 2 or image.shape[1] != dim or text.shape[1] != dim:
            raise UserError(f"logits: {list(image.shape)} and {list(text.shape)}; expected [n, {dim}] and [m, {dim}]")
        return np.exp(t) * (image @ text.T) + b

    def save_description(self, folder: epath.PathLike) -> None:
        """Writes everything but the parameters, as in a workdir, whose checkpoints hold these."""
        native.write_description(
            epath.Path(folder),
            architecture=self.architecture,
            dtype=jax.numpy.dtype(self.module.dtype).name,
            preprocessing=self.preprocessing,
        )

    def save(
        self,
        path: epath.PathLike,
        *,
        format: str = "native",
        layout: str = "stacked",
        shard_bytes: int = SHARD_BYTES,
    ) -> list[str]:
        """Writes the model so that `load` reads it, or that big_vision or transformers do.

        Args:
          path: a folder; of "big_vision" an .npz file.
          format: "native" (safetensors and JSON), "huggingface" (config.json, safetensors, processor), "big_vision",
            "sentence_transformers", "open_clip", or another that `siglip_jax.weights.formats` has an entry for.
          layout: of the layers in an .npz, "stacked" or "layers".
          shard_bytes: the most that one file of the tensors of a Hugging Face folder holds.

        Returns:
          What the format could not hold, a line each; the native one holds everything.

        Raises:
          UserError: the path exists and is no empty folder, a preprocessing that does not fit, or an architecture that
            the format has no words for.
        """
        for option, value, choices in (("format", format, written_formats()), ("layout", layout, LAYOUTS)):
            check_choice(f"save: {option}", value, choices)
        if type(shard_bytes) is not int or shard_bytes < 1:
            raise UserError(f"save: shard_bytes={shard_bytes!r}; expected a whole number of bytes")
        check_preprocessing(self)
        if not os.fspath(path):
            raise UserError("save: an empty path")
        path = epath.Path(path)
        # What another model left there would be read as part of this one.
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"save: {path} exists; give a new path, or delete it first")
        write = FORMATS[format].write
        assert write is not None
        stored = StoredModel(
            params=jax.device_get(self.params),
            architecture=self.architecture,
            preprocessing=self.preprocessing,
            dtype=jax.numpy.dtype(self.module.dtype).name,
        )
        return write(stored, path, WriteOptions(layout=layout, shard_bytes=shard_bytes))

    def _known_preprocessing(self, what: str) -> Preprocessing:
        if self.preprocessing is None:
            raise UserError(
                f"this model has no known preprocessing, so {what} cannot be encoded; load it with preprocessing=, or "
                "pass arrays"
            )
        return self.preprocessing

    def _encode(self, method: str, rows: Any, batch_size: int) -> np.ndarray:
        """Batches of at most `batch_size` rows a device, the last padded to a power of two of them so that few shapes
        are compiled."""
        if type(batch_size) is not int or batch_size < 1:
            raise UserError(f"{method}: batch_size={batch_size!r}; expected a whole number of at least 1")
        count = len(jax.tree.leaves(rows)[0])
        if count == 0:
            return np.zeros((0, self.architecture.embedding_dim), np.float32)
        encode, (mesh, params) = _encoder(self.module, method), self._on_devices
        spread, most = NamedSharding(mesh, PartitionSpec("data")), batch_size * mesh.size
        outputs: list[tuple[Any, int]] = []
        for begin in range(0, count, most):
            size = min(most, count - begin)
            each = min(batch_size, 1 << (-(-size // mesh.size) - 1).bit_length())
            batch = jax.tree.map(lambda x: _padded(x[begin : begin + size], each * mesh.size - size), rows)  # noqa: B023
            outputs.append((encode(params, jax.device_put(batch, spread)), size))
            if len(outputs) > _IN_FLIGHT:  # so that inputs do not pile up
                jax.block_until_ready(outputs[-1 - _IN_FLIGHT][0])
        embeddings = np.concatenate([np.asarray(z)[:size] for z, size in outputs])
        if bad := np.flatnonzero(~np.isfinite(embeddings).all(axis=1)).tolist():
            raise UserError(f"{method}: NaN in the embeddings of rows {bad[:10]}; are their inputs finite?")
        return embeddings

    @functools.cached_property
    def _on_devices(self) -> tuple[Mesh, Any]:
        """The devices of this process in one row, and the parameters on each of them."""
        mesh = Mesh(np.array(encoding_devices()), ("data",))
        return mesh, jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))


def encoding_devices() -> list[jax.Device]:
    """What `Model.encode_*` compute on: all devices of this process, or the one that `jax_default_device` names."""
    chosen = getattr(jax.config, "jax_default_device", None)  # its stubs do not know it
    if isinstance(chosen, str):
        return jax.local_devices(backend=chosen)
    return [chosen] if chosen is not None else jax.local_devices()


@functools.lru_cache(maxsize=32)
def _encoder(module: TwoTowers, method: str) -> Callable[[Any, Any], jax.Array]:
    """One jitted function a module and tower, shared by every `Model` of that module."""
    return jax.jit(lambda params, x: module.apply({"params": params}, x, method=method))


def check_preprocessing(model: Model) -> None:
    """Raises a UserError that shows both where the preprocessing does not make what the towers take."""
    architecture = model.architecture
    if model.preprocessing is not None:
        model.preprocessing.check_fits(
            image_size=architecture.image_size,
            text_length=architecture.text_length,
            vocab_size=architecture.vocab_size,
            naflex_patch=architecture.patch_size if architecture.naflex else 0,
        )


def _sequence(method: str, what: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise UserError(f"{method}: a {type(values).__name__}; expected an array, or a sequence of {what}")
    return list(values)


def _padded(rows: Any, padding: int) -> Any:
    return np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)]) if padding else rows


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array, Patches))


def init(module: TwoTowers, preprocessing: Preprocessing | None, *, seed: int) -> Model:
    """A model of random weights."""
    params = jax.jit(lambda: module.init(jax.random.key(seed), *example_inputs(module.architecture))["params"])()
    return Model(module=module, params=params, preprocessing=preprocessing)
