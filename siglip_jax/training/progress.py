"""Progress of a run: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts steps and shows images/s, time left and the loss on stderr."""

    def __init__(self, steps: int, *, start: int, images_per_step: int):
        self._begin = time.perf_counter()
        self._line_at = self._begin
        self._start = self._done = start
        self._steps, self._images = steps, images_per_step
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=start, unit="step", desc="train") if terminal else None

    @property
    def rate(self) -> float:
        """Images per second since the (re)start, compilation included."""
        return (self._done - self._start) * self._images / max(time.perf_counter() - self._begin, 1e-9)

    def waited(self, seconds: float) -> float:
        """`seconds` as a share of the time so far."""
        return seconds / max(time.perf_counter() - self._begin, 1e-9)

    def update(self, step: int, *, loss: float) -> None:
        previous, self._done = self._done, step
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {self.rate:.0f} images/s", refresh=False)
            self._bar.update(step - previous)
            return
        now = time.perf_counter()
        if now - self._line_at >= SECONDS_BETWEEN_LINES or step == self._steps:
            self._line_at = now
            left = (now - self._begin) / max(step - self._start, 1) * (self._steps - step)
            print(
                f"train: step {step}/{self._steps}, loss {loss:.3f}, {self.rate:.0f} images/s, "
                f"{left / 60:.1f} minutes left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
