"""Batches for training and for passes over a split: the only importer of Grain.

Grain numbers the batches and prepares them ahead of time, in threads or in processes. What is in batch k follows from k
and the arguments alone, so a position is a number, whatever prepared the batches before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import sys
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from input_pipeline.augment import Augmentation
from input_pipeline.augment.augmentation import NO_AUGMENTATION
from input_pipeline.dataset import Split, open_split
from input_pipeline.loader.bad_rows import Budget
from input_pipeline.loader.batch_order import Plan
from input_pipeline.loader.buffers import Recycler
from input_pipeline.loader.evaluation_pass import Pass, pass_batch
from input_pipeline.loader.examples import Disk, Memory, Recipe, Source, WithVectors, training_batch, tree_map
from input_pipeline.loader.item_vectors import NO_VECTORS, NOTHING, BatchVectors, ItemVectors, LeftOut
from input_pipeline.loader.row_order import RowOrder, first_rows
from input_pipeline.loader.settings import DEFAULT_SPEED, WHOLE, DataShare, Speed
from input_pipeline.loader.workers import begin_worker, parse_absl_flags, signals_blocked
from siglip_jax.errors import UserError, checked_on_error
from siglip_jax.preprocessing import Preprocessing

if TYPE_CHECKING:
    from input_pipeline.loader.stored_outputs import StoredOutputs

__all__ = ["Batches", "check_batches", "iterate_split", "make_loader"]

AUTO_CACHE_BYTES = 2 * 2**30
AHEAD_BYTES = 2**30  # that batches made ahead may take


def make_loader(
    dataset_dir: str | os.PathLike,
    *,
    split: str,
    preprocessing: Preprocessing,
    batch_size: int,
    seed: int,
    most: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    share: DataShare = WHOLE,
    speed: Speed = DEFAULT_SPEED,
    max_bad_fraction: float = 0.01,
    features: Mapping[str, ItemVectors] | None = None,
    more: Mapping[str, ItemVectors] | None = None,
    stored: StoredOutputs | None = None,
    show_progress: bool = True,
) -> Batches:
    """Training batches of one process.

    Each batch is {"image": uint8 [b, h, w, 3] or, for NaFlex, `Patches` of uint8, "text": int32 [b, L], "group": int32
    [b] (equal titles, equal number), "index": int64 [b] (row in the split)}. Batch k of all processes together, one
    after the other, is one stretch of the epoch's order, so that only the product of `batch_size` and the number of
    processes matters to a run. A row is in an epoch at most once; what does not fill a batch is left out of that epoch.
    Everything follows from `seed`.

    A row that cannot be read or decoded is replaced by another, drawn for (seed, epoch, row), and counted
    (`Batches.replaced`); "index" tells the row that is in the batch.

    Args:
      dataset_dir, split: see `build_dataset`.
      preprocessing: with a tokenizer.
      batch_size: rows per process.
      seed: 0 ... 2**32 - 1; of the order and the augmentation.
      most: rows that take part, see `first_rows`; 0 for all.
      epochs: None goes on for ever.
      augmentation: of pictures and titles, drawn anew each epoch.
      share: which part of each global batch this process has; the whole of it when absent.
      speed: threads, workers and memory. `cache=None` keeps rows that take less than AUTO_CACHE_BYTES.
      max_bad_fraction: of the rows; more replacements than that, over the epochs so far, stop the run.
      features: stored vectors by name: "image" then is {name: float32 [b, d]}, and no picture is read. Titles are kept
        in memory, and `augmentation` changes only these.
      more: stored vectors by the key that a batch has them under, float32 [b, d]. Rows that lack a vector of either
        kind take no part: `Batches.left_out` counts and names them.
      stored: what frozen towers made of the rows. Its arrays are in a batch in the place of "image", "text" or both;
        without "image", no picture is decoded.

    Raises:
      UserError: a batch larger than the process's share of the split, arguments out of range, no tokenizer, no memory,
        an augmentation that NaFlex pictures, the cache or the attributes do not allow. While iterating: too many bad
        rows, or a damaged file, see `faults`.
    """
    rows = open_split(dataset_dir, split)
    recipe = Recipe(preprocessing=preprocessing, augmentation=augmentation, seed=seed)
    vectors = BatchVectors(features or {}, more or {})
    replaced = stored.sources if stored else set()
    pictures = not features and "image" not in replaced
    cached = check_batches(
        rows,
        recipe,
        batch_size=batch_size,
        most=most,
        epochs=epochs,
        share=share,
        speed=speed,
        max_bad_fraction=max_bad_fraction,
        vectors=vectors,
        pictures=pictures,
    )
    if preprocessing.tokenizer is None:
        raise UserError("the preprocessing has no tokenizer; training on titles needs one")
    disk = Disk(rows, recipe, speed.threads, pictures=pictures, titles="text" not in replaced)
    source: Source = Memory.load(disk, show_progress) if cached else disk
    row_bytes = vectors.bytes_per_row + (math.prod(preprocessing.row_shape) if pictures else 0)
    if features or more:
        source = WithVectors(source, vectors)
    if stored:
        source, row_bytes = stored.joined_to(source), row_bytes + stored.row_bytes
    asked = first_rows(len(rows), most=most, seed=seed)
    kept = vectors.complete(asked)
    plan = Plan(
        order=RowOrder(len(kept), seed, shuffle),
        batch_size=batch_size,
        share=share,
        kept=None if len(kept) == len(rows) else kept,
    )
    return Batches(
        preprocessing=preprocessing,
        left_out=vectors.left_out(rows, asked),
        stored=tuple(stored.arrays) if stored else (),
        _plan=plan,
        _source=source,
        _row_bytes=row_bytes,
        _stop=sys.maxsize // 2 if epochs is None else epochs * plan.batches_per_epoch,
        _num_workers=speed.num_workers,
        _max_bad_fraction=max_bad_fraction,
    )


def check_batches(
    rows: Split,
    recipe: Recipe,
    *,
    batch_size: int,
    most: int = 0,
    epochs: int | None = None,
    share: DataShare = WHOLE,
    speed: Speed = DEFAULT_SPEED,
    max_bad_fraction: float = 0.01,
    vectors: BatchVectors = NO_VECTORS,
    pictures: bool = True,
) -> bool:
    """Whether the rows are kept in memory; raises what `make_loader` raises of these arguments, before any work."""
    _check_positive(batch_size=batch_size, epochs=1 if epochs is None else epochs)
    if not 0 <= max_bad_fraction <= 1:
        raise UserError(f"max_bad_fraction={max_bad_fraction}; expected 0 to 1")
    process_count = share.process_count
    recipe.augmentation.check(recipe.preprocessing, rows.attribute_names)
    vectors.check(len(rows))
    asked = first_rows(len(rows), most=most, seed=recipe.seed)
    if len(vectors.complete(asked)) // process_count < batch_size:
        left_out = vectors.left_out(rows, asked)
        raise UserError(
            f"batch_size={batch_size} on {process_count} process{'es' * (process_count > 1)} needs "
            f"{batch_size * process_count} rows; split {rows.name} has {len(rows)}{f', most={most}' if most else ''}"
            f"{f', but {left_out.count} of them lack vectors ({left_out})' if left_out.count else ''}; "
            "give a smaller batch"
        )
    return not pictures or _is_cached(speed, len(rows), recipe)


@dataclasses.dataclass(kw_only=True)
class Batches(Iterator[dict[str, Any]]):
    """An iterator of batches that can be stopped and continued; a context manager, or `close` it.

    Attributes:
      preprocessing: what the batches were made with; training refuses a model that has another.
      replaced: of the last batch, {"row", "id", "reason", "stand_in"} of each row that another one replaces.
      stored: keys of a batch that frozen towers made, see `make_loader`.
      left_out: the rows that have no stored vectors and are in no batch.
    """

    preprocessing: Preprocessing
    left_out: LeftOut = NOTHING
    stored: tuple[str, ...] = ()
    replaced: list[dict[str, Any]] = dataclasses.field(default_factory=list, init=False)
    _plan: Plan
    _source: Source
    _row_bytes: int
    _stop: int
    _num_workers: int
    _max_bad_fraction: float
    _next: int = dataclasses.field(default=0, init=False)
    _to_begin: int = dataclasses.field(default=0, init=False)
    _running: list[grain.DatasetIterator] = dataclasses.field(default_factory=list, init=False)  # one or none
    _memory: Recycler = dataclasses.field(default_factory=Recycler, init=False)

    def __post_init__(self) -> None:
        self._budget = self._new_budget(before=0)
        # At the end of the program too, while the modules are there that Grain needs to close its iterators.
        weakref.finalize(self, _stop, self._running)

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> dict[str, Any]:
        if not self._running:
            self._running.append(self._start())
            self._to_begin = self._num_workers
        # Grain starts each worker when its first batch is asked for, at the latest.
        try:
            with signals_blocked() if self._to_begin else contextlib.nullcontext():
                batch, replaced = next(self._running[0])
        except RuntimeError as error:  # Grain's, and no more than a text
            if "Worker process was terminated" not in str(error):
                raise
            raise UserError(
                f"a process that prepares batches is gone ({str(error).split('. ')[0]}): was it killed, or is memory "
                "short? start again to go on, with fewer num_workers, or 0 for threads alone"
            ) from error
        self._to_begin = max(0, self._to_begin - 1)
        self._next += 1
        self.replaced = [each.to_json() for each in replaced]
        self._budget.add(replaced, epochs=-(-self._next // self._plan.batches_per_epoch))  # started
        return {key: tree_map(self._plain, value) for key, value in batch.items()}

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, a small dict that JSON can hold.

        "epoch" and "batch" count what is done, "batch_size" is the global one, and "replaced" the bad rows so far, of
        other processes as far as `set_state` was told of them.
        """
        epoch, within = divmod(self._next, self._plan.batches_per_epoch)
        return {
            "epoch": epoch,
            "batch": within,
            "batch_size": self._plan.global_size,
            "rows": len(self._plan.order),
            "seed": self._plan.seed,
            "replaced": self._budget.before + self._budget.here,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues from what `get_state` gave.

        The number of processes, workers and threads and `cache` may be others. So may the global batch size, at the
        beginning of an epoch.

        Raises:
          UserError: within an epoch of another batch size, or of another split, seed or kind.
        """
        plan = self._plan
        try:
            epoch, within, size, rows, seed, replaced = (
                int(state[name]) for name in ("epoch", "batch", "batch_size", "rows", "seed", "replaced")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"position in the data {dict(state)}: not one of this version; start anew") from error
        for name, there, here in (("rows", rows, len(plan.order)), ("seed", seed, plan.seed)):
            if there != here:
                raise UserError(f"position in the data: {name}={there} there, {here} here; give the same data and seed")
        if within and size != plan.global_size:
            raise UserError(
                f"position in the data: {within} batches of {size} rows of epoch {epoch} are done, and a batch of "
                f"{plan.global_size} cannot continue from there: give the same product of batch size and processes, "
                "or change it at the beginning of an epoch"
            )
        _stop(self._running)
        self._next = epoch * plan.batches_per_epoch + within
        self.replaced = []
        self._budget = self._new_budget(before=replaced)

    def close(self) -> None:
        """Stops worker processes and threads, and frees their memory. Closing twice is fine."""
        _stop(self._running)
        self._source.close()

    def _start(self) -> grain.DatasetIterator:
        numbers = grain.MapDataset.range(min(self._next, self._stop), self._stop)
        batches = numbers.map(functools.partial(training_batch, self._source, self._plan))
        # Two batches ahead at least, not Grain's 500: they may be hundreds of MB each, and the rows of one are decoded
        # in parallel. Four where they are small: steps and batches that take turns at being late then wait less.
        ahead = 4 if 4 * self._plan.batch_size * self._row_bytes <= AHEAD_BYTES else 2
        prepared = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=ahead))
        if self._num_workers:
            parse_absl_flags()
            options = grain.MultiprocessingOptions(num_workers=self._num_workers, per_worker_buffer_size=2)
            prepared = prepared.mp_prefetch(options, worker_init_fn=functools.partial(begin_worker, os.getpid()))
        return iter(prepared)

    def _plain(self, array: np.ndarray) -> np.ndarray:
        """An array of a worker copied out of shared memory, which there is little of, and which is freed by that."""
        if type(array) is np.ndarray:
            return array
        copy = self._memory.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def _new_budget(self, *, before: int) -> Budget:
        processes = self._plan.share.process_count
        share = len(self._plan.order) / processes
        return Budget(fraction=self._max_bad_fraction, share=share, processes=processes, before=before)


def _stop(running: list[grain.DatasetIterator]) -> None:
    while running:
        running.pop().close()


# --- passes over a split ----------------------------------------------------------------------------------------------


def iterate_split(
    dataset_dir: str | os.PathLike,
    *,
    split: str,
    preprocessing: Preprocessing,
    batch_size: int,
    rows: range | np.ndarray | None = None,
    num_threads: int | None = None,
    on_error: str = "error",
    features: Mapping[str, ItemVectors] | None = None,
    more: Mapping[str, ItemVectors] | None = None,
) -> Pass:
    """Every row once, in order, the last batch short; the next batch is prepared while one is used.

    Batches are those of `make_loader` without augmentation, and with "id", "title" and "image_sha256": list[str],
    "attributes": {name: list[str]}. There is no "text" where the preprocessing has no tokenizer.

    Args:
      rows: which rows of the split, all of them when absent: a process's share, or what is left after a stop.
      on_error: what to do about a row that cannot be read or decoded: "error", or "skip" it, which makes its batch
        shorter, and list it in `Pass.skipped`. No row is ever replaced.
      features, more: see `make_loader`; rows that lack a vector are always skipped, and listed.

    Raises:
      UserError: arguments out of range. While iterating: a bad row, by its id, or a damaged file.
    """
    _check_positive(batch_size=batch_size)
    on_error = checked_on_error("on_error", on_error)
    disk = Disk(
        open_split(dataset_dir, split),
        Recipe(preprocessing=preprocessing),
        num_threads or os.cpu_count() or 1,
        pictures=not features,
    )
    count, vectors = len(disk.rows), BatchVectors(features or {}, more or {})
    vectors.check(count)
    chosen = np.arange(count) if rows is None else np.asarray(rows, np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < count:
        raise UserError(f"rows {chosen.min()}:{chosen.max() + 1} asked of split {split}; it has {count}")
    starts = range(0, len(chosen), batch_size)
    batches = grain.MapDataset.range(len(starts)).map(
        lambda k: pass_batch(disk, chosen[starts[k] : starts[k] + batch_size], on_error=on_error, vectors=vectors)
    )
    return Pass(iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))))


# --- arguments --------------------------------------------------------------------------------------------------------


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value}; expected 1 or more")


def _is_cached(speed: Speed, count: int, recipe: Recipe) -> bool:
    preprocessing, needs_files = recipe.preprocessing, recipe.augmentation.needs_files
    cache, num_workers = speed.cache, speed.num_workers
    needed = count * (math.prod(preprocessing.row_shape) + preprocessing.text_length * 4 + 4)
    if cache is None:
        return needed <= AUTO_CACHE_BYTES and not num_workers and not needs_files
    if cache and num_workers:
        raise UserError(f"cache with num_workers={num_workers}; cached batches need no workers: give num_workers=0")
    if cache and needs_files:
        raise UserError(
            f"cache with {needs_files}: these need the pictures as they came, and the cache has resized ones; do "
            "without the cache, or use shift and zoom instead"
        )
    if cache and needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise UserError(f"the decoded split takes {needed / 2**30:.1f} GiB of {memory / 2**30:.1f}; do without cache")
    return cache
