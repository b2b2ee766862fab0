"""Examples by row number, from disk or from a copy of the split in memory: the same bits from both."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from input_pipeline.augment import Augmentation
from input_pipeline.augment.augmentation import NO_AUGMENTATION
from input_pipeline.dataset import Split
from input_pipeline.loader.bad_rows import ATTEMPTS, BadRow, Replacement, read_record, read_records, stand_ins
from input_pipeline.loader.batch_order import Plan
from input_pipeline.loader.buffers import Recycler
from input_pipeline.loader.item_vectors import BatchVectors
from input_pipeline.progress import progress
from siglip_jax.errors import UserError
from siglip_jax.preprocessing import Patches, Preprocessing

PICTURES = ("image", "more_images")  # of a record
CHUNK_ROWS = 8  # per task of a thread, which reads, decodes and changes them where they lie in the batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is made of a record.

    Attributes:
      seed: of the augmentation and of the rows that replace bad ones.
    """

    preprocessing: Preprocessing
    augmentation: Augmentation = NO_AUGMENTATION
    seed: int = 0

    def picture(self, record: dict[str, Any], row: int, epoch: int, images: np.ndarray | Patches, place: int) -> None:
        """One picture, cropped and resized, becomes number `place` of `images`."""
        pictures = [record["image"], *(record.get("more_images") or ())]
        chosen = self.augmentation.choose_picture(pictures, row, seed=self.seed, epoch=epoch)
        crop = functools.partial(self.augmentation.crop, row=row, seed=self.seed, epoch=epoch)
        image = functools.partial(self.preprocessing.image, chosen, crop=crop if self.augmentation.crops else None)
        if isinstance(images, Patches):
            one = self.preprocessing.batch([image()])
            tree_map(lambda whole, part: whole.__setitem__(place, part[0]), images, one)
        else:
            image(out=images[place])

    def text(self, records: Sequence[dict[str, Any] | None], rows: np.ndarray, epoch: int) -> np.ndarray:
        """int32 [b, L]; of an empty title where there is no record."""
        there = [k for k, record in enumerate(records) if record is not None]
        titles = [""] * len(records)
        chosen = [record for record in records if record is not None]
        changed = self.augmentation.titles(chosen, rows[there], seed=self.seed, epoch=epoch)
        for k, title in zip(there, changed, strict=True):
            titles[k] = title
        return self.preprocessing.text(titles)


class Source(Protocol):
    """Where examples come from."""

    @property
    def rows(self) -> Split: ...
    @property
    def recipe(self) -> Recipe: ...
    def close(self) -> None: ...
    def take(self, rows: np.ndarray, epoch: int) -> tuple[dict[str, Any], list[BadRow]]:
        """{"image", "text", "group"} of int64 [b] rows, in arrays of the caller's own, and the rows without meaning."""


@dataclasses.dataclass
class Disk:
    """Reads and decodes on demand.

    Attributes:
      pictures, titles: whether there are "image" and "text"; without "image", no picture is decoded.
    """

    rows: Split
    recipe: Recipe
    num_threads: int
    pictures: bool = True
    titles: bool = True

    @functools.cached_property
    def _memory(self) -> Recycler:
        return Recycler()

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode")

    def __getstate__(self) -> dict[str, Any]:  # these cannot go to a worker process
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def take(self, rows: np.ndarray, epoch: int) -> tuple[dict[str, Any], list[BadRow]]:
        return self.examples(rows, epoch)[:2]

    def examples(
        self, rows: np.ndarray, epoch: int = 0
    ) -> tuple[dict[str, Any], list[BadRow], list[dict[str, Any] | None]]:
        """As `take`, and the records; None where one cannot be read. No "text" without a tokenizer."""
        rows = np.asarray(rows, np.int64)
        records: list[dict[str, Any] | None] = [None] * len(rows)
        bad: list[BadRow] = []
        arrays: dict[str, Any] = {}
        if self.pictures:
            arrays["image"] = self._decode(rows, epoch, records, bad)
        else:
            for k, record in enumerate(read_records(self.rows, rows.tolist())):
                if isinstance(record, BadRow):
                    bad.append(record)
                else:
                    records[k] = _without_pictures(record)
        arrays["group"] = np.array([0 if record is None else record["title_group"] for record in records], np.int32)
        if self.titles and self.recipe.preprocessing.tokenizer is not None:
            arrays["text"] = self.recipe.text(records, rows, epoch)
        return arrays, bad, records

    def _decode(
        self, rows: np.ndarray, epoch: int, records: list[dict[str, Any] | None], bad: list[BadRow]
    ) -> np.ndarray | Patches:
        """The pictures of the rows; writes into `records`, and appends to `bad`."""
        images = tree_map(
            lambda like: self._memory.empty((len(rows), *like.shape[1:]), like.dtype),
            self.recipe.preprocessing.batch([]),
        )

        def prepare(start: int) -> None:
            here = slice(start, start + CHUNK_ROWS)
            part = tree_map(lambda whole: whole[here], images)
            for k, row in enumerate(rows[here].tolist()):
                records[start + k], problem = self._prepare(row, epoch, part, k)
                if problem:
                    bad.append(problem)
                    _blacken(part, k)
            self.recipe.augmentation.change(part, rows[here], seed=self.recipe.seed, epoch=epoch)

        for _ in self._pool.map(prepare, range(0, len(rows), CHUNK_ROWS)):
            pass  # an error in a thread is raised here
        return images

    def _prepare(
        self, row: int, epoch: int, images: np.ndarray | Patches, place: int
    ) -> tuple[dict[str, Any] | None, BadRow | None]:
        """The record of a row, whose picture becomes number `place` of `images`, and what is wrong with either."""
        record, problem = read_record(self.rows, row), None
        if isinstance(record, BadRow):
            return None, record
        try:
            self.recipe.picture(record, row, epoch, images, place)
        except UserError as error:
            problem = BadRow(row, record["id"], str(error))
        return _without_pictures(record), problem

    def close(self) -> None:
        """Stops the threads."""
        if "_pool" in self.__dict__:
            self._pool.shutdown(wait=False, cancel_futures=True)


@dataclasses.dataclass
class Memory:
    """The whole split, decoded once.

    Attributes:
      arrays: image uint8 [N, h, w, 3] or `Patches` where pictures are decoded, text int32 [N, L], group int32 [N].
      bad: by row.
      records: what titles are made of; empty where they are always the same.
    """

    rows: Split
    recipe: Recipe
    arrays: dict[str, Any]
    bad: dict[int, BadRow]
    records: list[dict[str, Any] | None]

    @classmethod
    def load(cls, disk: Disk, show_progress: bool) -> Memory:
        recipe, count = disk.recipe, len(disk.rows)
        plain = dataclasses.replace(disk, recipe=dataclasses.replace(recipe, augmentation=NO_AUGMENTATION))
        memory = cls(disk.rows, recipe, {}, {}, [])
        chunk = 64 * CHUNK_ROWS
        label = f"{'decoding' if disk.pictures else 'reading titles of'} {disk.rows.name} into memory"
        for start in progress(range(0, count, chunk), total=count, step=chunk, label=label, show=show_progress):
            found, bad, records = plain.examples(np.arange(start, min(start + chunk, count)))
            for key, value in found.items():
                if not start:
                    memory.arrays[key] = empty_rows(count, value)
                tree_map(functools.partial(_write_rows, start), memory.arrays[key], value)
            memory.bad |= {each.row: each for each in bad}
            if disk.titles and recipe.augmentation.changes_titles:
                memory.records += records
        plain.close()
        return memory

    def take(self, rows: np.ndarray, epoch: int) -> tuple[dict[str, Any], list[BadRow]]:
        found = {key: tree_map(lambda part: part[rows], value) for key, value in self.arrays.items()}
        recipe = self.recipe
        if "image" in found:
            recipe.augmentation.change(found["image"], rows, seed=recipe.seed, epoch=epoch)
        if self.records:
            found["text"] = recipe.text([self.records[row] for row in rows], rows, epoch)
        return found, [self.bad[row] for row in rows.tolist() if row in self.bad] if self.bad else []

    def close(self) -> None:
        pass


@dataclasses.dataclass
class Joined:
    """Examples of another source, with more beside them: `take` is what a subclass adds."""

    source: Source

    @property
    def rows(self) -> Split:
        return self.source.rows

    @property
    def recipe(self) -> Recipe:
        return self.source.recipe

    def take(self, rows: np.ndarray, epoch: int) -> tuple[dict[str, Any], list[BadRow]]:
        return self.source.take(rows, epoch)

    def close(self) -> None:
        self.source.close()


@dataclasses.dataclass
class WithVectors(Joined):
    """Examples with stored vectors; of rows that lack none."""

    vectors: BatchVectors

    def take(self, rows: np.ndarray, epoch: int) -> tuple[dict[str, Any], list[BadRow]]:
        found, bad = super().take(rows, epoch)
        return {**self.vectors.take(rows), **found}, bad


def training_batch(source: Source, plan: Plan, number: int) -> tuple[dict[str, Any], list[Replacement]]:
    """The examples of a batch, with "index" int64 [b]; a bad row is replaced by another, a draw of its own.

    Raises:
      UserError: ATTEMPTS rows were drawn to replace one, and all are bad.
    """
    epoch, rows = plan.batch(number)
    batch, bad = source.take(rows, epoch)
    index = rows.copy()
    wanting = {each.row: each for each in sorted(bad, key=lambda each: each.row)}
    replacements = []
    for attempt in range(ATTEMPTS):
        if not wanting:
            break
        asked = np.array(list(wanting), np.int64)
        found = stand_ins(asked, count=len(plan.order), attempt=attempt, seed=source.recipe.seed, epoch=epoch)
        found = plan.rows(found)
        examples, worse = source.take(found, epoch)
        still_bad = {each.row for each in worse}
        for k, (row, other) in enumerate(zip(asked.tolist(), found.tolist(), strict=True)):
            if other not in still_bad:
                position = int(np.flatnonzero(rows == row)[0])
                for key, value in examples.items():
                    tree_map(lambda whole, part, p=position, k=k: whole.__setitem__(p, part[k]), batch[key], value)
                index[position] = other
                replacements.append(Replacement(wanting.pop(row), other))
    if wanting:
        raise UserError(
            f"{source.rows.dataset_dir}: split {source.rows.name}: {next(iter(wanting.values()))}; the {ATTEMPTS} rows "
            "tried in its place are no better: fix the dataset, or build it again"
        )
    return {**batch, "index": index}, sorted(replacements, key=lambda each: each.bad.row)


def tree_map(function: Callable[..., Any], *values: Any) -> Any:
    """`function` of arrays, or of each of those of `Patches` or of a dict."""
    if isinstance(values[0], dict):
        return {name: tree_map(function, *(value[name] for value in values)) for name in values[0]}
    if isinstance(values[0], Patches):
        return Patches(*map(function, *values))
    return function(*values)


def empty_rows(count: int, like: np.ndarray | Patches) -> Any:
    """Zeros [count, ...] in the shape and type of the rows of `like`."""
    return tree_map(lambda part: np.zeros((count, *part.shape[1:]), part.dtype), like)


def _without_pictures(record: dict[str, Any]) -> dict[str, Any]:
    """What is left when the pictures are done with: their memory is the next one's."""
    return {key: value for key, value in record.items() if key not in PICTURES}


def _blacken(images: np.ndarray | Patches, place: int) -> None:
    tree_map(lambda part: part.__setitem__(place, 0), images)
    if isinstance(images, Patches):
        images.shape[place] = 1  # so that it can be mirrored as any other


def _write_rows(start: int, whole: np.ndarray, rows: np.ndarray) -> None:
    whole[start : start + len(rows)] = rows
