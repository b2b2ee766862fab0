"""Ways to fine-tune a model, by name, at one cost: what each changes in a config, and whether it is blended after."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from siglip_jax.errors import UserError
from siglip_jax.losses.teacher import TEACHER_TERMS
from siglip_jax.model import Model
from tools.workflow import blending
from tools.workflow.embedding import embed, image_encoder

FINE_TUNED = "fine-tuned"
FAST_RATE, SLOW_TEXT = 1e-3, 0.1
TEACHER_WEIGHT = 10.0  # of the cosine to the start, where docs/guide/finetuning.md begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """What a way of fine-tuning does that the config does not.

    Attributes:
      changes: {field: value}, trained with.
      blend_of: of what is blended with the start in the place of another training: its name.
    """

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    blend_of: str = ""


RECIPES: dict[str, FinetuneRecipe] = {
    "freeze image": FinetuneRecipe(changes={"optimizer.freeze": "image"}),
    "freeze text": FinetuneRecipe(changes={"optimizer.freeze": "text"}),
    "teacher": FinetuneRecipe(changes={"teacher.cosine": TEACHER_WEIGHT}),
    # Held by the teacher, the image tower can learn fast; titles have no teacher, so their tower stays slow.
    "fast teacher": FinetuneRecipe(
        changes={
            "teacher.cosine": TEACHER_WEIGHT,
            "optimizer.learning_rate": FAST_RATE,
            "optimizer.text_rate": SLOW_TEXT,
        }
    ),
    "blend": FinetuneRecipe(blend_of=FINE_TUNED),
    "teacher + blend": FinetuneRecipe(blend_of="teacher"),
    "fast teacher + blend": FinetuneRecipe(blend_of="fast teacher"),
    "freeze text + blend": FinetuneRecipe(blend_of="freeze text"),
}


def chosen_recipes(names: Sequence[str]) -> dict[str, FinetuneRecipe]:
    """The recipes of these names, "all" for every one, and those that they blend; in the order of the table.

    Raises:
      UserError: a name that the table has not.
    """
    wanted = set(RECIPES) if "all" in names else set(names)
    if unknown := sorted(wanted - RECIPES.keys()):
        raise UserError(f"--recipes: unknown {', '.join(unknown)}; known are all, {', '.join(RECIPES)}")
    wanted |= {RECIPES[name].blend_of for name in wanted}
    return {name: recipe for name, recipe in RECIPES.items() if name in wanted}


def with_teacher(
    config: ml_collections.ConfigDict, *, start: Model, dataset: epath.PathLike, folder: epath.PathLike
) -> ml_collections.ConfigDict:
    """The config, with the start's own embeddings of the training items where it asks for a teacher and names none.

    Args:
      folder: of those embeddings, which are made once.
    """
    if config.teacher.store or not any(config.teacher[name] for name in TEACHER_TERMS):
        return config
    encoder = image_encoder(start, name="the start")
    embed(encoder, dataset=dataset, split=config.data.train_split, output=folder)
    config = config.copy_and_resolve_references()
    config.teacher.store = str(folder)
    return config.lock()


def blend_with_start(
    start: Model,
    tuned: tuple[str, Model],
    *,
    alphas: Sequence[float],
    datasets: Mapping[str, epath.PathLike],
    config: ml_collections.ConfigDict,
    limits: Mapping[str, float],
    folder: epath.PathLike,
) -> tuple[float, Model]:
    """(alpha, blend) that `blending.choose` finds on the evaluation split of the config; saved in `folder`/model.

    Args:
      tuned: what was tuned from the start, and its name.
      datasets: by `blending.NEW` and `blending.LEARNED`.
    """
    blends = blending.Blends.between(("the start", start), dict([tuned]))
    catalogues = {
        side: blending.measure(blends, alphas, config=config, dataset=dataset, stores=epath.Path(folder) / side)
        for side, dataset in datasets.items()
    }
    alpha = blending.choose(catalogues, limits=limits, metric=blending.metric_names(config)[0])
    model = blends.at(alpha)
    blending.save_blend(model, epath.Path(folder) / "model")
    return alpha, model


def choose_recipe(
    tables: Mapping[str, Mapping[str, Any]], *, start: str, limits: Mapping[str, float], metric: str
) -> str:
    """The name of the row that the rule of a blend chooses; the start, where no other is surely better.

    Args:
      tables: {blending.NEW: `compare_rows` with differences to the start, blending.LEARNED: the same}.
    """
    names = [row["name"] for row in next(iter(tables.values()))["rows"]]
    names = [start, *(name for name in names if name != start)]
    catalogues = {}
    for side, table in tables.items():
        means = {row["name"]: row["metrics"] for row in table["rows"]}
        changes: dict[str, dict[str, Any]] = {name: {} for name in names}
        for cell in table["differences"]:
            if cell["b"] == start:
                changes[cell["a"]][cell["metric"]] = cell
        changes[start] = {each: {"mean": 0.0, "low": 0.0} for each in means[start]}
        rows = [{"alpha": k, "metrics": means[name], "differences": changes[name]} for k, name in enumerate(names)]
        catalogues[side] = {"rows": rows}
    return names[int(blending.choose(catalogues, limits=limits, metric=metric))]
