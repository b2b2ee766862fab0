"""SIGTERM as an orderly end of a program that keeps its finished work."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import types
from collections.abc import Iterator

from siglip_jax.errors import Stopped


class _Terminated(BaseException):
    """SIGTERM; no Exception, so that nobody takes it for an error of the data."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Turns SIGTERM into an orderly end: temporary folders go, finished work is kept, the exit code is 143."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        if _swallows(frame):
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # once more, when it is done
        else:
            raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # elsewhere Python allows no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Terminated:
        raise Stopped("stopped by SIGTERM", code=128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _swallows(frame: types.FrameType | None) -> bool:
    """Whether Python would print and forget an exception raised here: in a callback of the garbage collector, of which
    JAX has one, or in a finaliser."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None:
        if frame.f_code in callbacks or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False
