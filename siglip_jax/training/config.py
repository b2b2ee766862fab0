"""A training config: fields with their defaults, put together from the tables of `config_fields`; every file in
`configs/` starts from one of its two functions. docs/reference/config.md lists all fields."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import ml_collections

from siglip_jax.errors import UserError
from siglip_jax.training.config_fields.data_fields import DATA
from siglip_jax.training.config_fields.evaluation_fields import EVALUATION, LOGS
from siglip_jax.training.config_fields.field import Field, FieldTable
from siglip_jax.training.config_fields.model_fields import MODEL, PREPROCESSING
from siglip_jax.training.config_fields.optimizer_fields import OPTIMIZER
from siglip_jax.training.config_fields.run_fields import RUN
from siglip_jax.training.config_fields.steps_fields import AVERAGING, MESH, START, STEPS
from siglip_jax.training.config_fields.terms_fields import MATRYOSHKA, TEACHER

if TYPE_CHECKING:
    from jax.sharding import Mesh

TABLES: tuple[FieldTable, ...] = (
    START,
    DATA,
    PREPROCESSING,
    MODEL,
    STEPS,
    OPTIMIZER,
    AVERAGING,
    TEACHER,
    MATRYOSHKA,
    MESH,
    RUN,
    EVALUATION,
    LOGS,
)


def fields() -> Iterator[tuple[str, Field]]:
    """("optimizer.b1", field) of every field."""
    for table in TABLES:
        for name, field in table.fields.items():
            yield table.full_name(name), field


def default_config() -> ml_collections.ConfigDict:
    """A locked ConfigDict with the defaults of `TABLES`: an unknown field, from a file or a flag, is an error.

    Example:
      >>> config = default_config()
      >>> config.batch_size = 1024
      >>> config.optimizer.learning_rate = 1e-4
    """
    config = ml_collections.ConfigDict()
    for table in TABLES:
        if table.group and table.group not in config:
            config[table.group] = ml_collections.ConfigDict()
        group = config[table.group] if table.group else config
        for name, field in table.fields.items():
            default = copy.deepcopy(field.default)
            group[name] = ml_collections.ConfigDict(default) if isinstance(default, dict) else default
    return config.lock()


# What a model that already knows something starts with instead, and why. docs/guide/finetuning.md has the measurements.
FINETUNE_REASONS: dict[str, tuple[Any, str]] = {
    "optimizer.learning_rate": (1e-4, "Measured on towers of 2 M parameters; `configs/finetune.py` has 1e-5."),
    "optimizer.weight_decay": (0.0, "Decay pulls to zero, not to what was learned."),
    "optimizer.layer_decay": (0.9, "Layers near the input carry what is general."),
    "optimizer.warmup_steps": (100, "Adam's first steps have the size of the rate, whatever the gradient."),
    "refit_temperature": ("bias", "The bias belongs to the batch size."),
    "evaluation.best_metric": ("image_to_text/recall@1", "The last step need not be the best."),
}
FINETUNE_DEFAULTS: dict[str, Any] = {name: value for name, (value, _) in FINETUNE_REASONS.items()}
FINETUNE_LIMITS = {"optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.0}  # a run warns of more than these


def finetune_config(init: str) -> ml_collections.ConfigDict:
    """`default_config` with FINETUNE_DEFAULTS in the place of what is meant for random weights.

    The function that a config begins with decides which defaults it has. `--config.init` on a config that begins with
    `default_config` changes the start and nothing else, and training warns of what does not suit it.

    Args:
      init: what `siglip_jax.load` takes.

    Raises:
      UserError: no init.
    """
    if not init:
        raise UserError("finetune_config: no model to start from; give a preset's name or a path, as config.init")
    config = default_config()
    config.init = init
    config.update_from_flattened_dict(FINETUNE_DEFAULTS)
    return config


def unsuited_to_loaded_weights(config: ml_collections.ConfigDict) -> list[str]:
    """Lines such as "optimizer.weight_decay=0.1 (0.0)" for what destroys a loaded model, the better value behind."""
    flat = flatten(config)
    above = [name for name, limit in FINETUNE_LIMITS.items() if flat[name] > limit]
    return [f"{name}={flat[name]} ({FINETUNE_DEFAULTS[name]})" for name in above]


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{"optimizer.b1": 0.9, ...}."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= {f"{name}.{field}": x for field, x in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def config_to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Plain JSON types, tuples as lists."""
    return json.loads(config.to_json())


def without_free_fields(config: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON without the fields that do not change what is computed, "microbatch" or "data.cache"."""
    kept = copy.deepcopy(config)
    for name, field in fields():
        if field.free:
            *groups, last = name.split(".")
            owner = kept
            for group in groups:
                owner = owner.get(group, {})
            if isinstance(owner, dict):
                owner.pop(last, None)
    return kept


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for fields that are missing or values that no run could use."""
    values: dict[str, Any] = {}
    missing: list[str] = []
    for name, _ in fields():
        group, _, last = name.rpartition(".")
        owner = config.get(group) if group else config
        if isinstance(owner, ml_collections.ConfigDict) and last in owner:
            values[name] = owner[last]
        else:
            missing.append(name if not group or group in config else group)
    if missing:
        some = ", ".join(list(dict.fromkeys(missing))[:5])
        raise UserError(f"the config has no {some}; start from training.config.default_config()")
    for name, field in fields():
        field.check(f"config.{name}", values[name])
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} is not below config.steps={config.steps}"
        )
    if config.loss == "softmax":
        for name, only in (("same_group", "positive"), ("refit_temperature", "none")):
            if config[name] != only:
                raise UserError(
                    f"config.loss=softmax with config.{name}={config[name]}, which is of the sigmoid loss; expected "
                    f"{only}, the default"
                )
    widths, weights = (len(config.matryoshka[name]) for name in ("widths", "weights"))
    if widths != weights:
        raise UserError(f"config.matryoshka: {widths} widths and {weights} weights; expected a weight for each width")


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises a UserError where the batch does not divide over the mesh, or its rows not into micro-batches."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % devices:
        raise UserError(f"config.batch_size={config.batch_size} does not divide over the mesh {dict(mesh.shape)}")
    rows = config.batch_size // devices
    if config.microbatch and rows % config.microbatch:
        raise UserError(f"config.microbatch={config.microbatch} does not divide the {rows} rows of a device")
