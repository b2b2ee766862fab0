"""Batches on the devices before the step asks for them, and how long the devices had nothing to do for want of one."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from siglip_jax.errors import UserError

AHEAD = 2  # batches on the devices that no step has asked for yet: one that arrives, one that waits
CLOSE_SECONDS = 10.0  # that the end waits for a batch under way; data that hang must not keep a program alive
POLL_SECONDS = 1e-3  # between two looks at whether the devices still work, while a batch is late


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch for a step.

    Attributes:
      arrays: what `place` gave, its transfer done.
      index: rows of the split [n] where the batch has them, numpy.
      position: the iterator's state after this batch and before any that was taken ahead: what a checkpoint needs.
      replaced: of this batch, as `input_pipeline.loader.batches.Batches.replaced` has it; None where the iterator has
      no such.
    """

    arrays: Any
    index: Any
    position: dict[str, Any]
    replaced: list[dict[str, Any]] | None


class Feed:
    """Takes `count` batches, in order and no more, in a thread of its own that also places them.

    While step k computes, batch k + 1 travels to the devices. An error of the iterator is raised by the `take` that
    asks for the batch in question, not earlier.

    Args:
      batches: see `training.loop.BatchIterator`; nobody else may use it until the end of the `with`.
      place: a batch -> arrays on the devices.

    Attributes:
      waited: seconds so far that the devices were idle since a batch was late.
    """

    def __init__(self, batches: Any, place: Callable[[dict[str, Any]], Any], *, count: int):
        self.waited = 0.0
        self._batches, self._place, self._left = batches, place, count
        self._count, self._fetched = count, 0
        self._taken: collections.deque[concurrent.futures.Future[Fed]] = collections.deque()
        self._asked: queue.SimpleQueue[concurrent.futures.Future[Fed] | None] = queue.SimpleQueue()
        # An executor's thread is no daemon: the interpreter would wait for it without end.
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        for _ in range(AHEAD):
            self._take_one_more()
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._taken:
            future.cancel()
        self._asked.put(None)
        self._thread.join(CLOSE_SECONDS)  # so that the iterator is the caller's again

    def wait_for_first(self) -> None:
        """Raises what is wrong with the first batch, before anything is done for the sake of a step."""
        if self._taken:
            self._taken[0].result()

    def take(self, busy: Callable[[], bool]) -> Fed:
        """The next batch; `busy` tells whether the devices still have something to do."""
        future = self._taken.popleft()
        idle_since = None
        while not future.done():
            if idle_since is None and not busy():
                idle_since = time.perf_counter()
            concurrent.futures.wait([future], timeout=POLL_SECONDS if idle_since is None else None)
        if idle_since is not None:
            self.waited += time.perf_counter() - idle_since
        fed = future.result()
        self._take_one_more()
        return fed

    def _take_one_more(self) -> None:
        if self._left:
            self._left -= 1
            self._taken.append(concurrent.futures.Future())
            self._asked.put(self._taken[-1])

    def _run(self) -> None:
        while (future := self._asked.get()) is not None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._fetch())
                except BaseException as error:
                    future.set_exception(error)

    def _fetch(self) -> Fed:
        try:
            batch = next(self._batches)
        except StopIteration:
            raise UserError(
                f"train: batches has ended after {self._fetched} of the {self._count} that the steps to do need; let "
                "it go on, as make_loader's with epochs=None does, or lower config.steps"
            ) from None
        self._fetched += 1
        position, replaced = self._batches.get_state(), getattr(self._batches, "replaced", None)
        arrays = jax.block_until_ready(self._place(batch))
        return Fed(arrays, batch.get("index"), position, replaced)
