"""siglip-jax rank: ranks with one or more embedding stores under one protocol, and reports.

  siglip-jax rank --config=configs/fashion.py --dataset=data/fashion --output=runs/report.html \\
    --store=old=runs/old/embeddings --store=new=runs/new/embeddings

Without --logs each item of a split is ranked against the others, and attributes tell what is relevant
(--protocol=attribute_agreement). With --logs, interaction logs do; docs/ranking.md has their format and the protocols:

  siglip-jax rank --logs=logs/ --protocol=logged_lists --from=2024-07-01 --dataset=data/shop --output=runs/lists.html \\
    --store=old=... --store=new=... --trec=runs/trec --per_query=runs/queries.parquet

The last --store is the one that is compared with all others; baselines such as "random" come by themselves.
"""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags

from siglip_jax.errors import UserError
from tools import options

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
    flags.DEFINE_multi_string("store", None, "name=folder of an embedding store.", required=True, flag_values=values)
    flags.DEFINE_multi_string(
        "baseline",
        None,
        "Rows that need no store: random, raw pixels; with --logs also title TF-IDF, popularity, item-to-item. All "
        "that can be had when absent.",
        flag_values=values,
    )
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
    from eval.embeddings import read_store
    from eval.report import format_table, write_report
    from input_pipeline.dataset import attributes, dataset_fingerprint
    from tools import comparison

    if given := [name for name in LOG_FLAGS if values[name].value != values[name].default]:
        raise UserError(f"--{given[0]}: only with --logs")
    if not values.dataset:
        raise UserError(f"--protocol={ATTRIBUTES} reads attributes from a dataset: give --dataset")
    baselines = ["random", "raw pixels"] if values.baseline is None else values.baseline
    split = values.config.evaluation.split
    ids, _, _ = attributes(values.dataset, split)
    folders = _stores(values, baselines)
    stores = {name: read_store(folder) for name, folder in folders.items()}
    for name, store in stores.items():
        comparison.check_same_items(name, store, ids, fingerprint=dataset_fingerprint(values.dataset))
    vectors = comparison.baseline_vectors(baselines, dataset=values.dataset, split=split)
    vectors |= {name: store.vectors for name, store in stores.items()}
    report = comparison.rank(
        vectors,
        config=values.config,
        dataset=values.dataset,
        title=f"Ranking of {pathlib.Path(values.dataset).name}",
        new=list(stores)[-1],
        scann=options.scann_options(values.scann),
        allow_low_recall=values.allow_low_recall,
        provenance={"stores": {name: store.manifest.get("model", {}) for name, store in stores.items()}},
    )
    write_report(values.output, report, pictures=comparison.pictures_by_id(values.dataset, split))
    print(format_table(report))
    print(f"report: {values.output}")


def _rank_logs(values: flags.FlagValues) -> None:
    from eval.embeddings import read_store
    from eval.logs import movielens_columns, parse_time
    from eval.report import format_table, write_report
    from eval.rows import VectorRow
    from input_pipeline.dataset import attributes, dataset_fingerprint
    from siglip_jax.training.config import check, config_to_json
    from tools import comparison
    from tools.log_comparison import (
        Items,
        Window,
        log_format,
        rank_logs,
        store_rows,
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
    if "raw pixels" in baselines and not dataset:
        raise UserError("--baseline=raw pixels: pictures come from a dataset; give --dataset")
    stores = {name: read_store(folder) for name, folder in _stores(values, baselines).items()}
    if dataset:
        items = Items(*attributes(dataset, split))
    else:
        ids = list(next(iter(stores.values())).ids)
        items = Items(ids, [""] * len(ids), {})
    rows: list[Any] = []
    if "raw pixels" in baselines:
        pixels = comparison.baseline_vectors(["raw pixels"], dataset=dataset, split=split)["raw pixels"]
        rows.append(VectorRow("raw pixels", pixels, ids=items.ids))
    rows += store_rows(stores, items.ids)
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
        rows=rows,
        baselines=[name for name in baselines if name != "raw pixels"],
        config=config,
        form=log_format(config, columns=columns, on_error=values.on_error),
        new=list(stores)[-1],
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
            "stores": {name: store.manifest.get("model", {}) for name, store in stores.items()},
            "evaluation": config_to_json(config.evaluation),
            "versions": comparison.versions(),
        },
    )
    pictures_of = comparison.pictures_by_id(dataset, split) if dataset else _no_picture
    write_report(values.output, compared.report, pictures=pictures_of)
    if values.per_query:
        write_per_query(values.per_query, compared)
    print(format_table(compared.report))
    print(f"report: {values.output}")


def _stores(values: flags.FlagValues, baselines: list[str]) -> dict[str, str]:
    folders = options.named_paths(values.store, flag="store")
    if taken := folders.keys() & {*baselines, "logged order"}:
        raise UserError(f"--store={taken.pop()}=...: a baseline or another row has this name; choose another")
    return folders


def _no_picture(item: str) -> bytes:
    raise KeyError(item)
