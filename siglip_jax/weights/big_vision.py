"""big_vision's .npz checkpoints (big_vision/utils.py, models/vit.py, models/proj/image_text/text_transformer.py).

The parameter tree is ours, name for name. What differs between files: layers kept one by one (`encoderblock_0/...`) or
stacked (`encoderblock/...`) in either tower, a `params/` prefix, bfloat16 stored as two-byte void, and a text position
embedding that very old files hold twice.
"""

from __future__ import annotations

import collections
import math
import re
import zipfile
from typing import Any

import flax.traverse_util
import ml_dtypes
import numpy as np
from etils import epath

from siglip_jax.errors import UserError, check_choice
from siglip_jax.models.architecture import Architecture, TowerSize
from siglip_jax.models.presets import PRESETS, Preset
from siglip_jax.weights.stored_model import LAYOUTS, Format, StoredModel, WriteOptions
from siglip_jax.weights.tensors import list_some, unflatten

MAX_BYTES = 64 * 2**30  # of a file's arrays, unpacked
DOUBLED = "txt/Encoder_0/pos_embedding"
_LAYER = re.compile(r"(.*/)encoderblock_(0|[1-9][0-9]{0,3})/(.*)")
_TRAINING_STATE = ("opt/", "opt_state/", "extra/", "chrono/")  # beside params/ in checkpoints of a running training


def read_params(path: epath.PathLike) -> dict[str, Any]:
    """A checkpoint -> our parameter tree: layers stacked, dtypes as stored.

    The optimiser state of a training checkpoint is left out.

    Raises:
      UserError: not a complete .npz of arrays, or layers that do not stack.
    """
    path = epath.Path(path)
    flat = _arrays(path)
    other = [name for name in flat if not name.startswith("params/")]
    if other and len(other) < len(flat):
        raise UserError(f"{path}: {list_some(other)} beside params/; not a big_vision checkpoint")
    flat = {name.removeprefix("params/"): value for name, value in flat.items()}
    if DOUBLED in flat:
        if "txt/pos_embedding" not in flat:
            raise UserError(f"{path}: {DOUBLED} without txt/pos_embedding, which it is to be added to")
        first, second = flat["txt/pos_embedding"], flat.pop(DOUBLED)
        if first.shape != second.shape:
            raise UserError(f"{path}: {DOUBLED} is {second.shape}, txt/pos_embedding is {first.shape}; expected equal")
        flat["txt/pos_embedding"] = first + second
    return unflatten(_stack(flat, path), source=path)


def write_params(params: Any, path: epath.PathLike, *, layout: str = "stacked", prefix: str = "params/") -> None:
    """Writes our parameter tree as an .npz; bfloat16 as two-byte void, as big_vision does.

    Args:
      layout: "stacked" is read by big_vision models with scan=True, "layers" by those without.
    """
    check_choice("layout", layout, LAYOUTS)
    flat = {name: np.asarray(value) for name, value in flax.traverse_util.flatten_dict(params, sep="/").items()}
    if layout == "layers":
        flat = _unstack(flat)
    stored = {
        prefix + name: value.view("V2") if value.dtype == ml_dtypes.bfloat16 else value for name, value in flat.items()
    }
    with epath.Path(path).open("wb") as file:
        np.savez(file, **stored)  # type: ignore[arg-type]


def architecture_of(params: Any, *, image_size: tuple[int, int] | None = None, source: object = "") -> Architecture:
    """The architecture that parameter shapes tell.

    Args:
      params: our tree, layers stacked.
      image_size: (height, width), needed where the position embedding is of no square picture.

    Raises:
      UserError: a tower or a tensor that tells a size is missing, or the shapes contradict each other.
    """
    flat = {name: tuple(np.shape(x)) for name, x in flax.traverse_util.flatten_dict(params, sep="/").items()}
    for tower, name in (("image", "img/"), ("text", "txt/")):
        if not any(key.startswith(name) for key in flat):
            raise UserError(f"{source}: no {tower} tower ({name}...); expected both, with t and b")
    try:
        embedding, positions = flat["img/embedding/kernel"], flat["img/pos_embedding"]
        naflex = len(embedding) == 2
        patch = math.isqrt(embedding[0] // 3) if naflex else embedding[0]
        grid = positions[:2] if naflex else (math.isqrt(positions[1]),) * 2
        if image_size is None and not naflex and grid[0] ** 2 != positions[1]:
            raise UserError(f"{source}: {positions[1]} positions are of no square picture; pass image_size=")
        vocab_size, text_length = flat["txt/Embed_0/embedding"][0], flat["txt/pos_embedding"][1]
        image, text = _size(flat, "img/Transformer"), _size(flat, "txt/Encoder_0")
    except UserError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{source}: not a SigLIP model, {error} is missing or of another shape") from error
    return Architecture(
        image_size=image_size or (grid[0] * patch, grid[1] * patch),
        patch_size=patch,
        image=image,
        text=text,
        vocab_size=vocab_size,
        text_length=text_length,
        text_head="txt/head/kernel" in flat,
        naflex=naflex,
    )


def _size(flat: dict[str, tuple[int, ...]], encoder: str) -> TowerSize:
    depth, width, heads, _ = flat[f"{encoder}/encoderblock/MultiHeadDotProductAttention_0/query/kernel"]
    mlp_dim = flat[f"{encoder}/encoderblock/MlpBlock_0/Dense_0/kernel"][-1]
    return TowerSize(width=width, depth=depth, mlp_dim=mlp_dim, heads=heads)


def _arrays(path: epath.Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
            size, names = sum(member.file_size for member in members), [member.filename for member in members]
            if size > MAX_BYTES:
                raise UserError(f"{path}: unpacks to {size / 2**30:.0f} GiB; the limit is {MAX_BYTES // 2**30} GiB")
            if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
                raise UserError(f"{path}: holds {list_some(twice)} twice; which one counts is not known")
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                wanted = [name for name in stored.files if not name.startswith(_TRAINING_STATE)]
                arrays = {name: stored[name] for name in wanted}
    except UserError:
        raise
    except Exception as error:  # numpy's reader raises a dozen types on damaged members, MemoryError among them
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a complete .npz of arrays ({reason}); copy it again") from error
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path}: {list_some([name])} is not an array; not a big_vision checkpoint")
        if value.dtype == np.dtype("V2"):
            arrays[name] = value.view(ml_dtypes.bfloat16)
        elif not np.issubdtype(value.dtype, np.floating):
            raise UserError(f"{path}: {name} holds {value.dtype}; expected floating point numbers")
    return arrays


def _stack(flat: dict[str, np.ndarray], path: epath.Path) -> dict[str, np.ndarray]:
    layers: dict[str, dict[int, np.ndarray]] = collections.defaultdict(dict)
    stacked = {}
    for name, value in flat.items():
        if match := _LAYER.fullmatch(name):
            layers[f"{match[1]}encoderblock/{match[3]}"][int(match[2])] = value
        else:
            stacked[name] = value
    for name, values in layers.items():
        count, shapes = len(values), {value.shape for value in values.values()}
        if name in stacked or sorted(values) != list(range(count)) or len(shapes) > 1:
            raise UserError(f"{path}: the layers of {name} are {sorted(values)} of shapes {shapes}; expected 0, 1, ...")
        stacked[name] = np.stack([values[number] for number in range(count)])
    return stacked


def _unstack(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers: dict[str, np.ndarray] = {}
    for name, value in flat.items():
        if "/encoderblock/" in name:
            layers |= {name.replace("encoderblock", f"encoderblock_{i}"): layer for i, layer in enumerate(value)}
        else:
            layers[name] = value
    return layers


# --- the format -------------------------------------------------------------------------------------------------------


def detect(path: epath.Path) -> bool:
    """An .npz file."""
    return path.suffix == ".npz" and not path.is_dir()


def read(path: epath.Path, preset: Preset | None = None) -> StoredModel:
    """The parameters; of a preset that was asked for by name, the size and the preprocessing it was published with."""
    params = read_params(path)
    architecture = architecture_of(params, source=path)
    architecture = published_size(architecture) if preset is None else _like_preset(architecture, preset)
    preprocessing = preset.preprocessing("big_vision") if preset else None
    return StoredModel(params=params, architecture=architecture, preprocessing=preprocessing, source=path)


def write(model: StoredModel, path: epath.Path, options: WriteOptions) -> list[str]:
    """Writes the parameters. UserError where the path does not end in .npz, and for an adapter."""
    image, text = model.architecture.pictures_tower("save as big_vision"), model.architecture.text
    if path.suffix != ".npz":
        raise UserError(f"save: {path}; a big_vision checkpoint is an .npz file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_params(model.params, path, layout=options.layout)
    notes = [] if model.preprocessing is None else ["an .npz holds no preprocessing and no tokenizer"]
    if (image.gelu, text.gelu) != ("tanh", "tanh"):
        notes.append("the exact GELU; big_vision computes it by tanh, and so will whoever reads the .npz")
    return notes


def published_size(architecture: Architecture) -> Architecture:
    """Shapes tell the grid of patches, not the pixels beyond it: So400m/14 has 27 patches a side of 384 pixels."""
    for preset in PRESETS.values():
        if _like_preset(architecture, preset) == preset.architecture:
            return preset.architecture
    return architecture


def _like_preset(architecture: Architecture, preset: Preset) -> Architecture:
    if (architecture.grid, architecture.patch_size) != (preset.architecture.grid, preset.architecture.patch_size):
        return architecture
    return Architecture.from_json(architecture.to_json() | {"image_size": list(preset.architecture.image_size)})


BIG_VISION = Format(description="a big_vision .npz", detect=detect, read=read, write=write)
