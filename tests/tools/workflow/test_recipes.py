"""Recipes as flags name them."""

import pytest

from siglip_jax.errors import UserError
from siglip_jax.training.config import flatten
from tools.workflow import recipes


def test_fields_of_a_recipe(tiny_config):
    text = "rate 3e-4: optimizer.learning_rate=3e-4, refit_temperature=both, optimizer.layer_decay=1"
    name, fields = recipes.parse_recipe(text, tiny_config, flag="recipe")
    assert name == "rate 3e-4"
    assert fields == {"optimizer.learning_rate": 3e-4, "refit_temperature": "both", "optimizer.layer_decay": 1.0}
    before = tiny_config.to_json()
    assert flatten(recipes.changed(tiny_config, fields)) == {**flatten(tiny_config), **fields}
    assert tiny_config.to_json() == before


def test_tuples_in_a_recipe(tiny_config):
    text = "short: matryoshka.widths=(4, 8), matryoshka.weights=(1.0, 0.5), steps=7"
    _, fields = recipes.parse_recipe(text, tiny_config, flag="recipe")
    assert fields == {"matryoshka.widths": (4, 8), "matryoshka.weights": (1.0, 0.5), "steps": 7}


def test_relevance_of_another_config(tiny_config):
    other = recipes.changed(tiny_config, {"evaluation.relevance": ({"gain": 1, "agree": ("colour",)},), "steps": 99})
    other = recipes.changed(other, {"evaluation.metrics": ("MRR",), "evaluation.gain": "linear"})
    made = flatten(recipes.with_relevance(tiny_config, other))
    differing = {name for name, value in flatten(tiny_config).items() if made[name] != value}
    assert differing == {"evaluation.relevance", "evaluation.metrics", "evaluation.gain"}
    assert made["evaluation.relevance"][0]["agree"] == ("colour",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optimizer.learning_rate=1e-4", "expected name"),
        ("../up: steps=2", "names are letters"),
        ("a: optimizer.rate=1", "names no field"),
        ("a: steps=1.5", "expected a value of that type"),
        ("a: steps=1, 2", "expected a value of that type"),
        ("a: steps", "names no field"),
    ],
)
def test_recipes_that_are_refused(tiny_config, text, said):
    with pytest.raises(UserError, match=said):
        recipes.parse_recipe(text, tiny_config, flag="recipe")


@pytest.mark.parametrize("texts", [["a: steps=2", "a: steps=3"], ["start: steps=2"]])
def test_names_are_taken_once(tiny_config, texts):
    with pytest.raises(UserError, match="--also: each name once, and none of start"):
        recipes.parse_recipes(texts, tiny_config, flag="also", taken=["start"])
