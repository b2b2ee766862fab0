"""siglip-jax blend: models between a start and what was tuned from it, ranked; the best is saved.

  siglip-jax blend --config=configs/fashion.py --start=runs/start --model=runs/tuned --alphas=0,0.2,...,1 \\
    --dataset=data/new --learned=data/old --output=runs/blend

The parameters are (1 - alpha) start + alpha tuned (WiSE-FT, arXiv 2109.01903); with several --model, their mean is the
tuned end (a soup, arXiv 2203.05482). Each blend embeds the split of both catalogues, and each item is ranked against
the others as `siglip-jax rank` does; titles are looked for as well. --output gets

  model/       the chosen blend, which --model of all programs takes
  blend.html   the curves, blend.json the same as numbers
  new/, learned/   the embedding stores of each alpha; started again, finished ones are kept

Chosen is the alpha with the best mean (of both catalogues) of the config's first metric; with --max_forgetting, the
best on --dataset among those that lose no more than that on --learned. Alpha 0 may win. The split has then been used
for a choice: report final figures on another one.
"""

from __future__ import annotations

import json
import math
from typing import Any

from absl import flags
from etils import epath

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="demo.py")
    flags.DEFINE_string("start", None, "Model that was tuned: alpha 0.", required=True, flag_values=values)
    flags.DEFINE_multi_string(
        "model", None, "Model that was tuned from --start: alpha 1; several, for their mean.", required=True,
        flag_values=values,
    )  # fmt: skip
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
    from siglip_jax.loading import load
    from tools.workflow import blending

    alphas = blending.parse_alphas(values.alphas)
    config = values.config.copy_and_resolve_references()
    config.evaluation.split = values.split
    config.lock()
    names = blending.metric_names(config)
    limits = _limits(values, names)
    if values.model.count(values.start) or len(set(values.model)) < len(values.model):
        raise UserError("--model: name each tuned model once, and not --start, which alpha 0 stands for")
    blends = blending.Blends.between((values.start, load(values.start)), {name: load(name) for name in values.model})
    output = epath.Path(values.output)
    datasets = {blending.NEW: values.dataset, **({blending.LEARNED: values.learned} if values.learned else {})}
    for dataset in datasets.values():
        blending.check_catalogue(config, dataset)
    catalogues = {
        name: blending.measure(
            blends, alphas, config=config, dataset=dataset, stores=output / name, on_error=values.on_error
        )
        for name, dataset in datasets.items()
    }
    chosen = blending.choose(catalogues, limits=limits, metric=names[0])
    report: dict[str, Any] = {
        "title": f"Blends of {values.start} and {', '.join(values.model)}",
        "start": values.start,
        "models": values.model,
        "split": values.split,
        "alphas": alphas,
        "metric": names[0],
        "limits": limits,
        "rule": blending.rule_in_words(list(catalogues), limits, names[0]),
        "chosen": chosen,
        "catalogues": catalogues,
    }
    blending.save_blend(blends.at(chosen), output / "model")
    _write(output, report)
    print(f"\n{blending.format_curve(report)}\n")
    for line in dict.fromkeys(line for catalogue in catalogues.values() for line in catalogue["warnings"]):
        print(line)
    print(f"alpha {chosen:g}{' (no change)' if chosen == 0 else ''}: {report['rule']}")
    print(f"model: {output / 'model'}, curves: {output / 'blend.html'}")


def _limits(values: flags.FlagValues, names: list[str]) -> dict[str, float]:
    """--max_forgetting as {metric: most that it may fall}."""
    limits: dict[str, float] = {}
    for text in values.max_forgetting:
        name, sign, number = text.rpartition("=")
        name = name if sign else names[0]
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in names or name in limits or not 0 <= limit < math.inf:
            raise UserError(
                f"--max_forgetting={text}: expected a number of at least 0, or METRIC=number, each metric once; "
                f"metrics are {', '.join(names)}"
            )
        limits[name] = limit
    if limits and not values.learned:
        raise UserError("--max_forgetting is measured on --learned: give it, the dataset that the start knows")
    return limits


def _write(output: epath.Path, report: dict[str, Any]) -> None:
    from eval.report import render_blend

    (output / "blend.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (output / "blend.html").write_text(render_blend(report), encoding="utf-8")
