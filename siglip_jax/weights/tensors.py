"""Named arrays in safetensors files: the storage of our own folders and of Hugging Face's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 by it)
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of a model in several files


def read(folder: epath.Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder's model.safetensors, or of the files its index names.

    Raises:
      UserError: no such file, a damaged one, or an index that points elsewhere or does not fit its files.
    """
    if (folder / SINGLE).exists():
        return read_file(folder / SINGLE)
    if not (folder / INDEX).exists():
        hint = conversion(folder, SINGLE)
        raise UserError(f"{folder}: no {SINGLE}{hint and f'; {hint}'}")
    where = files.read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{folder / INDEX}: not an index of safetensors files (no weight_map of names); copy it again")
    names = sorted(set(where.values()))
    if outside := [name for name in names if epath.Path(name).name != name or not name.endswith(".safetensors")]:
        raise UserError(f"{folder / INDEX}: names {outside[0]!r}, which is not a .safetensors file beside it")
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing, though the index names it; copy it beside {INDEX}")
        found = read_file(folder / name)
        if different := sorted(found.keys() ^ {key for key, file in where.items() if file == name}):
            raise UserError(f"{folder / INDEX}: does not fit {name} at {list_some(different)}; copy the folder again")
        tensors |= found
    return tensors


def read_file(path: epath.Path) -> dict[str, np.ndarray]:
    """Every tensor of one file; bfloat16 as `ml_dtypes.bfloat16`."""
    if not files.is_regular(path):
        raise UserError(f"{path}: not a file; expected safetensors")
    try:
        if "://" in str(path):
            return safetensors.numpy.load(path.read_bytes())
        return safetensors.numpy.load_file(str(path))  # mapped: no second copy of a large model
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); copy it again") from error


def write_file(path: epath.Path, tensors: Mapping[str, np.ndarray], *, metadata: dict[str, str]) -> None:
    """Writes one file. safetensors stores the bytes of a transposed view in the wrong order, hence the copies.

    Those make a scalar a vector, which it is not to become.
    """
    contiguous = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in tensors.items()}
    if "://" in str(path):
        path.write_bytes(safetensors.numpy.save(contiguous, metadata))
    else:
        safetensors.numpy.save_file(contiguous, str(path), metadata)


def write_folder(
    folder: epath.Path, tensors: Mapping[str, np.ndarray], *, metadata: dict[str, str], shard_bytes: int
) -> None:
    """Writes one file, or where it would hold more than `shard_bytes` several, with the index that names them.

    A tensor beyond the limit has a file of its own.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    if len(shards) == 1:
        write_file(folder / SINGLE, tensors, metadata=metadata)
        return
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard, metadata=metadata)
        where |= dict.fromkeys(shard, name)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


# --- what is never read -----------------------------------------------------------------------------------------------

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def conversion(path: epath.Path, name: str) -> str:
    """How a pickle, or those of a folder, becomes safetensors: for an error message; "" where there is none."""
    beside = path if path.is_dir() else path.parent
    found = sorted(each.name for each in path.iterdir()) if path.is_dir() else [path.name]
    pickles = [each for each in found if epath.Path(each).suffix in PICKLES]
    if not pickles:
        return ""
    program = (
        "import sys, torch, safetensors.torch as s; "
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "s.save_file({k: v.clone().contiguous() for k, v in d.get('state_dict', d).items()}, sys.argv[2])"
    )
    source, target = beside / pickles[0], beside / name
    return f'{pickles[0]} is a pickle, which is never read; convert it: python -c "{program}" {source} {target}'


# --- names ------------------------------------------------------------------------------------------------------------


def list_some(names: Iterable[str], *, at_most: int = 20) -> str:
    """ "a, b, c and 7 more" for an error message, each cut to a bound."""
    names = [name if len(name) <= 200 else f"{name[:200]}..." for name in names]
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def check_names_and_shapes(
    found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], *, source: object
) -> None:
    """Raises a UserError that lists every missing, extra or misshapen key."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {list(found[name].shape)}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name].shape) != tuple(expected[name])
    ]
    problems = [f"missing {name}" for name in missing] + [f"extra {name}" for name in extra] + misshapen
    if problems:
        listed = list_some(problems, at_most=60)
        raise UserError(f"{source}: parameters of another model ({len(problems)} keys differ): {listed}")


def unflatten(flat: Mapping[str, np.ndarray], *, source: object) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}; a UserError where a name is both a tensor and the start of another."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise UserError(f"{source}: {list_some([name])} lies below another tensor; not the file of a model")
        if leaf in node:
            raise UserError(f"{source}: {list_some([name])} is both a tensor and a folder; not the file of a model")
        node[leaf] = value
    return tree
