"""From an encoder and a split to an embedding store."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from etils import epath

from eval.embeddings import EmbeddingStore, read_store, write_store
from eval.embeddings.embedding_files import EmbeddingFile, read_embeddings
from eval.embeddings.encoders.encoder_table import open_network
from eval.embeddings.entries import Entries, joined_inputs, picture_input, vector_inputs
from eval.embeddings.pictures import EACH, check_tellable, items_of
from eval.embeddings.sharded_writer import EmbeddingPlan
from eval.embeddings.store import MANIFEST
from eval.embeddings.store_work import EmbeddedRows, StoreWork
from eval.embeddings.stored_rows import StoredRows, check_update
from input_pipeline.dataset import Split, attributes, dataset_fingerprint, item_table, open_split
from input_pipeline.dataset.reader import READ_ROWS
from input_pipeline.loader import iterate_split
from input_pipeline.loader.bad_rows import BadRow
from input_pipeline.loader.evaluation_pass import Pass
from input_pipeline.loader.item_vectors import MISSING, ItemVectors
from input_pipeline.one_ahead import one_ahead
from input_pipeline.progress import progress
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Preprocessing
from tools.workflow.item_vectors import Features, split_columns

EMBED_BATCH = 256
SHARD_ROWS = 32 * EMBED_BATCH  # 25 MB of 768 numbers


@dataclasses.dataclass(frozen=True)
class ImageEncoder:
    """What turns pictures into vectors: batches of `preprocessing`, arrays or `Patches` of uint8 -> float32 [n, d].

    Attributes:
      features: what it reads in the place of pictures, an adapter's; batches are {name: float32 [n, d_name]} then.
      devices: on how many it computes; each gets up to EMBED_BATCH rows of a batch.
    """

    encode: Callable[[Any], np.ndarray]
    preprocessing: Preprocessing
    description: dict[str, Any]
    features: Features | None = None
    devices: int = 1


def image_encoder(model: Any, *, name: str, features: Features | None = None) -> ImageEncoder:
    """The image tower of a `siglip_jax.Model`."""
    from siglip_jax.model import encoding_devices

    preprocessing = model.preprocessing
    if preprocessing is None:
        raise UserError(f"{name}: the model has no known preprocessing; save it with preprocessing= first")

    def encode(images: Any) -> np.ndarray:
        return model.encode_image(preprocessing.to_float(images), batch_size=EMBED_BATCH)

    description = description_of(model, name=name)
    wanted = model.architecture.features
    if features is not None:
        features.check(wanted, model=name)
        description["features"] = {each: features.stores[each].description for each in wanted}
    elif wanted:
        raise UserError(
            f"{name}: takes stored vectors, not pictures; expected "
            + ", ".join(f"--features={each}=STORE of {size} numbers" for each, size in wanted.items())
        )
    return ImageEncoder(encode, preprocessing, description, features, len(encoding_devices()))


def description_of(model: Any, *, name: str) -> dict[str, Any]:
    """What the manifest of a store says of a model's image tower, but for the features of an adapter."""
    from siglip_jax.training.param_rules import params_checksum

    return {
        "name": name,
        "architecture": model.architecture.to_json(),
        "dtype": np.dtype(model.module.dtype).name,
        "image_tower_sha256": params_checksum(model.params["img"]),
    }


def load_encoder(path: str, *, features: Mapping[str, Sequence[epath.PathLike]] | None = None) -> ImageEncoder:
    """A saved model or a workdir; or a network that `eval.embeddings.encoders.encoder_table` has an entry for.

    Args:
      features: of an adapter, the stores by name.
    """
    if (network := open_network(path)) is not None:
        if features:
            raise UserError(f"{path}: takes pictures; leave --features out")
        return ImageEncoder(network.encode_image, network.preprocessing, network.description)
    from siglip_jax.loading import load

    return image_encoder(load(path), name=path, features=Features.open(features) if features else None)


@dataclasses.dataclass(frozen=True)
class Changes:
    """How many items an update embedded, left as they were and dropped."""

    new: int
    changed: int
    kept: int
    dropped: int

    def __str__(self) -> str:
        return f"{self.new} new, {self.changed} changed, {self.kept} kept, {self.dropped} dropped"


def embed(encoder: ImageEncoder, *, output: epath.PathLike, **options: Any) -> EmbeddingStore:
    """`embed_split`, and the whole store in memory."""
    embed_split(encoder, output=output, **options)
    return read_store(output)


def embed_split(
    encoder: ImageEncoder,
    *,
    dataset: epath.PathLike,
    split: str,
    output: epath.PathLike,
    most: int | None = None,
    rows_per_shard: int = SHARD_ROWS,
    on_error: str = "error",
    overwrite: bool = False,
    update: bool = False,
    dtype: str | None = None,
    pool: str | None = None,
    pool_by: str | None = None,
) -> Changes | None:
    """Embeds the pictures of a split into a store; continues one that was stopped, and keeps one that is complete.

    Each of several processes embeds a stretch of the shards; all see the same folder.

    Args:
      most: at most so many items, spread evenly over the split; all of them when absent.
      rows_per_shard: what a stop loses at most; a multiple of EMBED_BATCH, or a smaller batch itself.
      on_error: of a row that cannot be read, as for `iterate_split`; one that is skipped is recorded in the store.
      overwrite: replace a store of another model or other data.
      update: embed what is new or was changed since the store was made, and drop what is gone; readers see the old
        store until the new one is whole. A store that is not there is made.
      dtype: of the stored numbers: float32 (or what an updated store has), float16 or int8.
      pool: what becomes of an item's further pictures; by default they are left out. "mean": one vector of all, the
        mean of their unit vectors made a unit vector again. "each": a row of each (`eval.embeddings.pictures`).
      pool_by: an attribute; with it "mean" is meant. Items of equal values are pooled too, into one row under the id of
        the first of them. Items without a value stay single.

    Returns:
      What an update changed; None where it is none.

    Raises:
      UserError: `output` holds such a store, or no store; for an update, one of another model or preprocessing; a row
        that cannot be read, unless it is to be skipped.
    """
    from siglip_jax.training.parallel.distributed import first_process_first, is_first_process

    rows_of_split = open_split(dataset, split)
    count, pool = len(rows_of_split), pool or ("mean" if pool_by else None)
    chosen = range(0, count, 1 if most is None else math.ceil(count / most))
    batch_size = min(EMBED_BATCH * encoder.devices, rows_per_shard)
    if rows_per_shard < 1 or rows_per_shard % min(EMBED_BATCH, rows_per_shard):
        raise UserError(f"rows_per_shard={rows_per_shard}; expected a multiple of {EMBED_BATCH}, or 1 to {EMBED_BATCH}")
    manifest: dict[str, Any] = {
        "model": encoder.description,
        "preprocessing": encoder.preprocessing.to_json(),
        "dataset": {"fingerprint": dataset_fingerprint(dataset), "split": split},
    }
    if chosen.step > 1:
        manifest["dataset"]["every"] = chosen.step
    if pool:
        manifest["pool"] = {"how": pool, "by": pool_by}
    if pool == EACH:
        check_tellable(split_columns(dataset, split, names=["id"])["id"])
    features = encoder.features.of_split(dataset, split) if encoder.features else {}
    stored = StoredRows(output) if update and (epath.Path(output) / MANIFEST).exists() else None
    if stored is not None:
        check_update(stored, manifest, dtype=dtype, folder=output)
    entries = Entries.one_by_one(chosen)
    if pool_by:
        values = split_columns(dataset, split, names=[f"attributes.{pool_by}"])[f"attributes.{pool_by}"]
        entries = Entries.grouped(chosen, values)
    plan = EmbeddingPlan(
        folder=epath.Path(output),
        manifest=manifest,
        rows=len(entries),
        rows_per_shard=rows_per_shard,
        may_skip=on_error == "skip" or encoder.features is not None,
        dtype=dtype or (stored.dtype if stored else "float32"),
        updates=stored.manifest if stored else None,
    )
    kept, kept_rows = np.full(len(entries), -1, np.int64), np.ones(len(entries), np.int64)
    if stored is not None:
        kept, kept_rows = _unchanged(stored, entries, features, dataset=dataset, split=rows_of_split, pool=pool)
        if not stored.knows_inputs:
            print(f"{output} does not say what its vectors were made of: all are embedded, this once")
    with first_process_first("the store is claimed"):
        complete = plan.claim(overwrite=overwrite)
    if not complete:
        work = StoreWork(plan, entries, stored, kept, kept_rows)
        _embed_shards(encoder, work, features, rows_of_split, batch_size=batch_size, on_error=on_error)
        with first_process_first("every shard is written"):
            pass
        with first_process_first("the store is complete"):
            if is_first_process():
                plan.complete()
    if not update:
        return None
    before, after = (
        items_of(stored.manifest, stored.places) if stored else set(),
        items_of(manifest, StoredRows(output).places),
    )
    same = int((kept >= 0).sum())
    return Changes(len(after - before), len(after & before) - same, same, len(before - after))


def import_embeddings(
    source: str | EmbeddingFile,
    *,
    dataset: epath.PathLike,
    split: str,
    output: epath.PathLike,
    on_error: str = "error",
    dtype: str | None = None,
) -> EmbeddingStore:
    """Writes embeddings that somebody brings as a file to an embedding store, in the order of the split.

    Args:
      source: the file, or what was read of it.
      on_error: of items that the file lacks: "skip" leaves them out, and the store records them.
      dtype: as of `embed_split`.

    Raises:
      UserError: an item that the file lacks, or with "skip" all of them; NaN, infinite or zero vectors.
    """
    ids, _, _ = attributes(dataset, split)
    file = source if isinstance(source, EmbeddingFile) else read_embeddings(source)
    known, name = set(file.ids), epath.Path(file.path).name
    lacking = [row for row, item in enumerate(ids) if item not in known] if on_error == "skip" else []
    if ids and len(lacking) == len(ids):
        raise UserError(
            f"{file.path}: no embedding of any of the {len(ids)} items of split {split}; ids there are such as "
            f"{file.ids[0]!r}, here {ids[0]!r} (they are compared as text)"
        )
    skipped = [{"row": row, "id": ids[row], "reason": f"no vector in {name}"} for row in lacking]
    kept = [item for item in ids if item in known] if lacking else ids
    vectors, more = file.aligned(kept)
    if more:
        print(f"{more} embeddings of items that are not in split {split} left out")
    manifest = {
        "model": {"name": name, "sha256": file.sha256},
        "preprocessing": None,
        "dataset": {"fingerprint": dataset_fingerprint(dataset), "split": split},
    }
    write_store(output, [(kept, vectors)], manifest=manifest, skipped=skipped, dtype=dtype or "float32")
    return read_store(output)


def _unchanged(
    stored: StoredRows,
    entries: Entries,
    features: Mapping[str, ItemVectors],
    *,
    dataset: epath.PathLike,
    split: Split,
    pool: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """`StoreWork.kept` and `kept_rows` for an update: entries whose id is stored, made of the same bytes."""
    columns = split_columns(dataset, split.name, names=["image_sha256"])
    inputs: list[list[bytes | None]] = []  # of each row in order
    for low in range(0, len(entries.order), READ_ROWS):
        rows = entries.order[low : low + READ_ROWS]
        if features:
            complete = np.all([each.rows[rows] != MISSING for each in features.values()], axis=0)
            some = iter(vector_inputs({name: each.take(rows[complete]) for name, each in features.items()}))
            inputs += [[next(some) if there else None] for there in complete]
            continue
        first = [picture_input(columns["image_sha256"][row]) for row in rows]
        more = (
            [record["more_images"] for record in split.__getitems__(rows)]
            if pool and split.has_more_images
            else [()] * len(rows)
        )
        inputs += [[one, *map(_sha256, others)] for one, others in zip(first, more, strict=True)]
    starts = entries.starts[:-1]
    ids = [columns["id"][row] for row in entries.order[starts]]
    if pool == EACH:
        return stored.unchanged_pictures(ids, inputs)
    joined = joined_inputs(list(itertools.chain(*inputs)), np.cumsum([0, *map(len, inputs)])[starts])
    return stored.unchanged(ids, joined), np.ones(len(ids), np.int64)


def _further_pictures(encoder: ImageEncoder, split: Split, batch: Mapping[str, Any]) -> Iterator[EmbeddedRows]:
    """Of a batch, what its items have besides the first picture."""
    pictures = [
        (row, record["id"], picture)
        for row, record in zip(batch["index"], split.__getitems__(batch["index"]), strict=True)
        for picture in record["more_images"]
    ]
    for low in range(0, len(pictures), EMBED_BATCH):
        rows, ids, some = zip(*pictures[low : low + EMBED_BATCH], strict=True)
        images = []
        for item, picture in zip(ids, some, strict=True):
            try:
                images.append(encoder.preprocessing.image(picture))
            except UserError as error:
                raise UserError(f"a further picture of item {item!r}: {error}; build the dataset again") from error
        vectors = encoder.encode(encoder.preprocessing.batch(images))
        yield EmbeddedRows(np.array(rows), ids, vectors, list(map(_sha256, some)))


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _embed_shards(
    encoder: ImageEncoder,
    work: StoreWork,
    features: Mapping[str, ItemVectors],
    split: Split,
    *,
    batch_size: int,
    on_error: str,
) -> None:
    """Those of this process's stretch that are not finished."""
    import jax

    plan, dataset = work.plan, split.dataset_dir
    further = "pool" in plan.manifest and split.has_more_images and not features
    shards = len(plan.shards())
    low, high = (shards * (jax.process_index() + k) // jax.process_count() for k in (0, 1))
    missing = {number: work.new(number) for number in range(low, high) if not plan.is_finished(number)}
    options: dict[str, Any] = dict(
        split=split.name,
        preprocessing=encoder.preprocessing,
        batch_size=batch_size,
        on_error=on_error,
        features=features or None,
    )

    def batches() -> Iterator[tuple[int, Pass, dict[str, Any] | None]]:
        for number, rows in missing.items():
            if len(rows):
                found = iterate_split(dataset, rows=rows, **options)
                yield number, found, next(found, None)  # None where every row is skipped
                yield from ((number, found, batch) for batch in found)

    def encoded(read: tuple[int, Pass, dict[str, Any] | None]) -> tuple[Any, ...]:
        return *read, None if read[2] is None else encoder.encode(read[2]["image"])

    watched = progress(
        one_ahead(encoded, batches()),
        total=sum(map(len, missing.values())),
        label=f"embedding ({encoder.description['name']})",
        unit="images",
        step=batch_size,
        show=jax.process_index() == 0,
    )
    for number, rows in missing.items():
        if not len(rows):
            plan.write(number, work.shard(number, []))
    for number, group in itertools.groupby(watched, key=operator.itemgetter(0)):
        embedded: list[EmbeddedRows] = []
        skipped: list[BadRow] = []
        for _, found, batch, vectors in group:
            if batch is not None:
                made_of = vector_inputs(batch["image"]) if features else map(picture_input, batch["image_sha256"])
                embedded.append(EmbeddedRows(batch["index"], batch["id"], vectors, list(made_of)))
                embedded += _further_pictures(encoder, split, batch) if further else ()
            skipped = found.skipped  # the pass's own list, whole once the group has ended
        plan.write(number, work.shard(number, embedded), skipped=_named(skipped, dataset, split.name))


def _named(skipped: Sequence[BadRow], dataset: epath.PathLike, split: str) -> list[dict[str, Any]]:
    """As the store records them; ids that cannot be read from a damaged record are those that its build wrote down."""
    known: list[str] = []
    if any(not each.id for each in skipped) and (epath.Path(dataset) / item_table.FILE).exists():
        table = item_table.item_table(dataset, columns=("id", "split"))
        known = table.filter(pc.equal(table["split"], split))["id"].to_pylist()
    return [
        dataclasses.asdict(each) | {"id": each.id or (known[each.row] if each.row < len(known) else "")}
        for each in skipped
    ]
