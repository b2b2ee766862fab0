"""The fields of a training config with their defaults; every file in `configs/` starts from them."""

from __future__ import annotations

import json
from typing import Any

import jax
import ml_collections

from siglip_jax.errors import UserError
from siglip_jax.losses.sigmoid import SAME_GROUP

REFITS = ("none", "bias", "both")
DTYPES = ("float32", "bfloat16", "float16")


def default_config() -> ml_collections.ConfigDict:
    """A locked ConfigDict: an unknown field, from a file or a flag, is an error."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # Start: "" trains from random weights; a path or a preset's name loads a model with its preprocessing, and wants
    # the defaults of `finetune_config`.
    config.init = ""

    config.data = ml_collections.ConfigDict()
    config.data.train_split = "train"
    config.data.flip = True  # mirror half of the pictures
    config.data.shift = 0  # move each picture by up to this many pixels
    config.data.zoom = 0.0  # enlarge or shrink each by up to this share
    # A window of each picture as it came, before it is resized: (low, high) of its share of the area, and of its aspect
    # ratio relative to the picture's; (0.7, 1.0) and (0.9, 1.1) are mild.
    config.data.crop_area = (1.0, 1.0)
    config.data.crop_aspect = (1.0, 1.0)
    # Colours change by up to this share; the hue, by up to this part of the circle. Off, since products have colours.
    config.data.brightness = 0.0
    config.data.contrast = 0.0
    config.data.saturation = 0.0
    config.data.hue = 0.0
    config.data.choose_image = False  # one of an item's pictures and
    config.data.choose_title = False  # one of its titles in each epoch, instead of the first
    # Attributes whose values are one part of the title each, added where it has them not; the probability of a part
    # (word or value) to be left out; the share of titles whose parts are shuffled.
    config.data.title_attributes = ()
    config.data.title_dropout = 0.0
    config.data.title_shuffle = 0.0
    # Keeps decoded, resized pictures and token ids in memory: right for small pictures, not for millions of them.
    config.data.cache = False
    config.data.num_threads = 0  # that decode; 0 for as many as cores
    config.data.num_workers = 0  # processes that prepare batches; 0 leaves it to the threads (docs/guide/input.md)
    # Of the rows: so many unreadable ones are replaced by others and counted, more stop the run.
    config.data.max_bad_fraction = 0.01

    config.preprocessing = ml_collections.ConfigDict()
    config.preprocessing.image_size = (224, 224)  # height, width
    config.preprocessing.resize = "bilinear"  # or "naflex": any aspect ratio, image_size then is the position grid's
    config.preprocessing.fill = ""  # of bilinear_pad: white, grey or edge
    config.preprocessing.max_patches = 0  # of naflex: the budget that every picture is resized to
    config.preprocessing.text_length = 64
    config.preprocessing.vocab_size = 32_000  # of the tokenizer trained on the titles, unless one is given
    config.preprocessing.tokenizer = ""  # a SentencePiece file
    config.preprocessing.lowercase = "unicode"
    config.preprocessing.punctuation = "keep"

    config.model = ml_collections.ConfigDict()
    config.model.patch_size = 16
    config.model.image = ml_collections.ConfigDict(dict(width=768, depth=12, mlp_dim=3072, heads=12))
    config.model.text = ml_collections.ConfigDict(dict(width=768, depth=12, mlp_dim=3072, heads=12))
    config.model.dtype = "float32"  # computes
    config.model.param_dtype = "float32"  # stores
    config.model.remat = "none"
    config.model.unroll = 1
    config.model.init_temperature = 10.0
    config.model.init_bias = -10.0

    config.batch_size = 256  # global
    # Rows of a device that pass through the towers at a time; 0 for all. The loss is over the whole batch either way:
    # this buys the memory of activations with one more forward pass.
    config.microbatch = 0
    config.steps = 1000
    config.same_group = "positive"  # what rows of equal title are to each other: "positive" or "ignore"

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.final_fraction = 0.01  # of the peak rate, where the cosine ends
    config.optimizer.weight_decay = 0.1  # times the learning rate, as in AdamW
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.clip_norm = 1.0
    # Multipliers of the learning rate (training/rates.py): of each tower; by layer, layer_decay^(layers above); and
    # (regex over parameter paths, multiplier) that come before the towers', the first match winning.
    config.optimizer.image_rate = 1.0
    config.optimizer.text_rate = 1.0
    config.optimizer.layer_decay = 1.0
    config.optimizer.rate_rules = ()
    # What does not learn (training/freezing.py): a preset, and (regex, True or False) that come before it.
    config.optimizer.freeze = "none"
    config.optimizer.freeze_rules = ()
    # Share of the old in the running mean of the parameters, which then is the trained model; 0 for off.
    config.ema_decay = 0.0
    # What of (t, b) is fitted once to the start's own embeddings of batches of this size: "none", "bias" or "both".
    config.refit_temperature = "none"

    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # -1 takes the devices left over

    config.topology = ""  # the TPU slice that this config is for, as "v5e:16x16"; "" where it is none

    config.checkpoint_every = 500
    config.keep_checkpoints = 2  # the newest ones; the best by config.evaluation.best_metric stays besides
    config.deadline_minutes = 0.0  # after which the run has saved and stopped, to be started again; 0 for none
    config.log_every = 20
    config.profile_steps = (0, 0)  # the first and the last step of a profile in workdir/profile; 0 for none
    config.wandb_project = ""  # of Weights & Biases

    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.split = "test"
    # During training: which evaluations ("retrieval" between pictures and titles, "ranking" as below), at checkpoints
    # and every so many steps besides (0 for none), and the figure that tells the best checkpoint ("" keeps the last
    # ones; higher is better but for names that end in "loss"), such as "image_to_text/recall@1".
    config.evaluation.while_training = ("retrieval", "ranking")
    config.evaluation.every = 0
    config.evaluation.best_metric = ""
    # Graded relevance as attribute agreements; the first rule that holds gives the gain.
    config.evaluation.relevance = ({"gain": 1, "agree": ("title",)},)
    config.evaluation.relevant_from = 1  # smallest gain that precision, hit and recall count
    config.evaluation.gain = "exponential"
    config.evaluation.metrics = ("nDCG@5", "precision@1", "precision@3", "hit@5", "recall@10")
    # Of logs (docs/guide/ranking.md). Every action of the log has a gain; being shown ("impression") is worth 0.
    config.evaluation.actions = ml_collections.ConfigDict(dict(tap=1.0, like=2.0, purchase=3.0))
    config.evaluation.log_columns = ml_collections.ConfigDict()  # {our column: the log's}, where its name is another
    config.evaluation.like_from = 0.0  # where the log has ratings: "like" from this one on, "rated" below; 0 for none
    config.evaluation.first_position = 0  # of the first item in a list
    config.evaluation.query_item = "query_item_id"  # or "query_id", or "first:<action>"
    config.evaluation.missing_items = "drop"  # what the catalogue lacks, from lists; or "refuse"
    config.evaluation.live_from = ""  # the attribute that tells when an item came, "first_seen", or "" for always
    config.evaluation.live_until = ""  # the attribute that tells when it left
    config.evaluation.profile = "mean"  # of a user's liked items, or the "last"
    config.evaluation.propensity_power = 1.0  # position p was seen in (1 / (1 + p))^power of the cases
    config.evaluation.propensity_clip = 10.0  # the largest weight, its inverse
    return config.lock()


# What a loaded model starts with instead (docs/guide/finetuning.md has the reasons and the figures).
FINETUNE_DEFAULTS: dict[str, Any] = {
    "optimizer.learning_rate": 1e-4,  # measured on towers of 2 M parameters; configs/finetune.py lowers it
    "optimizer.weight_decay": 0.0,  # decay pulls to zero, not to what was learned
    "optimizer.layer_decay": 0.9,
    "optimizer.warmup_steps": 100,
    "refit_temperature": "bias",
    "evaluation.best_metric": "image_to_text/recall@1",
}
FINETUNE_LIMITS = {"optimizer.learning_rate": 1e-4, "optimizer.weight_decay": 0.0}  # more than these is said


def finetune_config(init: str) -> ml_collections.ConfigDict:
    """`default_config` with FINETUNE_DEFAULTS in the place of what is meant for random weights.

    Which defaults a config has is thus said once, by the function it begins with; `--config.init` on a config that
    begins with `default_config` changes the start and nothing else, and training warns of what does not suit it.

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


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines such as "model.patch_size: 8 here, 16 there" for every leaf that differs."""
    lines: list[str] = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} here, {b!r} there")
    return lines


def _names(config: ml_collections.ConfigDict) -> set[str]:
    """Of the fields, and of the fields of fields."""
    groups = {name: value for name, value in config.items() if isinstance(value, ml_collections.ConfigDict)}
    return set(config.keys()) | {f"{name}.{field}" for name, group in groups.items() for field in group}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for fields that are missing or values that no run could use."""
    if missing := sorted(_names(default_config()) - _names(config)):
        raise UserError(f"the config has no {', '.join(missing[:5])}; start from training.config.default_config()")
    for name in ("batch_size", "steps", "checkpoint_every", "keep_checkpoints", "log_every"):
        if config[name] < 1:
            raise UserError(f"config.{name}={config[name]}; expected at least 1")
    if config.microbatch < 0:
        raise UserError(f"config.microbatch={config.microbatch}; expected 0 for off, or rows per device")
    for name, value in (("deadline_minutes", config.deadline_minutes), ("evaluation.every", config.evaluation.every)):
        if value < 0:
            raise UserError(f"config.{name}={value}; expected 0 for none, or more")
    data = config.data
    for name, good, expected in (
        ("num_threads", data.num_threads >= 0, "0 for as many as cores, or more"),
        ("num_workers", data.num_workers >= 0, "0 for none, or more"),
        ("max_bad_fraction", 0 <= data.max_bad_fraction <= 1, "0 to 1"),
    ):
        if not good:
            raise UserError(f"config.data.{name}={data[name]}; expected {expected}")
    profile = tuple(config.profile_steps)
    if len(profile) != 2 or (any(profile) and not 1 <= profile[0] <= profile[1]):
        raise UserError(f"config.profile_steps={profile}; expected (first, last) step, or (0, 0) for none")
    optimizer = config.optimizer
    for name, good, expected in (
        ("learning_rate", optimizer.learning_rate > 0, "more than 0"),
        ("warmup_steps", optimizer.warmup_steps >= 0, "0 or more"),
        ("final_fraction", 0 <= optimizer.final_fraction <= 1, "0 to 1"),
        ("weight_decay", optimizer.weight_decay >= 0, "0 or more"),
        ("b1", 0 <= optimizer.b1 < 1, "0 to less than 1"),
        ("b2", 0 <= optimizer.b2 < 1, "0 to less than 1"),
        ("clip_norm", optimizer.clip_norm > 0, "more than 0"),
        ("image_rate", optimizer.image_rate >= 0, "0 or more"),
        ("text_rate", optimizer.text_rate >= 0, "0 or more"),
        ("layer_decay", 0 < optimizer.layer_decay <= 1, "more than 0, up to 1"),
    ):
        if not good:
            raise UserError(f"config.optimizer.{name}={optimizer[name]}; expected {expected}")
    if not 0 <= config.ema_decay < 1:
        raise UserError(f"config.ema_decay={config.ema_decay}; expected 0 for off, or less than 1, such as 0.999")
    for name, choices in (("refit_temperature", REFITS), ("same_group", SAME_GROUP)):
        if config[name] not in choices:
            raise UserError(f"config.{name}={config[name]!r}; expected one of {', '.join(choices)}")
    if config.model.unroll < 1 or not config.model.init_temperature > 0:
        raise UserError("config.model: unroll and init_temperature must be more than 0")
    for name in ("dtype", "param_dtype"):
        if config.model[name] not in DTYPES:
            raise UserError(f"config.model.{name}={config.model[name]!r}; expected one of {', '.join(DTYPES)}")
    if config.evaluation.gain not in ("linear", "exponential"):
        raise UserError(f"config.evaluation.gain={config.evaluation.gain!r}; expected linear or exponential")
    if config.optimizer.warmup_steps >= config.steps:
        raise UserError(
            f"config.optimizer.warmup_steps={config.optimizer.warmup_steps} is not below config.steps={config.steps}"
        )


def check_batch(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises a UserError where the batch does not divide over the mesh, or its rows not into micro-batches."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % devices:
        raise UserError(f"config.batch_size={config.batch_size} does not divide over the mesh {dict(mesh.shape)}")
    rows = config.batch_size // devices
    if config.microbatch and rows % config.microbatch:
        raise UserError(f"config.microbatch={config.microbatch} does not divide the {rows} rows of a device")
