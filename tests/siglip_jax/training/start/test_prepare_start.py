"""The look at a start before the first step: what is fitted, recorded and warned of."""

import json

import jax
import numpy as np
import pytest

from siglip_jax.losses import sigmoid_loss
from siglip_jax.training import loop
from siglip_jax.training.config import default_config
from siglip_jax.training.run.metric_writers import read_metrics
from siglip_jax.training.start import prepare_start, temperature


def record_of(pairs, *, scale, bias):
    found = temperature.Histogram.of(pairs)
    return {
        "rows": found.rows,
        "constant_loss": found.constant_loss(),
        "after": {"loss": found.loss(scale, bias)},
        **prepare_start.compare_with_shuffled(pairs, scale=scale, bias=bias),
    }


def test_a_start_that_works_and_broken_ones(embeddings):
    working = [temperature.labelled(*embeddings(noise=0.7, seed=seed)) for seed in range(4)]
    scale, bias = temperature.fit(temperature.Histogram.of(working), scale=10.0, which="both")
    assert prepare_start.complaints(record_of(working, scale=scale, bias=bias), refit="both") == []
    # A bias learned at a batch of 32,768.
    (said,) = prepare_start.complaints(record_of(working, scale=scale, bias=-20.0), refit="none")
    assert said.startswith("t and b do not fit this batch size")
    assert "refit_temperature to bias or both" in said
    (said,) = prepare_start.complaints(
        record_of(working, scale=10 * scale, bias=bias), refit="bias"
    )  # too sure of itself
    assert "refit_temperature to both" in said
    broken = []
    for seed in range(4):
        image, text, groups = embeddings(noise=0.7, seed=seed)
        broken.append(temperature.labelled(image, np.roll(text, 5, axis=0), groups))
    for b in (bias, -20.0):
        (said,) = prepare_start.complaints(record_of(broken, scale=scale, bias=b), refit="both")
        assert said.startswith("the start looks broken")


def test_shuffled_pairs_against_shuffled_titles(embeddings):
    image, text, groups = embeddings(noise=0.7)
    found = temperature.labelled(image, text, groups).shuffled().losses(5.0, -3.0)
    moved = np.roll(np.arange(48), 24)  # the title of row j plays the part of that of row moved[j]
    logits = 5 * image.astype(np.float64) @ text.astype(np.float64).T - 3
    positive = groups[:, None] == groups[moved]
    expected = np.logaddexp(0, np.where(positive, -logits, logits)).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_loaded_start_is_looked_at_fitted_and_recorded_once(
    tiny_model, tiny_config, tmp_path, random_batch, RandomBatches
):
    config = tiny_config
    config.init, config.refit_temperature = "somewhere", "both"
    config.steps, config.checkpoint_every, config.log_every = 4, 2, 1
    config.optimizer.learning_rate = 1e-9
    steps = []

    def evaluate(step, params):
        steps.append(step)
        return {"score": float(params["t"][0])}

    batches = RandomBatches()
    with pytest.warns(prepare_start.StartWarning) as said:
        trained = loop.train(config, model=tiny_model, batches=batches, workdir=tmp_path / "run", evaluators=[evaluate])
    messages = [str(warning.message) for warning in said]
    assert messages[0].startswith("the start looks broken")  # random weights know nothing
    assert "optimizer.weight_decay=0.1 (0.0)" in messages[1]
    found = json.loads((tmp_path / "run" / "start.json").read_text())
    assert (found["batches"], found["rows"]) == (8, 128)
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["before"]["b"] == tiny_model.params["b"][0]
    np.testing.assert_allclose(trained.params["b"], found["after"]["b"], atol=1e-5)
    assert steps == [0, 2, 4]
    lines = read_metrics(tmp_path / "run")
    assert lines[0] == {"step": 0, "score": float(np.float32(found["after"]["t"]))}
    # The run began with the batches that were looked at, and those losses are the start's.
    assert batches.position == 4
    first = random_batch(16, seed=1)
    fitted = {name: np.float32([found["after"][name]]) for name in ("t", "b")}
    z = tiny_model.encode_image(tiny_model.preprocessing.to_float(first["image"]))
    w = tiny_model.encode_text(first["text"])
    expected = sigmoid_loss(z, w, fitted["t"], fitted["b"], groups=first["group"])
    np.testing.assert_allclose(lines[1]["loss"], expected, rtol=1e-4)

    # Continued, it neither looks nor fits again.
    config.steps = 4
    (tmp_path / "run" / "start.json").unlink()
    again = loop.train(config, model=tiny_model, batches=RandomBatches(), workdir=tmp_path / "run")
    assert not (tmp_path / "run" / "start.json").exists()
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)


def test_what_a_loaded_model_does_not_take_from_the_config_is_said(tiny_model, tiny_config):
    assert prepare_start.not_of_the_loaded_model(tiny_config, tiny_model) == []
    assert prepare_start.not_of_the_loaded_model(default_config(), tiny_model) == []  # asks for nothing in particular
    tiny_config.preprocessing.image_size = (24, 16)
    tiny_config.preprocessing.lowercase = "ascii"
    tiny_config.model.text.width = 32
    said = prepare_start.not_of_the_loaded_model(tiny_config, tiny_model)
    assert said[:2] == [
        "config.preprocessing.image_size=(24, 16) is not used, (16, 16) is",
        "config.preprocessing.lowercase=ascii is not used, unicode is",
    ]
    assert said[2].startswith("config.model.text={")
    assert len(said) == 3


@pytest.mark.filterwarnings("ignore::siglip_jax.training.start.prepare_start.StartWarning")  # others than the one below
def test_a_run_says_so(tiny_model, tiny_config, tmp_path, RandomBatches):
    tiny_config.init, tiny_config.steps = "somewhere", 3
    tiny_config.preprocessing.image_size = (24, 24)
    with pytest.warns(
        prepare_start.StartWarning, match=r"image_size=\(24, 24\) is not used, \(16, 16\) is; siglip-jax convert"
    ):
        loop.train(tiny_config, model=tiny_model, batches=RandomBatches(), workdir=tmp_path / "run")
