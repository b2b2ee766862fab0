"""Which rows are in which batch of which process."""

from __future__ import annotations

import dataclasses

import numpy as np

from input_pipeline.loader.row_order import RowOrder
from input_pipeline.loader.settings import DataShare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The batches of a run, numbered from its start.

    Batch k of an epoch is rows k * B ... (k + 1) * B - 1 of the epoch's order, and process i has the i-th part of them,
    so that the global batch does not depend on how many processes share it.

    Attributes:
      order: row numbers by position, each epoch of `len(order)` in another order.
      batch_size: of each of the processes.
      share: which of them this one is.
      kept: int64, the rows of the split that take part and are numbered by `order`; None for all of them.
    """

    order: RowOrder
    batch_size: int
    share: DataShare
    kept: np.ndarray | None = None

    @property
    def seed(self) -> int:
        return self.order.seed

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
        return epoch, self.rows(self.order.at(np.arange(start, start + self.batch_size)))

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of the split that the order numbers so."""
        return numbers if self.kept is None else self.kept[numbers]
