"""A training run between its steps: what it computes with, where it writes, and how far it has come."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from siglip_jax.checkpoints import Checkpoints
from siglip_jax.errors import UserError
from siglip_jax.training.optimizer import ema
from siglip_jax.training.run.bad_images import BadImages
from siglip_jax.training.run.evaluations import Evaluator, measure
from siglip_jax.training.run.metric_writers import Writers
from siglip_jax.training.run.prefetch import Feed
from siglip_jax.training.run.profiler import Trace
from siglip_jax.training.run.training_progress import Progress
from siglip_jax.training.step import State, TrainStep

STEPS_IN_FLIGHT = 2  # dispatched and not yet finished: enough to hide the host, and bounds the batches in memory
IDS_SHOWN = 5  # of the items of a batch that broke the run

ItemIds = Callable[[np.ndarray], Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DispatchedStep:
    """A step that the devices may still be computing.

    Attributes:
      step: its number, from 1.
      metrics: its scalars, on the devices.
      index: rows of the split in its batch, int [n]; None where the iterator does not tell.
      replaced: images that this process has replaced up to its batch; None where the iterator does not count.
    """

    step: int
    metrics: dict[str, jax.Array]
    index: np.ndarray | None
    replaced: int | None


@dataclasses.dataclass(kw_only=True)
class Run:
    """What `loop.train` steps, evaluates and saves.

    Attributes:
      config: of the run.
      workdir: its folder.
      step_function: the jitted step.
      state: after the last dispatched step; its buffers are donated to the next one.
      checkpoints, writers, progress, trace, bad_images: where states, metrics and everything else go.
      feed: the batches.
      evaluators: see `loop.train`.
      step_metrics: names of what `step_function` reports.
      item_ids: see `loop.train`.
      in_flight: steps dispatched and not yet finished, the oldest first.
      metrics: of the last step that has finished.
      position: the iterator's state after the batch of the last dispatched step.
    """

    config: ml_collections.ConfigDict
    workdir: epath.Path
    step_function: TrainStep
    state: State
    checkpoints: Checkpoints
    writers: Writers
    progress: Progress
    trace: Trace
    bad_images: BadImages
    feed: Feed
    evaluators: Sequence[Evaluator]
    step_metrics: Collection[str]
    item_ids: ItemIds | None
    in_flight: collections.deque[DispatchedStep] = dataclasses.field(default_factory=collections.deque)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    position: dict[str, Any] = dataclasses.field(default_factory=dict)

    def step(self, step: int) -> None:
        """Dispatches a step, and finishes the oldest ones where too many are in flight."""
        self.trace.before(step, self.state)
        fed = self.feed.take(self.is_computing)
        self.bad_images.add(step, fed.replaced or ())
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self.state, metrics = self.step_function(self.state, fed.arrays)
        self.position = fed.position
        replaced = None if fed.replaced is None else self.bad_images.here
        self.in_flight.append(DispatchedStep(step=step, metrics=metrics, index=fed.index, replaced=replaced))
        self.finish(leaving=STEPS_IN_FLIGHT)
        self.trace.after(step, self.state)

    def is_computing(self) -> bool:
        """Whether the devices still have a step to do."""
        return bool(self.in_flight) and not self.in_flight[-1].metrics["gradient_norm"].is_ready()  # type: ignore[attr-defined]

    def finish(self, *, leaving: int = 0) -> None:
        """Waits for the oldest steps in flight until `leaving` are left, and logs their metrics.

        Raises:
          UserError: the loss or the gradient of one is not finite.
        """
        while len(self.in_flight) > leaving:
            self._finish_oldest()

    def evaluate(self, step: int, *, log: bool = True) -> dict[str, float]:
        """The metrics of all evaluators after `step`, as a rule also written to the log."""
        metrics = measure(self.evaluators, step, ema.evaluated(self.state), taken=self.step_metrics)
        if metrics and log:
            self.writers.write(step, metrics)
        return metrics

    def flush(self) -> None:
        """Writes out what was logged so far."""
        self.writers.flush()
        self.bad_images.flush()

    def save(self, step: int, *, evaluated: dict[str, float]) -> None:
        """Saves the state after `step` with the metrics of the step and of its evaluation, in the background."""
        self.checkpoints.save(
            step,
            state=self.state,
            iterator=self.bad_images.position(self.position),
            metrics=self.metrics | evaluated,
        )

    def _finish_oldest(self) -> None:
        done = self.in_flight.popleft()
        self.metrics = {name: float(value) for name, value in done.metrics.items()}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(self.metrics[name]):
                raise UserError(
                    f"step {done.step}: the {name.replace('_', ' ')} is {self.metrics[name]}; lower "
                    "config.optimizer.learning_rate and start again in a new --workdir (last good checkpoint here: "
                    f"{self.checkpoints.latest_step() or 'none yet'}{self._write_items(done)})"
                )
        logs = done.step % self.config.log_every == 0 or done.step in (1, self.config.steps)
        if logs and done.replaced is not None:
            self.progress.bad_pictures = self.bad_images.total(done.replaced)
        self.progress.update(done.step, loss=self.metrics["loss"], waited=self.feed.waited)
        if logs:
            self.writers.write(done.step, self.metrics | self.progress.rates())

    def _write_items(self, done: DispatchedStep) -> str:
        """Writes the items of a batch to not_finite.json; "; items a, b, c and 13 more: (path)" for a message."""
        if done.index is None:
            return ""
        ids = [str(item) for item in (done.index.tolist() if self.item_ids is None else self.item_ids(done.index))]
        name = "not_finite.json" if jax.process_count() == 1 else f"not_finite.{jax.process_index()}.json"
        (self.workdir / name).write_text(json.dumps({"step": done.step, "items": ids}, indent=1) + "\n")
        more = f" and {len(ids) - IDS_SHOWN} more" if len(ids) > IDS_SHOWN else ""
        return f"; items of the batch: {', '.join(ids[:IDS_SHOWN])}{more}, see {self.workdir / name}"
