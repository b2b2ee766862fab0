"""Which rows are in which batch of which process."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from input_pipeline.loader.settings import DataShare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of a run, numbered from its start.

    Batch k of an epoch is rows k * B ... (k + 1) * B - 1 of the epoch's order, and process i has the i-th part of them,
    so that the global batch does not depend on how many processes share it.

    Attributes:
      order: row numbers by position, each epoch of `len(order)` in another order; a Grain `MapDataset`.
      batch_size: of each of the processes.
      share: which of them this one is.
    """

    order: Any
    seed: int
    batch_size: int
    share: DataShare

    @property
    def global_size(self) -> int:
        return self.batch_size * self.share.process_count

    @property
    def batches_per_epoch(self) -> int:
        return len(self.order) // self.global_size

    def batch(self, number: int) -> tuple[int, np.ndarray]:
        """(epoch, int64 [batch_size] rows) of this process's part of a batch."""
        epoch, within = divmod(number, self.batches_per_epoch)
        start = epoch * len(self.order) + within * self.global_size + self.share.process_index * self.batch_size
        rows = [self.order[position] for position in range(start, start + self.batch_size)]
        return epoch, np.array(rows, np.int64)
