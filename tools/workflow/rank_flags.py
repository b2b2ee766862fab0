"""The flags that say what `siglip-jax rank` compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from eval.comparison.choose_rankers import BASELINES, DEFAULT_BASELINES, OF_LOG, RankerOptions
from siglip_jax.errors import UserError
from tools import common_flags

if TYPE_CHECKING:  # numpy and more, which --help does not wait for
    from eval.comparison.index_columns import SearchOptions
    from eval.comparison.items import Items
    from eval.statistics import DecisionRules


# What --cluster may name without reading it from the log.
_OF_QUERIES = (
    *("user", "user_id", "query_item", "query_item_row", "query_id", "list_id", "time", "candidates", "relevant"),
)


def define_flags(values: flags.FlagValues, *, store_required: bool = True) -> None:
    flags.DEFINE_multi_string(
        "store",
        None,
        "name=folder of an embedding store, or name=file of embeddings (.npy, .npz, .parquet, .csv).",
        required=store_required,
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "baseline",
        None,
        f"Rows that need no store: {', '.join(BASELINES)}; with --logs also {', '.join(OF_LOG)}, counted there. When "
        f"absent, {' and '.join(DEFAULT_BASELINES)}; with --logs all that can be had.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "reduce", [], "name=pca:128, a row more: that store made smaller (pca, truncate, +int8).", flag_values=values
    )
    flags.DEFINE_multi_string(
        "fit", [], "name=store of training items, by the same encoder, for the PCA of that store.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "ladder", [], "name of a store to measure at every width, by truncation and PCA, float32 and int8.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "similarity", None, ["cosine", "dot"],
        "How vectors of stores are compared; cosine when absent. dot asks no ScaNN index.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("new", None, "The row that is compared with all others; the last store.", flag_values=values)
    flags.DEFINE_string(
        "against", None, "The row it is compared with first, by slices and by queries too.", flag_values=values
    )


def define_certainty(values: flags.FlagValues) -> None:
    """How sure a difference has to be, and what is decided by it."""
    flags.DEFINE_list(
        "cluster",
        None,
        "Which queries are no independent evidence, in up to three ways, such as user,query_item: those of one user or "
        "one query item. Or any column of the log. When absent, user,query_item over logs, else title.",
        flag_values=values,
    )
    flags.DEFINE_float("confidence", 0.95, "Of intervals and verdicts.", flag_values=values)
    flags.DEFINE_integer(
        "samples",
        None,
        "Draws that correct for several comparisons; 20,000 when absent, enough for any number of rows.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", 0, "Of these draws, and of the examples shown.", lower_bound=0, flag_values=values)
    flags.DEFINE_float(
        "margin", None, "By how much --new may be below --against in the first metric and still do: no worse than "
        "-0.005, sure, is --margin=0.005.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "guardrail", [], "metric=0.005, which may fall by no more than that; metric alone takes --margin.",
        flag_values=values,
    )  # fmt: skip


def cluster_columns(values: flags.FlagValues) -> list[str]:
    """Columns of the log that --cluster names, beside what is known of every query."""
    return [name for name in values.cluster or () if name not in _OF_QUERIES]


def certainty_options(values: flags.FlagValues) -> dict[str, Any]:
    """What the flags say, as `eval.comparison.build_report.build_report` takes it."""
    if not 0 < values.confidence < 1:
        raise UserError(f"--confidence={values.confidence:g}: expected a number between 0 and 1, such as 0.95")
    options: dict[str, Any] = {"confidence": values.confidence}
    if values.samples is not None:
        options["samples"] = values.samples
    return {"seed": values.seed, "options": options}


def decision_rules(values: flags.FlagValues) -> DecisionRules:
    """Of the flags, by names of reports; metrics that guard are measured though the config does not name them."""
    from eval.metrics import parse_metric, report_name
    from eval.statistics import DecisionRules

    evaluation, guardrails = values.config.evaluation, {}
    for entry in values.guardrail:
        metric, _, margin = entry.partition("=")
        parse_metric(metric)
        if not margin and values.margin is None:
            raise UserError(
                f"--guardrail={entry}: by how much may it fall? expected --guardrail={metric}=0.005, or --margin"
            )
        try:
            guardrails[report_name(metric, gain=evaluation.gain)] = float(margin) if margin else values.margin
        except ValueError:
            raise UserError(f"--guardrail={entry}: expected a number, such as {metric}=0.005") from None
        if metric not in evaluation.metrics:
            evaluation.metrics = (*evaluation.metrics, metric)
    return DecisionRules(margin=values.margin, guardrails=guardrails)


def ranker_options(values: flags.FlagValues) -> RankerOptions:
    """What the flags say."""
    return RankerOptions(
        stores=common_flags.named_paths(values.store or [], flag="store"),
        baselines=values.baseline,
        reductions=common_flags.pairs(values.reduce, flag="reduce"),
        fits=common_flags.named_paths(values.fit, flag="fit"),
        ladders=values.ladder,
        new=values.new,
        against=values.against,
        similarity=values.similarity,
    )


def search_options(values: flags.FlagValues) -> SearchOptions:
    """How the flags have an approximate index asked."""
    from eval.comparison.index_columns import SearchOptions

    asked = "none" if values.similarity == "dot" else values.scann  # its indexes are of cosines
    return SearchOptions(common_flags.scann_options(asked), values.allow_low_recall)


def read_items_of(values: flags.FlagValues, *, split: str) -> Items:
    """The items of the flags' dataset and stores; see `eval.comparison.items.read_items`."""
    from eval.comparison.items import read_items

    return read_items(values.dataset, split, common_flags.named_paths(values.store or [], flag="store"))
