"""The flags that say what `siglip-jax rank` compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from eval.comparison.choose_rankers import BASELINES, DEFAULT_BASELINES, OF_LOG, RankerOptions
from tools import common_flags

if TYPE_CHECKING:  # numpy and more, which --help does not wait for
    from eval.comparison.index_columns import SearchOptions
    from eval.comparison.items import Items


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
