"""Which checkpoint of a run a name stands for: the newest, the best, or the one that is named."""

import jax
import numpy as np
import pytest

import siglip_jax
from siglip_jax import cli
from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import UserError
from siglip_jax.training import config as configs

SCORES = {1: 0.2, 2: 0.9, 3: 0.5}


def write_run(folder, model, *, best_metric="score", name="score", last_metric=None):
    """A workdir of three steps, the bias b of each its number; the last may have chosen another metric."""
    config = configs.default_config()
    model.save_description(folder)
    for step, score in SCORES.items():
        config.evaluation.best_metric = last_metric if step == 3 and last_metric is not None else best_metric
        attributes = {"config": configs.config_to_json(config)}
        with Checkpoints(folder / "checkpoints", keep=3, attributes=attributes) as checkpoints:
            params = jax.tree.map(np.asarray, {**model.params, "b": np.float32([step])})
            checkpoints.save(step, state={"params": params}, iterator={}, metrics={name: score, "other": -score})
    return folder


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "shop", tiny_model)


@pytest.mark.parametrize(("name", "step"), [("", 3), ("@best", 2), ("/checkpoints/1", 1)])
def test_the_checkpoint_of_a_name(run, name, step):
    model = siglip_jax.load(f"{run}{name}")
    assert model.params["b"].tolist() == [step]
    assert model.source == str(run / "checkpoints" / str(step))
    assert model.replace(preprocessing=None).source == model.source
    assert model.replace(params=model.params).source == ""  # nobody's any more


def test_the_metric_is_the_one_that_the_run_chose_last(tiny_model, tmp_path):
    run = write_run(tmp_path / "run", tiny_model, last_metric="other")
    assert siglip_jax.load(f"{run}@best").params["b"].tolist() == [1]
    # A newest checkpoint whose notes are damaged leaves the word to the one before.
    (run / "checkpoints" / "3" / "run" / "metadata").write_text("{")
    assert siglip_jax.load(f"{run}@best").params["b"].tolist() == [2]


def test_programs_say_which_checkpoint_they_took(run, tmp_path, capsys):
    assert cli.main(["convert", f"--model={run}@best", f"--output={tmp_path / 'out'}"]) == 0
    assert f"{run / 'checkpoints' / '2'} -> {tmp_path / 'out'} (native)" in capsys.readouterr().out
    assert siglip_jax.load(tmp_path / "out").params["b"].tolist() == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"best_metric": ""},
            r"none of \[1, 2, 3\] is the best, since its config.evaluation.best_metric is em",
        ),
        ({"best_metric": "recall"}, "none of them has its best_metric, recall; name one, such as .*/checkpoints/3"),
    ],
)
def test_a_run_without_a_best(tiny_model, tmp_path, options, message):
    run = write_run(tmp_path / "run", tiny_model, **options)
    with pytest.raises(UserError, match=message):
        siglip_jax.load(f"{run}@best")


def test_best_of_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"none@best: .*none has no checkpoints/; expected the workdir of a run"):
        siglip_jax.load(tmp_path / "none@best")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="no complete checkpoint"):
        siglip_jax.load(tmp_path / "empty@best")
