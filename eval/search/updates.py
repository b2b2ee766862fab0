"""Changes of an index: items in, items out, and a rebuild once many have come and gone.

found = upserted(index, vectors, ids)
found.index.save("index")  # len(found.new), len(found.changed), found.equal

A change returns another index and leaves the one given as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.embeddings.pictures import has_picture_rows, item_and_picture
from eval.embeddings.vectors import unit_rows
from eval.search.encoder_identity import encoder_identity
from eval.search.index import Index
from eval.search.index_builder import build_index
from eval.search.live_index import LiveIndex
from eval.search.recall import measure_recall
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import comparable

_ROWS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Upserted:
    """The changed index; ids that it did not have, that it had with other vectors, and how many are as they were."""

    index: Index
    new: list[str]
    changed: list[str]
    equal: int


@dataclasses.dataclass(frozen=True)
class Deleted:
    """The changed index; ids that are gone, ids that were missing from it anyway, and ids that it never had."""

    index: Index
    deleted: list[str]
    missing: list[str]
    unknown: list[str]


def upserted(index: Index, vectors: np.ndarray, ids: Sequence[str]) -> Upserted:
    """Items put in, and those that are there with another vector replaced. Equal ones stay where they are.

    Args:
      vectors: real [n, dimension], any norm but 0, of the encoder of the index (`check_same_encoder`).
      ids: n unique strings.

    Raises:
      UserError: another dimension, repeated ids, ids that are no strings, a NaN, infinite or zero vector.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(ids) or vectors.shape[1] != index.dimension:
        raise UserError(
            f"{len(ids)} ids with vectors of shape {list(vectors.shape)}: the index expects [n, {index.dimension}]"
        )
    if strange := [item for item in ids if not isinstance(item, str)]:
        raise UserError(f"id {strange[0]!r} is a {type(strange[0]).__name__}: ids are strings")
    if len(set(ids)) != len(ids):
        raise UserError("ids of the items to put in are not unique: each item has one vector")
    if not len(ids):
        return Upserted(index, [], [], 0)
    unit = unit_rows(vectors, what="vector", ids=ids)
    there = np.array([index.row_of(item) for item in ids], np.int64)  # -1 for new ones
    differs = np.zeros(len(ids), bool)
    known = np.flatnonzero(there >= 0)
    for lo in range(0, len(known), _ROWS_AT_ONCE):
        block = known[lo : lo + _ROWS_AT_ONCE]
        differs[block] = (index.vectors_at(there[block]) != unit[block]).any(axis=1)
    put = np.flatnonzero((there < 0) | differs)
    new, changed = ([ids[row] for row in np.flatnonzero(which).tolist()] for which in (there < 0, differs))
    if len(put):
        index = LiveIndex.over(index).changed(
            without=there[differs], vectors=unit[put], ids=[ids[row] for row in put.tolist()]
        )
        index.missing = _still_missing(index, index.missing)
    return Upserted(index, new, changed, len(ids) - len(put))


def deleted(index: Index, ids: Iterable[str]) -> Deleted:
    """Items taken out with all their pictures; the ids that are not there are returned, for the caller to name."""
    wanted = list(dict.fromkeys(ids))
    if has_picture_rows(index.encoder):
        named = set(wanted)
        wanted += [each for each in index.ids if each not in named and item_and_picture(each, index)[0] in named]
    out = [item for item in wanted if item in index]
    could_not_be_read = {each["id"] for each in index.missing} - {""}
    missing = [item for item in wanted if item not in index and item in could_not_be_read]
    unknown = [item for item in wanted if item not in index and item not in could_not_be_read]
    if out or missing:
        rows = np.array([index.row_of(item) for item in out], np.int64)
        kept = [each for each in index.missing if each["id"] not in set(missing)]
        none = np.empty((0, index.dimension), np.float32)
        index = LiveIndex.over(index).changed(without=rows, vectors=none, ids=[])
        index.missing = kept
    return Deleted(index, out, missing, unknown)


def gone_pictures(index: Index, ids: Collection[str]) -> list[str]:
    """Rows of further pictures that a store no longer has of the items that it has."""
    if not has_picture_rows(index.encoder):
        return []
    known = set(ids)
    return [row for row in index.ids if row not in known and item_and_picture(row, known)[1] > 1]


def with_missing(index: Index, skipped: Sequence[Mapping[str, Any]], *, earlier: bool) -> Index:
    """The index saying what it lacks: what the store it was changed by was embedded without, and items of before.

    Args:
      skipped: `EmbeddingStore.skipped`. An item that the index has, from before, is not missing.
      earlier: whether what was missing before still counts; not where the store is all there is.
    """
    told = {each["id"] for each in skipped} - {""}
    before = [each for each in index.missing if each["id"] not in told] if earlier else []
    missing = _still_missing(index, [*before, *(dict(each) for each in skipped if each not in before)])
    if missing == index.missing:
        return index
    live = LiveIndex.over(index)
    index = live.changed(without=np.empty(0, np.int64), vectors=live.delta[:0], ids=[])
    index.missing = missing
    return index


def share_changed(index: Index) -> float:
    """Items of the delta, or dead rows if those are more, as a share of the items: 0 for an index as built."""
    if not isinstance(index, LiveIndex):
        return 0.0
    return max(len(index.delta), int(index.dead.sum())) / max(1, len(index))


def compacted(index: Index) -> Index:
    """An index of the same items built anew with the options of the old one, its recall measured as that one's was.

    A target that the recall had is kept, reached or not. An index as built, or without any item, is returned as it is.
    """
    if not share_changed(index) or not len(index):
        return index
    vectors = index.vectors_at(np.arange(len(index)))
    rebuilt = build_index(vectors, index.ids, backend=index.backend, **index.options)
    rebuilt.missing, rebuilt.encoder = index.missing, index.encoder
    if index.measured and len(index) > 1:
        measure_recall(rebuilt, vectors, k=index.measured["k"])
        rebuilt.measured.update({key: value for key, value in index.measured.items() if key == "target"})
        if "bytes" in index.measured:
            rebuilt.measured["bytes"] = rebuilt.bytes_in_memory
    return rebuilt


def check_same_encoder(index: Index, manifest: Mapping[str, Any], *, store: str) -> None:
    """Raises a UserError unless a store, of which this is the manifest, is of the encoder of the index.

    Where the encoder lies and how it computes may differ; what it computes may not.
    """
    ours, theirs = index.encoder, encoder_of(manifest)
    if ours.get("pool") != theirs.get("pool"):
        raise UserError(
            f"store {store} has {_pooled(theirs)}, the index {_pooled(ours)}: embed with the same --pool and "
            "--pool_by, or build another index with --store"
        )
    if _identity(ours) != _identity(theirs):
        raise UserError(
            f"store {store} is of {_name(theirs)}, the index of {_name(ours)}, and vectors of two encoders cannot be "
            "compared; embed with that one, or build another index with --store"
        )


def encoder_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What an index keeps of a store's manifest: "model", "preprocessing", and "pool" of a store that is pooled."""
    pooled = {"pool": manifest["pool"]} if manifest.get("pool") else {}
    return {key: manifest.get(key) for key in ("model", "preprocessing")} | pooled


def _pooled(encoder: Mapping[str, Any]) -> str:
    pool = encoder.get("pool")
    if not pool:
        return "a vector of each item"
    if has_picture_rows(encoder):
        return "a row of each picture"
    return f"vectors pooled by {pool['by']}" if pool.get("by") else "vectors pooled over the pictures of an item"


def _identity(encoder: Mapping[str, Any]) -> list[Any]:
    model = encoder.get("model")
    return [model and encoder_identity(model), comparable(encoder.get("preprocessing"))]


def _name(encoder: Mapping[str, Any]) -> str:
    return f"encoder {(encoder.get('model') or {}).get('name', 'unknown')}"


def _still_missing(index: Index, missing: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in missing if each["id"] not in index]
