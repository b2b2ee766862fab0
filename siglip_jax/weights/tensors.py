"""Named arrays in safetensors files: the storage of our own folders and of Hugging Face's."""

from __future__ import annotations

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
        pickled = [path.name for path in folder.glob("*.bin")]
        hint = f"; {pickled[0]} is a pickle, which is never read: save it again as safetensors" if pickled else ""
        raise UserError(f"{folder}: no {SINGLE}{hint}")
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
    """Writes one file. safetensors stores the bytes of a transposed view in the wrong order, hence the copies."""
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    if "://" in str(path):
        path.write_bytes(safetensors.numpy.save(contiguous, metadata))
    else:
        safetensors.numpy.save_file(contiguous, str(path), metadata)


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
