"""siglip-jax rank: ranks with one or more embedding stores under one protocol, and reports.

  siglip-jax rank --config=configs/fashion.py --dataset=data/fashion --output=runs/report.html \\
    --store=old=runs/old/embeddings --store=new=runs/new/embeddings

Without --logs each item of a split is ranked against the others, and attributes tell what is relevant
(--protocol=attribute_agreement). With --logs, interaction logs do; docs/guide/ranking.md has the format
and the protocols:

  siglip-jax rank --logs=logs/ --protocol=logged_lists --from=2024-07-01 --dataset=data/shop --output=runs/lists.html \\
    --store=old=... --store=new=... --trec=runs/trec --per_query=runs/queries.parquet

The last --store (or --new) is compared with all other rows, with --against first; baselines such as "random" come by
themselves. A store may be a file of embeddings: --store=mine=vectors.npy. Made smaller, and at every width:

  --reduce=new=pca:128 --fit=new=runs/new/training_embeddings --ladder=new
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from siglip_jax.errors import UserError
from tools import common_flags
from tools.workflow import rank_flags

if TYPE_CHECKING:
    from eval.comparison.items import Items
    from eval.comparison.log_task import LogSource
    from eval.comparison.protocol_result import ProtocolResult

LIKED_FROM = 4.0  # stars of MovieLens
ATTRIBUTES = "attribute_agreement"
LOG_PROTOCOLS = ("logged_lists", "retrieval", "leave_one_out", "time_split")
LOG_FLAGS = (
    *(
        "from",
        "until",
        "train_from",
        "train_until",
        "log_column",
        "log_action",
        "segment",
        "repeats",
        "layout",
        "train_dataset",
        "trec",
        "per_query",
    ),
)


def define_flags(values: flags.FlagValues) -> None:
    def text(name: str, default: str | None, said: str) -> None:
        flags.DEFINE_string(name, default, said, flag_values=values)

    common_flags.define_config(values, default="demo.py")
    text("dataset", None, "Folder written by siglip-jax data; with --logs, for pictures, titles, dates and leakage.")
    common_flags.define_output(values, "The report, an .html file; the same as .json is written beside it.")
    flags.DEFINE_enum("format", None, ["html", "md"], "md: a memo of one page, instead.", flag_values=values)
    rank_flags.define_flags(values)
    rank_flags.define_certainty(values)
    flags.DEFINE_multi_string(
        "slice",
        None,
        "Attribute, or attribute:bands for a number, to slice the queries by; absent, the attributes of relevance.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "history",
        [],
        "The .json of an earlier report of the same protocol, for a table of releases.",
        flag_values=values,
    )
    common_flags.define_scann(values)
    flags.DEFINE_boolean(
        "allow_low_recall", False, "Show ScaNN's column though its recall is under 0.98.", flag_values=values
    )
    flags.DEFINE_enum("protocol", ATTRIBUTES, [ATTRIBUTES, *LOG_PROTOCOLS], "What is asked.", flag_values=values)
    flags.DEFINE_multi_string("logs", [], "Parquet, CSV, TSV or JSON lines; files or folders.", flag_values=values)
    flags.DEFINE_multi_string("log_column", [], "ours=theirs, a column of another name.", flag_values=values)
    flags.DEFINE_multi_string(
        "log_action", [], "ours=theirs, an action of another word; ours alone, of rows without any.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "segment", [], "Column of the log to slice the queries by, such as platform or country.", flag_values=values
    )
    flags.DEFINE_enum(
        "layout", "log", ["log", "movielens"], "movielens: userId, movieId, rating; 4 and more is liked.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "repeats", False, "Users' earlier items stay candidates, so that buying again counts.", flag_values=values
    )
    text("from", None, "Queries from this time on, ISO 8601; of time_split the time itself.")
    text("until", None, "Queries before this time.")
    text("train_from", None, "Popularity and item-to-item count from this time on.")
    text("train_until", None, "They count up to this time; --from when absent, and never later.")
    common_flags.define_on_error(
        values, "skip", "Impossible rows of a log: skip leaves them out, error stops; both count."
    )
    common_flags.define_on_error(
        values, "error", "Items that training saw: error stops, skip leaves them out.", name="leakage"
    )
    text("train_dataset", None, "Dataset that the encoders were trained on; --dataset when absent.")
    text("trec", "", "Folder for qrels.txt and a run for each row.")
    flags.DEFINE_integer("trec_depth", 1000, "Items of each ranking in a run.", flag_values=values)
    text("per_query", "", "Parquet file for the figures of every query and row.")


def main(values: flags.FlagValues) -> None:
    if not values.output.endswith((".html", ".md")):
        raise UserError(f"--output={values.output}: expected a file name ending in .html, or .md for a memo")
    if values.format:
        values["output"].value = f"{values.output.rpartition('.')[0]}.{values.format}"
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
    from eval.comparison.build_report import build_report, versions
    from eval.comparison.by_attributes import rank_by_attributes, relevance_over
    from eval.comparison.choose_rankers import read_rankers
    from eval.comparison.item_images import images_by_id

    if given := [name for name in LOG_FLAGS if values[name].value != values[name].default]:
        raise UserError(f"--{given[0]}: only with --logs")
    if not values.dataset:
        raise UserError(f"--protocol={ATTRIBUTES} reads attributes from a dataset: give --dataset")
    config, dataset, split = values.config, values.dataset, values.config.evaluation.split
    items = rank_flags.read_items_of(values, split=split)
    relevance_over(config, items)  # before minutes are spent on rankers
    slicings = _slicings(values, items)
    certainty, rules = rank_flags.certainty_options(values), rank_flags.decision_rules(values)
    compared = read_rankers(rank_flags.ranker_options(values), dataset=dataset, split=split, items=items)
    result = rank_by_attributes(
        compared.rankers.values(),
        config=config,
        dataset=dataset,
        items=items,
        search=rank_flags.search_options(values),
        slicings=slicings,
        cluster=values.cluster or (),
    )
    report = build_report(
        result,
        compared,
        rules=rules,
        **certainty,
        title=f"Ranking of {pathlib.Path(dataset).name}",
        provenance={"versions": versions(), **compared.provenance},
    )
    _write(values, result, report, images_by_id(dataset, split, items=items))


def _rank_logs(values: flags.FlagValues) -> None:
    from eval.comparison.build_report import build_report
    from eval.comparison.choose_rankers import read_rankers
    from eval.comparison.item_images import images_by_id
    from eval.comparison.log_task import read_log_task
    from eval.comparison.over_logs import TrecFiles, rank_over_logs
    from eval.comparison.training_items import training_items
    from siglip_jax.training.config import check

    config, dataset = values.config, values.dataset
    if "evaluation.relevant_from" in config_flags.get_override_values(values["config"]):  # typed, so it is meant
        config.evaluation.log_relevant_from = config.evaluation.relevant_from
    if values.repeats and values.protocol in ("logged_lists", "retrieval"):
        raise UserError(f"--repeats: {values.protocol} leaves nothing out that a user has seen; leave the flag out")
    config.evaluation.repeats = config.evaluation.repeats or values.repeats
    certainty, rules = rank_flags.certainty_options(values), rank_flags.decision_rules(values)
    check(config)
    split = config.evaluation.split
    source = _log_source(values)
    items = rank_flags.read_items_of(values, split=split)
    leaked = training_items(
        dataset,
        split,
        ids=items.ids,
        train_dataset=values.train_dataset,
        train_split=config.data.train_split,
        leakage=values.leakage,
        output=values.output.rpartition(".")[0] + ".leakage.csv",
    )
    slicings = _slicings(values, items) if dataset else []
    options = rank_flags.ranker_options(values)
    compared = read_rankers(options, dataset=dataset, split=split, items=items, over_logs=True)
    task = read_log_task(source, values.protocol, config=config, items=items, leaked=leaked)
    compared = compared.with_rankers_of_log(task.rankers(compared.of_log))
    result = rank_over_logs(
        task,
        compared,
        config=config,
        search=rank_flags.search_options(values),
        slicings=slicings,
        cluster=values.cluster or (),
        trec=TrecFiles(values.trec, values.trec_depth) if values.trec else None,
    )
    report = build_report(
        result,
        compared,
        rules=rules,
        **certainty,
        title=f"Ranking over {', '.join(pathlib.Path(path).name for path in values.logs)}",
        provenance={**_log_provenance(values), **compared.provenance},
        grid=0,
    )
    _write(values, result, report, images_by_id(dataset, split, items=items) if dataset else _no_image)


def _log_source(values: flags.FlagValues) -> LogSource:
    """The log that the flags name; MovieLens has columns of its own, and a rating that is liked from."""
    from eval.comparison.log_task import LogSource
    from eval.logs.log_files import movielens_columns
    from eval.logs.log_times import parse_time
    from eval.protocols.prepare_queries import Window, log_format

    bounds = {"since": "from", "until": "until", "train_since": "train_from", "train_until": "train_until"}
    unit = values.config.evaluation.time_unit
    times = {
        ours: parse_time(str(values[flag].value), flag=f"--{flag}", unit=unit)
        for ours, flag in bounds.items()
        if values[flag].value
    }
    window = Window(**times).checked()
    columns = common_flags.named_paths(values.log_column, flag="log_column", expected="ours=theirs")
    if values.layout == "movielens":
        columns = {**movielens_columns(values.logs), **columns}
        values.config.evaluation.like_from = values.config.evaluation.like_from or LIKED_FROM
    named = (entry.partition("=") for entry in values.log_action)
    actions = {theirs: ours for ours, _, theirs in named}
    segments = [*values.segment, *rank_flags.cluster_columns(values)]
    form = log_format(values.config, columns=columns, on_error=values.on_error, actions=actions, segments=segments)
    return LogSource(paths=values.logs, form=form, window=window)


def _log_provenance(values: flags.FlagValues) -> dict[str, Any]:
    from eval.comparison.build_report import versions
    from input_pipeline.dataset import dataset_fingerprint
    from siglip_jax.training.config import config_to_json

    return {
        "ties": "expected value over the orders of equal scores",
        "dataset": dataset_fingerprint(values.dataset) if values.dataset else "none: the items of the first store",
        "evaluation": config_to_json(values.config.evaluation),
        "versions": versions(),
    }


def _write(
    values: flags.FlagValues, result: ProtocolResult, report: dict[str, Any], images: Callable[[str], bytes]
) -> None:
    from eval.comparison.per_query import write_per_query
    from eval.report import format_table, write_report
    from eval.report.history import read_history

    if values.history:
        report["history"] = read_history(values.history, report)
    write_report(values.output, report, images=images)
    if values.per_query:
        write_per_query(values.per_query, result)
    print(format_table(report))
    print(f"report: {values.output}")


def _slicings(values: flags.FlagValues, items: Items) -> list[Any]:
    """By the attributes that --slice names, or of relevance that the catalogue has."""
    from eval.comparison.by_attributes import relevance_attributes
    from eval.comparison.choose_rankers import slicings_of

    known = {"title": items.titles, **items.columns}
    named = values["slice"].value
    if named is None:
        named = [name for name in relevance_attributes(values.config) if name in known]
    return slicings_of(named, known, ids=items.ids)


def _no_image(item: str) -> bytes:
    raise KeyError(item)
