"""siglip-jax index: an embedding store becomes a search index, with its recall against exact search in the manifest.

siglip-jax index --store=runs/fashion/embeddings --backend=scann --output=runs/fashion/index
siglip-jax index --store=runs/fashion/embeddings --backend=scann --target_recall=0.98 --output=runs/fashion/index
siglip-jax index --store=runs/fashion/embeddings --backend=reduced --reduce=pca:128+int8 --output=runs/fashion/index
"""

from __future__ import annotations

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("store", None, "Folder written by siglip-jax embed.", required=True, flag_values=values)
    common_flags.define_output(values, "Folder of the index.")
    flags.DEFINE_enum("backend", "exact", ["exact", "reduced", "scann"], "How to search.", flag_values=values)
    flags.DEFINE_enum(
        "mode",
        None,
        ["brute_force", "ah", "tree"],
        "ScaNN's kind of index; by the number of items when absent.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "reduce", None, "Of reduced: int8, pca:WIDTH, truncate:WIDTH or pca:WIDTH+int8; int8 when absent.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "candidates", None, "Of reduced: items scored in full for each that is asked for; 4 when absent.",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "target_recall", None, "Of scann: find the fastest tree with this recall@10, such as 0.98.", 0.01, 1.0,
        flag_values=values,
    )  # fmt: skip


def main(values: flags.FlagValues) -> None:
    from eval.embeddings import read_store
    from eval.embeddings.store import describe_skipped
    from eval.search import build_index, measure_recall, tuned_index

    store = read_store(values.store)
    chosen = {name: values[name].value for name in ("mode", "reduce", "candidates") if values[name].value}
    if values.target_recall is None:
        index = build_index(store.vectors, store.ids, backend=values.backend, **chosen)
        measured = measure_recall(index, store.vectors)
    else:
        if values.backend != "scann" or chosen:
            raise UserError("--target_recall chooses the tree: it goes with --backend=scann, without --mode")
        index = tuned_index(store.vectors, store.ids, target=values.target_recall, say=print)
        measured = index.measured
    index.missing = store.skipped
    index.encoder = {key: store.manifest.get(key) for key in ("model", "preprocessing")}
    if values.backend == "reduced":
        index.measured["bytes"] = index.bytes_in_memory
    index.save(values.output)
    print(
        f"{len(index)} items, recall@{measured['k']} {measured['recall']:.4f} against exact search, in {values.output}"
    )
    if values.backend == "reduced":
        print(f"in memory {index.bytes_in_memory:,} bytes, instead of {4 * len(index) * index.dimension:,}")
    if values.target_recall is not None:
        said = ", ".join(f"{name} {value}" for name, value in index.options.items() if name != "mode")
        print(f"target {values.target_recall} reached with {said}")
    if index.missing:
        said = describe_skipped(index.missing)
        print(f"{len(index.missing)} items are not in the index, since they could not be read to be embedded: {said}")
