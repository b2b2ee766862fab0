"""The loop: that it learns, what it evaluates and logs, and what it is an error to ask of it."""

import itertools
import json

import numpy as np
import pytest

from siglip_jax.errors import UserError
from siglip_jax.training import loop
from siglip_jax.training.run.metric_writers import read_metrics


def test_a_tiny_run_learns(trained_workdir):
    losses = [line["loss"] for line in read_metrics(trained_workdir)]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_loss_that_is_not_finite_names_the_step_and_saves_nothing(tiny_model, tiny_config, tmp_path, RandomBatches):
    config = tiny_config
    config.batch_size, config.steps, config.checkpoint_every, config.log_every = 8, 5, 2, 100
    bias = np.array([np.nan], np.float32)
    broken = tiny_model.replace(params=tiny_model.params | {"b": bias})
    with pytest.raises(UserError, match=r"step 1: the loss is nan; lower config\.optimizer\.learning_rate .*none yet"):
        loop.train(config, model=broken, batches=RandomBatches(8), workdir=tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_evaluators_run_at_every_checkpoint(
    tiny_model, tiny_config, tmp_path, random_batch, RandomBatches, loss_by_hand
):
    config = tiny_config
    config.batch_size, config.steps, config.checkpoint_every, config.log_every = 8, 5, 2, 100
    called = []

    def evaluate(step, params):
        called.append((step, float(params["t"][0])))
        return {"score": step / 10}

    trained = loop.train(
        config, model=tiny_model, batches=RandomBatches(8), workdir=tmp_path / "run", evaluators=[evaluate]
    )
    assert [step for step, _ in called] == [0, 2, 4, 5]  # first to see what it reports
    assert called[-1][1] == trained.params["t"][0]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["score"]) for line in lines if "score" in line] == [
        (0, 0.0),
        (2, 0.2),
        (4, 0.4),
        (5, 0.5),
    ]
    logged = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert logged.keys() == {1, 5}
    expected = loss_by_hand(random_batch(8, seed=1), same_group="positive")  # of the untouched model
    np.testing.assert_allclose(logged[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "config.steps=0"),
        ({"mesh.fsdp": 3}, "does not fit"),
        ({"microbatch": 5}, "config.microbatch=5 does not divide the 16 rows"),
    ],
    ids=str,
)
def test_impossible_configs_are_refused(tiny_model, tiny_config, tmp_path, change, message):
    tiny_config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        loop.train(tiny_config, model=tiny_model, batches=itertools.repeat({}), workdir=tmp_path / "run")


def mine(step, params):
    return {"mine": np.float32(step)}


@pytest.mark.parametrize(
    ("change", "evaluators", "best", "message"),
    [
        ({"image": lambda x: x.astype(np.float32) / 255}, [], "", "image of a batch is float32 .*expected uint8"),
        ({"image": lambda x: x[:8]}, [], "", r"uint8 \[8, 16, 16, 3\]; expected uint8 \[16, .*config.batch_size"),
        ({"text": lambda x: x + 10**6}, [], "", "text of a batch has ids from 100.* expected 0 to"),
        ({"group": None}, [], "", "a batch of image, text has no group; expected"),
        ({"all": None}, [], "", "batches has ended after 0 of the 20 that the steps to do need"),
        ({}, [mine, mine], "", r"1 \(mine\) and 2 \(mine\) both report 'mine'"),
        ({}, [lambda step, params: {"mine": "good"}], "", "returned a str for 'mine'; expected a number"),
        ({}, [mine], "nope", "best_metric='nope'; expected one of mine, bias, gradient_norm, "),
    ],
    ids=["floats", "rows", "ids", "keys", "no batch", "one name twice", "no number", "no such metric"],
)
def test_a_users_own_batches_and_evaluators_are_checked_before_the_first_step(
    tiny_model, tiny_config, tmp_path, RandomBatches, monkeypatch, change, evaluators, best, message
):
    class Own(RandomBatches):
        def __next__(self):
            if "all" in change:
                raise StopIteration
            batch = super().__next__()
            return {key: change[key](x) if key in change else x for key, x in batch.items() if change.get(key, 1)}

    monkeypatch.setattr(loop.Run, "step", lambda *_: pytest.fail("a step was taken"))
    monkeypatch.setattr(loop, "seconds_at_peak", lambda *_: pytest.fail("a step was compiled"))
    tiny_config.evaluation.best_metric = best
    with pytest.raises(UserError, match=message) as error:
        loop.train(tiny_config, model=tiny_model, batches=Own(), workdir=tmp_path / "run", evaluators=evaluators)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
