"""Gain and forgetting: both runs, the comparison, and the table."""

import json

import numpy as np
import pytest

import siglip_jax
from siglip_jax import cli
from siglip_jax.errors import UserError
from siglip_jax.training.config import flatten
from tools.bench import finetune


def test_the_naive_run_differs_in_its_settings_alone(tiny_config):
    tiny_config.optimizer.freeze = "image"
    before = tiny_config.to_json()
    naive = flatten(finetune.naive_config(tiny_config, init="reset"))
    assert tiny_config.to_json() == before
    expected = {**flatten(tiny_config), **finetune.NAIVE, "init": "reset"}
    assert naive == expected
    assert (naive["optimizer.learning_rate"], naive["optimizer.weight_decay"], naive["optimizer.freeze"]) == (
        1e-4,
        0.2,
        "none",
    )


def test_recipes_beside_the_defaults(tiny_config):
    name, fields = finetune.parse_recipe(
        "rate 3e-4: optimizer.learning_rate=3e-4, refit_temperature=both, optimizer.layer_decay=1", tiny_config
    )
    assert name == "rate 3e-4"
    assert fields == {"optimizer.learning_rate": 3e-4, "refit_temperature": "both", "optimizer.layer_decay": 1.0}
    changed = flatten(finetune.changed(tiny_config, fields))
    assert changed == {**flatten(tiny_config), **fields}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer.learning_rate=1e-4", "expected name"),
        ("../up: steps=2", "names are letters"),
        ("a: optimizer.rate=1", "names no field"),
        ("a: steps=1.5", "expected a value of that type"),
        ("a: steps", "names no field"),
    ],
)
def test_recipes_that_are_refused(tiny_config, text, said):
    with pytest.raises(UserError, match=said):
        finetune.parse_recipe(text, tiny_config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::siglip_jax.training.start.prepare_start.StartWarning")
def test_both_runs_and_the_table(trained_workdir, config_file, shop_dataset, tmp_path, capsys):
    flags = {
        "config": config_file,
        "config.init": trained_workdir,
        "config.steps": 4,
        "config.checkpoint_every": 4,
        "config.optimizer.learning_rate": 1e-5,
        "learned": shop_dataset,
        "new": shop_dataset,
        "workdir": tmp_path / "runs",
    }
    assert cli.main(["bench", "finetune", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    said = capsys.readouterr().out
    assert "gain, on the new data" in said
    assert "| metric | start | fine-tuned - start | naive - start | fine-tuned - naive |" in said
    tables = json.loads((tmp_path / "runs" / "finetuning.json").read_text())
    assert tables["new"] == tables["learned"]  # the same data here
    assert {"nDCG_exp@5", "image_to_text/recall@1", "text_to_image/MRR"} <= set(tables["new"]["metrics"])

    start, naive = siglip_jax.load(trained_workdir), siglip_jax.load(tmp_path / "runs" / "naive_start")
    np.testing.assert_allclose([naive.params["t"][0], naive.params["b"][0]], [np.log(10), -10], rtol=1e-6)
    np.testing.assert_array_equal(naive.params["img"]["pos_embedding"], start.params["img"]["pos_embedding"])
    used = {
        name: json.loads((tmp_path / "runs" / name / "config.json").read_text())["config"]
        for name in ("naive", "fine-tuned")
    }
    assert used["naive"]["optimizer"]["learning_rate"] == 1e-4
    assert used["naive"]["optimizer"]["weight_decay"] == 0.2
    assert used["fine-tuned"]["optimizer"]["learning_rate"] == 1e-5
    assert used["naive"]["steps"] == used["fine-tuned"]["steps"] == 4


def test_without_a_start(config_file, shop_dataset, tmp_path, capsys):
    flags = [f"--config={config_file}", f"--learned={shop_dataset}", f"--new={shop_dataset}", f"--workdir={tmp_path}"]
    assert cli.main(["bench", "finetune", *flags]) == 2
    assert "config.init is empty" in capsys.readouterr().err


def test_the_table_of_figures():
    interval = {"mean": 0.25, "low": 0.125, "high": 0.5}
    names = ("start", "fine-tuned", "naive")
    table = {
        "metrics": ["MRR"],
        "rows": [{"name": name, "metrics": {"MRR": interval}} for name in names],
        "differences": [{"a": "naive", "b": "start", "metric": "MRR", "mean": -0.5, "low": -1.0, "high": 0.0}],
    }
    assert finetune.format_table(table).splitlines() == [
        "| metric | start | naive - start |",
        "| --- | ---: | ---: |",
        "| MRR | 0.2500 [0.1250, 0.5000] | -0.5000 [-1.0000, +0.0000] |",
    ]
