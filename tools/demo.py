"""siglip-jax demo: the whole thread, from a catalogue to a ranking table, a report and a SavedModel.

  siglip-jax demo                                  on a generated, synthetic catalogue
  siglip-jax demo --catalog=shop.zip --config=...  on a real one; the config names the attributes of relevance
  siglip-jax demo --catalog=shop.zip --config=... --encoder=mobilenet.tflite

--encoder is one that you have: what `embed --model` takes, or a file of its embeddings (.npz, .npy, .parquet, .csv). An
adapter over its stored numbers is trained and compared with it; the last line is the difference. --config says what is
relevant then, --adapter how the adapter is trained.

Started again after a stop, it continues the training where the last checkpoint left it.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

if TYPE_CHECKING:
    from eval.comparison.choose_rankers import RankersToCompare
    from siglip_jax.model import Model
    from tools.workflow.adapters import adapter_demo


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("catalog", "", "Folder, .zip or table; synthetic when empty.", flag_values=values)
    common_flags.define_layout(values)
    common_flags.define_max_left_out(values)
    common_flags.define_config(values, default="demo.py")
    common_flags.define_tokenizer(values)
    flags.DEFINE_string("encoder", "", "An encoder that you have: its file, name or embeddings.", flag_values=values)
    common_flags.define_config(
        values, default="adapter.py", name="adapter", text="Config of the adapter over --encoder"
    )
    flags.DEFINE_string("workdir", "runs/demo", "Where everything is written.", flag_values=values)
    common_flags.define_scann(values)


def main(values: flags.FlagValues) -> None:
    from eval.comparison.by_attributes import relevance_of
    from eval.metrics.metric_names import max_cutoff
    from eval.report import format_table
    from siglip_jax.training.config import check, config_to_json
    from tools.workflow import data, training
    from tools.workflow.adapters import adapter_demo
    from tools.workflow.exports import export
    from tools.workflow.exports.export_target import check_target

    begin = time.monotonic()
    config, workdir = common_flags.config_of(values), pathlib.Path(values.workdir)
    check(config)
    max_cutoff(config.evaluation.metrics)  # says which are unknown
    # The encoder and how to train over it, both checked before anything takes long.
    given = adapter_demo.prepare(values.encoder, values.adapter, config) if values.encoder else None
    workdir.mkdir(parents=True, exist_ok=True)

    def announce(text: str) -> None:
        print(f"\n[{(time.monotonic() - begin) / 60:4.1f} min] {text}", flush=True)

    catalog = values.catalog
    if not catalog:
        announce("catalogue: rendering synthetic products")
        catalog = _synthetic_catalogue(config, workdir / "catalog")

    announce(f"data: {catalog} to ArrayRecord, split by title and picture")
    dataset = workdir / "dataset"
    fractions = adapter_demo.FRACTIONS if given else None
    allowed = values.max_left_out if values.catalog else 1  # the faults of the synthetic one are put there on purpose
    options: dict[str, Any] = {"layout": values.layout, "fractions": fractions, "max_left_out": allowed}
    audit = data.build_data(catalog, dataset, overwrite=True, **options)
    try:
        relevance_of(config, dataset)  # before minutes are spent on training
    except UserError as error:
        raise UserError(f"{error}; declare your own in a copy of configs/fashion.py and pass it as --config") from error

    trained = None
    if given:
        compared, run = _adapt(*given, dataset, split=config.evaluation.split, announce=announce)
    else:
        # A folder for each pair of config and data, so that a run is continued only by the same run.
        made_of = json.dumps([config_to_json(config), audit["fingerprint"]])
        run = workdir / "train" / hashlib.sha256(made_of.encode()).hexdigest()[:12]
        announce(f"training: {config.steps} steps of {config.batch_size} pairs")
        trained = training.train_on_dataset(config, dataset=dataset, workdir=run)

        announce("embedding the held-out items with the start and the trained encoder")
        compared = _embed(config, dataset, workdir / "embeddings", trained)

    announce("ranking each held-out item against the others")
    report = _rank(
        compared,
        config,
        dataset,
        scann=common_flags.scann_options(values.scann),
        title="Synthetic catalogue" if not values.catalog else f"Catalogue {pathlib.Path(catalog).name}",
        loss_curve=training.metrics_of(run),
        catalogue={name: audit[name] for name in ("rows", "kept", "splits", "problems", "catalogue_sha256")},
    )

    if trained:
        announce("exporting the image encoder")
        shutil.rmtree(workdir / "savedmodel", ignore_errors=True)
        ranking = export.RankingOptions(config=config)
        target = check_target(workdir / "savedmodel", dataset=dataset, split=config.evaluation.split)
        export.export(trained, target, ranking=ranking)

    announce("done")
    print(format_table(report))
    print(f"report: {workdir / 'report.html'}")
    if given:
        print(f"adapter: {workdir / 'adapter'}")
        print(adapter_demo.write_headline(workdir / "headline.json", report))


def _adapt(
    encoder: adapter_demo.Encoder,
    recipe: ml_collections.ConfigDict,
    dataset: pathlib.Path,
    *,
    split: str,
    announce: Callable[[str], None],
) -> tuple[RankersToCompare, pathlib.Path]:
    """The rankers of the comparison, and the folder of the adapter's training; the adapter is in `adapter` beside."""
    from tools.workflow.adapters import adapter_demo

    workdir = dataset.parent
    announce("embedding all items with your encoder, and as colours, edges and coarse pixels")
    stores = adapter_demo.store_inputs(encoder, dataset=dataset, output=workdir / "embeddings")

    announce(f"training an adapter: {recipe.steps} steps")
    adapter, run = adapter_demo.train_adapter(recipe, dataset=dataset, stores=stores, workdir=workdir / "train")
    adapter_demo.save_adapter(adapter, workdir / "adapter")

    announce("embedding the held-out items with the adapter")
    output = workdir / "embeddings"
    return adapter_demo.compare(adapter, dataset=dataset, split=split, stores=stores, output=output), run


def _synthetic_catalogue(config: ml_collections.ConfigDict, folder: pathlib.Path) -> str:
    """The folder, with the catalogue in it."""
    from input_pipeline.synthetic.synthetic_catalogue import is_written, write_synthetic_catalogue

    wanted = {"items": config.get("synthetic_items", 2000), "seed": config.seed}
    if not is_written(str(folder), **wanted):
        write_synthetic_catalogue(str(folder), **wanted)
    return str(folder)


def _embed(
    config: ml_collections.ConfigDict, dataset: pathlib.Path, output: pathlib.Path, trained: Model
) -> RankersToCompare:
    """The held-out items by both encoders, and training items to fit the ladder's PCA on."""
    from eval.comparison.choose_rankers import RankersToCompare
    from eval.comparison.dimension_ladder import Ladder, ladder_reductions
    from eval.comparison.item_images import pixel_vectors
    from eval.comparison.items import read_split
    from eval.embeddings.reduction import FITTED_ON
    from eval.rankers import Ranker, VectorRanker
    from eval.rankers.baselines import RandomRanker
    from tools.workflow import embedding, training

    split = config.evaluation.split
    start = training.start_model(config, dataset)
    start_name = "zero-shot" if config.init else "start (random init)"
    items = read_split(dataset, split)
    rankers: dict[str, Ranker] = {"random": RandomRanker(len(items.ids))}
    rankers["raw pixels"] = VectorRanker("raw pixels", pixel_vectors(dataset, split, items=items))
    for name, folder, model in ((start_name, "start", start), ("trained", "trained", trained)):
        encoder = embedding.image_encoder(model, name=name)
        store = embedding.embed(encoder, dataset=dataset, split=split, output=output / folder, overwrite=True)
        rankers[name] = VectorRanker(name, store.vectors, ids=items.ids)
    fitted = embedding.embed(
        encoder,
        dataset=dataset,
        split=config.data.train_split,
        output=output / "training",
        most=FITTED_ON,
        overwrite=True,
    )
    rungs = ladder_reductions(fitted.vectors, fitted_on=f"{len(fitted.ids)} training items")
    return RankersToCompare(
        rankers=rankers,
        items=items,
        new="trained",
        against=start_name,
        bytes_per_item=dict.fromkeys((start_name, "trained"), 4 * store.vectors.shape[1]),
        ladders={"trained": Ladder(store.vectors, rungs)},
    )


def _rank(
    compared: RankersToCompare,
    config: ml_collections.ConfigDict,
    dataset: pathlib.Path,
    *,
    scann: dict[str, str] | None,
    title: str,
    loss_curve: Sequence[Mapping[str, float]],
    catalogue: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the report beside the dataset. `catalogue`: what the audit says of it."""
    from eval.comparison.build_report import build_report, versions
    from eval.comparison.by_attributes import rank_by_attributes, relevance_attributes
    from eval.comparison.choose_rankers import slicings_of
    from eval.comparison.index_columns import SearchOptions
    from eval.comparison.item_images import images_by_id
    from eval.report import write_report
    from siglip_jax.training.config import config_to_json

    items = compared.items
    result = rank_by_attributes(
        compared.rankers.values(),
        config=config,
        dataset=dataset,
        items=items,
        search=SearchOptions(scann),
        slicings=slicings_of(relevance_attributes(config), {"title": items.titles, **items.columns}, ids=items.ids),
    )
    report = build_report(
        result,
        compared,
        title=title,
        loss_curve=loss_curve,
        provenance={
            "versions": versions(),
            "command": " ".join(["siglip-jax", "demo", *sys.argv[1:]]),
            "catalogue": catalogue,
            "config": config_to_json(config),
            **compared.provenance,
        },
    )
    images = images_by_id(dataset, config.evaluation.split, items=items)
    write_report(dataset.parent / "report.html", report, images=images)
    return report
