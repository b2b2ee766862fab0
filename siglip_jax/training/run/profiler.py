"""A profile of chosen steps, for xprof or TensorBoard's profile page."""

from __future__ import annotations

from typing import Any

import jax
from etils import epath


class Trace:
    """Records steps first ... last into `folder`; (0, 0) records nothing.

    The steps before the first have ended when recording begins, the last when it ends, so that the profile holds these
    steps and all of them.
    """

    def __init__(self, folder: epath.Path, *, first: int, last: int):
        self._folder, self._first, self._last = folder, first, last
        self._recording = False

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._recording:  # stopped in between
            self._recording = False
            jax.profiler.stop_trace()

    def before(self, step: int, state: Any) -> None:
        if step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._recording = True

    def after(self, step: int, state: Any) -> None:
        if self._recording and step == self._last:
            jax.block_until_ready(state)
            self._recording = False
            jax.profiler.stop_trace()
