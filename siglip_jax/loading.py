"""`load`: a preset's name, or weights in any format this project reads, to a `Model`."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import flax.traverse_util
import jax
import numpy as np
from etils import epath

from siglip_jax.errors import UserError, check_choice
from siglip_jax.model import Model, check_preprocessing
from siglip_jax.models.architecture import DTYPES, GELUS, Architecture
from siglip_jax.models.presets import PRESETS, Preset
from siglip_jax.models.towers import TwoTowers, parameter_shapes, storage_dtype
from siglip_jax.models.transformer import REMAT_POLICIES
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.weights import tensors
from siglip_jax.weights.formats import detect_format, expected_sources
from siglip_jax.weights.native import without_best
from siglip_jax.weights.position_embedding import METHODS, resize_positions

WEIGHTS_FOLDER = "SIGLIP_JAX_WEIGHTS"  # environment variable: folder of downloaded weights
STORED = "stored"
MAX_LOG_TEMPERATURE = 80.0  # exp(88.7) is the largest float32


def load(
    name_or_path: epath.PathLike,
    *,
    weights: epath.PathLike | None = None,
    tokenizer: epath.PathLike | None = None,
    preprocessing: Preprocessing | str | None = None,
    image_size: tuple[int, int] | None = None,
    position_resize: str = "linear",
    dtype: str | None = None,
    param_dtype: str = "float32",
    remat: str = "none",
    unroll: int = 1,
) -> Model:
    """Loads a model, with the preprocessing that its format carries.

    Args:
      name_or_path: a preset such as "google/siglip2-base-patch16-256", or a path (local or gs://) of a folder for
        transformers, sentence-transformers or open_clip, a big_vision .npz, a training run's workdir (its newest
        checkpoint; workdir@best is the best one), one of its checkpoints (workdir/checkpoints/500), or a folder of
        `Model.save`. `Model.source` tells which it was.
      weights: where a preset's weights are: such a folder, an .npz, or a .safetensors of open_clip's or transformers'
        tensors. Without it: the folder that the environment variable SIGLIP_JAX_WEIGHTS names, then huggingface_hub.
      tokenizer: a SentencePiece file or a Hugging Face tokenizer.json, for weights that come without one (.npz).
      preprocessing: takes the place of what the format says. A preset's name stands for what its big_vision weights
        were trained with, at the model's own picture size and text length: for weights like them in an .npz.
      image_size: (height, width) other than the checkpoint's; the position embedding is resized.
      position_resize: "linear" (big_vision) or "bicubic" (Hugging Face).
      dtype: of computing; as saved, or float32, when absent.
      param_dtype: of the parameters, t and b apart, which stay float32; "stored" leaves all as the file has them.
      remat, unroll: see `TwoTowers`.

    Raises:
      UserError: nothing there, a damaged file, or parameters that are missing, extra, misshapen or not finite.
    """
    for option, value, choices in (
        ("dtype", dtype, (None, *DTYPES)),
        ("param_dtype", param_dtype, (*DTYPES, STORED)),
        ("position_resize", position_resize, METHODS),
        ("remat", remat, tuple(REMAT_POLICIES)),
    ):
        check_choice(f"load: {option}", value, choices)
    if type(unroll) is not int or unroll < 1:
        raise UserError(f"load: unroll={unroll!r}; expected a whole number of at least 1")
    if not os.fspath(name_or_path):
        raise UserError(f"load: an empty path; expected {expected_sources()}")
    preset = None if _is_path(name_or_path) else PRESETS.get(os.fspath(name_or_path))
    if weights is not None and preset is None:
        raise UserError(f"load: weights= goes with a preset's name, and {name_or_path} is not one")
    if preset is not None:
        source = epath.Path(weights) if weights is not None else _find_weights(preset)
    else:
        source = epath.Path(name_or_path).expanduser()
    try:
        source = without_best(source)
        model = _read(source, preset)
    except UserError:
        raise
    except Exception as error:  # of the file system: OSError, and what the clients of gs:// raise
        raise UserError(f"{source}: cannot be read ({' '.join(str(error).split())[:200]}); check the path") from error
    if preset is not None and model.architecture != preset.architecture:
        raise UserError(
            f"{source}: not the weights of {preset.name}: {_differences(model.architecture, preset.architecture)}"
        )
    if isinstance(preprocessing, str):
        if (preset := PRESETS.get(preprocessing)) is None:
            raise UserError(f"load: preprocessing={preprocessing!r}; expected a preset's name (siglip-jax models)")
        own = {name: getattr(model.architecture, name) for name in ("image_size", "text_length")}
        preprocessing = preset.preprocessing("big_vision").replace(**own)
    if preprocessing is not None:
        model = model.replace(preprocessing=preprocessing)
    if tokenizer is not None:
        model = model.replace(preprocessing=_with_tokenizer(model, preset, epath.Path(tokenizer)))
    if image_size is not None and tuple(image_size) != model.architecture.image_size:
        model = with_image_size(model, image_size, method=position_resize)
    check_preprocessing(model)
    compute = dtype or model.module.dtype
    store = model.module.param_dtype if param_dtype == STORED else param_dtype
    module = TwoTowers(model.architecture, dtype=compute, param_dtype=store, remat=remat, unroll=unroll)
    params = model.params if param_dtype == STORED else cast_params(model.params, store)
    return model.replace(module=module, params=params, source=model.source)


def cast_params(params: Any, dtype: str) -> Any:
    """Parameters in another dtype, but for those that `storage_dtype` keeps in float32."""

    def cast(path: tuple[jax.tree_util.DictKey, ...], x: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        with np.errstate(over="ignore"):  # said below
            new = np.asarray(x).astype(storage_dtype(name, dtype), copy=False)
        if new.dtype != x.dtype and not np.isfinite(np.asarray(new, np.float32)).all():
            raise UserError(f"{name} holds numbers beyond {dtype}; keep the type it has, or use bfloat16")
        return new

    return jax.tree_util.tree_map_with_path(cast, params)


def with_image_size(model: Model, image_size: tuple[int, int], *, method: str = "linear") -> Model:
    """The model for pictures of another size, its position embedding resized by `method`.

    NaFlex models have no use for it: they resize theirs for each picture; adapters see none.
    """
    model.architecture.pictures_tower("image_size")
    if model.architecture.naflex:
        raise UserError("image_size does not apply to a NaFlex model; set max_patches of its preprocessing")
    fields = model.architecture.to_json() | {"image_size": list(image_size)}
    architecture = Architecture.from_json(fields)
    positions = np.asarray(model.params["img"]["pos_embedding"])
    grid = positions.reshape(*model.architecture.grid, positions.shape[-1])
    resized = resize_positions(grid, architecture.grid, method=method).reshape(1, -1, positions.shape[-1])
    params = {**model.params, "img": {**model.params["img"], "pos_embedding": resized}}
    preprocessing = model.preprocessing and model.preprocessing.replace(image_size=image_size)
    module = model.module.clone(architecture=architecture)
    return model.replace(module=module, params=params, preprocessing=preprocessing, source=model.source)


def with_image_gelu(model: Model, gelu: str) -> Model:
    """The model with another GELU in its image tower, "tanh" or "exact"; embeddings change a little.

    Raises:
      UserError: an unknown one, or an adapter.
    """
    check_choice("image_gelu", gelu, GELUS)
    tower = model.architecture.pictures_tower("image_gelu")
    architecture = dataclasses.replace(model.architecture, image=dataclasses.replace(tower, gelu=gelu))
    return model.replace(module=model.module.clone(architecture=architecture))


# --- where the weights are --------------------------------------------------------------------------------------------


def _is_path(name_or_path: epath.PathLike) -> bool:
    path = os.fspath(name_or_path)
    if "://" in path and not path.startswith(("gs://", "s3://", "file://")):
        raise UserError(f"{path}: expected a local path or gs://")
    return "://" in path or epath.Path(path).expanduser().exists()


def _find_weights(preset: Preset) -> epath.Path:
    """A preset's weights in the folder of SIGLIP_JAX_WEIGHTS, or from the Hugging Face hub (its cache included)."""
    folder = os.environ.get(WEIGHTS_FOLDER)
    if folder:
        found = [epath.Path(folder) / name for name in (preset.name, preset.name.split("/")[1])]
        found.append(epath.Path(folder) / preset.big_vision.rsplit("/", 1)[1])
        for path in found:
            if path.exists():
                return path
    published = f"https://huggingface.co/{preset.name} or {preset.big_vision}"
    advice = f"download {published} and pass weights=, or set {WEIGHTS_FOLDER}"
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{preset.name}: no weights here and no huggingface_hub to fetch them; {advice}") from error
    try:
        patterns = ["*.json", "*.safetensors", "*.model"]
        return epath.Path(huggingface_hub.snapshot_download(preset.name, allow_patterns=patterns))
    except Exception as error:  # its own, httpx's and OSError, by version
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{preset.name}: the Hugging Face hub did not answer ({reason}); {advice}") from error


def _read(source: epath.Path, preset: Preset | None) -> Model:
    stored = detect_format(source).read(source, preset)
    check_params(stored.params, stored.architecture, source=stored.source)
    stored.check_bytes()  # last, since the checks above say more of what is wrong
    dtype = np.asarray(stored.params["txt"]["pos_embedding"]).dtype.name
    module = TwoTowers(stored.architecture, dtype=stored.dtype, param_dtype=dtype if dtype in DTYPES else "float32")
    return Model(
        module=module,
        params=stored.params,
        preprocessing=stored.preprocessing,
        source=str(stored.source or source),
    )


# --- checks -----------------------------------------------------------------------------------------------------------


def check_params(params: Any, architecture: Architecture, *, source: object) -> None:
    """Raises a UserError that lists every missing, extra or misshapen key, or the first one not finite."""
    found = flax.traverse_util.flatten_dict(params, sep="/")
    expected = flax.traverse_util.flatten_dict(parameter_shapes(architecture), sep="/")
    tensors.check_names_and_shapes(found, {name: x.shape for name, x in expected.items()}, source=source)
    for name, value in found.items():
        if value.dtype.name not in DTYPES:
            raise UserError(f"{source}: {name} holds {value.dtype}; expected one of {', '.join(DTYPES)}")
        if not np.isfinite(np.asarray(value, np.float32)).all():
            raise UserError(f"{source}: {name} holds NaN or infinity; the file is damaged or its training diverged")
    if (t := float(np.asarray(found["t"], np.float64)[0])) > MAX_LOG_TEMPERATURE:
        raise UserError(f"{source}: t is {t:.1f} and exp(t) no float32; t is the LOG temperature, about 2 to 5")


def _with_tokenizer(model: Model, preset: Preset | None, path: epath.Path) -> Preprocessing:
    if model.preprocessing is None:
        raise UserError(
            f"load: {path} alone does not tell how titles are prepared; load by the preset's name with weights=, "
            "or pass preprocessing= as well, such as the name of a preset"
        )
    try:
        serialised = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"tokenizer {path}: {error.strerror}; pass a SentencePiece .model or a tokenizer.json"
        ) from error
    if model.preprocessing.tokenizer not in (None, serialised):
        raise UserError(
            f"tokenizer {path}: the model has its own, of sha256 {model.preprocessing.to_json()['tokenizer_sha256']}; "
            "leave the other one out"
        )
    preprocessing = model.preprocessing.replace(tokenizer=serialised)
    expected = preset.family.tokenizer_sha256 if preset else None
    found = preprocessing.to_json()["tokenizer_sha256"]
    if expected and not serialised.lstrip().startswith(b"{") and found != expected:
        raise UserError(
            f"tokenizer {path}: sha256 is {found}, that of {preset.family.title} is {expected}; "  # type: ignore[union-attr]
            f"{preset.family.tokenizer} is the published one"  # type: ignore[union-attr]
        )
    return preprocessing


def _differences(found: Architecture, expected: Architecture) -> str:
    ours, theirs = found.to_json(), expected.to_json()
    return "; ".join(f"{name} is {ours[name]}, expected {theirs[name]}" for name in ours if ours[name] != theirs[name])
