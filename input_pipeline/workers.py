"""What a process that Grain starts to prepare batches does first."""

from __future__ import annotations

import os
import signal
import threading
import time

WATCH_SECONDS = 1.0  # between two looks at whether the parent is alive


def parse_absl_flags() -> None:
    """In the parent: Grain reads flags of absl, which a program that has its own does not parse."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def begin_worker(parent: int, index: int, count: int) -> None:
    """Leaves signals to the parent, which may have steps to finish and to save, and ends when it is gone.

    Grain stops its workers where the parent closes them or exits, but not where it is killed.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
