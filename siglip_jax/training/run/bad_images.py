"""Pictures that could not be used and were replaced: counted over all processes, listed in the workdir."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from siglip_jax.training.run.metric_writers import MetricsFile

LISTED = 1000  # lines of a process's file
STATE_KEY = "replaced"  # of an iterator's state: how many so far, by all processes


class BadImages:
    """What a run did not train on.

    Args:
      workdir: gets bad_pictures.jsonl, one a process, with lines {"step", "row", "id", "reason", "stand_in"}.
      start: the step that the run goes on from; what was listed beyond it is forgotten.
      position: the iterator's state there.
      repeats: how many processes are fed the same rows.
    """

    def __init__(self, workdir: epath.Path, *, start: int, position: dict[str, Any], repeats: int):
        name = "bad_pictures.jsonl" if jax.process_count() == 1 else f"bad_pictures.{jax.process_index()}.jsonl"
        self.path = workdir / name
        self._file = MetricsFile(self.path)
        self._file.drop_after(start)
        self._before, self._repeats = int(position.get(STATE_KEY, 0)), repeats
        self.here = 0  # replaced by this process since the start

    def __enter__(self) -> BadImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, step: int, replaced: Sequence[dict[str, Any]]) -> None:
        for each in replaced:
            self.here += 1
            if len(self._file) < LISTED:
                self._file.write(step, each)

    def total(self, here: int) -> int:
        """By all processes since the beginning of the run; `here` by this one. Every process calls it, or none."""
        if jax.process_count() > 1:
            here = int(np.sum(multihost_utils.process_allgather(np.asarray(here)))) // self._repeats
        return self._before + here

    def position(self, state: dict[str, Any]) -> dict[str, Any]:
        """The iterator's state with the count of all processes, of which only one is saved."""
        return {**state, STATE_KEY: self.total(self.here)} if STATE_KEY in state else state

    def flush(self) -> None:
        if len(self._file) or self.path.exists():
            self._file.flush()
