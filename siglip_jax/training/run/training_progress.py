"""Progress of a run: a bar on a terminal, a plain line every few seconds in a log."""

from __future__ import annotations

import collections
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0
WINDOW = 50  # steps that rates are taken over


class Progress:
    """Counts steps and shows how they go on stderr.

    Args:
      steps, start: of the run, and done before this process.
      images_per_step: of the global batch.
      show: False for the processes beside the first.

    Attributes:
      seconds_at_peak: of a step, with the devices fully used; None shows no MFU.
      bad_pictures: replaced so far; None where nobody counts.
    """

    seconds_at_peak: float | None = None
    bad_pictures: int | None = None

    def __init__(
        self,
        steps: int,
        *,
        start: int,
        images_per_step: int,
        show: bool = True,
    ):
        self._begin = time.perf_counter()
        self._line_at = self._begin
        self._start = self._done = start
        self._steps, self._images = steps, images_per_step
        self._ends: collections.deque[tuple[float, float]] = collections.deque(maxlen=WINDOW + 1)
        self._show = show
        terminal = show and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=start, unit="step", desc="train") if terminal else None

    @property
    def step_seconds(self) -> float:
        """Of the last WINDOW steps, the first one of the process left out: it compiles."""
        if len(self._ends) < 2:
            return max(time.perf_counter() - self._begin, 1e-9)
        return max((self._ends[-1][0] - self._ends[0][0]) / (len(self._ends) - 1), 1e-9)

    def rates(self) -> dict[str, float]:
        """images_per_second, step_seconds, wait_share (of the time, the devices idle for want of data), and what is
        known of mfu and bad_pictures.
        """
        seconds = self.step_seconds
        waited = self._ends[-1][1] - self._ends[0][1] if len(self._ends) > 1 else 0.0
        found = {
            "images_per_second": self._images / seconds,
            "step_seconds": seconds,
            "wait_share": waited / (seconds * max(len(self._ends) - 1, 1)),
        }
        if self.seconds_at_peak is not None:
            found["mfu"] = self.seconds_at_peak / seconds
        if self.bad_pictures is not None:
            found["bad_pictures"] = self.bad_pictures
        return found

    def update(self, step: int, *, loss: float, waited: float) -> None:
        """A step has ended; `waited` are the seconds that the devices have waited for data so far."""
        previous, self._done = self._done, step
        now = time.perf_counter()
        self._ends.append((now, waited))
        if self._bar is not None:
            self._bar.set_postfix_str(self._text(loss), refresh=False)
            self._bar.update(step - previous)
        elif self._show and (now - self._line_at >= SECONDS_BETWEEN_LINES or step == self._steps):
            self._line_at = now
            left = self.step_seconds * (self._steps - step)
            print(
                f"train: step {step}/{self._steps}, {self._text(loss)}, {left / 60:.1f} minutes left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _text(self, loss: float) -> str:
        rates = self.rates()
        mfu = f", MFU {100 * rates['mfu']:.0f} %" if "mfu" in rates else ""
        bad = f", {self.bad_pictures} bad pictures replaced" if self.bad_pictures else ""
        return (
            f"loss {loss:.3f}, {rates['images_per_second']:.0f} images/s, {rates['step_seconds']:.3g} s/step{mfu}, "
            f"{100 * rates['wait_share']:.0f} % waiting for data{bad}"
        )
