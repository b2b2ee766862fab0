"""What users hold: a module, its parameters and its preprocessing.

A saved model is a folder: model.json (architecture), model.safetensors (parameters, keys as big_vision's), and
preprocessing.json with tokenizer.model. A workdir of a training run has the same description, with the parameters in
checkpoints/ instead.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from siglip_jax.errors import UserError
from siglip_jax.models.towers import Architecture, TwoTowers
from siglip_jax.preprocessing import Preprocessing

FORMAT = "siglip-jax model 1"
MAX_BATCH = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A SigLIP model ready to encode.

    Attributes:
      module: the two towers.
      params: big_vision's tree {"img", "txt", "t", "b"} of arrays.
      preprocessing: how pictures and titles become arrays, or None when it is not known.
    """

    module: TwoTowers
    params: dict[str, Any] = dataclasses.field(repr=False)
    preprocessing: Preprocessing | None = None

    @property
    def architecture(self) -> Architecture:
        return self.module.architecture

    def replace(self, **changes: Any) -> Model:
        return dataclasses.replace(self, **changes)

    def encode_image(self, images: Any, *, batch_size: int = MAX_BATCH) -> np.ndarray:
        """float [n, h, w, 3] in [-1, 1], or a sequence of PIL images or encoded bytes -> unit-norm float32 [n, d].

        Raises:
          UserError: uint8 arrays (their range is not known), another picture size, or pictures without a known
            preprocessing.
        """
        if not _is_array(images):
            images = self._known_preprocessing("pictures").images(images)
        size = self.architecture.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (*size, 3) or not np.issubdtype(images.dtype, np.floating):
            raise UserError(
                f"encode_image: {images.dtype} {list(images.shape)}; expected float [n, {size[0]}, {size[1]}, 3] in "
                "[-1, 1], or PIL images, which go through model.preprocessing"
            )
        return self._encode("encode_image", images, batch_size)

    def encode_text(self, texts: Any, *, batch_size: int = MAX_BATCH) -> np.ndarray:
        """int32 ids [n, L], or strings -> unit-norm float32 [n, d].

        Raises:
          UserError: ids of another shape or type, or strings without a known preprocessing.
        """
        if not _is_array(texts):
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
        return np.exp(t) * (np.asarray(image) @ np.asarray(text).T) + b

    def save_description(self, folder: epath.PathLike) -> None:
        """Writes everything but the parameters."""
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {
            "format": FORMAT,
            "architecture": self.architecture.to_json(),
            "dtype": jax.numpy.dtype(self.module.dtype).name,
        }
        (folder / "model.json").write_text(json.dumps(fields, indent=1) + "\n")
        if self.preprocessing is not None:
            self.preprocessing.save(folder)

    def save(self, folder: epath.PathLike) -> None:
        """Writes the model folder that `load` reads."""
        self.save_description(folder)
        flat = flax.traverse_util.flatten_dict(jax.device_get(self.params), sep="/")
        arrays = {name: np.ascontiguousarray(value) for name, value in flat.items()}
        (epath.Path(folder) / "model.safetensors").write_bytes(safetensors.numpy.save(arrays, {"format": FORMAT}))

    def _known_preprocessing(self, what: str) -> Preprocessing:
        if self.preprocessing is None:
            raise UserError(f"this model has no known preprocessing, so {what} cannot be encoded; pass preprocessing=")
        return self.preprocessing

    def _encode(self, method: str, array: np.ndarray, batch_size: int) -> np.ndarray:
        """Batches of at most `batch_size`, the last padded to a power of two so that few shapes are compiled."""
        if len(array) == 0:
            return np.zeros((0, self.architecture.embedding_dim), np.float32)
        outputs = []
        for begin in range(0, len(array), batch_size):
            rows = array[begin : begin + batch_size]
            padding = min(batch_size, 1 << (len(rows) - 1).bit_length()) - len(rows)
            padded = np.concatenate([rows, np.repeat(rows[-1:], padding, axis=0)]) if padding else rows
            outputs.append((_encoder(self.module, method)(self._device_params, padded), len(rows)))
        return np.concatenate([np.asarray(z)[:n] for z, n in outputs])

    @functools.cached_property
    def _device_params(self) -> Any:
        return jax.device_put(self.params)


@functools.lru_cache(maxsize=32)
def _encoder(module: TwoTowers, method: str):
    """One jitted function a module and tower, shared by every `Model` of that module."""
    return jax.jit(lambda params, x: module.apply({"params": params}, x, method=method))


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array))


def init(module: TwoTowers, preprocessing: Preprocessing | None, *, seed: int) -> Model:
    """A model of random weights."""
    params = jax.jit(lambda: module.init(jax.random.key(seed), *_example(module.architecture))["params"])()
    return Model(module=module, params=params, preprocessing=preprocessing)


def load(path: epath.PathLike | Sequence[str], **module_options: Any) -> Model:
    """Reads a saved model, or the newest checkpoint of a workdir.

    Args:
      path: a folder written by `Model.save` or a training run's workdir.
      module_options: other fields of `TwoTowers`, such as dtype="bfloat16" or remat="full".

    Raises:
      UserError: not such a folder, or parameters that are missing, extra, misshapen or not finite.
    """
    folder = epath.Path(path)
    description = folder / "model.json"
    if not description.exists():
        raise UserError(f"{path}: no model.json; expected a saved model or the --workdir of a training run")
    try:
        fields = json.loads(description.read_text())
        if fields.get("format") != FORMAT:
            raise ValueError(f"format is {fields.get('format')!r}, expected {FORMAT!r}")
        architecture, dtype = Architecture.from_json(fields["architecture"]), fields["dtype"]
    except (ValueError, KeyError, AttributeError, UserError) as error:
        raise UserError(f"{description}: not a model description ({error})") from error
    module = TwoTowers(architecture, **{"dtype": dtype, **module_options})
    preprocessing = Preprocessing.load(folder) if (folder / "preprocessing.json").exists() else None
    if (folder / "model.safetensors").exists():
        params = _read_safetensors(folder / "model.safetensors")
        check_params(params, module, source=folder / "model.safetensors")
    elif (folder / "checkpoints").exists():
        from siglip_jax.checkpoints import restore_params

        params, _ = restore_params(folder / "checkpoints", like=_shapes(module))
        params = jax.device_get(params)
    else:
        raise UserError(f"{path}: neither model.safetensors nor checkpoints/; train first, or copy the parameters")
    return Model(module=module, params=params, preprocessing=preprocessing)


def check_params(params: Any, module: TwoTowers, *, source: Any) -> None:
    """Raises a UserError that lists every missing, extra or misshapen key, or the first one not finite."""
    found = flax.traverse_util.flatten_dict(params, sep="/")
    expected = flax.traverse_util.flatten_dict(_shapes(module), sep="/")
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"extra {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} is {list(found[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name].shape) != tuple(expected[name].shape)
    ]
    if problems:
        raise UserError(f"{source}: parameters of another model: {'; '.join(problems)}")
    for name, value in found.items():
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{source}: {name} holds NaN or infinity; the file is damaged or its training diverged")


def _read_safetensors(path: epath.Path) -> dict[str, Any]:
    try:
        flat = safetensors.numpy.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy it again") from error
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _example(architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros((1, *architecture.image_size, 3), np.float32)
    return image, np.zeros((1, architecture.text_length), np.int32)


def _shapes(module: TwoTowers) -> Any:
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *_example(module.architecture))["params"])
