"""What a process that Grain starts to prepare batches does first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WATCH_SECONDS = 1.0  # between two looks at whether the parent is alive


def parse_absl_flags() -> None:
    """In the parent: Grain reads flags of absl, which a program that has its own does not parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """In the parent: threads and processes that are started here, or by such threads, never get SIGNALS.

    One that comes before `begin_worker` would kill the worker, and then `multiprocessing` hangs, since nobody reads
    what it writes to the worker's pipe.
    """
    resource_tracker.ensure_running()  # else started later, when it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(parent: int, index: int, count: int) -> None:
    """In a worker: leaves signals to the parent, which may have steps to finish, and ends when it is gone.

    Grain stops its workers where the parent closes them or exits, but not where it is killed.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
