"""Batches for training and for passes over a split: the only importer of Grain.

Grain deals out row numbers (shuffled anew each epoch, shared out over processes, resumable); a batch of rows is then
read at once, either from disk or from a copy of the split in memory. Both give the same bits.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from input_pipeline.augment import Augmentation
from input_pipeline.dataset import Split, open_split
from input_pipeline.progress import progress
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing

AUTO_CACHE_BYTES = 2 * 2**30
NO_AUGMENTATION = Augmentation(flip=False)
CHUNK_ROWS = 16  # pictures per task of a decoding thread


def make_loader(
    dataset_dir: str | os.PathLike,
    *,
    split: str,
    preprocessing: Preprocessing,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    augmentation: Augmentation = NO_AUGMENTATION,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    num_workers: int = 0,
    cache: bool | None = None,
    show_progress: bool = True,
) -> Batches:
    """Training batches of one process.

    Each batch is {"image": uint8 [b, h, w, 3] or, for NaFlex, `Patches` of uint8, "text": int32 [b, L], "group": int32
    [b] (equal titles, equal number), "index": int64 [b] (row in the split)}. Batch k of all processes together is one
    stretch of the epoch's order, so that only the product of `batch_size` and `process_count` matters to a run. A row
    is in an epoch at most once; what does not fill a batch is left out of that epoch. Everything follows from `seed`:
    threads, workers and `cache` change speed alone. `get_state()` is a small JSON-able dict; `set_state` continues
    exactly, given the same arguments.

    Args:
      dataset_dir, split: see `build_dataset`.
      preprocessing: with a tokenizer.
      batch_size: rows per process.
      seed: 0 ... 2**32 - 1; of the order and the augmentation.
      epochs: None goes on for ever.
      augmentation: of the pictures, drawn anew each epoch.
      num_threads: for decoding; the machine's cores when absent.
      num_workers: processes that prepare batches, for large pictures on many cores; 0 stays in this one.
      cache: keep decoded, resized pictures and ids in memory, by one pass at the start. None: where they take less than
        AUTO_CACHE_BYTES and `num_workers` is 0.

    Raises:
      UserError: a batch larger than the process's share of the split, arguments out of range, no tokenizer, no memory,
        NaFlex pictures with an augmentation other than flips.
    """
    rows = open_split(dataset_dir, split)
    _check(preprocessing, batch_size, seed, epochs, process_index, process_count, num_workers)
    augmentation.check(preprocessing)
    share = len(rows) // process_count
    if share < batch_size:
        raise UserError(
            f"batch_size={batch_size} on {process_count} process{'es' * (process_count > 1)} needs "
            f"{batch_size * process_count} rows; split {split} has {len(rows)}; give a smaller batch"
        )
    disk = _Disk(rows, preprocessing, num_threads or os.cpu_count() or 1)
    cached = _wants_cache(cache, len(rows), preprocessing, num_workers)
    source: _Source = _Memory.load(disk, show_progress) if cached else disk

    order = grain.MapDataset.range(len(rows)).seed(seed)
    if shuffle:
        order = order.shuffle()
    # Slicing the shuffled order gives every process other rows each epoch, and all of them equally many.
    order = order.slice(slice(process_index, share * process_count, process_count))
    order = order.batch(batch_size, drop_remainder=True, batch_fn=_row_numbers)
    make_batch = functools.partial(_make_batch, source, augmentation, seed, len(order))
    batches = order.repeat(epochs).map_with_index(make_batch)
    # Two batches ahead, not Grain's 500: they may be hundreds of MB each, and the rows of one are decoded in parallel.
    batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
    if num_workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2))
    return Batches(iter(batches), preprocessing)


@dataclasses.dataclass
class Batches(Iterator[dict[str, Any]]):
    """An iterator of batches that can be stopped and continued.

    Attributes:
      preprocessing: what the batches were made with; training refuses a model that has another.
    """

    _iterator: grain.DatasetIterator
    preprocessing: Preprocessing

    def __next__(self) -> dict[str, Any]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position, a small dict that JSON can hold."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from what `get_state` gave, given the same arguments to `make_loader`."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Stops worker processes and threads."""
        self._iterator.close()


def iterate_split(
    dataset_dir: str | os.PathLike,
    *,
    split: str,
    preprocessing: Preprocessing,
    batch_size: int,
    rows: range | None = None,
    num_threads: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Every row once, in order, the last batch short; the next batch is prepared while one is used.

    Batches are those of `make_loader` without augmentation, and with "id": list[str], "title": list[str], "attributes":
    {name: list[str]}. There is no "text" where the preprocessing has no tokenizer.

    Args:
      rows: which rows of the split, all of them when absent: a process's share, or what is left after a stop.
    """
    _check_positive(batch_size=batch_size)
    source = _Disk(open_split(dataset_dir, split), preprocessing, num_threads or os.cpu_count() or 1)
    count = len(source.rows)
    rows = range(count) if rows is None else rows
    if len(rows) and not 0 <= min(rows) <= max(rows) < count:
        raise UserError(f"rows {rows.start}:{rows.stop} asked of split {split}; it has {count}")
    starts = range(0, len(rows), batch_size)
    batches = grain.MapDataset.range(len(starts)).map(
        lambda k: source.take_all(rows[starts[k] : starts[k] + batch_size])
    )
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)))


# --- where the rows of a batch come from ------------------------------------------------------------------------------


class _Source(Protocol):
    def take(self, rows: np.ndarray) -> dict[str, Any]:
        """{"image", "text", "group"} of the rows, in arrays of the caller's own."""


@dataclasses.dataclass
class _Disk:
    """Reads and decodes on demand."""

    rows: Split
    preprocessing: Preprocessing
    num_threads: int

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")

    def __getstate__(self) -> dict[str, Any]:  # a pool cannot go to a worker process
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def take(self, rows: np.ndarray) -> dict[str, Any]:
        return self._arrays(self.rows.__getitems__(rows))

    def take_all(self, rows: Sequence[int]) -> dict[str, Any]:
        records = self.rows.__getitems__(rows)
        names = records[0]["attributes"]
        return {
            **self._arrays(records),
            "index": np.asarray(rows, np.int64),
            "id": [record["id"] for record in records],
            "title": [record["title"] for record in records],
            "attributes": {name: [record["attributes"][name] for record in records] for name in names},
        }

    def _arrays(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        images = _empty_rows(len(records), self.preprocessing.batch([]))

        def decode(start: int) -> None:
            chunk = records[start : start + CHUNK_ROWS]
            decoded = self.preprocessing.batch([self.preprocessing.image(record["image"]) for record in chunk])
            _tree_map(functools.partial(_write_rows, start), images, decoded)

        for _ in self._pool.map(decode, range(0, len(records), CHUNK_ROWS)):
            pass  # an error in a thread is raised here
        arrays: dict[str, Any] = {"image": images}
        arrays["group"] = np.array([record["title_group"] for record in records], np.int32)
        if self.preprocessing.tokenizer is not None:
            arrays["text"] = self.preprocessing.text([record["title"] for record in records])
        return arrays


@dataclasses.dataclass
class _Memory:
    """The whole split as arrays: image uint8 [N, h, w, 3] or `Patches`, text int32 [N, L], group int32 [N]."""

    arrays: dict[str, Any]

    @classmethod
    def load(cls, disk: _Disk, show_progress: bool) -> _Memory:
        count = len(disk.rows)
        arrays: dict[str, Any] = {}
        chunk = 64 * CHUNK_ROWS
        label = f"decoding {disk.rows.name} into memory"
        starts = progress(range(0, count, chunk), total=count, step=chunk, label=label, show=show_progress)
        for start in starts:
            for key, value in disk.take(np.arange(start, min(start + chunk, count))).items():
                if not start:
                    arrays[key] = _empty_rows(count, value)
                _tree_map(functools.partial(_write_rows, start), arrays[key], value)
        return cls(arrays)

    def take(self, rows: np.ndarray) -> dict[str, Any]:
        return {key: _tree_map(lambda part: part[rows], value) for key, value in self.arrays.items()}


def _tree_map(function: Callable[..., Any], *values: Any) -> Any:
    """`function` of arrays, or of each field of `Patches`."""
    if isinstance(values[0], Patches):
        return Patches(*map(function, *values))
    return function(*values)


def _empty_rows(count: int, like: np.ndarray | Patches) -> Any:
    return _tree_map(lambda part: np.empty((count, *part.shape[1:]), part.dtype), like)


def _write_rows(start: int, whole: np.ndarray, rows: np.ndarray) -> None:
    whole[start : start + len(rows)] = rows


def _make_batch(
    source: _Source, augment: Augmentation, seed: int, batches_per_epoch: int, number: int, rows: np.ndarray
) -> dict[str, Any]:
    batch = {**source.take(rows), "index": rows}
    batch["image"] = augment(batch["image"], rows, seed=seed, epoch=number // batches_per_epoch)
    return batch


def _row_numbers(rows: Sequence[int]) -> np.ndarray:
    return np.asarray(rows, np.int64)


# --- arguments --------------------------------------------------------------------------------------------------------


def _check(preprocessing, batch_size, seed, epochs, process_index, process_count, num_workers) -> None:
    _check_positive(batch_size=batch_size, process_count=process_count, epochs=1 if epochs is None else epochs)
    if preprocessing.tokenizer is None:
        raise UserError("the preprocessing has no tokenizer; training on titles needs one")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}; expected 0 to {2**32 - 1}")
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index}; expected 0 to {process_count - 1}")
    if num_workers < 0:
        raise UserError(f"num_workers={num_workers}; expected 0 or more")


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value}; expected 1 or more")


def _wants_cache(cache: bool | None, count: int, preprocessing: Preprocessing, num_workers: int) -> bool:
    needed = count * (math.prod(preprocessing.row_shape) + preprocessing.text_length * 4 + 4)
    if cache is None:
        return needed <= AUTO_CACHE_BYTES and not num_workers
    if cache and num_workers:
        raise UserError(f"cache with num_workers={num_workers}; cached batches need no workers: give num_workers=0")
    if cache and needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise UserError(f"the decoded split takes {needed / 2**30:.1f} GiB of {memory / 2**30:.1f}; do without cache")
    return cache
