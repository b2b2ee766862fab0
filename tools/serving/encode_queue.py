"""Queries that wait for the encoder are encoded together.

While one batch is encoded, others arrive; those are the next batch. Nobody waits for a batch to fill. Batches are
padded to a few sizes, so that JAX compiles few programs.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image

from tools.workflow.query_encoder import QueryEncoder

_GROWTH = 4  # a padded size is so many times the one before


class Busy(Exception):
    """More queries wait for the encoder than may."""


@dataclasses.dataclass
class _Waiting:
    kind: str  # "image" or "text"
    asked: Any  # the picture's bytes or the text
    row: Any = None  # what the encoder takes
    vector: Future[np.ndarray] = dataclasses.field(default_factory=Future)


class EncodeQueue:
    """An encoder, shared by threads and tasks.

    Args:
      batch: queries encoded at once, at most.
      waiting: queries that may be here, encoded or waiting; more are `Busy`.

    Attributes:
      encoded, batches: queries that were encoded, and in how many batches.
    """

    def __init__(self, encoder: QueryEncoder, *, batch: int = 16, waiting: int = 32):
        self.encoder, self.waiting = encoder, waiting
        self.sizes = _sizes(batch)
        self.encoded = self.batches = 0
        self._here = 0
        self._entries: collections.deque[_Waiting] = collections.deque()
        self._changed = threading.Condition()
        self._readers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="read picture")
        threading.Thread(target=self._work, name="encode", daemon=True).start()

    async def encode(self, kind: str, asked: bytes | str) -> np.ndarray:
        """float32 [1, dimension] of a picture ("image") or a text. A task that is cancelled leaves the queue.

        Raises:
          UserError: no picture, an empty text, or the model takes none such.
          Busy: too many wait.
        """
        return await asyncio.wrap_future(self.put(kind, asked))

    def put(self, kind: str, asked: bytes | str) -> Future[np.ndarray]:
        """As `encode`, for threads."""
        entry = _Waiting(kind, asked)
        with self._changed:
            if self._here >= self.waiting:
                raise Busy
            self._here += 1
        if kind == "image":
            self._readers.submit(self._read, entry)
        else:
            self._read(entry)
        return entry.vector

    def warm_up(self) -> np.ndarray:
        """Encodes each padded size of each tower once, so that the first queries find them compiled; one vector."""
        vector = np.empty(0)
        for size in self.sizes:
            if self.encoder.texts is not None:
                vector = self.encoder.encode_texts(["warm-up"] * size)[:1]
            if self.encoder.images is not None:
                vector = self.encoder.encode_pixels([self.encoder.pixels(_any_picture())] * size)[:1]
        return vector

    def _read(self, entry: _Waiting) -> None:
        """What can be done for each by itself: a picture to pixels, the checks of a text."""
        if entry.vector.cancelled():
            self._leave([entry])
            return
        try:
            entry.row = self.encoder.pixels(entry.asked) if entry.kind == "image" else self.encoder.checked(entry.asked)
        except Exception as error:
            self._leave([entry])
            if entry.vector.set_running_or_notify_cancel():
                entry.vector.set_exception(error)
            return
        with self._changed:
            self._entries.append(entry)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._entries:
                    self._changed.wait()
                kind = self._entries[0].kind
                entries = [each for each in self._entries if each.kind == kind][: self.sizes[-1]]
                for each in entries:
                    self._entries.remove(each)
            wanted = [each for each in entries if each.vector.set_running_or_notify_cancel()]
            if wanted:
                self.encoded, self.batches = self.encoded + len(wanted), self.batches + 1
                self._encode(kind, wanted)
            self._leave(entries)

    def _encode(self, kind: str, entries: Sequence[_Waiting]) -> None:
        size = next(size for size in self.sizes if size >= len(entries))
        rows = [each.row for each in entries] + [entries[-1].row] * (size - len(entries))
        try:
            vectors = self.encoder.encode_pixels(rows) if kind == "image" else self.encoder.encode_texts(rows)
        except Exception as error:
            if len(entries) == 1:
                entries[0].vector.set_exception(error)
            else:  # one of them may be at fault: the others get their answers
                for each in entries:
                    self._encode(kind, [each])
            return
        for place, each in enumerate(entries):
            each.vector.set_result(vectors[place : place + 1])

    def _leave(self, entries: Sequence[_Waiting]) -> None:
        with self._changed:
            self._here -= len(entries)


def _sizes(batch: int) -> list[int]:
    """1, 4, 16, ..., batch."""
    sizes = [1]
    while sizes[-1] < batch:
        sizes.append(min(batch, sizes[-1] * _GROWTH))
    return sizes


def _any_picture() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64), "white").save(file, "PNG")
    return file.getvalue()
