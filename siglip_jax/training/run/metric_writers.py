"""Where the figures of a run go: metrics.jsonl always, TensorBoard event files beside it, Weights & Biases when asked.

clu's metric writers import TensorFlow, which training does without, so the event files are written with TensorBoard's
own records and protocol buffers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from siglip_jax.errors import UserError
from siglip_jax.training.parallel.distributed import is_first_process

FLUSH_SECONDS = 10.0


class Writer(Protocol):
    """Takes the figures of a step."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Writers:
    """Several writers as one; closes them at the end of a `with`."""

    def __init__(self, *writers: Writer):
        self._writers = writers

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, metrics)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()


def make_writers(
    workdir: epath.Path, *, start: int, wandb_project: str = "", config: Mapping[str, Any] | None = None
) -> Writers:
    """The writers of a run that goes on after step `start`; what was logged beyond it is forgotten.

    Process 0 of several writes, the others nothing.

    Raises:
      UserError: Weights & Biases was asked for and is not installed.
    """
    if not is_first_process():
        return Writers()
    writers: list[Writer] = []
    if wandb_project:  # first, since it may not be installed, and then no file is opened
        writers.append(WeightsAndBiases(workdir, project=wandb_project, config=config or {}))
    file = MetricsFile(workdir / "metrics.jsonl")
    file.drop_after(start)
    return Writers(file, TensorBoardFile(workdir / "tensorboard", start=start), *writers)


class MetricsFile:
    """One JSON object a line: {"step", name: value, ...}."""

    def __init__(self, path: epath.Path):
        self.path = path
        self._lines: list[str] = path.read_bytes().decode("utf-8", "replace").splitlines() if path.exists() else []

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def drop_after(self, step: int) -> None:
        """Forgets what a killed run logged beyond the checkpoint it is continued from; all of it at step 0."""
        self._lines = [line for line in self._lines if step and _step_of(line) <= step]

    def __len__(self) -> int:
        return len(self._lines)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps({"step": step, **metrics}))

    def flush(self) -> None:
        self.path.write_text("".join(f"{line}\n" for line in self._lines))

    def close(self) -> None:
        self.flush()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a kill


class TensorBoardFile:
    """An event file; one more each time the run is started."""

    def __init__(self, folder: epath.Path, *, start: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
        number = 0
        while (folder / f"{name}.{number}").exists():
            number += 1
        self._records = RecordWriter((folder / f"{name}.{number}").open("wb"))
        self._flushed = time.monotonic()
        self._add(file_version="brain.Event:2")
        # TensorBoard drops what an earlier, killed process logged from here on.
        self._add(step=start + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        self.flush()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step=step, summary=self._summary(value=values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._records.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._records.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())


class WeightsAndBiases:
    """A run of the project, continued when the workdir is."""

    def __init__(self, workdir: epath.Path, *, project: str, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"config.wandb_project={project!r}: wandb is not installed; pip install 'siglip-jax[wandb]', or leave "
                "the field empty"
            ) from error
        identity = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=project, id=identity, resume="allow", name=workdir.name, dir=str(workdir), config=dict(config)
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        pass  # it sends from a process of its own

    def close(self) -> None:
        self._run.finish()
