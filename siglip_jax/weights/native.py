"""Our own folders: what `Model.save` writes, and workdirs of training runs.

model.json              architecture, and the dtype of computing
model.safetensors       parameters, keys as big_vision's; checkpoints/ instead in a workdir
preprocessing.json      with tokenizer.model or tokenizer.json
"""

from __future__ import annotations

import json
from typing import Any

import flax.traverse_util
import jax
from etils import epath

from siglip_jax import files
from siglip_jax.errors import UserError
from siglip_jax.models.architecture import DTYPES, Architecture
from siglip_jax.models.presets import Preset
from siglip_jax.models.towers import parameter_shapes
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.weights import tensors
from siglip_jax.weights.stored_model import Format, StoredModel, WriteOptions

MARK = "siglip-jax model 1"
DESCRIPTION, CHECKPOINTS = "model.json", "checkpoints"
BEST = "@best"  # behind a workdir: the best checkpoint, in the place of the newest


def detect(path: epath.Path) -> bool:
    """A folder with model.json, or one checkpoint of a workdir (workdir/checkpoints/500)."""
    return path.is_dir() and ((path / DESCRIPTION).exists() or _is_checkpoint(path))


def _is_checkpoint(path: epath.Path) -> bool:
    return path.parent.name == CHECKPOINTS and path.name.isdigit() and (path.parent.parent / DESCRIPTION).exists()


def without_best(path: epath.Path) -> epath.Path:
    """RUN@best -> RUN/checkpoints/500, the best by the run's `config.evaluation.best_metric`; other paths as they are.

    Raises:
      UserError: no workdir, or none of its checkpoints is the best.
    """
    if not path.name.endswith(BEST) or path.exists():
        return path
    run = path.parent / path.name.removesuffix(BEST)
    if not (run / CHECKPOINTS).exists():
        raise UserError(f"{path}: {run} has no {CHECKPOINTS}/; expected the workdir of a run before {BEST}")
    from siglip_jax.checkpoints import best_step

    return run / CHECKPOINTS / str(best_step(run / CHECKPOINTS))


def read(path: epath.Path, preset: Preset | None = None) -> StoredModel:
    """Raises UserError: a description or parameters that are damaged, or no parameters."""
    if (path / DESCRIPTION).exists():
        return _read(path, step=None)
    return _read(path.parent.parent, step=int(path.name))


def _read(folder: epath.Path, *, step: int | None) -> StoredModel:
    description = folder / DESCRIPTION
    fields = files.read_json(description)
    try:
        if fields.get("format") != MARK:
            raise ValueError(f"format is {fields.get('format')!r}, expected {MARK!r}")
        architecture, dtype = Architecture.from_json(fields["architecture"]), fields["dtype"]
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    except (ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{description}: not a model description ({error})") from error
    common: dict[str, Any] = {
        "architecture": architecture,
        "dtype": dtype,
        "preprocessing": Preprocessing.load(folder) if (folder / "preprocessing.json").exists() else None,
    }
    weights = folder / tensors.SINGLE
    if step is None and weights.exists():

        def check_bytes() -> None:  # safetensors has no checksum of its own
            if fields.get("weights_sha256", (found := files.sha256(weights))) != found:
                raise UserError(f"{weights}: not the file that model.json was written with; copy it again")

        params = tensors.unflatten(tensors.read(folder), source=weights)
        return StoredModel(params=params, source=weights, check_bytes=check_bytes, **common)
    if (folder / CHECKPOINTS).exists():
        from siglip_jax.checkpoints import restore_params

        checkpoints = folder / CHECKPOINTS
        params, found = restore_params(checkpoints, like=parameter_shapes(architecture), step=step)
        return StoredModel(params=jax.device_get(params), source=checkpoints / str(found), **common)
    raise UserError(f"{folder}: neither {tensors.SINGLE} nor checkpoints/; train first, or copy the parameters")


def write(model: StoredModel, folder: epath.Path, options: WriteOptions) -> list[str]:
    """Writes everything; nothing is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / tensors.SINGLE
    flat = flax.traverse_util.flatten_dict(model.params, sep="/")
    tensors.write_file(weights, flat, metadata={"format": MARK})
    write_description(
        folder,
        architecture=model.architecture,
        dtype=model.dtype,
        preprocessing=model.preprocessing,
        weights_sha256=files.sha256(weights),
    )
    return []


def write_description(
    folder: epath.Path,
    *,
    architecture: Architecture,
    dtype: str,
    preprocessing: Preprocessing | None,
    weights_sha256: str | None = None,
) -> None:
    """Writes everything but the parameters, whose file's sum it may hold."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "format": MARK,
        "architecture": architecture.to_json(),
        "dtype": dtype,  # of computing; the parameters carry their own
    }
    if weights_sha256 is not None:
        fields["weights_sha256"] = weights_sha256
    (folder / DESCRIPTION).write_text(json.dumps(fields, indent=1) + "\n")
    if preprocessing is not None:
        preprocessing.save(folder)


NATIVE = Format(
    description="a folder of Model.save or a training run's workdir (model.json)",
    detect=detect,
    read=read,
    write=write,
)
