"""The work in progress of a build, in `<dataset>.partial`: finished parts stay when the process is killed.

A part is some thousand rows in order: their records, one after the other, in `part-00000.records`, and the facts of all
its rows in `part-00000.parquet`, which is written last and in one step. Where a part ends follows from the rows alone,
so that a build that was stopped and went on has the same parts as one that was not.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from input_pipeline import facts
from input_pipeline.catalogue import Catalogue, Item
from input_pipeline.checking import Checked, check_item
from siglip_jax.errors import UserError

FORMAT = 1  # of the parts and of the plan
PART_ROWS, PART_BYTES = 8192, 128 * 2**20
TASK_ROWS = 16  # checked by a thread in one go
_PLAN = "plan.json"


class Stage:
    """The folder of a build; use it in a `with`, which takes its lock.

    Attributes:
      folder: `<dataset>.partial`.
      dataset: the finished dataset, before it moves to its place.
      is_ours: whether this process has its lock, and the work in it is of the same plan.
    """

    def __init__(self, out_dir: pathlib.Path):
        self.folder = out_dir.with_name(f"{out_dir.name}.partial")
        self.dataset = self.folder / "dataset"
        self.is_ours = False

    @contextlib.contextmanager
    def opened(self, plan: Mapping[str, Any]) -> Iterator[Stage]:
        """Makes the folder, or goes on with the one that is there.

        Raises:
          UserError: another process builds there, or it is the work of another source or of other options.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the kernel, however the process ends
            except OSError as error:
                raise UserError(f"{self.folder}: another process builds this dataset; wait for its end") from error
            self._check_plan(json.loads(json.dumps({"format": FORMAT, **plan})))
            self._remove_unfinished()
            yield self

    def parts(self) -> list[pathlib.Path]:
        """The fact tables of the finished parts, in order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def rows(self) -> int:
        """How many rows are in them."""
        return sum(facts.read_part(path, ["row"]).num_rows for path in self.parts())

    def next_row(self) -> int:
        """The number of the first row of the source that is in no finished part."""
        parts = self.parts()
        return facts.read_part(parts[-1], ["row"])["row"][-1].as_py() + 1 if parts else 0

    def write(self, checked: Iterable[Checked]) -> None:
        """Writes parts until there are no more rows; the last is short."""
        rows = iter(checked)
        for number in itertools.count(len(self.parts())):
            if not self._write_part(number, rows):
                return

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

    def _write_part(self, number: int, rows: Iterator[Checked]) -> bool:
        """False where there was no row left."""
        path = self.folder / f"part-{number:05d}.parquet"
        table: list[dict[str, Any]] = []
        written = 0
        with open(path.with_suffix(".records"), "wb") as file:
            for row in rows:
                table.append(row.facts)
                file.write(row.record)
                written += len(row.record)
                if len(table) >= PART_ROWS or written >= PART_BYTES:
                    break
            file.flush()
            os.fsync(file.fileno())
        if not table:
            path.with_suffix(".records").unlink()
            return False
        unfinished = path.with_suffix(".unfinished")
        facts.write_part(unfinished, table)
        sync(unfinished)
        unfinished.rename(path)
        return True

    def _check_plan(self, plan: dict[str, Any]) -> None:
        path = self.folder / _PLAN
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: damaged; delete {self.folder} to begin anew") from error
            if difference := _difference(old, plan):
                raise UserError(
                    f"{self.folder}: an unfinished build of another kind ({difference}); give the same source and "
                    "options to go on with it, or delete the folder to begin anew"
                )
            self.is_ours = True
            return
        self.is_ours = True
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(plan), encoding="utf-8")
        sync(unfinished)
        unfinished.rename(path)

    def _remove_unfinished(self) -> None:
        self._remove("*.unfinished")
        for path in self.folder.glob("part-*.records"):
            if not path.with_suffix(".parquet").exists():
                path.unlink()

    def _remove(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            path.unlink()


def check_items(catalogue: Catalogue, start: int, *, min_image_size: int, num_threads: int) -> Iterator[Checked]:
    """The items from row `start` on, checked in threads, in order; a few dozen of them in memory at a time."""

    def check(items: list[Item]) -> list[Checked]:
        return [check_item(catalogue, item, min_image_size=min_image_size) for item in items]

    items = catalogue.items(start)
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


def _difference(old: Any, new: Any, name: str = "") -> str:
    """The first thing in which two plans differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            if told := _difference(old.get(key), new.get(key), f"{name}.{key}" if name else key):
                return told
        return ""
    return "" if old == new else f"{name} was {str(old)[:80]}, is {str(new)[:80]}"
