"""SIGTERM as an orderly end of a program that keeps its finished work."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING

from siglip_jax.errors import Stopped

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

AGAIN_AFTER = 0.01  # seconds


class _Terminated(BaseException):
    """SIGTERM; no Exception, so that nobody takes it for an error of the data."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turns SIGTERM into an orderly end: temporary folders go, finished work is kept, the exit code is 143."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise _Terminated

    def dropped(problem: UnraisableHookArgs) -> None:
        # Python drops what is raised in finalisers and in callbacks of weak references and of the garbage collector
        # (JAX has one). The signal comes again until it arrives where an exception counts.
        if isinstance(problem.exc_value, _Terminated):
            threading.Timer(AGAIN_AFTER, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            hook(problem)

    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows no handlers
        yield
        return
    hook, before = sys.unraisablehook, signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = dropped
    try:
        yield
    except _Terminated:
        raise Stopped("stopped by SIGTERM", code=128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook
