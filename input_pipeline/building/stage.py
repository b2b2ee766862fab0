"""The work in progress of a build, in `<dataset>.partial`: finished parts stay when the process is killed.

A part is some thousand rows in order: their records, one after the other, in `part-00000.records`, and the facts of all
its rows in `part-00000.parquet`, which is written last and in one step.

A build goes on with the parts it finds. Those whose items have changed since (`Catalogue.item_key`) are written again,
the others stay, whatever became of the file they were read from.
"""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.building import facts
from input_pipeline.building.check_item import Checked, check_item
from input_pipeline.catalogue import Catalogue, Item
from siglip_jax.errors import UserError

FORMAT = 2  # of the parts and of the plan
PART_ROWS, PART_BYTES = 8192, 128 * 2**20
TASK_ROWS = 16  # checked by a thread in one go
_PLAN = "plan.json"
_CHECKING = ("only", "min_image_size")  # options on which what is checked depends
_FAILED = "failed"  # in the plan: the build ended in an error, after which its user may well change things


class DamagedStage(UserError):
    """Work in progress that cannot be gone on with."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """Rows that are in no finished part.

    Attributes:
      number: of the part to write; where `stop` is None, of the first of those to write.
      start: the first row.
      stop: the row after the last; None where rows follow to the end of the source.
    """

    number: int
    start: int
    stop: int | None


class Stage:
    """The folder of a build; use it in a `with`, which takes its lock.

    Attributes:
      name: of the dataset's folder.
      folder: `<dataset>.partial`.
      dataset: the finished dataset, before it moves to its place.
      is_ours: whether this process has its lock, and the work in it is of the same plan.
    """

    def __init__(self, out_dir: pathlib.Path):
        self.name = out_dir.name
        self.folder = out_dir.with_name(f"{out_dir.name}.partial")
        self.dataset = self.folder / "dataset"
        self.is_ours = False

    @contextlib.contextmanager
    def opened(self, plan: Mapping[str, Any], *, has_keys: bool) -> Iterator[Stage]:
        """Makes the folder, or goes on with the one that is there.

        After an error of its build, another source or other options are taken up: what was checked of the source stays
        if that is still of use. After any other end they are refused, since they may be a mistake.

        Args:
          plan: {"source": identity of the catalogue, "options": those of the build}.
          has_keys: of the catalogue; then what was checked of another source may be of use, see `changed_parts`.

        Raises:
          UserError: another process builds there, or it is the work of another source or of other options.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel, however the process ends
            except OSError as error:
                raise UserError(f"{self.folder}: another process builds this dataset; wait for its end") from error
            self._take_up(json.loads(json.dumps({"format": FORMAT, **plan})), has_keys)
            self._remove_unfinished()
            yield self

    def parts(self) -> list[pathlib.Path]:
        """The fact tables of the finished parts, in order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def rows(self) -> int:
        """How many rows are in them."""
        return sum(facts.read_part(path, ["row"]).num_rows for path in self.parts())

    def has_full_part(self) -> bool:
        """Whether there is more work than is quickly done again."""
        return len(self.parts()) > 1 or self.rows() >= PART_ROWS

    def gaps(self) -> list[Gap]:
        """What is to be checked and written, in order; the last has no end."""
        found: list[Gap] = []
        number = start = 0
        for path in self.parts():
            rows, there = facts.read_part(path, ["row"])["row"], part_number(path)
            if len(rows):
                if there > number:
                    bounds = np.linspace(start, rows[0].as_py(), there - number + 1).astype(int).tolist()
                    found += [Gap(number + k, *ends) for k, ends in enumerate(itertools.pairwise(bounds))]
                start = rows[-1].as_py() + 1
                number = there + 1
        return [*found, Gap(number, start, None)]

    def write(self, checked: Iterable[Checked], gaps: Sequence[Gap]) -> None:
        """Writes the parts of `gaps`, each with its rows, and from the last one on as many as there are rows for."""
        starts = [gap.start for gap in gaps]
        of_gaps = itertools.groupby(checked, lambda row: bisect.bisect_right(starts, row.facts["row"]) - 1)
        index, rows = next(of_gaps, (-1, iter(())))
        for number, gap in enumerate(gaps[:-1]):
            if index == number:
                self._write_part(gap.number, rows, whole=True)
                index, rows = next(of_gaps, (-1, iter(())))
            else:
                self._write_part(gap.number, iter(()), whole=True)
        for part in itertools.count(gaps[-1].number):
            if not self._write_part(part, rows):
                return

    def drop(self, parts: Sequence[pathlib.Path]) -> None:
        """Removes parts that are no longer of use, and what of the dataset was written from them."""
        self._remove_dataset()
        for path in parts:
            path.unlink()
            path.with_suffix(".records").unlink(missing_ok=True)

    def note_failure(self) -> None:
        """Keeps the parts for a build that may differ in its source or its options."""
        self._write_plan(json.loads((self.folder / _PLAN).read_text(encoding="utf-8")) | {_FAILED: True})

    def read_records(self, part: pathlib.Path, lengths: Iterable[int], wanted: Iterable[bool]) -> Iterator[bytes]:
        """The records of a part's wanted rows; `lengths` are those of all its rows."""
        with open(part.with_suffix(".records"), "rb") as file:
            for length, want in zip(lengths, wanted, strict=True):
                if want:
                    yield file.read(length)
                else:
                    file.seek(length, os.SEEK_CUR)

    def is_finished(self) -> bool:
        """Whether the dataset is whole, if perhaps not yet in its place."""
        return (self.folder / "finished").exists()

    def finish(self) -> None:
        """Notes that the dataset is whole and frees the space of the parts."""
        sync(self.dataset)
        (self.folder / "finished").touch()
        self._remove("part-*")

    def remove(self) -> None:
        """Removes the folder; what tells that the build is finished goes last."""
        last = [self.folder / name for name in ("finished", _PLAN, "lock")]
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path not in last:
                path.unlink(missing_ok=True)
        for path in last:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _write_part(self, number: int, rows: Iterator[Checked], *, whole: bool = False) -> bool:
        """False where there was no row left; `whole` writes all rows, and a part of none too."""
        path = self.folder / f"part-{number:05d}.parquet"
        table: list[dict[str, Any]] = []
        written = 0
        with open(path.with_suffix(".records"), "wb") as file:
            for row in rows:
                table.append(row.facts)
                file.write(row.record)
                written += len(row.record)
                if not whole and (len(table) >= PART_ROWS or written >= PART_BYTES):
                    break
            file.flush()
            os.fsync(file.fileno())
        if not table and not whole:
            path.with_suffix(".records").unlink()
            return False
        unfinished = path.with_suffix(".unfinished")
        facts.write_part(unfinished, table)
        sync(unfinished)
        unfinished.rename(path)
        return True

    def _take_up(self, plan: dict[str, Any], has_keys: bool) -> None:
        path = self.folder / _PLAN
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
                failed = old.pop(_FAILED, False)
            except (OSError, ValueError, AttributeError) as error:
                raise UserError(f"{path}: damaged; delete {self.folder} to begin anew") from error
            difference = _difference(old, plan)
            if difference and not failed:
                raise UserError(
                    f"{self.folder}: an unfinished build of another kind ({difference}); give the same source and "
                    "options to go on with it, or delete the folder to begin anew"
                )
            if difference:
                self._remove_dataset()
            if difference and (told := _of_no_use(old, plan, has_keys)):
                self.drop(self.parts())
                print(f"{self.folder}: {told}, so that checking starts again", file=sys.stderr, flush=True)
        self.is_ours = True
        self._write_plan(plan)

    def _write_plan(self, plan: Mapping[str, Any]) -> None:
        path = self.folder / _PLAN
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(plan), encoding="utf-8")
        sync(unfinished)
        unfinished.rename(path)

    def _remove_dataset(self) -> None:
        shutil.rmtree(self.dataset, ignore_errors=True)
        self._remove("*.sizes.npy")

    def _remove_unfinished(self) -> None:
        self._remove("*.unfinished")
        for path in self.folder.glob("part-*.records"):
            if not path.with_suffix(".parquet").exists():
                path.unlink()

    def _remove(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            path.unlink()


def part_number(path: pathlib.Path) -> int:
    return int(path.stem.removeprefix("part-"))


def check_gaps(
    catalogue: Catalogue, gaps: Sequence[Gap], *, min_image_size: int, num_threads: int
) -> Iterator[Checked]:
    """The items of `gaps`, checked in threads, in order."""
    for gap in gaps:
        items = catalogue.items(gap.start)
        if gap.stop is not None:
            items = itertools.takewhile(functools.partial(_is_before, gap.stop), items)
        yield from check_items(catalogue, items, min_image_size=min_image_size, num_threads=num_threads)


def _is_before(stop: int, item: Item) -> bool:
    return item.row < stop


def check_items(
    catalogue: Catalogue, items: Iterator[Item], *, min_image_size: int, num_threads: int
) -> Iterator[Checked]:
    """The items, checked in threads, in order; a few dozen of them in memory at a time."""

    def check(some: list[Item]) -> list[Checked]:
        return [check_item(catalogue, item, min_image_size=min_image_size) for item in some]

    pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="check")
    waiting: collections.deque[concurrent.futures.Future[list[Checked]]] = collections.deque()
    try:
        while some := list(itertools.islice(items, TASK_ROWS)):
            waiting.append(pool.submit(check, some))
            if len(waiting) > 2 * num_threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def sync(path: pathlib.Path) -> None:
    """Waits until the file, or the folder with its files, is on the disk."""
    for entry in [*(path.iterdir() if path.is_dir() else ()), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _of_no_use(old: Mapping[str, Any], new: Mapping[str, Any], has_keys: bool) -> str:
    """In what the plan of a build that failed differs so that what it checked is of no use; "" where it is of use."""
    for name in _CHECKING:
        if told := _difference(old["options"].get(name), new["options"].get(name), name):
            return told
    told = _difference(old["format"], new["format"], "format")
    return told or ("" if has_keys else _difference(old["source"], new["source"], "source"))


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first thing in which two plans differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if told := _difference(old.get(key), new.get(key), f"{name}.{key}" if name else key):
                return told
        return ""
    return "" if old == new else f"{name} was {str(old)[:80]}, is {str(new)[:80]}"
