"""Before the first step: (t, b) fitted to the batch size where the config asks, and a look at whether the start works.

A loaded model whose pictures or titles are prepared in another way than it learned (a tokenizer, a range of pixels, a
resize) trains without complaint and ends worse than it began. Its loss gives it away: true pairs then cost as much as
the same pictures with titles shuffled.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from siglip_jax.errors import UserError
from siglip_jax.model import Model
from siglip_jax.models.architecture import FeatureSize
from siglip_jax.training import config as configs
from siglip_jax.training.config import unsuited_to_loaded_weights
from siglip_jax.training.encode import make_encoder, step_inputs
from siglip_jax.training.start import temperature
from siglip_jax.training.start.expected_batch import ExpectedBatch

BATCHES, ROWS = 8, 1 << 16  # looked at: this many batches, fewer where they have more rows than that together
MIN_GAIN = 0.1  # of the shuffled pairs' loss, that true pairs must save
MIN_ERRORS = 3.0  # and this many standard errors of it


class StartWarning(UserWarning):
    """The start looks broken, or its t and b do not fit the batch."""


def prepare(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    batches: Any,
    expected: ExpectedBatch,
    mesh: Mesh,
    shardings: Any,
) -> tuple[Model, dict[str, Any]]:
    """The model to start from, and what was found, for the record.

    The batches looked at are the run's first ones; the iterator is set back, so that the run itself begins with them.

    Args:
      batches: see `loop.BatchIterator`.
      expected: what each must be like.
      shardings: of the parameters.

    Returns:
      The model with the fitted t and b, and JSON values: rows, batches, before and after {t, b, loss}, shuffled_loss,
      constant_loss (of the best constant logit), gain and its standard_error.
    """
    position = batches.get_state()
    count = max(1, min(BATCHES, ROWS // config.batch_size))
    taken = []
    for batch in itertools.islice(batches, count):
        expected.check(batch)
        taken.append(step_inputs(batch))
    if not taken:
        raise UserError("train: batches has ended before the first; expected one for each of config.steps")
    batches.set_state(position)
    assert model.preprocessing is not None
    encode = make_encoder(model.module, to_float=model.preprocessing.to_float, mesh=mesh)
    params = jax.device_put(model.params, shardings)
    pairs = [temperature.labelled(*encode(params, batch), same_group=config.same_group) for batch in taken]
    found = temperature.Histogram.of(pairs)
    t, b = (float(np.asarray(model.params[name])[0]) for name in ("t", "b"))
    record: dict[str, Any] = {
        "batches": len(taken),
        "rows": found.rows,
        "constant_loss": found.constant_loss(),
        "before": {"t": t, "b": b, "loss": found.loss(math.exp(t), b)},
    }
    if config.refit_temperature != "none":
        scale, b = temperature.fit(found, scale=math.exp(t), which=config.refit_temperature)
        t = math.log(scale)
        fitted = {name: np.asarray([value], np.float32) for name, value in (("t", t), ("b", b))}
        model = model.replace(params={**model.params, **fitted})
    record["after"] = {"t": t, "b": b, "loss": found.loss(math.exp(t), b)}
    record |= compare_with_shuffled(pairs, scale=math.exp(t), bias=b)
    if config.init:
        messages = complaints(record, refit=config.refit_temperature, loss=config.loss)
        if unsuited := unsuited_to_loaded_weights(config):
            messages.append(
                f"config.init is set with {', '.join(unsuited)}, which is for random weights and makes a loaded model "
                "forget; in brackets the value of training.config.finetune_config (docs/guide/finetuning.md)"
            )
        if ignored := not_of_the_loaded_model(config, model):
            messages.append(
                f"a loaded model keeps its own preprocessing and towers, so {'; '.join(ignored)}; "
                "siglip-jax convert --image_size makes a model for another picture size"
            )
        for message in messages:
            warnings.warn(message, StartWarning, stacklevel=2)
    return model, record


def compare_with_shuffled(pairs: Sequence[temperature.Labelled], *, scale: float, bias: float) -> dict[str, float]:
    """{"shuffled_loss", "gain" (shuffled minus true, mean over rows), "standard_error" of the gain}."""
    true = np.concatenate([batch.losses(scale, bias) for batch in pairs])
    shuffled = np.concatenate([batch.shuffled().losses(scale, bias) for batch in pairs])
    gain = shuffled - true
    error = gain.std(ddof=1) / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    return {"shuffled_loss": float(shuffled.mean()), "gain": float(gain.mean()), "standard_error": float(error)}


def not_of_the_loaded_model(config: ml_collections.ConfigDict, model: Model) -> list[str]:
    """Such as "config.preprocessing.image_size=(384, 384) is not used, (256, 256) is": what a config asks for, beyond
    the defaults, of a model from random weights, and a loaded one has otherwise.
    """
    assert model.preprocessing is not None
    usual = configs.default_config()
    pictures: tuple[str, ...] = ()
    if isinstance(model.architecture.image, FeatureSize):
        tower: dict[tuple[str, str], Any] = {("model", "features"): model.architecture.features}
    else:
        pictures = ("image_size", "resize", "max_patches")
        tower = {("model", "patch_size"): model.architecture.patch_size, ("model", "features"): {}}
        tower |= {("model", "image"): model.architecture.image.to_json()}
    names = (*pictures, "text_length", "lowercase", "punctuation")
    own = {("preprocessing", name): getattr(model.preprocessing, name) for name in names}
    own |= tower | {("model", "text"): model.architecture.text.to_json()}
    found: list[str] = []
    for (group, name), value in own.items():
        asked, default = (_plain(each[group][name]) for each in (config, usual))
        if asked not in (default, _plain(value)):
            found.append(f"config.{group}.{name}={asked} is not used, {value} is")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, ml_collections.ConfigDict):
        return value.to_dict()
    return tuple(value) if isinstance(value, list) else value


def complaints(record: dict[str, Any], *, refit: str, loss: str = "sigmoid") -> list[str]:
    """What is wrong with a loaded start, a sentence each; none where nothing is."""
    own, shuffled, gain = record["after"]["loss"], record["shuffled_loss"], record["gain"]
    found: list[str] = []
    if gain < max(MIN_GAIN * shuffled, MIN_ERRORS * record["standard_error"]):
        found.append(
            f"the start looks broken: its loss is {own:.3f} over {record['rows']} pairs of picture and title, and "
            f"{shuffled:.3f} when the titles are shuffled, so what it sees and reads hardly belongs together; check "
            "that config.init is the model you mean, its tokenizer and its preprocessing (docs/guide/finetuning.md)"
        )
    elif loss == "sigmoid" and own > record["constant_loss"] and refit != "both":
        better = "bias or both" if refit == "none" else "both"
        found.append(
            f"t and b do not fit this batch size: the loss is {own:.3f}, and {record['constant_loss']:.3f} for a "
            f"model that gives every pair the same logit; set config.refit_temperature to {better} "
            "(docs/guide/finetuning.md)"
        )
    return found
