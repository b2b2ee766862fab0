"""Evaluation while training: the figures of the finished model's own embeddings, on one device and on eight."""

import json
import math
import sys

import jax
import numpy as np
import pytest

from eval.comparison.by_attributes import relevance_of
from eval.metrics import mean_metrics
from eval.protocols import Measures, rank_catalogue
from eval.protocols.cross_modal import cross_modal_retrieval
from input_pipeline.dataset import open_split
from input_pipeline.duplicates.normalised_titles import title_groups
from siglip_jax.errors import UserError
from siglip_jax.training.optimizer.freezing import frozen_parameters
from tools.workflow import split_embedder
from tools.workflow.evaluators import EVALUATORS, EvaluatorEntry, make_evaluators
from tools.workflow.training import train_on_dataset

FIGURES = """
import json, runpy, sys
from tools.workflow.evaluators import make_evaluators
from tools.workflow.training import start_model
import jax
from siglip_jax.training.parallel.sharding import make_mesh, tree_shardings
config = runpy.run_path(sys.argv[1])["get_config"]()
config.evaluation.while_training = ("retrieval", "ranking")
config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
model = start_model(config, sys.argv[2])
(evaluate,) = make_evaluators(config, model=model, dataset=sys.argv[2])
params = jax.device_put(model.params, tree_shardings(model.params, make_mesh(config.mesh)))
assert len(jax.tree.leaves(params)[0].sharding.device_set) == 8
print(json.dumps(evaluate(0, params)))
"""


@pytest.fixture
def both(tiny_config):
    tiny_config.evaluation.while_training = ("retrieval", "ranking")
    tiny_config.mesh.data = 1
    return tiny_config


@pytest.fixture
def figures(both, tiny_model, shop_dataset):
    (evaluate,) = make_evaluators(both, model=tiny_model, dataset=shop_dataset)
    return evaluate(3, tiny_model.params)


def test_figures_are_those_of_the_model(figures, both, tiny_model, shop_dataset, monkeypatch):
    rows = open_split(shop_dataset, "test")[:]
    image = tiny_model.encode_image([row["image"] for row in rows])
    text = tiny_model.encode_text([row["title"] for row in rows])
    groups = title_groups([row["title"] for row in rows])
    expected = cross_modal_retrieval(image, text, groups)
    ranking = rank_catalogue(image, relevance_of(both, shop_dataset), Measures(("nDCG@5", "precision@1")))
    expected |= {f"ranking/{name}": mean["mean"] for name, mean in mean_metrics(ranking.metrics).items()}
    assert figures.keys() == {name for name, value in expected.items() if math.isfinite(value)}
    assert {"image_to_text/recall@1", "text_to_image/MRR", "ranking/nDCG_exp@5"} <= figures.keys()
    for name, value in figures.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_eight_devices_and_a_sharded_state_give_the_same(figures, python, config_file, shop_dataset):
    done = python(FIGURES, config_file, shop_dataset, devices=8)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found.keys() == figures.keys()
    for name, value in figures.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("cache", [True, False])
def test_embeds_in_order_and_compiles_once(both, tiny_model, shop_dataset, monkeypatch, cache):
    """Batches of 8: the last one is filled up, and what fills it is left out again."""
    monkeypatch.setattr(split_embedder, "ROWS", 8)
    both.data.cache = cache
    traced = []
    to_float = type(tiny_model.preprocessing).to_float

    def counting(self, images):
        traced.append(isinstance(images, jax.core.Tracer))
        return to_float(self, images)

    monkeypatch.setattr(type(tiny_model.preprocessing), "to_float", counting)
    embed = split_embedder.split_embedder(both, model=tiny_model, dataset=shop_dataset)
    rows = open_split(shop_dataset, "test")[:]
    assert len(rows) % 8
    first = embed(tiny_model.params)
    half = jax.tree.map(lambda x: x / 2, tiny_model.params)
    second = embed(half)
    assert traced == [True]
    monkeypatch.undo()
    for model, (image, text, group) in ((tiny_model, first), (tiny_model.replace(params=half), second)):
        np.testing.assert_allclose(image, model.encode_image([row["image"] for row in rows]), atol=1e-5)
        np.testing.assert_allclose(text, model.encode_text([row["title"] for row in rows]), atol=1e-5)
        np.testing.assert_array_equal(group, [row["title_group"] for row in rows])


@pytest.mark.parametrize(("freeze", "runs"), [("image", 1), ("text", 3), ("heads", 3), ("none", 3)])
def test_a_frozen_tower_runs_in_the_first_evaluation_alone(both, tiny_model, shop_dataset, monkeypatch, freeze, runs):
    """What learns follows the parameters; what is frozen is not asked again, so it may as well be zeros."""
    both.data.cache, both.optimizer.freeze = False, freeze
    passes = []
    read = split_embedder.iterate_split
    monkeypatch.setattr(split_embedder, "iterate_split", lambda *a, **k: passes.append(1) or read(*a, **k))
    embed = split_embedder.split_embedder(both, model=tiny_model, dataset=shop_dataset)
    frozen = frozen_parameters(both, tiny_model.params)
    rows = open_split(shop_dataset, "test")[:]
    for scale in (1.0, 0.5, 2.0):
        params = jax.tree.map(lambda x, stays: x if stays else x * scale, tiny_model.params, frozen)  # noqa: B023
        image, text, _ = embed(params)
        model = tiny_model.replace(params=params)
        np.testing.assert_allclose(image, model.encode_image([row["image"] for row in rows]), atol=1e-5)
        np.testing.assert_allclose(text, model.encode_text([row["title"] for row in rows]), atol=1e-5)
    assert len(passes) == runs
    zeros = jax.tree.map(lambda x, stays: np.zeros_like(x) if stays else x, params, frozen)
    again = embed(zeros)
    assert np.array_equal(again[0], image) == (freeze != "heads")  # tokens of images are not kept
    assert np.array_equal(again[1], text)


def test_rows_of_several_processes_come_back_in_order():
    rows, share, size = np.arange(10), 4, 2  # processes hold 0-3, 4-7 and 8-9
    batches = []
    for low in (0, 2):
        parts = [rows[p * share : (p + 1) * share][low : low + size] for p in range(3)]
        parts = [part if len(part) else rows[8:10] for part in parts]  # filled up by what came last
        batches.append(np.concatenate(parts)[:, None])
    found = split_embedder._in_order(batches, 3, share)[:10]
    np.testing.assert_array_equal(found[:, 0], rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"while_training": ("loss",)},
            "'loss'; expected retrieval or ranking, or a function of your own as mod",
        ),
        ({"best_metric": "image_to_text/recall@3"}, "expected one of image_to_text/recall@1"),
        ({"while_training": (), "best_metric": "ranking/nDCG_exp@5"}, "nothing is measured"),
        ({"split": "holdout"}, "no split holdout"),
        ({"relevance": ({"gain": 1, "agree": ("flavour",)},)}, "flavour"),
        ({"metrics": ("luck@5",)}, "luck@5"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_said_before_training(both, tiny_model, shop_dataset, changes, message):
    both.evaluation.update(changes)
    with pytest.raises(UserError, match=message):
        make_evaluators(both, model=tiny_model, dataset=shop_dataset)


# --- a user's own -----------------------------------------------------------------------------------------------------

OWN = """
import numpy as np

def pairs(split):
    cosine = (split.image * split.text).sum(axis=1)
    first = split.attributes["colour"][0]
    same = np.array([colour == first for colour in split.attributes["colour"]])
    assert len(split.ids) == len(split.titles) == len(split.image) == len(split.group)
    assert split.config.evaluation.split == "test"
    return {"cosine": cosine.mean(), "of_first_colour": float(cosine[same].mean()), "never": float("nan")}

def ranking(split):
    return {"nDCG_exp@5": 1.0}

def a_list(split):
    return [1.0]

def a_text(split):
    return {"mood": "good"}

def numbered(split):
    return {1: 1.0}

constant = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's in the working directory, which is not yet on the path; its name."""
    name = f"evaluators_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    (tmp_path / "unfinished.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_function_of_the_users_measures_a_run_and_chooses_its_best_checkpoint(
    tiny_config, shop_dataset, tmp_path, own_module
):
    config = tiny_config
    config.steps = 10
    config.evaluation.while_training = ("retrieval", f"{own_module}:pairs")
    config.evaluation.best_metric = "pairs/of_first_colour"
    trained = train_on_dataset(config, dataset=shop_dataset, workdir=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line for line in lines if "pairs/cosine" in line}
    assert sorted(measured) == [5, 10]
    assert "image_to_text/recall@1" in measured[10]
    assert "pairs/never" not in measured[10]
    rows = open_split(shop_dataset, "test")[:]
    image = trained.encode_image([row["image"] for row in rows])
    cosine = (image * trained.encode_text([row["title"] for row in rows])).sum(axis=1)
    assert measured[10]["pairs/cosine"] == pytest.approx(cosine.mean(), abs=1e-6)
    same = [row["attributes"]["colour"] == rows[0]["attributes"]["colour"] for row in rows]
    assert measured[10]["pairs/of_first_colour"] == pytest.approx(cosine[same].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("no_such:f",), "'no_such:f': no module no_such, neither installed nor in /"),
        (("OWN.inner:f",), "no module OWN.inner, neither"),
        (("broken:f",), r"'broken:f': broken cannot be imported \(ModuleNotFoundError: No module named 'no_such_lib"),
        (("unfinished:f",), r"unfinished cannot be imported \(SyntaxError"),
        (("OWN:missing",), r"'OWN:missing': missing does not exist in /.*\.py$"),
        (("OWN:constant",), "constant is no function in /"),
        (("OWN:",), "expected retrieval or ranking, or a function of your own as module:function"),
        (("OWN.py:pairs",), "no module OWN.py"),
        (("./OWN:pairs",), "module:function"),
        (("OWN:a_list",), r"evaluator OWN:a_list returned a list; expected \{metric: number\}"),
        (("OWN:a_text",), "evaluator OWN:a_text returned a str for 'mood'; expected a number"),
        (("OWN:numbered",), "evaluator OWN:numbered returned a metric named 1; expected text"),
        (("ranking", "OWN:ranking"), "ranking and OWN:ranking both report 'ranking/nDCG_exp@5'; rename one of them"),
        (("OWN:pairs",), "best_metric='pairs/best'; expected one of pairs/cosine, pairs/of_first_colour, pairs/never"),
    ],
    ids=str,
)
def test_a_function_that_does_not_fit_is_said_before_training(
    tiny_config, tiny_model, shop_dataset, own_module, names, message
):
    tiny_config.evaluation.while_training = tuple(name.replace("OWN", own_module) for name in names)
    tiny_config.evaluation.best_metric = "pairs/best" if names == ("OWN:pairs",) else ""
    with pytest.raises(UserError, match=message.replace("OWN", own_module)) as error:
        make_evaluators(tiny_config, model=tiny_model, dataset=shop_dataset)
    assert "\n" not in str(error.value)


def test_one_entry_adds_an_evaluator(monkeypatch, tiny_config, tiny_model, shop_dataset):
    entry = EvaluatorEntry(measure=lambda split: {"spread/image": float(split.image.std())})
    monkeypatch.setitem(EVALUATORS, "spread", entry)
    tiny_config.evaluation.while_training = ("spread",)
    tiny_config.evaluation.best_metric = "spread/image"
    tiny_config.mesh.data = 1
    (evaluate,) = make_evaluators(tiny_config, model=tiny_model, dataset=shop_dataset)
    image = tiny_model.encode_image([row["image"] for row in open_split(shop_dataset, "test")[:]])
    assert evaluate(1, tiny_model.params) == {"spread/image": pytest.approx(float(image.std()), abs=1e-6)}
