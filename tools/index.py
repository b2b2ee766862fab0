"""siglip-jax index: an embedding store becomes a search index, with its recall against exact search in the manifest.

siglip-jax index --store=runs/fashion/embeddings --backend=scann --output=runs/fashion/index
siglip-jax index --store=runs/fashion/embeddings --backend=scann --target_recall=0.98 --output=runs/fashion/index
siglip-jax index --store=runs/fashion/embeddings --backend=reduced --reduce=pca:128+int8 --output=runs/fashion/index
siglip-jax index --update=runs/fashion/new-embeddings --output=runs/fashion/index
siglip-jax index --delete=sold.txt --output=runs/fashion/index
siglip-jax index --health --output=runs/fashion/index

--update puts in the items of a store that are new or have another vector; --delete takes items out; --compact builds
the index anew once many came or went, which the other two do by themselves. Whoever searches the index meanwhile has
the one from before the change, or the one after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from siglip_jax.errors import UserError
from tools import common_flags

if TYPE_CHECKING:
    from eval.search import Index

JOBS = ("store", "update", "delete", "compact", "health")
JOBS_OF = {"prune": ("update",), "compact_at": ("update", "delete", "health")}  # the other flags are of --store
_SHOWN = 5


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("store", None, "Folder written by siglip-jax embed, to build an index of.", flag_values=values)
    flags.DEFINE_string("update", None, "Store whose new and changed items are put into the index.", flag_values=values)
    flags.DEFINE_string("delete", None, "File of ids, one a line, to take out of the index.", flag_values=values)
    flags.DEFINE_boolean("compact", False, "Build the index anew of the items that it has now.", flag_values=values)
    flags.DEFINE_boolean(
        "health", False, "Say how the index is, measure its recall, change nothing.", flag_values=values
    )
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
    flags.DEFINE_boolean(
        "prune", False, "With --update: take out the items that the store does not have.", flag_values=values
    )
    flags.DEFINE_float(
        "compact_at",
        0.1,
        "Share of the items beside the base, or gone from it, above which it is built anew.",
        lower_bound=0,
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    given = [name for name in JOBS if values[name].value not in (None, False)]
    if len(given) != 1:
        raise UserError(f"{len(given)} of {', '.join(f'--{name}' for name in JOBS)} given; expected exactly one")
    for flag in sorted(set(values) - {*JOBS, "output"}):
        jobs = JOBS_OF.get(flag, ("store",))
        if values[flag].present and given[0] not in jobs:
            expected = " or ".join(f"--{job}" for job in jobs)
            raise UserError(f"--{flag} has no effect with --{given[0]}; leave it out, or give {expected}")
    if given[0] == "store":
        _build(values)
    elif given[0] == "health":
        _print_health(values)
    else:
        _change(values, given[0])


def _build(values: flags.FlagValues) -> None:
    from eval.embeddings import read_store
    from eval.search import build_index, measure_recall, tuned_index
    from eval.search.recall import shortfall
    from eval.search.updates import encoder_of

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
    index.encoder = encoder_of(store.manifest)
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
    if short := shortfall(index):
        print(f"rank and serve refuse this index, since it {short}")
    _say_missing(index)


def _change(values: flags.FlagValues, job: str) -> None:
    from eval.search import load_index
    from eval.search.index_folder import lock_index, read_generation
    from eval.search.updates import compacted, share_changed

    read_generation(values.output)  # before a lock makes a folder
    with lock_index(values.output):
        before = load_index(values.output)
        index = {"compact": lambda _, same: same, "update": _update, "delete": _delete}[job](values, before)
        share = share_changed(index)
        if share and len(index) and (job == "compact" or share > values.compact_at):
            index = compacted(index)
            print(f"compacted, since {share:.1%} of the items had come or gone{_recall(index)}")
        if index is before:
            print(f"nothing to change: {len(index)} items, generation {index.generation}, in {values.output}")
            return
        index.save(values.output, locked=True)
    print(f"{len(index)} items{_beside(index)}, generation {index.generation}, in {values.output}")
    _say_missing(index)


def _update(values: flags.FlagValues, index: Index) -> Index:
    from eval.embeddings import read_store
    from eval.search.updates import check_same_encoder, deleted, gone_pictures, upserted, with_missing

    store = read_store(values.update)
    check_same_encoder(index, store.manifest, store=values.update)
    in_store = set(store.ids)
    gone = gone_pictures(index, in_store)
    others = [item for item in index.ids if item not in in_store.union(gone)]
    found = upserted(index, store.vectors, store.ids)
    index = deleted(found.index, [*gone, *(others if values.prune else ())]).index
    if gone:
        print(f"{len(gone)} pictures taken out of items that no longer have them")
    fate = "taken out" if values.prune else "kept"
    print(
        f"{len(found.new)} new, {len(found.changed)} changed, {found.equal} equal, {len(others)} {fate} that the store "
        "does not have"
    )
    return with_missing(index, store.skipped, earlier=not values.prune)


def _delete(values: flags.FlagValues, index: Index) -> Index:
    from eval.search.updates import deleted

    ids = common_flags.read_ids(values.delete, flag="delete")
    found = deleted(index, ids)
    if len(found.unknown) == len(ids):
        raise UserError(
            f"--delete={values.delete}: none of its {len(ids)} ids is in the index, {_some(found.unknown)}; expected "
            "one id a line"
        )
    print(f"{len(found.deleted)} deleted")
    if found.missing:
        print(f"{len(found.missing)} missing before, as not readable: {_some(found.missing)}")
    if found.unknown:
        print(f"{len(found.unknown)} unknown to the index: {_some(found.unknown)}")
    return found.index


def _print_health(values: flags.FlagValues) -> None:
    from eval.search import load_index
    from eval.search.health import measure_health
    from eval.search.index_folder import bytes_of

    index = load_index(values.output)
    health = measure_health(index, compact_at=values.compact_at)
    built = "not measured" if health.built is None else f"{health.built:.4f} when built"
    now = "" if health.now is None else f", {health.now:.4f} now over {health.queries} of the items"
    drift = f" ({health.now - health.built:+.4f})" if health.now is not None and health.built is not None else ""
    rows = [
        ("items", f"{health.items}"),
        ("base", f"{health.base}, {index.backend}{_options(index)}"),
        ("delta", f"{health.delta} beside the base"),
        ("dead", f"{health.dead} of the base"),
        ("changed", f"{health.share:.1%} of the items; compacted above {values.compact_at:.1%}"),
        (f"recall@{health.k}", f"{built}{now}{drift}"),
        ("target", "none" if health.target is None else f"{health.target}"),
        ("missing", f"{len(index.missing)} that could not be read"),
        ("generation", index.generation),
        ("encoder", _encoder(index)),
        ("bytes", f"{bytes_of(values.output):,} on disk"),
        ("to do", "; ".join(health.advice) or "nothing"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {said}" for name, said in rows))


def _options(index: Index) -> str:
    return "".join(f", {name} {value}" for name, value in index.options.items())


def _encoder(index: Index) -> str:
    model = index.encoder.get("model")
    if not model:
        return "unknown"
    sums = [f"{key} {value[:16]}" for key, value in model.items() if key.endswith("sha256") and value]
    return ", ".join([str(model.get("name", "unnamed")), *sums])


def _recall(index: Index) -> str:
    if not index.measured:
        return ""
    recall, target = index.measured["recall"], index.measured.get("target", 0)
    below = f", less than its target of {target}: build it again with --store" if recall < target else ""
    return f", recall@{index.measured['k']} {recall:.4f}{below}"


def _beside(index: Index) -> str:
    from eval.search.live_index import LiveIndex

    if not isinstance(index, LiveIndex) or not index.is_changed:
        return ""
    return f" ({len(index.delta)} beside the base, {int(index.dead.sum())} of it dead)"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(repr(item[:100]) for item in ids[:_SHOWN]) + more


def _say_missing(index: Index) -> None:
    from eval.embeddings.store import describe_skipped

    if index.missing:
        said = describe_skipped(index.missing)
        print(f"{len(index.missing)} items are not in the index, since they could not be read to be embedded: {said}")
