"""siglip-jax bench recipes: which settings of a training are better, on your data: all trained, then ranked in one run.

The config is trained as it is ("as configured") and once more for each --recipe, with the fields that it names changed:
every one from the same seed, on the same split of --dataset. The evaluation split then ranks with all of them, and each
row's difference to --against, paired by query, has its interval. Equal compute is yours to keep: the table has the
examples that each has seen (steps x batch size) and the seconds of its training.

  siglip-jax bench recipes --config=configs/adapter.py --relevance=configs/fashion.py --dataset=data/shop \\
    --workdir=runs/recipes --features=cnn=runs/cnn-train --features=cnn=runs/cnn-test \\
    --recipe="softmax: loss=softmax" \\
    --recipe="batch 512: batch_size=512, steps=1000, optimizer.warmup_steps=40, model.init_bias=-6.6"

Further rows as of `siglip-jax rank`: --store=MobileNet=runs/cnn-test, --baseline, --reduce="as configured=pca:64" and
--ladder, for which a PCA is fitted on training items. Run again with the same --workdir, it continues: what decides is
the config of a row, not its name, so rows may be added, renamed and left out. --workdir gets report.html, recipes.json
with all metrics, and the folder of each training.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags
from etils import epath

from siglip_jax.errors import UserError
from tools import common_flags
from tools.workflow import rank_flags
from tools.workflow.recipes import changed, parse_recipes, with_relevance

if TYPE_CHECKING:
    from eval.comparison.choose_rankers import RankerOptions, RankersToCompare
    from eval.comparison.protocol_result import ProtocolResult
    from tools.workflow.item_vectors import Features

AS_CONFIGURED = "as configured"


def define_flags(values: flags.FlagValues) -> None:
    common_flags.define_config(values, default="adapter.py")
    common_flags.define_config(
        values,
        default=None,
        name="relevance",
        text="Config whose relevance, gain and metrics take the place of --config's",
    )
    common_flags.define_dataset(values)
    common_flags.define_features(values)
    flags.DEFINE_string("workdir", None, "Folder of the runs and the report.", required=True, flag_values=values)
    flags.DEFINE_multi_string(
        "recipe", [], "One more row, as name: field=value, field=value; may be repeated.", flag_values=values
    )
    rank_flags.define_flags(values, store_required=False)


def main(values: flags.FlagValues) -> None:
    from eval.comparison.by_attributes import relevance_of
    from eval.comparison.choose_rankers import check_options
    from eval.embeddings.reduction import FITTED_ON
    from siglip_jax.training.config import check

    stores = common_flags.named_paths(values.store or [], flag="store")
    config = with_relevance(values.config, values.relevance) if values.relevance else values.config
    recipes = parse_recipes(values.recipe, config, flag="recipe", taken={AS_CONFIGURED, *stores})
    if not recipes:
        raise UserError('bench recipes: one row alone; give --recipe="name: field=value"')
    paths = common_flags.features_of(values)
    rows: dict[str, dict[str, Any]] = {AS_CONFIGURED: {}, **recipes}
    variants = {
        name: Variant.of(changed(config, fields), values, name=name, features=paths) for name, fields in rows.items()
    }
    # Everything that can be known beforehand, before hours of training.
    relevance_of(config, values.dataset)
    for name, variant in variants.items():
        try:
            check(variant.config)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        variant.check_batch()
    check_options(_options(values, config, variants, stores), dataset=values.dataset)

    for name, variant in variants.items():
        print(f"== {name}: {variant.config.steps} steps of {variant.config.batch_size}, {variant.folder}", flush=True)
        variant.train()
        variant.embed(config.evaluation.split)
        if _fits(values, name):
            variant.embed(config.data.train_split, most=FITTED_ON)
    compared, result = _rank(values, config, _options(values, config, variants, stores))
    found = _compare(compared, result, against=values.against or AS_CONFIGURED)
    for row in found["rows"]:
        if (trained := variants.get(row["name"])) is not None:
            row |= {"changes": rows[row["name"]], **trained.cost(), "folder": str(trained.folder)}
    _write(values, config, found, compared, result, curve_of=variants.get(compared.new))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One training.

    Attributes:
      config: of it.
      folder: its workdir, named after all that decides what is trained.
      stores: folder for its embeddings.
      features: {name: stores} of an adapter.
    """

    name: str
    config: ml_collections.ConfigDict
    dataset: str
    folder: epath.Path
    stores: epath.Path
    features: Mapping[str, Sequence[str]]
    opened: Features | None

    @classmethod
    def of(
        cls,
        config: ml_collections.ConfigDict,
        values: flags.FlagValues,
        *,
        name: str,
        features: Mapping[str, Sequence[str]],
    ) -> Variant:
        from input_pipeline.dataset import dataset_fingerprint
        from siglip_jax.training.config import config_to_json, without_free_fields
        from tools.workflow.item_vectors import Features
        from tools.workflow.teacher import open_teacher

        opened, teacher = Features.open(features) if features else None, open_teacher(config)
        decides = [
            without_free_fields(config_to_json(config)),
            dataset_fingerprint(values.dataset),
            opened.fingerprints if opened else {},
            teacher.fingerprint if teacher else "",
        ]
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
        workdir = epath.Path(values.workdir)
        return cls(
            name=name,
            config=config,
            dataset=values.dataset,
            folder=workdir / "trainings" / key,
            stores=workdir / "embeddings" / key,
            features=features,
            opened=opened,
        )

    def check_batch(self) -> None:
        """Raises a UserError where there are fewer rows than the config wants, or than a batch has."""
        from input_pipeline.dataset import open_split
        from input_pipeline.loader.row_order import first_rows

        count, options = len(open_split(self.dataset, self.config.data.train_split)), self.config.data
        rows = len(first_rows(count, most=options.most, seed=self.config.seed))
        if self.config.batch_size > rows:
            raise UserError(f"{self.name}: batch_size={self.config.batch_size}; there are {rows} items to train on")

    def train(self) -> None:
        """To the end; a training that has ended is left alone."""
        from tools.workflow import training

        if self.cost()["finished"]:
            return
        before, began = self.cost()["seconds"], time.monotonic()
        finished = False
        try:
            training.train_on_dataset(
                self.config, dataset=self.dataset, workdir=self.folder, features=self.features or None
            )
            finished = True
        finally:
            if self.folder.exists():
                clock = {"seconds": round(before + time.monotonic() - began, 1), "finished": finished}
                self._clock.write_text(json.dumps(clock) + "\n")

    def cost(self) -> dict[str, Any]:
        """{"examples", "seconds", "finished"}; the seconds of all processes that could say when they stopped."""
        known = json.loads(self._clock.read_text()) if self._clock.exists() else {"seconds": 0.0, "finished": False}
        return {"examples": self.config.steps * self.config.batch_size, **known}

    @property
    def _clock(self) -> epath.Path:
        return self.folder / "clock.json"

    def store(self, split: str) -> str:
        return str(self.stores / split)

    def embed(self, split: str, *, most: int | None = None) -> None:
        from siglip_jax.loading import load
        from tools.workflow.embedding import embed, image_encoder

        encoder = image_encoder(load(self.folder), name=self.name, features=self.opened)
        embed(encoder, dataset=self.dataset, split=split, output=self.store(split), most=most, overwrite=True)


def _fits(values: flags.FlagValues, name: str) -> bool:
    """Whether a PCA of this row is asked for, and no --fit says where its training items are."""
    reduced = {row for row, text in common_flags.pairs(values.reduce, flag="reduce") if "pca" in text}
    return name in {*reduced, *values.ladder} and name not in common_flags.named_paths(values.fit, flag="fit")


def _options(
    values: flags.FlagValues,
    config: ml_collections.ConfigDict,
    variants: Mapping[str, Variant],
    stores: Mapping[str, str],
) -> RankerOptions:
    """Stores first, then the variants: what the flags of `siglip-jax rank` say about the rows of both."""
    split, train = config.evaluation.split, config.data.train_split
    named = {**stores, **{name: variant.store(split) for name, variant in variants.items()}}
    fitted = {name: variant.store(train) for name, variant in variants.items() if _fits(values, name)}
    against = values.against or AS_CONFIGURED
    new = values.new or [name for name in named if name != against][-1]
    options = dataclasses.replace(rank_flags.ranker_options(values), stores=named, new=new, against=against)
    return dataclasses.replace(options, fits={**options.fits, **fitted})


def _rank(
    values: flags.FlagValues, config: ml_collections.ConfigDict, options: RankerOptions
) -> tuple[RankersToCompare, ProtocolResult]:
    from eval.comparison.by_attributes import rank_by_attributes, relevance_attributes
    from eval.comparison.choose_rankers import read_rankers, slicings_of
    from eval.comparison.items import read_items

    dataset, split = values.dataset, config.evaluation.split
    items = read_items(dataset, split, options.stores)
    compared = read_rankers(options, dataset=dataset, split=split, items=items)
    columns = {"title": items.titles, **items.columns}
    slicings = slicings_of(relevance_attributes(config), columns, ids=items.ids)
    ranked = rank_by_attributes(
        compared.rankers.values(), config=config, dataset=dataset, items=items, slicings=slicings
    )
    return compared, ranked


def _compare(compared: RankersToCompare, result: ProtocolResult, *, against: str) -> dict[str, Any]:
    """`eval.comparison.comparison_table.compare_rows`, each row with `against`, and the bytes of each row's vectors."""
    from eval.comparison.comparison_table import Certainty, compare_rows

    pairs = [(name, against) for name in result.metrics if name != against]
    table = compare_rows(result.metrics, pairs=pairs, certainty=Certainty(result.queries.clusters))
    for row in table["rows"]:
        row["bytes_per_item"] = compared.bytes_per_item.get(row["name"])
    return {"against": against, "metric": result.protocol.measures.primary, **table}


def _write(
    values: flags.FlagValues,
    config: ml_collections.ConfigDict,
    found: dict[str, Any],
    compared: RankersToCompare,
    result: ProtocolResult,
    *,
    curve_of: Variant | None,
) -> None:
    from eval.comparison.build_report import build_report, versions
    from eval.comparison.item_images import images_by_id
    from eval.report import write_report
    from siglip_jax.training.config import config_to_json
    from tools.bench import measuring
    from tools.workflow.training import metrics_of

    split, workdir = config.evaluation.split, epath.Path(values.workdir)
    provenance = {
        "versions": versions(),
        "command": " ".join(["siglip-jax", "bench", "recipes", *sys.argv[1:]]),
        "machine": measuring.machine(),
        "config": config_to_json(config),
        **compared.provenance,
    }
    report = build_report(
        result,
        compared,
        title=f"Recipes on {epath.Path(values.dataset).name}",
        loss_curve=metrics_of(curve_of.folder) if curve_of else (),
        provenance=provenance,
    )
    images = images_by_id(values.dataset, split, items=compared.items)
    write_report(workdir / "report.html", report, images=images)
    (workdir / "recipes.json").write_text(json.dumps({**found, "split": split, **provenance}, indent=1) + "\n")
    print(f"\n{format_rows(found)}\n")
    print(f"{found['queries']} queries of split {split}; {provenance['machine']}")
    print(f"figures: {workdir / 'recipes.json'}, report: {workdir / 'report.html'}")


def format_rows(found: Mapping[str, Any]) -> str:
    """Markdown: a line for each row, with its difference to the row that all are compared with."""
    metric, against = found["metric"], found["against"]
    differences = {each["a"]: each for each in found["differences"] if each["metric"] == metric}
    lines = [
        f"| row | bytes per item | {metric} | row − {against} | examples | training, s |",
        "| --- | ---: | --- | --- | ---: | ---: |",
    ]
    for row in found["rows"]:
        size, seen, seconds = (row.get(key) for key in ("bytes_per_item", "examples", "seconds"))
        cells = [
            row["name"],
            "–" if size is None else f"{size:,}",
            _interval(row["metrics"][metric], ".3f"),
            _interval(differences[row["name"]], "+.3f") if row["name"] in differences else "–",
            "–" if seen is None else f"{seen:,}",
            "–" if seconds is None else f"{seconds:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(cell: Mapping[str, Any], form: str) -> str:
    if cell["mean"] is None:
        return "not measured"
    low, high = (cell[key] for key in ("low", "high"))
    return f"{cell['mean']:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")
