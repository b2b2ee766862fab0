"""siglip-jax blend: models between a start and what was tuned from it, ranked; the best is saved.

  siglip-jax blend --config=configs/fashion.py --start=runs/start --model=runs/tuned --alphas=0,0.2,...,1 \\
    --dataset=data/new --learned=data/old --output=runs/blend
  siglip-jax blend --config=configs/fashion.py --model=runs/adapter --features=cnn=runs/cnn-validation \\
    --dataset=data/shop --output=runs/chosen

The parameters are (1 - alpha) start + alpha tuned (WiSE-FT, arXiv 2109.01903); with several --model, their mean is the
tuned end (a soup, arXiv 2203.05482). Each blend embeds the split of both catalogues, and each item is ranked against
the others as `siglip-jax rank` does; titles are looked for as well. --output gets

  model/       the chosen blend, which --model of all programs takes
  blend.html   the curves, blend.json the same as numbers
  new/, learned/   the embedding stores of each alpha; started again, finished ones are kept

Without --start, --model is an adapter and alpha its strength: how much of the cosine of two images is what it learned,
0 for its encoders as they are. The split is embedded once, all strengths follow from that.

Chosen is the alpha with the best mean (of both catalogues) of the config's first metric; with --max_forgetting, the
best on --dataset among those that lose no more than that on --learned. Alpha 0, no change, wins unless the interval of
the gain on --dataset is above zero. The split has then been used for a choice: report final figures on another one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from absl import flags
from etils import epath

from siglip_jax.errors import UserError
from tools import common_flags

if TYPE_CHECKING:
    from tools.workflow.blending import Way


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="demo.py")
    flags.DEFINE_string(
        "start", None, "Model that was tuned: alpha 0; absent where alpha is an adapter's strength.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "model", None, "Model that was tuned from --start: alpha 1; several, for their mean. Or an adapter.",
        required=True, flag_values=values,
    )  # fmt: skip
    common_flags.define_features(values)
    flags.DEFINE_string("alphas", "0,0.2,...,1", "Shares of the tuned model; 0 comes by itself.", flag_values=values)
    common_flags.define_dataset(values)
    flags.DEFINE_string("learned", None, "Dataset that the start knows, to see what is forgotten.", flag_values=values)
    flags.DEFINE_string(
        "split", "validation", "Split of both to choose on; config.evaluation.split is not read.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "max_forgetting",
        [],
        "Most that the first metric may fall on --learned, such as 0.02; or METRIC=0.06, for another one as well.",
        flag_values=values,
    )
    common_flags.define_output(values, "Folder of the chosen model, the curves and the stores.")
    common_flags.define_on_error(
        values, "error", "Rows whose record or image cannot be read: error stops, skip leaves them out and names them."
    )


def main(values: flags.FlagValues) -> None:
    from tools.workflow import blending

    alphas = blending.parse_alphas(values.alphas)
    config = values.config.copy_and_resolve_references()
    config.evaluation.split = values.split
    config.lock()
    names = blending.metric_names(config)
    limits = blending.parse_limits(values.max_forgetting, names)
    if limits and not values.learned:
        raise UserError("--max_forgetting is measured on --learned: give it, the dataset that the start knows")
    way = _way(values)
    output = epath.Path(values.output)
    datasets = {blending.NEW: values.dataset, **({blending.LEARNED: values.learned} if values.learned else {})}
    for dataset in datasets.values():
        blending.check_catalogue(config, dataset)
    catalogues = {
        name: blending.measure(
            way, alphas, config=config, dataset=dataset, stores=output / name, on_error=values.on_error
        )
        for name, dataset in datasets.items()
    }
    chosen = blending.choose(catalogues, limits=limits, metric=names[0])
    report: dict[str, Any] = {
        **_described(values),
        "split": values.split,
        "alphas": alphas,
        "metric": names[0],
        "limits": limits,
        "rule": blending.rule_in_words(list(catalogues), limits, names[0]),
        "chosen": chosen,
        "catalogues": catalogues,
    }
    blending.save_blend(way.at(chosen), output / "model")
    _write(output, report)
    print(f"\n{blending.format_curve(report)}\n")
    for line in dict.fromkeys(line for catalogue in catalogues.values() for line in catalogue["warnings"]):
        print(line)
    print(f"alpha {chosen:g}{' (no change)' if chosen == 0 else ''}: {report['rule']}")
    print(f"model: {output / 'model'}, curves: {output / 'blend.html'}")


def _way(values: flags.FlagValues) -> Way:
    from siglip_jax.loading import load
    from tools.workflow import blending
    from tools.workflow.adapters.strengths import Strengths
    from tools.workflow.item_vectors import Features

    if values.model.count(values.start) or len(set(values.model)) < len(values.model):
        raise UserError("--model: name each tuned model once, and not --start, which alpha 0 stands for")
    if values.start is None and len(values.model) > 1:
        raise UserError(f"--model={', '.join(values.model)}: --start is missing, the model that they were tuned from")
    paths = common_flags.features_of(values)
    features = Features.open(paths) if paths else None
    models = {name: load(name) for name in values.model}
    if values.start is None:
        return Strengths.of((values.model[0], models[values.model[0]]), features)
    return blending.Blends.between((values.start, load(values.start)), models, features=features)


def _described(values: flags.FlagValues) -> dict[str, Any]:
    """What was blended, for the report."""
    models = ", ".join(values.model)
    if values.start is None:
        title, ends = f"Strengths of {models}", "0 is its encoders as they are, 1 what it learned alone"
    else:
        title = f"Blends of {values.start} and {models}"
        ends = f"0 is the start, {values.start}; 1 is {models if len(values.model) == 1 else f'the mean of {models}'}"
    return {"title": title, "start": values.start, "models": values.model, "ends": ends}


def _write(output: epath.Path, report: dict[str, Any]) -> None:
    from eval.report import render_blend

    (output / "blend.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (output / "blend.html").write_text(render_blend(report), encoding="utf-8")
