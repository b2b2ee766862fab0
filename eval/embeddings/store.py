"""The embedding store: Parquet shards of (id, embedding) and a manifest that vouches for them.

    store/shard-00000.parquet   id string, embedding fixed_size_list<float32>[dimension]
    store/manifest.json         model, preprocessing, dataset, dimension, count, sha256 of every shard; skipped, the
                                items that should be here and could not be read: row of the split, id, reason

The manifest is written last, so a folder with a manifest is complete. Folders may be local or gs://.
"""

import hashlib
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

import siglip_jax
from siglip_jax.errors import UserError

MANIFEST = "manifest.json"
PLAN = "plan.json"  # of a store that is being written shard by shard (sharded_writer.py)
FORMAT = "siglip-jax embeddings 1"
NEEDED_KEYS = ("format", "library_version", "dimension", "count", "shards")
OWN_KEYS = (*NEEDED_KEYS, "skipped")  # absent where nothing was
SKIPPED_SHOWN, REASON_SHOWN = 5, 80  # rows, and letters of each
_SHARD_BYTES = 256 << 20
_PAGE_BYTES = 1 << 30
_OWN_FILES = re.compile(r"(shard-[0-9]{5,}\.(parquet|json)|manifest\.json|plan\.json)(\.partial)?")


@dataclass(frozen=True)
class EmbeddingStore:
    ids: list[str]
    vectors: np.ndarray  # float32 [n, dimension], row i belongs to ids[i]
    manifest: dict[str, Any]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What could not be read when this was embedded: {"row" of the split, "id" ("" where unknown), "reason"}."""
        return skipped_of(self.manifest)


def skipped_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`EmbeddingStore.skipped` of a manifest."""
    return list(manifest.get("skipped", []))


def describe_skipped(skipped: Sequence[Mapping[str, Any]]) -> str:
    """The first few of them in one line, such as "row 3, id x3: not a readable picture; and 2 more"."""
    shown = [
        f"row {each['row']}{', id ' + each['id'] if each['id'] else ''}: "
        + textwrap.shorten(each["reason"], REASON_SHOWN, placeholder=" ...")
        for each in skipped[:SKIPPED_SHOWN]
    ]
    return "; ".join([*shown, *([f"and {len(skipped) - SKIPPED_SHOWN} more"] if len(skipped) > SKIPPED_SHOWN else [])])


def write_store(
    folder: epath.PathLike,
    batches: Iterable[tuple[Sequence[str], np.ndarray]],
    *,
    manifest: Mapping[str, Any],
    rows_per_shard: int | None = None,
    skipped: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Writes a store, replacing one that is there; a killed run leaves a folder without a manifest.

    Args:
      folder: local or gs:// path, made if missing.
      batches: (ids, embeddings [batch, dimension]) pairs, consumed as a stream; one shard is held in memory.
      manifest: what the embeddings are: model, preprocessing, dataset (its fingerprint). JSON values; the keys
          format, library_version, dimension, count, shards and skipped are the store's own.
      rows_per_shard: None for shards of about 256 MB.
      skipped: items without an embedding, as `EmbeddingStore.skipped` has them.

    Returns:
      The manifest as written.

    Raises:
      UserError: a folder that holds anything but a store or a part of one, no embedding at all, wrong shapes, mixed
          dimensions, NaN, infinite or zero vectors, repeated or non-string ids (each naming the id).
    """
    if rows_per_shard is not None and rows_per_shard < 1:
        raise UserError(f"rows_per_shard={rows_per_shard}: expected at least 1")
    folder = epath.Path(folder)
    _check_manifest(manifest)
    earlier = earlier_files(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # from here until the end the folder is no store
    for old in earlier:
        old.unlink(missing_ok=True)
    seen: set[str] = set()
    shards: list[dict[str, Any]] = []
    for ids, vectors in _shards(batches, rows_per_shard):
        for item in ids:
            if item in seen:
                raise UserError(f"id {item!r} occurs twice among the embeddings: ids must be unique")
            seen.add(item)
        shards.append(write_shard(folder, len(shards), ids, vectors))
    return write_manifest(folder, shards, manifest=manifest, skipped=skipped)


def write_shard(folder: epath.PathLike, number: int, ids: Sequence[str], vectors: np.ndarray) -> dict[str, Any]:
    """Writes one shard, at once under its final name, and returns its entry {file, count, dimension, sha256}.

    With `write_manifest` the parts of `write_store`, for writers that resume or are many: give each its own numbers.

    Raises:
      UserError: as `write_store`, repeated ids excepted.
    """
    vectors = _checked_vectors(ids, vectors)
    dimension = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension)
    table = pa.table({"id": pa.array(list(ids), pa.string()), "embedding": column})
    sink = pa.BufferOutputStream()
    # One page, in which the vectors lie as numpy has them: `mapped_files` maps it.
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, sink, data_page_size=_PAGE_BYTES, **options)
    content = sink.getvalue()
    name = f"shard-{number:05d}.parquet"
    write_whole(epath.Path(folder) / name, content.to_pybytes())
    return {"file": name, "count": len(ids), "dimension": dimension, "sha256": hashlib.sha256(content).hexdigest()}


def write_manifest(
    folder: epath.PathLike,
    shards: Sequence[Mapping[str, Any]],
    *,
    manifest: Mapping[str, Any],
    skipped: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Completes a store out of what `write_shard` returned, in the order rows shall have. Returns the manifest.

    Args:
      skipped: items without an embedding, as `EmbeddingStore.skipped` has them.
    """
    _check_manifest(manifest)
    dimensions = sorted({shard["dimension"] for shard in shards})
    if len(dimensions) != 1:
        raise UserError(f"embedding store {folder}: shards of dimensions {dimensions}: expected exactly one dimension")
    whole = {
        "format": FORMAT,
        "library_version": siglip_jax.__version__,
        **manifest,
        "dimension": dimensions[0],
        "count": sum(shard["count"] for shard in shards),
        "shards": [{key: shard[key] for key in ("file", "count", "sha256")} for shard in shards],
        **({"skipped": [dict(each) for each in skipped]} if skipped else {}),
    }
    write_whole(epath.Path(folder) / MANIFEST, (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
    return whole


def read_store(folder: epath.PathLike) -> EmbeddingStore:
    """Reads a whole store into memory after checking it.

    Raises:
      UserError: no folder or manifest, a malformed manifest, a shard missing, altered, not Parquet or of another
          shape than the manifest says, null or repeated ids, null vectors.
    """
    folder = epath.Path(folder)
    manifest = read_manifest(folder)
    dimension, count = manifest["dimension"], manifest["count"]
    ids: list[str] = []
    parts: list[np.ndarray] = []
    for shard in manifest["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            raise UserError(f"embedding store {folder}: shard {shard['file']} is missing; embed again")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard["sha256"]:
            raise UserError(f"embedding store {folder}: {shard['file']} is not what was written (sha256); embed again")
        try:
            # Threads of Arrow's may hold the last reference to `content`, and abort a process that is ending.
            table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
        except (pa.ArrowException, OSError):
            raise UserError(f"embedding store {folder}: {shard['file']} is not Parquet; embed again") from None
        kinds: dict[str, Any] = dict(zip(table.schema.names, table.schema.types, strict=True))
        if (
            sorted(table.schema.names) != ["embedding", "id"]
            or kinds["id"] != pa.string()
            or not pa.types.is_fixed_size_list(kinds["embedding"])
            or (kinds["embedding"].value_type, kinds["embedding"].list_size) != (pa.float32(), dimension)
        ):
            found = ", ".join(f"{name} {kinds[name]}" for name in kinds)
            raise UserError(
                f"embedding store {folder}: {shard['file']} holds {found}: expected id string, embedding float32 of "
                f"{dimension}; embed again"
            )
        if table.num_rows != shard["count"]:
            raise UserError(
                f"embedding store {folder}: {shard['file']} holds {table.num_rows} rows, not {shard['count']}; "
                "embed again"
            )
        rows = table["embedding"].combine_chunks()
        if table["id"].null_count or rows.null_count or rows.flatten().null_count:
            raise UserError(f"embedding store {folder}: {shard['file']} holds null ids or vectors; embed again")
        parts.append(rows.flatten().to_numpy().reshape(-1, dimension))
        ids += table["id"].to_pylist()
    vectors = np.empty((count, dimension), np.float32)  # only now: the shards hold as many rows as the manifest says
    filled = 0
    while parts:  # each is let go once copied
        part = parts.pop(0)
        vectors[filled : filled + len(part)] = part
        filled += len(part)
    if len(set(ids)) != count:
        repeated = next(item for item in ids if ids.count(item) > 1)
        raise UserError(f"embedding store {folder}: id {repeated!r} occurs twice; ids must be unique")
    return EmbeddingStore(ids, vectors, manifest)


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
    """The manifest alone: what a store is, without reading it."""
    folder = epath.Path(folder)
    if not folder.is_dir():
        raise UserError(f"embedding store {folder}: no such folder; `siglip-jax embed` writes one")
    path = folder / MANIFEST
    if not path.exists():
        raise UserError(f"embedding store {folder}: no {MANIFEST}: not a store, or one whose writing was cut off")
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"embedding store {folder}: {MANIFEST} is not JSON; embed again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not manifest.keys() >= set(NEEDED_KEYS):
        raise UserError(f"embedding store {folder}: {MANIFEST} is not of format {FORMAT!r}")
    for key in ("dimension", "count"):
        if not _is_count(manifest[key]) or manifest[key] == 0:
            raise UserError(
                f"embedding store {folder}: {MANIFEST} has {key} {manifest[key]!r}: expected a whole number from 1; "
                "embed again"
            )
    shards = manifest["shards"]
    wrong = [shard for shard in shards if not _is_shard(shard)] if isinstance(shards, list) else [shards]
    if wrong:
        raise UserError(
            f"embedding store {folder}: {MANIFEST} has shard {wrong[0]!r}: expected a list of "
            '{"file": a file name, "count": a whole number, "sha256": text}; embed again'
        )
    rows = sum(shard["count"] for shard in shards)
    if rows != manifest["count"]:
        raise UserError(
            f"embedding store {folder}: {rows} rows in the shards, {manifest['count']} in the manifest; embed again"
        )
    skipped = manifest.get("skipped", [])
    strange = [each for each in skipped if not _is_skipped(each)] if isinstance(skipped, list) else [skipped]
    if strange:
        raise UserError(
            f"embedding store {folder}: {MANIFEST} has skipped {str(strange[0])[:200]}: expected a list of "
            '{"row": a whole number, "id": text, "reason": text}; embed again'
        )
    return manifest


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_shard(value: Any) -> bool:
    if not isinstance(value, dict) or not _is_count(value.get("count")) or not isinstance(value.get("sha256"), str):
        return False
    name = value.get("file")
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _is_skipped(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("row"))
        and all(isinstance(value.get(name), str) for name in ("id", "reason"))
    )


def earlier_files(folder: epath.Path) -> list[epath.Path]:
    """Files of the store, complete or cut off, that is in the folder; UserError where it holds anything else."""
    if not folder.exists():
        return []
    expected = "expected an empty or new folder, or an embedding store to replace; choose another"
    if not folder.is_dir():
        raise UserError(f"embedding store {folder}: is a file: {expected}")
    files = sorted(folder.iterdir())
    foreign = [path.name for path in files if not _OWN_FILES.fullmatch(path.name) or path.is_dir()]
    if foreign:
        raise UserError(f"embedding store {folder}: holds {foreign[0]!r}: {expected}")
    if (folder / MANIFEST).exists():
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"embedding store {folder}: {MANIFEST} is not of format {FORMAT!r}: {expected}")
    return files


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    clash = [key for key in OWN_KEYS if key in manifest]
    if clash:
        raise UserError(f"manifest key {clash[0]!r} is written by the store itself: leave it out")
    try:
        json.dumps(manifest, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"manifest cannot be written as JSON: {error}") from None


def _shards(
    batches: Iterable[tuple[Sequence[str], np.ndarray]], rows_per_shard: int | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Regroups batches into shards of equal row counts; checks batches as they come, so that errors come early."""
    ids: list[str] = []
    parts: list[np.ndarray] = []
    dimension: int | None = None
    for batch_ids, batch in batches:
        checked = _checked_vectors(batch_ids, batch)
        if not len(batch_ids):
            continue
        dimension = dimension or checked.shape[1]
        if checked.shape[1] != dimension:
            raise UserError(
                f"embedding of id {batch_ids[0]!r} has dimension {checked.shape[1]}, earlier ones {dimension}"
            )
        ids += batch_ids
        parts.append(checked)
        size = rows_per_shard or max(1, _SHARD_BYTES // (4 * dimension))
        if len(ids) >= size:
            rows = np.concatenate(parts)
            whole = len(ids) // size * size
            for lo in range(0, whole, size):
                yield ids[lo : lo + size], rows[lo : lo + size]
            ids, parts = ids[whole:], [rows[whole:]]
    if ids:
        yield ids, np.concatenate(parts)
    if dimension is None:
        raise UserError("no embedding was given: an embedding store needs at least one")


def _checked_vectors(ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """float32 [n, dimension], or an error that names the first bad id."""
    vectors = np.asarray(vectors)
    if (
        vectors.ndim != 2
        or len(vectors) != len(ids)
        or (len(ids) and not vectors.shape[1])
        or vectors.dtype.kind != "f"
    ):
        first = f" (first id {ids[0]!r})" if len(ids) else ""
        raise UserError(
            f"{len(ids)} ids{first} with embeddings {vectors.dtype} {list(vectors.shape)}: "
            f"expected floats [{len(ids)}, dimension]"
        )
    for item in ids:
        if not isinstance(item, str) or not item:
            raise UserError(f"embedding id {item!r}: expected a non-empty string")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(vectors, np.float32)
    for what, bad in (
        ("NaN or infinity", ~np.isfinite(vectors).all(axis=1)),
        ("only zeros", ~vectors.any(axis=1)),
    ):
        if bad.any():
            raise UserError(
                f"embedding of id {ids[int(bad.argmax())]!r} holds {what}: it has no direction to search by"
            )
    return vectors


def write_whole(path: epath.Path, content: bytes) -> None:
    """Under the final name only once complete (an object store does that by itself, a rename does it locally)."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
