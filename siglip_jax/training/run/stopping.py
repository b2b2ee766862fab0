"""When a run stops before its end: SIGTERM (preemption), Ctrl-C or a deadline; every process at the same step."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a run stops, and the exit code that tells a launcher so."""

    name: str
    code: int


SIGTERM = Reason("SIGTERM", 128 + signal.SIGTERM)
CTRL_C = Reason("Ctrl-C", 128 + signal.SIGINT)
DEADLINE = Reason("the deadline", os.EX_TEMPFAIL)  # 75: not done, try again
_REASONS = {reason.name: reason for reason in (SIGTERM, CTRL_C, DEADLINE)}
_SIGNALS = {signal.SIGTERM: SIGTERM, signal.SIGINT: CTRL_C}
_KEY = "siglip_jax/stop"


class Stopping:
    """Turns signals into a question the loop asks after each step; a second Ctrl-C interrupts at once.

    Args:
      deadline: `time.monotonic()` by which everything is to be saved, or None.
      margin: seconds that the last step and the save will take.
      lag: steps that one process may be ahead of another.
    """

    def __init__(self, *, deadline: float | None, margin: Callable[[], float], lag: int):
        self._deadline, self._margin, self._lag = deadline, margin, lag
        self._signalled: Reason | None = None
        self._agreed: tuple[int, Reason] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def after(self, step: int) -> Reason | None:
        """The reason to save and stop after `step`, or None. All processes get the same answer for the same step."""
        reason = self._reason()
        if jax.process_count() == 1:
            return reason
        if self._agreed is None:
            self._agreed = _agree(step + self._lag + 1, reason)
        return self._agreed[1] if self._agreed is not None and step >= self._agreed[0] else None

    def _reason(self) -> Reason | None:
        if self._signalled is None and self._deadline is not None:
            return DEADLINE if time.monotonic() + self._margin() >= self._deadline else None
        return self._signalled

    def _handle(self, number: int, _: object) -> None:
        if self._signalled is None:
            self._signalled = _SIGNALS[signal.Signals(number)]
            # Not print: the step may be in the middle of one.
            os.write(2, f"{self._signalled.name}: finishing the step and saving\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def _agree(step: int, reason: Reason | None) -> tuple[int, Reason] | None:
    """The step and the reason that the first process with one announced, through the coordination service.

    A step needs all processes, so none can be more than the steps in flight ahead of the one that announces: all of
    them read of `step` before they have done it.
    """
    from jax._src import distributed  # jax offers its key-value store nowhere else

    client: Any = distributed.global_state.client
    if reason is not None:
        try:
            client.key_value_set(_KEY, f"{step} {reason.name}")
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise
    try:
        number, _, name = client.key_value_try_get(_KEY).partition(" ")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return None
    return int(number), _REASONS[name]
