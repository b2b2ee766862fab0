"""The embedding store: Parquet shards of (id, embedding) and a manifest that vouches for them.

    store/shard-00000.parquet   id, embedding, what it was made of (`store_shards`)
    store/manifest.json         model, preprocessing, dataset, dimension, dtype, count, sha256 of every shard; skipped,
                                the items that should be here and could not be read: row of the split, id, reason

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
from etils import epath

import siglip_jax
from eval.embeddings.store_shards import DTYPES, ShardRows, checked_vectors, read_rows, write_rows, write_whole
from siglip_jax.errors import UserError

MANIFEST = "manifest.json"
PLAN = "plan.json"  # of a store that is being written shard by shard (sharded_writer.py)
FORMAT = "siglip-jax embeddings 1"
NEEDED_KEYS = ("format", "library_version", "dimension", "count", "shards")
OWN_KEYS = (*NEEDED_KEYS, "dtype", "skipped")  # float32 where absent; absent where nothing was
SKIPPED_SHOWN, REASON_SHOWN = 5, 80  # rows, and letters of each
_SHARD_BYTES = 256 << 20
_OWN_FILES = re.compile(r"(shard-[0-9]{5,}(-[0-9a-f]{12})?\.(parquet|json)|manifest\.json|plan\.json)(\.partial)?")


@dataclass(frozen=True)
class EmbeddingStore:
    ids: list[str]
    vectors: np.ndarray  # float32 [n, dimension], row i belongs to ids[i]
    manifest: dict[str, Any]

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """What could not be read when this was embedded: {"row" of the split, "id" ("" where unknown), "reason"}."""
        return skipped_of(self.manifest)

    @property
    def generation(self) -> str:
        """16 digits of what is stored: another one after an update that changed a row, the same for equal stores."""
        return content_sha256(self.manifest)[:16]


def skipped_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`EmbeddingStore.skipped` of a manifest."""
    return list(manifest.get("skipped", []))


def dtype_of(manifest: Mapping[str, Any]) -> str:
    """The numbers that vectors are stored as."""
    return str(manifest.get("dtype", "float32"))


def content_sha256(manifest: Mapping[str, Any]) -> str:
    """Of all that is stored, wherever and under whatever names its files lie."""
    return hashlib.sha256("\n".join(shard["sha256"] for shard in manifest["shards"]).encode()).hexdigest()


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
    dtype: str = "float32",
) -> dict[str, Any]:
    """Writes a store, replacing one that is there; a killed run leaves a folder without a manifest.

    Args:
      folder: local or gs:// path, made if missing.
      batches: (ids, embeddings [batch, dimension]) pairs, consumed as a stream; one shard is held in memory.
      manifest: what the embeddings are: model, preprocessing, dataset (its fingerprint). JSON values; the keys
          format, library_version, dimension, count, shards, dtype and skipped are the store's own.
      rows_per_shard: None for shards of about 256 MB of float32.
      skipped: items without an embedding, as `EmbeddingStore.skipped` has them.
      dtype: float32, float16 or int8 (with a scale for each vector); what is read back is float32.

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
        shards.append(write_shard(folder, len(shards), ids, vectors, dtype=dtype))
    return write_manifest(folder, shards, manifest=manifest, skipped=skipped)


def write_shard(
    folder: epath.PathLike, number: int, ids: Sequence[str], vectors: np.ndarray, *, dtype: str = "float32"
) -> dict[str, Any]:
    """Writes one shard, at once under its final name, and returns its entry {file, count, dimension, dtype, sha256}.

    With `write_manifest` the parts of `write_store`, for writers that resume or are many: give each its own numbers.

    Raises:
      UserError: as `write_store`, repeated ids excepted.
    """
    return write_rows(folder, number, ShardRows.of(ids, vectors, dtype=dtype))


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
    dtypes = sorted({shard["dtype"] for shard in shards})
    if len(dtypes) != 1:
        raise UserError(f"embedding store {folder}: shards of {', '.join(dtypes)}: expected exactly one dtype")
    whole = {
        "format": FORMAT,
        "library_version": siglip_jax.__version__,
        **manifest,
        "dimension": dimensions[0],
        "dtype": dtypes[0],
        "count": sum(shard["count"] for shard in shards),
        "shards": [{key: shard[key] for key in ("file", "count", "sha256")} for shard in shards],
        **({"skipped": [dict(each) for each in skipped]} if skipped else {}),
    }
    write_whole(epath.Path(folder) / MANIFEST, (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
    return whole


def read_store(folder: epath.PathLike) -> EmbeddingStore:
    """Reads a whole store into memory after checking it, whatever its dtype as float32.

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
        rows = read_rows(folder, shard, dimension=dimension, dtype=dtype_of(manifest))
        parts.append(rows.vectors())
        ids += rows.ids
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
    if dtype_of(manifest) not in DTYPES:
        raise UserError(
            f"embedding store {folder}: {MANIFEST} has dtype {manifest['dtype']!r}: expected one of "
            f"{', '.join(DTYPES)}; embed again"
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
        checked = checked_vectors(batch_ids, batch)
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
