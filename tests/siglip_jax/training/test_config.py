"""The config's fields: defaults, checks, and that they agree with the code that reads them."""

import dataclasses
import inspect
import pathlib
import re
import runpy

import ml_collections
import pytest

from eval.comparison import log_task
from eval.logs import log_format, queries
from eval.protocols import user_profiles
from eval.protocols.exposure import Propensity
from input_pipeline.augment import Augmentation
from input_pipeline.loader import Speed, make_loader
from siglip_jax.errors import UserError
from siglip_jax.losses.pair_losses import PAIR_LOSSES
from siglip_jax.losses.sigmoid import SAME_GROUP
from siglip_jax.models.transformer import REMAT_POLICIES
from siglip_jax.preprocessing import Preprocessing
from siglip_jax.training.config import (
    FINETUNE_DEFAULTS,
    check,
    config_to_json,
    default_config,
    fields,
    finetune_config,
    flatten,
    unsuited_to_loaded_weights,
    without_free_fields,
)
from siglip_jax.training.optimizer.freezing import FREEZE_PRESETS
from siglip_jax.training.param_rules import check_rules

CONFIGS = sorted((pathlib.Path(__file__).parents[3] / "configs").glob("*.py"))


def choices(name: str) -> set[str]:
    """What a field is said to take, "one of none, bias, both" or "some of ..."."""
    expected = dict(fields())[name].values.expected
    return set(re.sub(r"^(one|some) of ", "", expected).replace("or ", "").split(", "))


# --- composed ---------------------------------------------------------------------------------------------------------


def test_a_config_is_locked_and_shares_nothing_with_another():
    config = default_config()
    with pytest.raises(AttributeError, match="learning_rat"):
        config.optimizer.learning_rat = 1.0
    with pytest.raises(TypeError):
        config.steps = "many"
    config.model.image.width = 1
    config.evaluation.actions.tap = 9.0
    config.evaluation.relevance[0]["gain"] = 7
    assert default_config().model.image.width == default_config().model.text.width == 768
    assert default_config().evaluation.actions.tap == 1.0
    assert default_config().evaluation.relevance[0]["gain"] == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_configs_of_the_repository_are_possible(path):
    check(runpy.run_path(str(path))["get_config"]())


def test_fields_are_described_in_sentences():
    for name, field in fields():
        assert field.text.endswith("."), name
        assert not field.values.expected.endswith("."), name


def test_finetune_config_is_the_default_but_for_its_table():
    plain, tuned = flatten(default_config()), flatten(finetune_config("somewhere"))
    changed = {name: value for name, value in tuned.items() if value != plain[name]}
    assert changed == {name: x for name, x in {**FINETUNE_DEFAULTS, "init": "somewhere"}.items() if x != plain[name]}
    assert tuned["optimizer.weight_decay"] == 0
    assert (tuned["optimizer.learning_rate"], tuned["refit_temperature"]) == (1e-4, "bias")  # as measured
    assert finetune_config("somewhere").is_locked
    check(finetune_config("somewhere"))
    with pytest.raises(UserError, match="no model to start from"):
        finetune_config("")


def test_settings_for_random_weights_are_called_out():
    config = default_config()
    assert unsuited_to_loaded_weights(config) == [
        "optimizer.learning_rate=0.001 (0.0001)",
        "optimizer.weight_decay=0.1 (0.0)",
    ]
    assert unsuited_to_loaded_weights(finetune_config("somewhere")) == []


def test_free_fields_are_those_that_do_not_change_what_is_computed():
    config = config_to_json(default_config())
    kept = without_free_fields(config)
    free = {
        *(
            "teacher.store",
            "microbatch",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "deadline_minutes",
            "profile_steps",
        ),
        "wandb_project",
        *(f"mesh.{name}" for name in ("data", "fsdp", "tensor")),
        *("model.remat", "model.unroll"),
        *(f"data.{name}" for name in ("cache", "cache_frozen", "num_threads", "num_workers", "max_bad_fraction")),
    }
    before, after = (set(flatten(ml_collections.ConfigDict(each))) for each in (config, kept))
    assert before - after == free | {name for name in before if name.startswith("evaluation.")}
    assert config == config_to_json(default_config())  # untouched
    assert without_free_fields({"data": 3, "steps": 1}) == {"data": 3, "steps": 1}


# --- as the readers have it -------------------------------------------------------------------------------------------


def test_data_fields_are_the_options_of_the_loader():
    """Each field is read, under its name and with its default where the reader has one."""
    data = default_config().data
    augmentation = {field.name: field.default for field in dataclasses.fields(Augmentation)}
    loader = {name: parameter.default for name, parameter in inspect.signature(make_loader).parameters.items()}
    speed = {field.name: field.default for field in dataclasses.fields(Speed)}
    own = {"num_workers": speed["num_workers"], "max_bad_fraction": loader["max_bad_fraction"]}
    own["most"] = loader["most"]
    assert {"cache", "num_threads"} < speed.keys()
    ours = {"train_split": "train", "num_threads": 0, "cache": False, "cache_frozen": "auto"}
    assert data.to_dict() == {**augmentation, **own, **ours}


def test_log_fields_are_those_of_their_readers():
    evaluation = default_config().evaluation
    log = log_format.LogFormat(evaluation.actions, evaluation.log_columns)
    assert (evaluation.like_from, evaluation.first_position) == (log.like_from, log.first_position)
    assert log.gains() == {"impression": 0, "tap": 1, "like": 2, "purchase": 3}
    propensity = Propensity()
    assert (evaluation.propensity_power, evaluation.propensity_clip) == (log_task.MEASURED, propensity.clip)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("loss", PAIR_LOSSES),
        ("same_group", SAME_GROUP),
        ("model.remat", REMAT_POLICIES),
        ("optimizer.freeze", FREEZE_PRESETS),
        ("evaluation.profile", user_profiles.PROFILES),
        ("evaluation.query_item", (*queries.QUERY_ITEMS,)),
    ],
)
def test_choices_are_those_of_the_reader(name, known):
    assert choices(name) == set(known)


@pytest.mark.parametrize("name", ["resize", "lowercase", "punctuation"])
def test_choices_of_preprocessing(name):
    with pytest.raises(UserError) as error:
        Preprocessing(image_size=(8, 8), **{name: "?"})
    assert choices(f"preprocessing.{name}") == set(str(error.value).partition("one of ")[2].split(", "))


def test_examples_of_rules_are_rules():
    tree = {"txt": {"head": {"kernel": 0}}, "img": {"MAPHead_0": {"probe": 0}}}
    for name, kind in (("optimizer.rate_rules", float), ("optimizer.freeze_rules", bool)):
        example = dict(fields())[name].values.expected.removeprefix("such as ")
        check_rules(name, eval(example, {}), tree, kind=kind)


# --- checked ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"checkpoint_every": 0}, "at least 1"),
        ({"keep_checkpoints": 0}, "at least 1"),
        ({"log_every": 0}, "at least 1"),
        ({"microbatch": -1}, "0 for off, or rows per device"),
        ({"deadline_minutes": -1.0}, "0 for none, or more"),
        ({"evaluation.every": -1}, "0 for none, or more"),
        ({"data.num_threads": -1}, "0 for as many as cores, or more"),
        ({"data.num_workers": -1}, "0 for none, or more"),
        ({"optimizer.freeze_rules": ("img",)}, 'such as (("img/MAPHead_0/.*", False),)'),
        ({"optimizer.rate_rules": ("img", 2)}, 'such as (("txt/head/.*", 10.0),)'),
        ({"data.max_bad_fraction": 1.5}, "0 to 1"),
        ({"profile_steps": (3, 2)}, "(first, last) step, or (0, 0) for none"),
        ({"profile_steps": (0, 2)}, "(first, last) step, or (0, 0) for none"),
        ({"profile_steps": (3,)}, "(first, last) step, or (0, 0) for none"),
        ({"optimizer.learning_rate": 0.0}, "more than 0"),
        ({"optimizer.warmup_steps": -1}, "0 or more, below `steps`"),
        ({"optimizer.final_fraction": 1.5}, "0 to 1"),
        ({"optimizer.weight_decay": -0.1}, "0 or more"),
        ({"optimizer.b1": 1.0}, "0 to less than 1"),
        ({"optimizer.b2": -0.1}, "0 to less than 1"),
        ({"optimizer.clip_norm": 0.0}, "more than 0"),
        ({"optimizer.image_rate": -0.1}, "0 or more"),
        ({"optimizer.text_rate": -0.1}, "0 or more"),
        ({"optimizer.layer_decay": 0.0}, "more than 0, up to 1"),
        ({"optimizer.layer_decay": 1.1}, "more than 0, up to 1"),
        ({"ema_decay": 1.0}, "0 for off, or less than 1, such as 0.999"),
        ({"refit_temperature": "all"}, "one of none, bias, both"),
        ({"teacher.cosine": -1.0}, "0 for none, or more"),
        ({"teacher.mse": float("nan")}, "0 for none, or more"),
        ({"teacher.similarity": float("inf")}, "0 for none, or more"),
        (
            {"matryoshka.widths": (8, 8)},
            "whole numbers, ascending, below the embedding's dimension, such as (64, 128)",
        ),
        (
            {"matryoshka.widths": (0, 8)},
            "whole numbers, ascending, below the embedding's dimension, such as (64, 128)",
        ),
        ({"matryoshka.weights": (1.0, -1.0)}, "a number for each width, 0 or more, such as (1.0, 1.0)"),
        ({"loss": "hinge"}, "one of sigmoid, softmax"),
        ({"same_group": "maybe"}, "one of positive, mean, ignore, negative"),
        ({"model.unroll": -1}, "0 for automatic, or a number of layers"),
        ({"model.init_temperature": 0.0}, "more than 0"),
        ({"model.dtype": "float7"}, "one of float32, bfloat16, float16"),
        ({"model.param_dtype": "int8"}, "one of float32, bfloat16, float16"),
        ({"evaluation.gain": "cubic"}, "one of linear, exponential"),
        ({"steps": None}, "at least 1"),
        ({"optimizer.learning_rate": float("nan")}, "more than 0"),
    ],
    ids=str,
)
def test_impossible_values_are_one_line(changes, expected):
    config = default_config()
    config.update_from_flattened_dict(changes)
    ((name, value),) = changes.items()
    with pytest.raises(UserError) as error:
        check(config)
    assert str(error.value) == f"config.{name}={value!r}; expected {expected}"


@pytest.mark.parametrize(
    "changes",
    [
        {"profile_steps": (1, 1)},
        {"ema_decay": 0.999},
        {"optimizer.layer_decay": 1.0},
        {"optimizer.b1": 0.0},
        {"data.max_bad_fraction": 1.0},
        {"data.max_bad_fraction": 0.0},
        {"optimizer.weight_decay": 0.0},
    ],
    ids=str,
)
def test_values_at_the_edge_are_possible(changes):
    config = default_config()
    config.update_from_flattened_dict(changes)
    check(config)


def test_warm_up_is_shorter_than_the_run():
    config = default_config()
    config.optimizer.warmup_steps = config.steps
    with pytest.raises(UserError, match=r"config.optimizer.warmup_steps=1000 is not below config.steps=1000"):
        check(config)


@pytest.mark.parametrize("changes", [{"same_group": "mean"}, {"refit_temperature": "both"}], ids=str)
def test_what_the_softmax_loss_does_not_know(changes):
    config = default_config()
    config.loss = "softmax"
    check(config)
    config.update_from_flattened_dict(changes)
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=rf"config.loss=softmax with config.{name}={value}, which is of the sigmoid"):
        check(config)


def test_missing_fields_are_named():
    whole = default_config()
    with whole.unlocked():
        del whole.steps, whole.mesh, whole.optimizer.b1
    with pytest.raises(UserError, match=r"^the config has no steps, optimizer\.b1, mesh; start from .*default_config"):
        check(whole)
    with pytest.raises(UserError, match="the config has no seed, init, data, preprocessing, model; start from"):
        check(ml_collections.ConfigDict({"batch_size": 8}))
