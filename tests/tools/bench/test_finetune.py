"""Gain and forgetting: both runs, the comparison, and the table."""

import json

import numpy as np
import pytest

import siglip_jax
from eval.embeddings import read_store
from input_pipeline.loader import iterate_split
from siglip_jax import cli
from siglip_jax.errors import UserError
from siglip_jax.training.config import flatten
from siglip_jax.training.run.metric_writers import read_metrics
from tools.bench import finetune
from tools.workflow import finetune_recipes
from tools.workflow.recipes import changed


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


def cell(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def table(means, metrics=("m", "image_to_text/MRR")):
    """means: {name: mean of each metric}, with the start; differences to it."""
    return {
        "metrics": list(metrics),
        "rows": [
            {"name": name, "metrics": {metric: cell(value) for metric, value in zip(metrics, values, strict=True)}}
            for name, values in means.items()
        ],
        "differences": [
            {"a": name, "b": "start", "metric": metric, **cell(value - means["start"][place])}
            for name, values in means.items()
            if name != "start"
            for place, (metric, value) in enumerate(zip(metrics, values, strict=True))
        ],
    }


NEW = table({"start": (0.3, 0.1), "fine-tuned": (0.5, 0.2), "teacher": (0.4, 0.2), "freeze image": (0.305, 0.1)})
LEARNED = table({"start": (0.5, 0.3), "fine-tuned": (0.4, 0.1), "teacher": (0.48, 0.25), "freeze image": (0.5, 0.3)})


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        ({}, "fine-tuned"),  # (0.5 + 0.4) / 2 against (0.4 + 0.48) / 2
        ({"image_to_text/MRR": 0.06}, "teacher"),
        ({"m": 0.001}, "start"),  # what the frozen tower gains is within noise
    ],
)
def test_one_way_is_chosen_as_a_blend_is(limits, chosen):
    tables = {"new": NEW, "learned": LEARNED}
    assert finetune_recipes.choose_recipe(tables, start="start", limits=limits, metric="m") == chosen


def test_the_table_of_all_ways():
    lines = finetune.format_recipes({"new": NEW, "learned": LEARNED}, ["m"], chosen="teacher").splitlines()
    assert lines[0] == "| way | gain: m | forgetting: m |"
    assert lines[3] == "| teacher (chosen) | +0.1000 [+0.0900, +0.1100] | -0.0200 [-0.0300, -0.0100] |"
    assert len(lines) == 5


def test_recipes_by_name():
    assert list(finetune_recipes.chosen_recipes(["all"])) == list(finetune_recipes.RECIPES)
    assert list(finetune_recipes.chosen_recipes(["teacher + blend"])) == ["teacher", "teacher + blend"]
    assert list(finetune_recipes.chosen_recipes(["blend"])) == ["blend"]
    assert finetune_recipes.chosen_recipes([]) == {}
    with pytest.raises(
        UserError, match="unknown distil; known are all, freeze image, freeze text, teacher, fast teacher"
    ):
        finetune_recipes.chosen_recipes(["distil"])


def test_the_teacher_is_the_start(tiny_config, tiny_model, shop_dataset, tmp_path):
    same = finetune_recipes.with_teacher(tiny_config, start=tiny_model, dataset=shop_dataset, folder=tmp_path / "store")
    assert same is tiny_config
    asked = changed(tiny_config, {"teacher.cosine": 2.0})
    taught = finetune_recipes.with_teacher(asked, start=tiny_model, dataset=shop_dataset, folder=tmp_path / "store")
    assert taught.teacher.store == str(tmp_path / "store")
    store = read_store(taught.teacher.store)
    image = next(iter(iterate_split(shop_dataset, split="train", preprocessing=tiny_model.preprocessing, batch_size=4)))
    expected = tiny_model.encode_image(tiny_model.preprocessing.to_float(image["image"]))
    np.testing.assert_allclose(store.vectors[:4], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::siglip_jax.training.start.prepare_start.StartWarning")
def test_all_recipes(trained_workdir, config_file, shop, tmp_path, capsys):
    data = tmp_path / "data"
    splits = [f"--split={name}={share}" for name, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2))]
    assert cli.main(["data", f"--catalog={shop}", f"--output={data}", "--max_left_out=1", *splits]) == 0
    flags = {
        "config": config_file,
        "config.init": trained_workdir,
        "config.steps": 4,
        "config.checkpoint_every": 4,
        "config.optimizer.learning_rate": 1e-3,
        "learned": data,
        "new": data,
        "workdir": tmp_path / "runs",
        "recipes": "all",
        "alphas": "0,0.5,1",
        "max_forgetting": "image_to_text/MRR=0.5",
        "also": "teacher 1: teacher.cosine=1.0",
    }
    assert cli.main(["bench", "finetune", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "runs" / "finetuning.json").read_text())
    names = ["start", "fine-tuned", "naive", "freeze image", "freeze text", "teacher", "fast teacher"]
    names += ["teacher 1", "blend", "teacher + blend", "fast teacher + blend", "freeze text + blend"]
    assert [row["name"] for row in found["new"]["rows"]] == names
    assert f"chosen on validation: {found['chosen']} (the best nDCG_exp@5 on the new catalogue" in said
    assert found["chosen"] in names
    runs = {name: siglip_jax.load(tmp_path / "runs" / name) for name in names[1:8]}
    start = siglip_jax.load(trained_workdir)
    frozen = runs["freeze image"].params
    np.testing.assert_array_equal(frozen["img"]["pos_embedding"], start.params["img"]["pos_embedding"])
    logged = [read_metrics(tmp_path / "runs" / name) for name in ("teacher", "teacher 1", "fine-tuned")]
    assert [any("teacher_cosine" in line for line in lines) for lines in logged] == [True, True, False]
    alpha = found["alphas"]["blend"]
    blend = siglip_jax.load(tmp_path / "runs" / "blend" / "model")
    ends = (start.params["t"][0], runs["fine-tuned"].params["t"][0])
    np.testing.assert_allclose(blend.params["t"][0], (1 - alpha) * ends[0] + alpha * ends[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--recipes=distil"], "unknown distil"),
        (["--recipes=blend", "--choose_on=test"], "the split of the final figures"),
        (["--max_forgetting=0.1"], "chooses among --recipes"),
        (["--recipes=blend"], "no split validation"),
        (["--also=teacher: teacher.cosine=1.0"], "none of blend, fast teacher, fast teacher + blend, fine-tuned"),
    ],
)
def test_recipes_that_cannot_be_compared(config_file, trained_workdir, shop_dataset, tmp_path, capsys, more, said):
    flags = [f"--config={config_file}", f"--config.init={trained_workdir}", f"--workdir={tmp_path / 'runs'}"]
    flags += [f"--learned={shop_dataset}", f"--new={shop_dataset}"]
    assert cli.main(["bench", "finetune", *flags, *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
