"""siglip-jax bench finetune: what fine-tuning gains on new data and what it forgets of the old.

The start (`config.init`) was trained on --learned. It is fine-tuned on --new twice: as the config says, and naively
(rate 1e-4, decay 0.2, one rate for all layers, t and b reset to log 10 and -10). The held-out split of each dataset
then ranks with all three models; differences to the start, paired by query, are the gain (on --new) and the forgetting
(on --learned). Run again with the same --workdir, it continues. --also adds recipes beside the config's, to choose
among them on a split (--config.evaluation.split) that the final figures are not taken from.

  siglip-jax bench finetune --config=configs/fashion.py:from=runs/half_a --learned=data/half_a --new=data/half_b \\
    --workdir=runs/forgetting --also="rate 1e-4: optimizer.learning_rate=1e-4, optimizer.layer_decay=1.0"

--recipes adds ways that forget less, of as many steps: `freeze image` and `freeze text`; `teacher`, the cosine to the
start's own embeddings, which are made here; `fast teacher`, at a rate of 1e-3, a tenth of that for titles; `blend`,
`teacher + blend` and so on, between the start and what was tuned, without a step more. Their alphas, and then one of
all ways, are chosen on --choose_on; the final figures are of the config's split.

  siglip-jax bench finetune --config=configs/fashion.py:from=runs/half_a --learned=data/half_a --new=data/half_b \\
    --workdir=runs/forgetting --recipes=all --max_forgetting=image_to_text/MRR=0.06
"""

from __future__ import annotations

import json
import math
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from etils import epath

from siglip_jax.errors import UserError
from tools import common_flags
from tools.workflow.recipes import changed, parse_recipes

NAIVE = {
    "optimizer.learning_rate": 1e-4,
    "optimizer.weight_decay": 0.2,
    "optimizer.image_rate": 1.0,
    "optimizer.text_rate": 1.0,
    "optimizer.layer_decay": 1.0,
    "optimizer.rate_rules": (),
    "optimizer.freeze": "none",
    "optimizer.freeze_rules": (),
    "ema_decay": 0.0,
    "refit_temperature": "none",
}
NAIVE_T, NAIVE_B = math.log(10), -10.0  # where training from random weights begins
START, DEFAULTS, NAIVELY = "start", "fine-tuned", "naive"
SIDES = {"new": "gain, on the new data", "learned": "forgetting, on what the start learned"}
OWN_FOLDERS = ("naive_start", "start_embeddings")  # of the workdir, beside those of the recipes


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="fashion.py")
    flags.DEFINE_string("learned", None, "Dataset that the start knows.", required=True, flag_values=values)
    flags.DEFINE_string("new", None, "Dataset to fine-tune on.", required=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True, flag_values=values)
    flags.DEFINE_multi_string("also", [], "One more recipe, as name: field=value, field=value.", flag_values=values)
    flags.DEFINE_list(
        "recipes", [], "More ways: all, or some of the names above, such as teacher,blend.", flag_values=values
    )
    flags.DEFINE_string("choose_on", "validation", "Split of both to choose on, with --recipes.", flag_values=values)
    flags.DEFINE_string("alphas", "0,0.2,...,1", "Shares of the tuned model in a blend.", flag_values=values)
    flags.DEFINE_multi_string(
        "max_forgetting",
        [],
        "Most that the first metric may fall on --learned, such as 0.02; or METRIC=0.06, for another one as well.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    from siglip_jax.loading import load
    from tools.workflow import blending, finetune_recipes, training

    config, workdir = values.config, epath.Path(values.workdir)
    known = {START, DEFAULTS, NAIVELY, *OWN_FOLDERS, *finetune_recipes.RECIPES}
    also = parse_recipes(values.also, config, flag="also", taken=known)
    if not config.init:
        raise UserError("bench finetune: config.init is empty; name the model to start from")
    more = finetune_recipes.chosen_recipes(values.recipes)
    datasets = {blending.NEW: values.new, blending.LEARNED: values.learned}
    choosing = changed(config, {"evaluation.split": values.choose_on})
    alphas, metric_names = blending.parse_alphas(values.alphas), blending.metric_names(config)
    limits = blending.parse_limits(values.max_forgetting, metric_names)
    if more:
        if values.choose_on == config.evaluation.split:
            raise UserError(f"--choose_on={values.choose_on} is the split of the final figures; choose on another one")
        for dataset in datasets.values():
            blending.check_catalogue(choosing, dataset)
    elif limits:
        raise UserError("--max_forgetting chooses among --recipes; name some")

    start = training.start_model(config, values.new)
    naive_start = workdir / "naive_start"
    if not (naive_start / "model.json").exists():
        reset = {"t": np.asarray([NAIVE_T], np.float32), "b": np.asarray([NAIVE_B], np.float32)}
        start.replace(params={**start.params, **reset}).save(naive_start)
    changes = {name: recipe.changes for name, recipe in more.items() if not recipe.blend_of}
    recipes = {
        DEFAULTS: config,
        NAIVELY: naive_config(config, init=str(naive_start)),
        **{name: changed(config, dict(fields)) for name, fields in {**changes, **also}.items()},
    }
    for name, recipe in recipes.items():
        print(f"== {name}: rate {recipe.optimizer.learning_rate}, {recipe.steps} steps", flush=True)
        taught = finetune_recipes.with_teacher(
            recipe, start=start, dataset=values.new, folder=workdir / "start_embeddings"
        )
        training.train_on_dataset(taught, dataset=values.new, workdir=workdir / name)
    models = {START: start, **{name: load(workdir / name) for name in recipes}}
    notes: dict[str, Any] = {}
    for name, blended in ((name, recipe.blend_of) for name, recipe in more.items() if recipe.blend_of):
        alpha, models[name] = finetune_recipes.blend_with_start(
            start,
            (blended, models[blended]),
            alphas=alphas,
            datasets=datasets,
            config=choosing,
            limits=limits,
            folder=workdir / name,
        )
        print(f"== {name}: alpha {alpha:g} of {blended}", flush=True)
        notes.setdefault("alphas", {})[name] = alpha
    if more:
        found = {side: compare(models, config=choosing, dataset=dataset) for side, dataset in datasets.items()}
        notes["chosen"] = finetune_recipes.choose_recipe(found, start=START, limits=limits, metric=metric_names[0])
        notes["rule"] = blending.rule_in_words(list(datasets), limits, metric_names[0])
        notes["choose_on"] = values.choose_on
    tables = {side: compare(models, config=config, dataset=dataset) for side, dataset in datasets.items()}
    (workdir / "finetuning.json").write_text(json.dumps({**tables, **notes}, indent=1) + "\n")
    for side, title in SIDES.items():
        print(f"\n{title} ({tables[side]['queries']} items)\n\n{format_table(tables[side])}")
    if more:
        shown = list(dict.fromkeys([metric_names[0], "image_to_text/MRR", *limits]))
        print(f"\nall ways, {config.steps} steps each\n\n{format_recipes(tables, shown, chosen=notes['chosen'])}")
        print(f"\nchosen on {values.choose_on}: {notes['chosen']} ({notes['rule']})")
    print(f"\nfigures: {workdir / 'finetuning.json'}")


def naive_config(config: ml_collections.ConfigDict, *, init: str) -> ml_collections.ConfigDict:
    """The same run with NAIVE settings, from `init`."""
    return changed(config, {**NAIVE, "init": init})


def compare(models: dict[str, Any], *, config: ml_collections.ConfigDict, dataset: epath.PathLike) -> dict[str, Any]:
    """`eval.comparison.comparison_table.compare_rows` of the models on the evaluation split: ranking and retrieval,
    paired by query.
    """
    from eval.comparison.by_attributes import attribute_measures, relevance_of
    from eval.comparison.comparison_table import Certainty, compare_rows
    from eval.protocols import rank_catalogue
    from eval.protocols.cross_modal import retrieval_of_queries
    from input_pipeline.loader import iterate_split

    evaluation, relevance = config.evaluation, relevance_of(config, dataset)
    measures = attribute_measures(config, relevance)
    rows, groups = {}, np.zeros(0, np.int64)
    for name, model in models.items():
        batches = iterate_split(dataset, split=evaluation.split, preprocessing=model.preprocessing, batch_size=256)
        parts = [
            (model.encode_image(model.preprocessing.to_float(b["image"])), model.encode_text(b["text"]), b["group"])
            for b in batches
        ]
        image, text, groups = (np.concatenate(part) for part in zip(*parts, strict=True))
        ranking = rank_catalogue(image, relevance, measures)
        rows[name] = {**ranking.metrics, **retrieval_of_queries(image, text, groups)}
    tuned = [name for name in models if name != START]
    pairs = [*((name, START) for name in tuned), (DEFAULTS, NAIVELY)]
    return compare_rows(rows, pairs=pairs, certainty=Certainty(groups))


def format_table(table: dict[str, Any]) -> str:
    """Markdown: the start's figure and the differences, each with its 95 % interval."""
    columns = [(d["a"], d["b"]) for d in table["differences"] if d["metric"] == table["metrics"][0]]
    found = {(d["a"], d["b"], d["metric"]): d for d in table["differences"]}
    lines = [
        "| metric | start | " + " | ".join(f"{a} - {b}" for a, b in columns) + " |",
        "| --- | ---: | " + " | ".join("---:" for _ in columns) + " |",
    ]
    start = next(row for row in table["rows"] if row["name"] == START)
    for metric in table["metrics"]:
        cells = [_interval(found[(a, b, metric)], "+.4f") for a, b in columns]
        lines.append(f"| {metric} | {_interval(start['metrics'][metric], '.4f')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_recipes(tables: dict[str, dict[str, Any]], metrics: list[str], *, chosen: str) -> str:
    """Markdown: a row for each way, with what it gains and forgets: differences to the start, paired by query."""
    columns = [(side, metric) for metric in metrics for side in SIDES]
    words = {"new": "gain", "learned": "forgetting"}
    lines = [
        "| way | " + " | ".join(f"{words[side]}: {metric}" for side, metric in columns) + " |",
        "| --- | " + " | ".join("---:" for _ in columns) + " |",
    ]
    found = {
        (side, cell["a"], cell["metric"]): cell
        for side in SIDES
        for cell in tables[side]["differences"]
        if cell["b"] == START
    }
    for name in (row["name"] for row in tables["new"]["rows"] if row["name"] != START):
        cells = [_interval(found[(side, name, metric)], "+.4f") for side, metric in columns]
        lines.append(f"| {name}{' (chosen)' if name == chosen else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(cell: dict[str, Any], form: str) -> str:
    if cell["mean"] is None:
        return "none"
    return f"{cell['mean']:{form}} [{cell['low']:{form}}, {cell['high']:{form}}]"
