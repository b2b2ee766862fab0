"""siglip-jax index: an embedding store becomes a search index, with its recall against exact search in the manifest.

siglip-jax index --store=runs/fashion/embeddings --backend=scann --output=runs/fashion/index
"""

from __future__ import annotations

from absl import flags

from tools import common_flags


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("store", None, "Folder written by siglip-jax embed.", required=True, flag_values=values)
    common_flags.define_output(values, "Folder of the index.")
    flags.DEFINE_enum("backend", "exact", ["exact", "scann"], "How to search.", flag_values=values)
    flags.DEFINE_enum(
        "mode",
        None,
        ["brute_force", "ah", "tree"],
        "ScaNN's kind of index; by the number of items when absent.",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    from eval.embeddings import read_store
    from eval.embeddings.store import describe_skipped
    from eval.search import build_index, measure_recall

    store = read_store(values.store)
    chosen = {"mode": values.mode} if values.mode else {}
    index = build_index(store.vectors, store.ids, backend=values.backend, **chosen)
    index.missing = store.skipped
    index.encoder = {key: store.manifest.get(key) for key in ("model", "preprocessing")}
    measured = measure_recall(index, store.vectors)
    index.save(values.output)
    print(
        f"{len(index)} items, recall@{measured['k']} {measured['recall']:.4f} against exact search, in {values.output}"
    )
    if index.missing:
        said = describe_skipped(index.missing)
        print(f"{len(index.missing)} items are not in the index, since they could not be read to be embedded: {said}")
