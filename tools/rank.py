"""siglip-jax rank: ranks with one or more embedding stores under one protocol, and reports.

  siglip-jax rank --config=configs/fashion.py --dataset=data/fashion --output=runs/report.html \\
    --store=old=runs/old/embeddings --store=new=runs/new/embeddings

Without --logs each item of a split is ranked against the others, and attributes tell what is relevant
(--protocol=attribute_agreement). With --logs, interaction logs do; docs/ranking.md has their format and the protocols:

  siglip-jax rank --logs=logs/ --protocol=logged_lists --from=2024-07-01 --dataset=data/shop --output=runs/lists.html \\
    --store=old=... --store=new=... --trec=runs/trec --per_query=runs/queries.parquet

The last --store (or --new) is compared with all other rows, with --against first; baselines such as "random" come by
themselves. A store may be a file of embeddings: --store=mine=vectors.npy. Made smaller, and (without --logs) at every
width:

  --reduce=new=pca:128 --fit=new=runs/new/training_embeddings --ladder=new
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from siglip_jax.errors import UserError
from tools import options, rows

ATTRIBUTES = "attribute_agreement"
LOG_PROTOCOLS = ("logged_lists", "retrieval", "leave_one_out", "time_split")
LOG_FLAGS = (
    *("from", "until", "train_from", "train_until", "log_column", "layout", "train_dataset", "trec", "per_query"),
)


def define_flags(values: flags.FlagValues) -> None:
    def text(name: str, default: str | None, said: str) -> None:
        flags.DEFINE_string(name, default, said, flag_values=values)

    options.define_config(values, default="demo.py")
    text("dataset", None, "Folder written by siglip-jax data; with --logs, for pictures, titles, dates and leakage.")
    options.define_output(values, "The report, an .html file; the same as .json is written beside it.")
    rows.define_flags(values)
    options.define_scann(values)
    flags.DEFINE_boolean(
        "allow_low_recall", False, "Show ScaNN's column though its recall is under 0.98.", flag_values=values
    )
    flags.DEFINE_enum("protocol", ATTRIBUTES, [ATTRIBUTES, *LOG_PROTOCOLS], "What is asked.", flag_values=values)
    flags.DEFINE_multi_string("logs", [], "Parquet, CSV, TSV or JSON lines; files or folders.", flag_values=values)
    flags.DEFINE_multi_string("log_column", [], "ours=theirs, a column of another name.", flag_values=values)
    flags.DEFINE_enum(
        "layout", "log", ["log", "movielens"], "movielens: userId, movieId, rating; 4 and more is liked.",
        flag_values=values,
    )  # fmt: skip
    text("from", None, "Queries from this time on, ISO 8601; of time_split the time itself.")
    text("until", None, "Queries before this time.")
    text("train_from", None, "Popularity and item-to-item count from this time on.")
    text("train_until", None, "They count up to this time; --from when absent, and never later.")
    flags.DEFINE_enum("on_error", "skip", ["skip", "refuse"], "What an impossible row of a log does; both count it.",
                      flag_values=values)  # fmt: skip
    flags.DEFINE_enum("leakage", "refuse", ["refuse", "drop"], "What items do that training saw.", flag_values=values)
    text("train_dataset", None, "Dataset that the encoders were trained on; --dataset when absent.")
    text("trec", "", "Folder for qrels.txt and a run for each row.")
    flags.DEFINE_integer("trec_depth", 1000, "Items of each ranking in a run.", flag_values=values)
    text("per_query", "", "Parquet file for the figures of every query and row.")


def main(values: flags.FlagValues) -> None:
    if not values.output.endswith(".html"):
        raise UserError(f"--output={values.output}: expected a file name ending in .html")
    if (values.protocol == ATTRIBUTES) == bool(values.logs):
        given = "--logs" if values.logs else f"--protocol={values.protocol}"
        raise UserError(
            f"{given} alone: {ATTRIBUTES} takes no log, and {', '.join(LOG_PROTOCOLS)} take --logs; give both --logs "
            "and --protocol, or neither"
        )
    if values.logs:
        _rank_logs(values)
    else:
        _rank_attributes(values)


def _rank_attributes(values: flags.FlagValues) -> None:
    from eval.report import format_table, write_report
    from tools import comparison

    if given := [name for name in LOG_FLAGS if values[name].value != values[name].default]:
        raise UserError(f"--{given[0]}: only with --logs")
    if not values.dataset:
        raise UserError(f"--protocol={ATTRIBUTES} reads attributes from a dataset: give --dataset")
    config = values.config
    comparison.relevance_of(config, values.dataset)  # before minutes are spent on rows
    catalogue = rows.Catalogue.of(values.dataset, config.evaluation.split)
    sliced = values["slice"].value
    slicings = rows.slicings_of(comparison.relevance_attributes(config) if sliced is None else sliced, catalogue)
    baselines = rows.DEFAULT_BASELINES if values.baseline is None else values.baseline
    read = rows.read_rows(values, catalogue, baselines=baselines, subset=False)
    new, against = rows.compared(values, read.rows, read.stores)
    report = comparison.rank(
        read.rows,
        config=config,
        dataset=values.dataset,
        title=f"Ranking of {pathlib.Path(values.dataset).name}",
        new=new,
        against=against,
        scann=options.scann_options(values.scann),
        allow_low_recall=values.allow_low_recall,
        slicings=slicings,
        ladders={name: (read.vectors[name], rungs) for name, rungs in read.ladders.items()},
        bytes_per_item=read.bytes_per_item,
        provenance=read.provenance,
    )
    write_report(values.output, report, pictures=comparison.pictures_by_id(values.dataset, catalogue.split))
    print(format_table(report))
    print(f"report: {values.output}")


def _rank_logs(values: flags.FlagValues) -> None:
    from eval.embeddings import read_store
    from eval.logs import movielens_columns, parse_time
    from eval.protocols import LOGGED_ORDER
    from eval.report import format_table, write_report
    from input_pipeline.dataset import dataset_fingerprint
    from siglip_jax.training.config import check, config_to_json
    from tools import comparison
    from tools.log_comparison import (
        Items,
        Window,
        log_format,
        rank_logs,
        training_items,
        write_per_query,
    )

    config, dataset = values.config, values.dataset
    check(config)
    split = config.evaluation.split
    bounds = {"since": "from", "until": "until", "train_since": "train_from", "train_until": "train_until"}
    window = Window(
        **{
            ours: parse_time(str(values[flag].value), flag=f"--{flag}")
            for ours, flag in bounds.items()
            if values[flag].value
        }
    ).checked()
    columns = options.named_paths(values.log_column, flag="log_column", expected="ours=theirs")
    if values.layout == "movielens":
        columns = {**movielens_columns(values.logs), **columns}
        if not config.evaluation.like_from:
            config.evaluation.like_from = 4.0
    baselines = values.baseline
    if baselines is None:
        pictures = ["raw pixels", "title TF-IDF"] if dataset else []
        baselines = ["random", "popularity", *pictures, "item-to-item"]
    if values.ladder:
        raise UserError("--ladder: only without --logs; give --reduce for single widths")
    if dataset:
        catalogue = rows.Catalogue.of(dataset, split)
    else:
        ids = list(read_store(next(iter(options.named_paths(values.store, flag="store").values()))).ids)
        catalogue = rows.Catalogue(ids, [""] * len(ids), {}, None, split)
    taken = {*baselines, LOGGED_ORDER}
    if clash := [name for name in options.named_paths(values.store, flag="store") if name in taken]:
        raise UserError(f"--store={clash[0]}=...: another row has this name; choose another")
    pictured = [name for name in baselines if name == "raw pixels"]
    read = rows.read_rows(values, catalogue, baselines=pictured, subset=True)
    items = Items(list(catalogue.ids), list(catalogue.titles), {k: list(v) for k, v in catalogue.columns.items()})
    leaked = training_items(
        dataset,
        split,
        train_dataset=values.train_dataset,
        train_split=config.data.train_split,
    )
    compared = rank_logs(
        values.logs,
        protocol=values.protocol,
        items=items,
        rows=list(read.rows.values()),
        baselines=[name for name in baselines if name != "raw pixels"],
        config=config,
        form=log_format(config, columns=columns, on_error=values.on_error),
        new=values.new if values.new is not None else read.stores[-1],
        against=values.against,
        title=f"Ranking over {', '.join(pathlib.Path(path).name for path in values.logs)}",
        window=window,
        leaked=leaked,
        leakage=values.leakage,
        scann=options.scann_options(values.scann),
        allow_low_recall=values.allow_low_recall,
        trec=values.trec,
        trec_depth=values.trec_depth,
        provenance={
            "dataset": dataset_fingerprint(dataset) if dataset else "none: the items of the first store",
            **read.provenance,
            "evaluation": config_to_json(config.evaluation),
            "versions": comparison.versions(),
        },
    )
    report = compared.report
    for row in report["rows"]:
        row["bytes_per_item"] = read.bytes_per_item.get(row["name"])
    report["slices"] = _slices_of_log(values["slice"].value or [], compared, catalogue)
    pictures_of = comparison.pictures_by_id(dataset, split) if dataset else _no_picture
    write_report(values.output, report, pictures=pictures_of)
    if values.per_query:
        write_per_query(values.per_query, compared)
    print(format_table(report))
    print(f"report: {values.output}")


def _slices_of_log(specs: list[str], compared: Any, catalogue: rows.Catalogue) -> dict[str, Any]:
    """By how much a user asks, how often an item is asked for, and what --slice names of the query item."""
    from eval.slices import by_volume, measure_slices

    report = compared.report
    asked = compared.queries["query_item_row"]
    slicings = [by_volume(compared.clusters, name="queries of the user")]
    if (asked >= 0).any():
        slicings.append(by_volume(asked, name="queries of the item"))
    slicings += rows.slicings_of(specs, catalogue, asked)
    new, against, primary = report["new"], report["against"], report["primary_metric"]
    values = {name: metrics[primary] for name, metrics in compared.metrics.items()}
    found = measure_slices(slicings, values[new], values[against], clusters=compared.clusters)
    return {**found, "new": new, "base": against, "metric": primary}


def _no_picture(item: str) -> bytes:
    raise KeyError(item)
